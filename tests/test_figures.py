"""Figures are pure: records in, the numbers of the records drawn, named colours, sources in the subtitle."""

import importlib
import inspect
import math
import pkgutil
import re
from itertools import combinations

import colour_vision
import plotly.graph_objects as go
import pytest
from tiny import SHAPE

import labkit.figures
from labkit.case import Case
from labkit.figures import template
from labkit.figures.explorer import explorer
from labkit.figures.memory import FADED, loss_curves, memory_and_quality, memory_by_kind, memory_by_phase
from labkit.figures.start import step_against_card
from labkit.figures.template import KIND_STYLES, METHOD_COLOURS, new_figure, source_of, sources_of
from labkit.memory.estimate import estimate
from labkit.methods.rescale import AlphaCurve
from labkit.record import BREAKDOWN, Record
from labkit.units import GIB, MIB

FROM = ("cpu", "2026-01-31T12:00:00+00:00")
CURVES = {
    "lora": AlphaCurve(16.0, (8.0, 16.0, 32.0), (0.9, 0.5, 0.8), (1.0, 2.0, 4.0), *FROM),
    "qlora": AlphaCurve(16.0, (8.0, 16.0, 32.0), (0.95, 0.55, 0.85), (1.1, 2.2, 4.4), *FROM),
}
LONG_SOURCE = "tiny, expressions-easy, 150 steps of 16, seed 0; measured on cpu, 2026-01-31"
BACKGROUNDS = {"light": "#ffffff", "dark": "#111111"}  # JupyterLab's


def records(**changes) -> list[Record]:
    return [estimate(Case(model=SHAPE, method=method, **changes), "cpu") for method in ("full", "lora", "qlora")]


def of_every_kind() -> list[Record]:
    """Records that hold every kind of memory at once: the longest legend there can be."""
    sizes = {kind: (1 + position) * MIB for position, kind in enumerate(BREAKDOWN)}
    found = {"breakdown": sizes, "peak_allocated_bytes": sum(sizes.values()), "device": "rtx3060-12gb"}
    case = {method: Case(model=SHAPE, method=method) for method in METHOD_COLOURS}
    return [Record(meter="measured", kind="memory", case=case[m], created=FROM[1], **found) for m in METHOD_COLOURS]


GALLERY = {  # function -> its pictures; test_no_figure_is_missing holds this against labkit.figures
    "memory_by_kind": lambda: [memory_by_kind(records()), memory_by_kind(of_every_kind())],
    "memory_by_phase": lambda: [memory_by_phase(records())],
    "loss_curves": lambda: [loss_curves({"full": [3, 2, 1], "lora": [3, 2.5, 2], "qlora": [3, 2.6, 2]}, LONG_SOURCE)],
    "memory_and_quality": lambda: [
        memory_and_quality(records(), {"full": 1, "lora": 0.4, "qlora": 0.3}, LONG_SOURCE.partition(";")[0])
    ],
    "step_against_card": lambda: [
        step_against_card(records(), "lora", "fits", "RTX 3060 12 GB", size) for size in (40 * MIB, 12 * GIB)
    ],
    "explorer": lambda: [explorer(records(), method, 16.0, CURVES) for method in ("lora", "full")],
}


def figure_functions() -> set[str]:
    """The names of all public functions of labkit.figures that return a figure, but for the template's own."""
    found = set()
    for module in pkgutil.iter_modules(labkit.figures.__path__, "labkit.figures."):
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            returns = inspect.signature(function).return_annotation
            if returns in (go.Figure, "go.Figure") and function is not new_figure and not name.startswith("_"):
                found.add(name)
    return found


def test_no_figure_is_missing_from_the_gallery():
    assert figure_functions() == set(GALLERY), "add an example to GALLERY"


def axes_with_data(figure: go.Figure) -> set[str]:
    pairs = [(trace.xaxis or "x", trace.yaxis or "y") for trace in figure.data]
    return {f"{name[0]}axis{name[1:]}" for pair in pairs for name in pair}


@pytest.mark.parametrize("name", GALLERY)
def test_every_figure_names_its_axes_and_its_source(name):
    for figure in GALLERY[name]():
        title, _, subtitle = figure.layout.title.text.replace("<br>", " ").partition("<span")
        assert title.strip() and re.search(r"(measured on|estimated for) [\w-]+, \d{4}-\d\d-\d\d", subtitle)
        for axis in axes_with_data(figure):
            names = isinstance(figure.data[0].x[0], str) and axis == "xaxis"
            assert names or figure.layout[axis].title.text, f"{axis} has no title"
        assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_a_figure_that_cannot_say_its_source_is_refused():
    for subtitle in ("", "a setting", "measured on cpu", "estimated for h200", "measured, 2026-01-31"):
        with pytest.raises(ValueError, match="names no meter, device and date"):
            new_figure("title", subtitle)
    found = records()
    assert source_of(found[0]) == f"estimated for cpu, {found[0].created[:10]}"
    assert sources_of(found) == source_of(found[0]), "one source is named once"
    assert sources_of([found[0], CURVES["lora"]]).endswith("; measured on cpu, 2026-01-31")


def test_long_titles_break_and_move_the_plot_down():
    short, long = (new_figure("word " * count, LONG_SOURCE).layout for count in (3, 20))
    longest = max(len(line) for line in re.split(r"<br>|<[^>]*>", long.title.text))
    assert longest <= template.SUBTITLE_LETTERS and long.margin.t > short.margin.t


def test_stacks_reach_the_peak():
    found = records()
    figure = memory_by_kind(found)
    for position, record in enumerate(found):
        height = sum(trace.y[position] for trace in figure.data)
        assert height * MIB == pytest.approx(record.peak_allocated_bytes)
    assert figure.layout.barmode == "stack"
    assert [note.y * MIB for note in figure.layout.annotations] == [record.peak_allocated_bytes for record in found]


def test_every_kind_of_a_record_has_a_style_of_its_own():
    assert set(KIND_STYLES) == set(BREAKDOWN)
    looks = [(colour, pattern) for _, colour, pattern in KIND_STYLES.values()]
    assert len(set(looks)) == len(looks) and len(set(METHOD_COLOURS.values())) == len(METHOD_COLOURS)


def test_phases_are_drawn_as_recorded():
    found = records()
    figure = memory_by_phase(found)
    assert figure.data[1].y[2] * MIB == pytest.approx(found[1].phases["backward"])


def test_rank_moves_the_first_trace_and_alpha_moves_no_bar():
    small, large = (explorer(records(rank=rank), "lora", 16.0, CURVES) for rank in (8, 64))
    assert small.data[0].name == "adapters" and list(small.data[0].y) != list(large.data[0].y)
    other = explorer(records(), "lora", 32.0, CURVES)
    bars = [[list(trace.y) for trace in figure.data if trace.type == "bar"] for figure in (small, other)]
    assert bars[0] == bars[1]
    assert marked(other) == [("LoRA", 32.0, 0.8), ("LoRA", 32.0, 4.0)]


def marked(figure: go.Figure) -> list[tuple[str, float, float]]:
    curves = [trace for trace in figure.data if trace.type == "scatter"]
    return [
        (trace.name, *point)
        for trace in curves
        for symbol, *point in zip(trace.marker.symbol, trace.x, trace.y, strict=True)
        if symbol == "diamond"
    ]


def test_full_fine_tuning_has_no_alpha():
    assert not marked(explorer(records(), "full", 16.0, CURVES))


def test_the_difference_of_colours_is_that_of_the_standard():
    """Pairs 1, 7, 13 and 25 of Sharma, Wu and Dalal (2005), table 1."""
    for one, other, expected in (
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ):
        assert colour_vision.difference(one, other) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("vision", colour_vision.VISIONS)
def test_colours_used_together_differ_for_every_reader(vision):
    """A CIEDE2000 of 2.3 is just noticeable; 10 is seen at a glance. Kinds of one hue differ in pattern."""
    for colours in (METHOD_COLOURS.values(), {colour for _, colour, _ in KIND_STYLES.values()}):
        for one, other in combinations(colours, 2):
            seen = [colour_vision.lab(colour, vision) for colour in (one, other)]
            assert colour_vision.difference(*seen) > 10, (vision, one, other)


@pytest.mark.parametrize("background", BACKGROUNDS.values(), ids=BACKGROUNDS)
def test_marks_and_text_stand_out_from_the_background(background):
    """WCAG 1.4.11: 3 to 1 for marks. WCAG 1.4.3 asks 4.5 for text, which no colour has on white and on black alike: the
    best is the root of their own contrast, and the template's grey, of text that does not know its theme, is that."""
    outline = template.template().data.bar[0].marker.line
    assert outline.width and outline.color == template.GREY
    best = math.sqrt(colour_vision.contrast(*BACKGROUNDS.values()))
    assert colour_vision.contrast(template.GREY, background) == pytest.approx(best, rel=0.02)
    assert all(colour_vision.contrast(colour, background) > 3 for colour in METHOD_COLOURS.values())


def test_faded_bars_keep_their_outline_and_the_legend_its_colours():
    for figure in (explorer(records(), "qlora", 16.0, CURVES), *GALLERY["step_against_card"]()):
        for bar in (trace for trace in figure.data if trace.type == "bar"):
            assert bar.opacity is bar.marker.opacity is None and bar.marker.line.color is None, "else outlines fade"
            colours = [colour for _, colour in bar.marker.colorscale]
            full = next(colour for title, colour, _ in KIND_STYLES.values() if title == bar.name)
            assert sum(bar.marker.color) == 1 and colours[0].endswith(f", {FADED})") and colours[1:] == [full, full]


def test_labels_of_bars_break_for_a_phone_and_subtitles_at_their_parts():
    figure = memory_by_kind(records(), ["full fine-tuning, measured", "LoRA, measured", "QLoRA, measured"])
    assert figure.data[0].x[:2] == ("full<br>fine-tuning,<br>measured", "LoRA,<br>measured")
    subtitle = new_figure("title", LONG_SOURCE).layout.title.text.partition(">")[2].partition(">")[2]
    assert subtitle.split("<br>")[-1] == "measured on cpu, 2026-01-31</span>"


def test_a_loss_curve_names_its_method_and_its_steps_are_whole():
    figure = loss_curves({"lora": [3, 2]}, LONG_SOURCE)
    assert figure.layout.showlegend and figure.data[0].name == "LoRA" and figure.layout.xaxis.dtick == 1


@pytest.mark.browser
@pytest.mark.slow
def test_every_figure_renders_in_either_theme_and_on_a_phone(screenshots, chromium_path, monkeypatch):
    import kaleido

    monkeypatch.setenv("BROWSER_PATH", chromium_path)
    wanted = []
    for name, examples in GALLERY.items():
        for number, figure in enumerate(examples()):
            for theme, background in BACKGROUNDS.items():
                for width in (380, 900):
                    path = screenshots / f"{name}-{number}-{theme}-{width}.png"
                    shown = go.Figure(figure).update_layout(paper_bgcolor=background, width=width)
                    wanted.append({"fig": shown, "path": path, "opts": {"width": width}})
    kaleido.write_fig_from_object_sync(wanted)
    for picture in wanted:
        assert picture["path"].stat().st_size > 5000
