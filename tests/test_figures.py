"""Figures are pure: records in, the numbers of the records drawn, named colours, sources in the subtitle."""

import pytest
from tiny import SHAPE

from labkit.case import Case
from labkit.figures.explorer import explorer
from labkit.figures.memory import loss_curves, memory_and_quality, memory_by_kind, memory_by_phase
from labkit.figures.template import KIND_STYLES, METHOD_COLOURS, template
from labkit.memory.estimate import estimate
from labkit.methods.rescale import AlphaCurve
from labkit.record import BREAKDOWN
from labkit.units import MIB

CURVES = {
    "lora": AlphaCurve(16.0, (8.0, 16.0, 32.0), (0.9, 0.5, 0.8), (1.0, 2.0, 4.0)),
    "qlora": AlphaCurve(16.0, (8.0, 16.0, 32.0), (0.95, 0.55, 0.85), (1.1, 2.2, 4.4)),
}


def records(**changes):
    return [estimate(Case(model=SHAPE, method=method, **changes), "cpu") for method in ("full", "lora", "qlora")]


def all_figures():
    found = records()
    return {
        "memory_by_kind": memory_by_kind(found),
        "memory_by_phase": memory_by_phase(found),
        "loss_curves": loss_curves({"full": [3, 2, 1], "lora": [3, 2.5, 2]}, "a setting"),
        "memory_and_quality": memory_and_quality(found, {"full": 0.5, "lora": 0.4, "qlora": 0.3}, "a setting"),
        "explorer": explorer(found, "lora", 16.0, CURVES),
    }


def test_stacks_reach_the_peak():
    found = records()
    figure = memory_by_kind(found)
    for position, record in enumerate(found):
        height = sum(trace.y[position] for trace in figure.data)
        assert height * MIB == pytest.approx(record.peak_allocated_bytes)
    assert figure.layout.barmode == "stack"


def test_every_kind_of_a_record_has_a_style_of_its_own():
    assert set(KIND_STYLES) == set(BREAKDOWN)
    looks = [(colour, pattern) for _, colour, pattern in KIND_STYLES.values()]
    assert len(set(looks)) == len(looks) and len(set(METHOD_COLOURS.values())) == len(METHOD_COLOURS)


def test_phases_are_drawn_as_recorded():
    found = records()
    figure = memory_by_phase(found)
    assert figure.data[1].y[2] * MIB == pytest.approx(found[1].phases["backward"])


@pytest.mark.parametrize("name", list(all_figures()))
def test_every_figure_names_its_axes_and_its_source(name):
    figure = all_figures()[name]
    layout = figure.layout
    title, _, subtitle = layout.title.text.partition("<br>")
    assert title and ("estimated" in subtitle or "a setting" in subtitle)
    assert layout.yaxis.title.text
    assert layout.template.layout.paper_bgcolor == template().layout.paper_bgcolor


def test_estimates_say_so():
    assert "estimated" in memory_by_kind(records()).layout.title.text


def test_rank_moves_the_first_trace_and_alpha_moves_no_bar():
    small, large = (explorer(records(rank=rank), "lora", 16.0, CURVES) for rank in (8, 64))
    assert small.data[0].name == "adapters" and list(small.data[0].y) != list(large.data[0].y)
    other = explorer(records(), "lora", 32.0, CURVES)
    bars = [[list(trace.y) for trace in figure.data if trace.type == "bar"] for figure in (small, other)]
    assert bars[0] == bars[1]
    marks = [trace for trace in other.data if trace.type == "scatter" and trace.marker.symbol == "diamond"]
    assert [(mark.x[0], mark.y[0]) for mark in marks] == [(32.0, 0.8), (32.0, 4.0)]


def test_full_fine_tuning_has_no_alpha():
    figure = explorer(records(), "full", 16.0, CURVES)
    assert not [trace for trace in figure.data if trace.type == "scatter" and trace.marker.symbol == "diamond"]


@pytest.mark.browser
@pytest.mark.slow
def test_every_figure_renders(screenshots):
    for name, figure in all_figures().items():
        for background in ("white", "#111111"):
            path = screenshots / f"{name}-{'light' if background == 'white' else 'dark'}.png"
            figure.update_layout(paper_bgcolor=background, width=900).write_image(path)
            assert path.stat().st_size > 5000
