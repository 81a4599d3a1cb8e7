"""What lab 00 is made of: what a machine can show, samples of text, the figure and the widgets."""

import html
import re
from dataclasses import replace
from urllib.parse import unquote

import pytest
from tiny import SHAPE

from labkit import gpus, machine
from labkit.case import AVAILABLE_METHODS, Case
from labkit.lab import abilities
from labkit.lab.abilities import USABLE_SHARE, Facts, facts_here, reaches, verdict
from labkit.memory.estimate import estimate
from labkit.memory.shape import shape_of
from labkit.models.architectures import ARCHITECTURES
from labkit.units import GIB, format_bytes

CASE = Case(model="tiny", method="full")


def with_gpu(name: str, pages: bool | None = True) -> Facts:
    gpu = gpus.find(name)
    return Facts(gpu.name, gpu.title, gpu.memory_bytes, gpu.compute_capability, pages, avx512_bf16=False)


def answers(facts: Facts) -> list[bool | None]:
    """Step, allocator, bf16, flash, paging."""
    return [one.can for one in abilities.abilities(facts)]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (with_gpu("h200"), [True, True, True, True, True]),
        (with_gpu("a100-40gb"), [True, True, True, True, True]),
        (with_gpu("t4"), [True, True, False, False, True]),
        (with_gpu("rtx4090", pages=False), [True, True, True, True, False]),
        (replace(with_gpu("h200", pages=None), compute_capability=None), [True, True, None, None, None]),
        (Facts("cpu", "a processor", 4 * GIB, avx512_bf16=True), [True, False, True, True, False]),
        (Facts("cpu", "a processor", 4 * GIB, avx512_bf16=False), [True, False, False, True, False]),
        (Facts("cpu", "a processor", 4 * GIB), [True, False, False, True, False]),
    ],
    ids=["H200", "A100", "T4", "Windows", "silent driver", "new CPU", "old CPU", "unknown CPU"],
)
def test_what_a_machine_can_do_follows_from_its_facts(facts, expected):
    assert answers(facts) == expected
    for one in abilities.abilities(facts):
        assert one.because and bool(one.instead) == (one.can is not True), "what cannot be done has a stand-in"


def test_the_facts_here_are_the_drivers_own(monkeypatch):
    import torch

    facts = machine.GpuFacts("NVIDIA T4", 15 * GIB, 14 * GIB, "570.0", None)
    attributes = dict(zip(abilities.ASKED, (7, 5, 1), strict=True))
    monkeypatch.setattr(machine, "gpu", lambda: facts)
    monkeypatch.setattr(machine, "driver_attribute", attributes.get)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = facts_here()
    assert (here.device, here.device_type, here.memory_bytes) == ("t4", "cuda", 14 * GIB)
    assert (here.compute_capability, here.pages_on_demand) == ((7, 5), True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert facts_here().device == "cpu", "a GPU that torch cannot use is none"


@pytest.mark.parametrize(
    "facts", [with_gpu("t4"), with_gpu("h200"), Facts("cpu", "a processor", 4 * GIB), Facts("cpu", "a toy", 1)]
)
def test_the_largest_that_fits_fits_and_all_larger_ones_do_not(facts):
    for reach in reaches(facts, CASE):
        peaks = {
            name: estimate(replace(CASE, model=name, method=reach.method), facts.device_type).peak_allocated_bytes
            for name in ARCHITECTURES
        }
        limit = USABLE_SHARE * facts.memory_bytes
        size = shape_of(reach.fits.case.model).parameters if reach.fits else 0
        larger = [name for name in ARCHITECTURES if shape_of(name).parameters > size]
        assert reach.fits is None or reach.fits.peak_allocated_bytes == peaks[reach.fits.case.model] <= limit
        assert all(peaks[name] > limit for name in larger)
        nearest = min(larger, key=lambda name: shape_of(name).parameters, default=None)
        assert (reach.next.case.model if reach.next else None) == nearest


def test_qlora_reaches_at_least_as_far_as_lora_and_that_as_full():
    for facts in (with_gpu("t4"), with_gpu("a100-40gb"), Facts("cpu", "a processor", 32 * GIB)):
        sizes = [shape_of(reach.fits.case.model).parameters for reach in reaches(facts, CASE)]
        assert sizes == sorted(sizes) and sizes[-1] > sizes[0]


def test_the_verdict_keeps_a_fifth_free():
    assert [verdict(size, 100) for size in (80, 81, 100, 101)] == ["fits", "may just fit", "may just fit",
                                                                   "does not fit"]  # fmt: skip


def shown(function, *arguments, **options) -> str:
    """The text of what `function` displays."""
    from unittest.mock import patch

    with patch("IPython.display.display") as display:
        function(*arguments, **options)
    return "\n".join(call.args[0].data for call in display.call_args_list)


def test_the_tables_say_what_was_found():
    facts = with_gpu("t4")
    rows = shown(abilities.show_abilities, facts).splitlines()
    assert len(rows) == 2 + len(abilities.abilities(facts)) and sum("**no**" in row for row in rows) == 2
    reach = shown(abilities.show_reaches, facts, CASE)
    assert all(f"| {found.method} | `{found.fits.case.model}`" in reach for found in reaches(facts, CASE))
    assert "none of those known" in shown(abilities.show_reaches, Facts("cpu", "a toy", 1), CASE)


def test_training_what_was_prepared_is_training():
    """Lab 00 looks at the model before it trains it; that must not change what is trained."""
    from labkit.case import Trial
    from labkit.models.build import tokenizer_of
    from labkit.train.loop import train
    from labkit.train.step import prepare
    from labkit.train.tasks.scoring import complete

    trial = Trial(model="tiny", method="lora", steps=2, batch_size=2)
    prepared = prepare(trial, "cpu", learning_rate=trial.learning_rate)
    complete(prepared.model, tokenizer_of(trial), ["add 1 and 2"], max_new_tokens=2)
    looked_at = train(trial, "cpu", 0, prepared)
    assert looked_at.training is prepared and looked_at.losses == train(trial, "cpu", 0).losses


def test_samples_are_escaped_and_judged():
    from labkit.lab.samples import show_samples

    page = shown(
        show_samples,
        ["a", "b", "c", "d"],
        ["1 + 2", "3 < 4", "'x'", "no expression at all"],
        before=["", "<b>|</b>", "z" * 200, ""],
        after=["2 + 1", "3 < 4", "open('f')", "no expression"],
    )
    page = page.replace("&nbsp;", " ")
    assert page.count("✓ exact") == page.count("✓ same value") == 1 and page.count("✗ no") == 2
    assert "<b>" not in page and "&lt;b&gt;|" in page and "z" * 91 not in page and "<em>nothing</em>" in page


@pytest.mark.parametrize("card", ["this machine", *(gpu.name for gpu in gpus.GPUS)])
@pytest.mark.parametrize("model", ["tiny", "llama-3.1-8b", "llama-3.1-70b"])
def test_the_figure_stacks_the_estimates_and_draws_the_card(model, card):
    from labkit.figures.memory import unit_of
    from labkit.figures.start import IN_SIGHT
    from labkit.widgets.start import draw

    here = Facts("cpu", "a processor", 16 * GIB)
    case = Case(model=model, method="qlora")
    figure, device = draw(case, card, here), "cpu" if card == "this machine" else "cuda"
    records = [estimate(replace(case, method=method), device) for method in AVAILABLE_METHODS]
    scale, _ = unit_of(records)
    for position, record in enumerate(records):
        height = sum(trace.y[position] for trace in figure.data)
        assert height * scale == pytest.approx(record.peak_allocated_bytes)
    memory_bytes = here.memory_bytes if device == "cpu" else gpus.find(card).memory_bytes
    tallest = max(record.peak_allocated_bytes for record in records)
    drawn = [shape.y0 * scale for shape in figure.layout.shapes]
    assert drawn == ([pytest.approx(memory_bytes)] if memory_bytes <= IN_SIGHT * tallest else [])
    assert figure.layout.yaxis.range[1] * scale > max([tallest, *drawn])
    title = figure.layout.title.text.replace("<br>", " ")
    assert verdict(records[-1].peak_allocated_bytes, memory_bytes) in title
    assert f"estimated for {'cpu' if device == 'cpu' else card}, " in title


def linked(panel) -> Case:
    (address,) = re.findall('href="data:application/json;charset=utf-8,([^"]*)"', panel.link.value)
    return Case.from_json(unquote(html.unescape(address)))


def test_every_control_of_the_explorer_reaches_the_figure_and_the_case():
    from labkit.widgets.start import start_explorer

    panel = start_explorer(Case(model="tiny", method="qlora"), Facts("cpu", "a processor", 16 * GIB))
    assert next(iter(panel.controls)) == "model", "the first slider is the model"
    changes = {
        "model": "llama-3.1-8b", "card": "t4", "batch_size": 4, "sequence_length": 1024, "method": "lora",
        "checkpointing": "reentrant",
    }  # fmt: skip
    assert changes.keys() == panel.controls.keys()
    for name, value in changes.items():
        before = panel.live.figure
        panel.controls[name].value = value
        assert panel.live.figure != before
        case, device = linked(panel), "cpu" if panel.controls["card"].value == "this machine" else "cuda"
        assert case == case.on(device), "the file says all that is drawn"
        drawn = panel.live.figure["layout"]["annotations"][AVAILABLE_METHODS.index(case.method)]["text"]
        assert drawn == format_bytes(estimate(case, device).peak_allocated_bytes)
        assert case.precision in panel.live.figure["layout"]["title"]["text"]
    panel.reset()
    assert panel.controls["model"].value == "tiny" and panel.controls["card"].value == "this machine"


def test_the_explorer_takes_a_model_of_ones_own():
    from labkit.widgets.start import start_explorer

    panel = start_explorer(Case(model=SHAPE, method="lora"), with_gpu("t4"))
    assert (
        panel.controls["model"].value == SHAPE and "llama, LoRA: fits" in panel.live.figure["layout"]["title"]["text"]
    )


def test_the_box_answers_and_shows_errors():
    from labkit.widgets.start import answer_box

    def answer(text: str) -> str:
        if text == "bad":
            raise ValueError("cannot <say>")
        return text.upper() + " <b>"

    box = answer_box(answer, "first")
    asked, message, shown = box.children
    assert "FIRST &lt;b&gt;" in shown.value
    asked.value = "second"
    assert "SECOND" in shown.value
    asked.value = "  "
    assert "write an instruction" in shown.value
    with pytest.raises(ValueError, match="cannot"):
        asked.value = "bad"
    assert "cannot &lt;say&gt;" in message.value
