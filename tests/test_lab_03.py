"""Lab 03, run as its readers run it: by the runner, by plain papermill from anywhere, and in a browser."""

import json
import subprocess
import sys

import pytest

from labkit.machine import repository_root
from labkit.memory.shape import adapted, shape_of
from labkit.runner import run_lab

NAME = "03_vram_full_lora_qlora"
LAB = repository_root() / "labs" / f"{NAME}.ipynb"
FITS = "figure => Math.abs(figure._fullLayout.width - figure.offsetWidth) < 2"
DRAWN = "figure => figure.calcdata.map(trace => trace.map(point => point.y))"


def lora_parameters(rank: int, targets: str) -> int:
    shape = shape_of("tiny")
    return shape.layers * sum(rank * (x.features_in + x.features_out) for x in adapted(shape, targets))


@pytest.mark.slow
def test_parameters_reach_the_results(tmp_path):
    run = run_lab("03", out=tmp_path / "out", preset="smoke", rank=24, targets="qv", sequence_length=32)
    results = {result["name"]: result["value"] for result in run.results}
    assert results["trainable_parameters_lora"] == lora_parameters(24, "qv")
    assert results["trainable_parameters_full"] == shape_of("tiny").parameters
    for method in ("full", "lora", "qlora"):
        measured, estimated = results[f"peak_allocated_bytes_{method}"], results[f"estimated_peak_bytes_{method}"]
        assert measured == pytest.approx(estimated, rel=0.02)
    assert results["upcast_raises_peak_by_bytes"] > 0
    page = (tmp_path / "out" / f"{NAME}.html").read_text()
    assert page.count('class="labkit-figure"') == 6 and "Traceback" not in page


@pytest.mark.slow
def test_plain_papermill_works_from_any_directory_and_the_lab_itself_refuses_nonsense(tmp_path):
    command = [sys.executable, "-m", "papermill", str(LAB), "out.ipynb", "-p", "preset", "smoke", "-p", "rank", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "rank=0 is not possible" in done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    (error,) = [output for output in outputs if output["output_type"] == "error"]
    assert error["traceback"] == ["RequestError: rank=0 is not possible: rank must be a whole number of at least 1."]


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser_the_first_slider_moves_the_drawn_numbers(lab_page, screenshots):
    from playwright.sync_api import expect

    page = lab_page.open(f"labs/{NAME}.ipynb", preset="smoke").run_all().page
    cell = page.locator(".jp-Cell", has=page.locator(".widget-slider"))
    figure, first = cell.locator(".js-plotly-plot"), cell.locator(".noUi-handle").first
    figure.scroll_into_view_if_needed()
    expect(figure.locator(".gtitle")).to_contain_text("rank 8")
    before = figure.evaluate(DRAWN)
    first.focus()
    for _ in range(8):
        first.press("ArrowRight")
    expect(figure.locator(".gtitle")).to_contain_text("rank 16")
    after = figure.evaluate(DRAWN)
    assert after[0][1] == pytest.approx(2 * before[0][1]), "LoRA's adapters double with the rank"
    assert before[0][0] == after[0][0] == 0, "full fine-tuning has no adapters"

    cell.locator(".widget-slider", has_text="alpha").locator(".noUi-handle").press("ArrowRight")
    expect(figure.locator(".gtitle")).to_contain_text("alpha 32")
    assert figure.evaluate(DRAWN)[:7] == after[:7], "no bar depends on alpha"
    cell.locator(".widget-toggle-button", has_text="qlora").click()
    expect(figure.locator(".gtitle")).to_contain_text("QLoRA")
    page.set_viewport_size({"width": 1450, "height": 1200})
    page.wait_for_function(FITS, arg=figure.element_handle())
    for theme in ("Light", "Dark"):
        lab_page.use_theme(f"JupyterLab {theme}")
        cell.locator(".labkit-panel").screenshot(path=str(screenshots / f"lab-03-{theme.lower()}.png"))
    expect(page.locator("[data-title^='Share']")).to_have_count(0)
    lab_page.watched.assert_quiet()


def test_the_learning_rates_are_the_best_of_the_recorded_sweep():
    """Lowest validation loss of every method's arm; all arms alike but for the rate."""
    from labkit.lab.catalog import read_parameters
    from labkit.record import read

    (path,) = (repository_root() / "data/measurements/cpu").glob("*-learning-rates.jsonl")
    records = read(path)
    best = {}
    for record in sorted(records, key=lambda record: -record.scores["loss"]):
        best[record.case.method] = record.case.learning_rate
    defaults = read_parameters(LAB)
    assert best == {
        "full": float(defaults["learning_rate_full"]),
        "lora": float(defaults["learning_rate_adapter"]),
        "qlora": float(defaults["learning_rate_adapter"]),
    }
    arms = {method: [r.case.learning_rate for r in records if r.case.method == method] for method in best}
    for method, rates in arms.items():
        assert min(rates) < best[method] < max(rates), f"{method}: the best rate lies at the edge of the sweep"
