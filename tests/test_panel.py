"""The panel around a live figure: what it does alone, and what readers get of it in a real JupyterLab."""

import html
import json
import os
import re
import statistics
from urllib.parse import unquote

import ipywidgets
import plotly.graph_objects as go
import pytest
from browser import KERNEL_IS_IDLE
from tiny_labs import write_lab

from labkit.case import Case
from labkit.cli.measure import read_case
from labkit.errors import RequestError
from labkit.lab.results import CALLBACK_ERROR
from labkit.widgets import panel
from labkit.widgets.live import STALE_CLASS

IMPORTS = """
from types import SimpleNamespace
from labkit.case import Case
from labkit.widgets.memory_explorer import memory_explorer
alphas = tuple(2.0**power for power in range(9))
curve = SimpleNamespace(trained_alpha=16.0, alphas=alphas, losses=[1 / alpha for alpha in alphas], norms=alphas,
                        meter="measured", device="cpu", created="2026-01-31")
"""
EXPLORER = "memory_explorer(Case(model='tiny', method='lora', rank=rank), 'cpu', {'lora': curve, 'qlora': curve})"
SLOW = """
import time
import ipywidgets, plotly.graph_objects as go
from labkit.widgets import panel
drawn = []

def draw(rank, targets):
    time.sleep(0 if not drawn else 1)
    drawn.append(rank)
    return go.Figure(go.Bar(x=["a"], y=[rank]), {"title": f"{len(drawn)} drawn, {rank}", "yaxis": {"title": "MiB"}})

panel({"rank": ipywidgets.IntSlider(rank, 1, 64), "targets": ipywidgets.Dropdown(options=["qv", "mlp"])}, draw)
"""
# Measured inside the page: from Run All of a notebook whose kernel has just started (imports and all) to the first
# drawn figure; from a key to the end of the drawing that it causes.
FIRST_PICTURE = """async command => {
    const start = performance.now(), running = window.jupyterapp.commands.execute(command);
    const drawn = () => document.querySelector('.labkit-figure .gtitle');
    while (!drawn() && performance.now() < start + 60000) await new Promise(requestAnimationFrame);
    const milliseconds = performance.now() - start;
    await running;
    return milliseconds;
}"""
TIME_KEYS = """figure => {
    let pressed;
    window.milliseconds = [];
    document.addEventListener('keydown', () => { pressed = performance.now(); }, true);
    figure.on('plotly_afterplot', () => {
        if (pressed) window.milliseconds.push(performance.now() - pressed);
        pressed = undefined;
    });
}"""


def draw(rank: int, targets: str) -> go.Figure:
    if rank == 13:
        raise RequestError("rank=13 is not possible.")
    return go.Figure(layout={"title": f"{targets} {rank}"})


def some_panel(**changes):
    controls = {"rank": ipywidgets.IntSlider(8, 1, 64), "targets": ipywidgets.Dropdown(options=["qv", "mlp"])}
    return panel(
        controls, **{"draw": draw, "case": lambda **values: Case(model="tiny", method="lora", **values)} | changes
    )


def title(shown) -> str:
    return shown.live.figure["layout"]["title"]["text"]


def linked(markup: str) -> str:
    """The text that a panel's link saves."""
    (address,) = re.findall('href="data:application/json;charset=utf-8,([^"]*)"', markup)
    return unquote(html.unescape(address))


def test_draw_gets_the_controls_values_by_name_and_each_control_its_label():
    shown = some_panel()
    assert title(shown) == "qv 8"
    shown.controls["targets"].value = "mlp"
    assert title(shown) == "mlp 8" and shown.values == {"rank": 8, "targets": "mlp"}
    assert [control.description for control in shown.controls.values()] == ["rank", "targets"]


def test_reset_restores_the_first_values_and_draws_once():
    drawn = []
    shown = some_panel(draw=lambda **values: drawn.append(values) or draw(**values))
    start = shown.values
    shown.controls["rank"].value, shown.controls["targets"].value = 20, "mlp"
    del drawn[:]
    shown.reset_button.click()
    assert shown.values == start and drawn == [start] and title(shown) == "qv 8"


def test_the_link_holds_the_case_as_the_command_reads_it(tmp_path):
    shown = some_panel(case=lambda **values: Case(model="an 'odd\" <name>/100%25 &amp; é", method="lora", **values))
    shown.controls["rank"].value = 9
    (tmp_path / "case.json").write_text(linked(shown.link.value), encoding="utf-8")
    assert read_case(str(tmp_path / "case.json")) == Case(
        model="an 'odd\" <name>/100%25 &amp; é", method="lora", rank=9, targets="qv"
    )
    assert 'download="case.json"' in shown.link.value


def test_an_error_is_shown_the_link_follows_and_the_next_value_clears_it():
    shown = some_panel()
    with pytest.raises(RequestError):
        shown.controls["rank"].value = 13
    assert CALLBACK_ERROR in shown.message.value and ">rank=13 is not possible.<" in shown.message.value
    assert json.loads(linked(shown.link.value))["rank"] == 13, "the case itself is possible"
    assert title(shown) == "qv 8" and not shown.live.busy and STALE_CLASS in shown.live._dom_classes
    shown.controls["rank"].value = 14
    assert shown.message.value == "" and title(shown) == "qv 14" and STALE_CLASS not in shown.live._dom_classes


def test_a_case_that_cannot_be_has_no_link():
    shown = some_panel(
        case=lambda rank, targets: Case(model="tiny", method="lora", rank=rank - 8 if rank > 8 else rank)
    )
    assert json.loads(linked(shown.link.value))["rank"] == 8
    shown = some_panel(case=lambda rank, targets: Case(model="tiny", method="lora", rank=10 - rank))
    with pytest.raises(RequestError, match="rank=-10"):
        shown.controls["rank"].value = 20
    assert shown.link.value == ""


def test_a_panel_that_cannot_draw_at_first_fails_its_cell():
    with pytest.raises(ZeroDivisionError):
        some_panel(draw=lambda **values: 1 / 0)


def explorer(lab_page, *cells: str):
    """The explorer in a JupyterLab, run; and its page."""
    write_lab(lab_page.server.root / "labs/92_panel.ipynb", *(cells or (IMPORTS, EXPLORER)))
    lab = lab_page.open("labs/92_panel.ipynb").run_all()
    lab.page.locator(".labkit-figure .gtitle").wait_for()
    lab.page.locator(".labkit-panel").scroll_into_view_if_needed()
    return lab, lab.page


@pytest.mark.browser
def test_the_keyboard_reaches_everything_and_a_screen_reader_hears_names_and_values(lab_page):
    from playwright.sync_api import expect

    lab, page = explorer(lab_page)
    names = ["rank", "alpha", "batch", "sequence"]
    for name, value in zip(names, ["8", "16", "1", "512"], strict=True):
        expect(page.get_by_role("slider", name=name)).to_have_attribute("aria-valuetext", value)
    page.get_by_role("slider", name="rank").focus()
    order = []
    for _ in range(11):
        order.append(page.evaluate("() => document.activeElement.ariaLabel || document.activeElement.innerText.trim()"))
        page.keyboard.press("Tab")
    targets = page.get_by_role("combobox", name="targets")
    assert order[:5] == ["rank", "rank, typed", "alpha", "batch", "batch, typed"], order
    assert order[5:] == ["sequence", targets.inner_text().strip(), "full", "lora", "qlora", "reset"], order

    figure = page.locator(".labkit-figure")
    page.get_by_role("slider", name="alpha").press("ArrowRight")
    expect(page.get_by_role("slider", name="alpha")).to_have_attribute("aria-valuetext", "32")
    page.get_by_role("textbox", name="rank, typed").press("Control+A")
    page.keyboard.type("33\n")
    expect(figure.locator(".gtitle")).to_contain_text("LoRA: rank 33, alpha 32")
    group = page.get_by_role("group", name="method")
    expect(group.get_by_role("button", name="lora", exact=True, pressed=True)).to_be_visible()
    group.get_by_role("button", name="qlora").press("Space")
    expect(group.get_by_role("button", name="qlora", pressed=True)).to_be_visible()
    expect(figure.get_by_role("img")).to_have_accessible_name(
        re.compile(r"QLoRA: rank 33, alpha 32.* estimated for cpu")
    )
    lab.watched.assert_quiet()


@pytest.mark.browser
def test_numbers_link_and_reset_follow_the_controls(lab_page, tmp_path):
    from playwright.sync_api import expect

    lab, page = explorer(lab_page)
    figure, numbers = page.locator(".labkit-figure"), page.locator(".labkit-numbers")
    numbers.locator("summary").press("Enter")
    bytes_table = numbers.locator("table").first
    before = bytes_table.get_by_role("row", name=re.compile("^LoRA")).get_by_role("cell").first.inner_text()
    for _ in range(8):
        page.get_by_role("slider", name="rank").press("ArrowRight")
    expect(figure.locator(".gtitle")).to_contain_text("rank 16")
    after = bytes_table.get_by_role("row", name=re.compile("^LoRA")).get_by_role("cell").first.inner_text()
    assert float(after) == pytest.approx(2 * float(before), rel=0.01), "adapters double with the rank"
    drawn = figure.evaluate("figure => figure.calcdata[0][1].y")
    assert float(after) == pytest.approx(drawn, rel=1e-3)
    expect(numbers.locator("caption").first).to_have_text("MiB at the peak")

    with page.expect_download() as download:
        page.get_by_role("link", name="case.json").press("Enter")
    assert download.value.suggested_filename == "case.json"
    download.value.save_as(tmp_path / "case.json")
    assert read_case(str(tmp_path / "case.json")) == Case(model="tiny", method="lora", rank=16).on("cpu")
    page.locator(".labkit-panel .widget-button", has_text="reset").press("Enter")
    expect(figure.locator(".gtitle")).to_contain_text("rank 8")
    lab.watched.assert_quiet()


@pytest.mark.browser
def test_a_slow_change_says_that_it_is_working_and_the_newest_value_wins(lab_page):
    from playwright.sync_api import expect

    _, page = explorer(lab_page, SLOW)
    live = page.locator("[aria-busy]", has=page.locator(".labkit-figure"))
    title = page.locator(".labkit-figure .gtitle")
    expect(live).to_have_attribute("aria-busy", "false")
    for _ in range(10):
        page.get_by_role("slider", name="rank").press("ArrowRight")
    expect(live).to_have_attribute("aria-busy", "true")
    expect(title).to_contain_text("drawn, 18")
    expect(live).to_have_attribute("aria-busy", "false")
    assert int(title.text_content().split()[0]) < 8, "values that were overtaken are not drawn"


@pytest.mark.browser
def test_a_notebook_opened_without_a_kernel_shows_the_saved_figure_and_says_so(lab_page):
    from playwright.sync_api import expect

    lab, page = explorer(lab_page)
    expect(page.locator(".labkit-saved")).to_be_hidden()
    page.get_by_role("slider", name="rank").press("ArrowRight")
    expect(page.locator(".labkit-figure .gtitle")).to_contain_text("rank 9")
    lab.command("docmanager:save")
    assert (lab.server.root / "labs/92_panel.ipynb").stat().st_size < 100_000
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    page.reload()
    page.wait_for_function(KERNEL_IS_IDLE)
    expect(page.locator(".labkit-figure .gtitle")).to_contain_text("rank 9")
    expect(page.locator(".labkit-saved")).to_contain_text("run this cell")


@pytest.mark.browser
def test_controls_line_up_in_a_wide_and_in_a_narrow_window(lab_page):
    _, page = explorer(lab_page)
    for width, count in ((1400, 3), (900, 1)):
        page.set_viewport_size({"width": width, "height": 1000})
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        boxes = [control.bounding_box() for control in page.locator(".labkit-controls > *").all()]
        labels = [label.bounding_box() for label in page.locator(".labkit-controls .widget-label").all()]
        panel_box = page.locator(".labkit-panel").bounding_box()
        columns = {round(box["x"]) for box in boxes}
        assert len(columns) == count
        assert {round(label["x"]) for label in labels} == columns, "labels start where their column does"
        assert max(box["height"] for box in boxes) < 40, "nothing wraps under its label"
        assert all(box["x"] + box["width"] <= panel_box["x"] + panel_box["width"] + 1 for box in boxes)


@pytest.mark.slow
@pytest.mark.browser
def test_first_picture_within_2_s_and_a_change_within_100_ms(lab_page):
    """The best of three rounds; a machine that has more to do than it has cores may take longer in proportion."""
    first, changes = [], []
    for name in ("93_first", "93_second", "93_third"):
        write_lab(lab_page.server.root / f"labs/{name}.ipynb", IMPORTS, EXPLORER)
        lab = lab_page.open(f"labs/{name}.ipynb")
        page = lab.page
        first.append(page.evaluate(FIRST_PICTURE, "notebook:run-all-cells"))
        figure = page.locator(".labkit-figure")
        figure.evaluate(TIME_KEYS)
        for count in range(20):
            page.get_by_role("slider", name="rank").press("ArrowRight")
            page.wait_for_function("count => window.milliseconds.length > count", arg=count)
        changes.append(statistics.median(page.evaluate("() => window.milliseconds")))
    share = max(1, os.getloadavg()[0] / os.cpu_count())
    print(
        f"first picture {min(first):.0f} ms, a change {min(changes):.0f} ms (median of 20), load per core {share:.1f}"
    )
    assert min(first) < 2000 * share, first
    assert min(changes) < 100 * share, changes
