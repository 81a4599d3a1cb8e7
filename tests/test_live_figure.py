"""The live figure, in a real JupyterLab where that is what counts, and alone where it is not."""

import ipywidgets
import plotly.graph_objects as go
import pytest
from browser import KERNEL_IS_IDLE
from tiny_labs import write_lab

from labkit.errors import RequestError
from labkit.lab.results import CALLBACK_ERROR
from labkit.widgets import LiveFigure, observe_safely

DRAWN = "figure => figure.calcdata[0].map(point => point.y)"  # the numbers plotly drew
TEXT_COLOUR = "figure => getComputedStyle(figure.querySelector('.gtitle')).fill"
WIDGETS = """
import ipywidgets, threading, time, plotly.graph_objects as go
from labkit.widgets import LiveFigure, observe_safely

def draw(r):
    layout = dict(title=f"rank {r}", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", height=380)
    return go.Figure(go.Bar(y=[r, 2 * r, 1 / (r - 13)], name=threading.current_thread().name), layout)

slider = ipywidgets.IntSlider(rank, 1, 64, description="rank", continuous_update=False)
message, live = ipywidgets.HTML(), LiveFigure(go.Figure())
observe_safely([slider], lambda: live.show(draw(slider.value)), message)
ipywidgets.VBox([slider, message, live])
"""
SECOND = "LiveFigure(draw(2), label='another figure')"
MATRIX = """
import numpy
heatmap = go.Heatmap(z=numpy.arange(6).reshape(2, 3) / 2, x=["a", "b", "c"], y=["first", "second"])
line = go.Scatter(x=[1, 1, 2], y=numpy.array([3.0, 4.0, 5.0]), name="twice")
LiveFigure(go.Figure([heatmap, line], {"title": "matrix"}))
"""
CHANGED_EARLY = """
from IPython.display import display
changed = LiveFigure(draw(3), label="changed")
display(changed)
time.sleep(1)
changed.show(draw(4))
"""
SLOW_DRAWING = """() => {
    const react = Plotly.react;
    Plotly.react = async (...all) => { await react(...all); await new Promise(done => setTimeout(done, 2000)); };
}"""
BUSY_ONCE = """
import pathlib, time
mark = pathlib.Path(".ran-before")
if not mark.exists():
    mark.touch()
    time.sleep(600)
"""


def opened(lab_page, notebook: str = "labs/90_live.ipynb", *more_cells: str):
    write_lab(lab_page.server.root / notebook, WIDGETS, SECOND, *more_cells)
    return lab_page.open(notebook)


def widget_cell(page):
    cell = page.locator(".jp-Cell", has=page.locator(".widget-slider"))
    return cell, cell.locator(".js-plotly-plot"), cell.locator(".noUi-handle")


def press(handle, key: str, times: int) -> None:
    handle.focus()
    for _ in range(times):
        handle.press(key)


@pytest.mark.browser
def test_keyboard_moves_the_drawn_numbers_and_an_error_is_shown(lab_page):
    from playwright.sync_api import expect

    large_frames = noting_large_frames(lab_page.page)
    lab = opened(lab_page, "labs/90_live.ipynb", MATRIX).run_all()
    cell, figure, handle = widget_cell(lab.page)
    figure.scroll_into_view_if_needed()
    assert figure.evaluate(DRAWN)[:2] == [8, 16]
    expect(figure.get_by_role("img")).to_have_accessible_name("rank 8")
    expect(drawn_as(lab.page, "another figure").locator(".gtitle")).to_have_text("rank 2")
    expect(lab.page.locator("[data-title^='Share']")).to_have_count(0)
    assert not large_frames, "JupyterLab has plotly.js already"

    press(handle, "ArrowRight", 4)
    expect(figure.locator(".gtitle")).to_have_text("rank 12")
    expect(figure.get_by_role("img")).to_have_accessible_name("rank 12")
    assert figure.evaluate(DRAWN)[:2] == [12, 24]
    assert figure.evaluate("figure => figure.data[0].name") == "MainThread", "the shipped settings turn subshells off"

    press(handle, "ArrowRight", 1)
    expect(cell.locator(f".{CALLBACK_ERROR}")).to_have_text("ZeroDivisionError: division by zero")
    press(handle, "ArrowRight", 1)
    expect(figure.locator(".gtitle")).to_have_text("rank 14")
    expect(cell.locator(f".{CALLBACK_ERROR}")).to_have_count(0)
    numbers = lab.page.locator(".labkit-numbers").last
    numbers.locator("summary").press("Enter")
    expect(numbers.get_by_role("table")).to_have_count(2)
    tables = [table.get_by_role("row").all_inner_texts() for table in numbers.get_by_role("table").all()]
    assert tables[0] == ["\ta\tb\tc", "first\t0\t0.5\t1", "second\t1.5\t2\t2.5"]
    assert tables[1] == ["\ttwice", "1\t3", "1\t4", "2\t5"]
    lab.watched.assert_quiet()


def noting_large_frames(page) -> list[int]:
    """The lengths of all frames above 1 MB that will come to the page; plotly.js has 5."""
    lengths: list[int] = []

    def note(frame) -> None:
        if len(frame) > 1_000_000:
            lengths.append(len(frame))

    page.on("websocket", lambda socket: socket.on("framereceived", note))
    return lengths


def drawn_as(page, label: str):
    """The live figure that a screen reader calls `label`."""
    return page.locator(".labkit-figure", has=page.get_by_role("img", name=label, exact=True))


@pytest.mark.browser
def test_a_reloaded_page_shows_the_current_figure_in_either_theme(lab_page, screenshots):
    from playwright.sync_api import expect

    lab = opened(lab_page).run_all()
    _, figure, handle = widget_cell(lab.page)
    press(handle, "ArrowRight", 2)
    expect(figure.locator(".gtitle")).to_have_text("rank 10")
    lab.reload()
    _, figure, _ = widget_cell(lab.page)
    expect(figure.locator(".gtitle")).to_have_text("rank 10")
    assert figure.evaluate(DRAWN)[:2] == [10, 20]

    colours = {}
    for theme in ("Light", "Dark"):
        lab.use_theme(f"JupyterLab {theme}")
        lab.page.wait_for_function(
            "([colour, ask]) => eval(ask)(document.querySelector('.js-plotly-plot')) !== colour",
            arg=[colours.get("Light", ""), TEXT_COLOUR],
        )
        colours[theme] = figure.evaluate(TEXT_COLOUR)
        figure.scroll_into_view_if_needed()
        lab.page.screenshot(path=screenshots / f"live-figure-{theme.lower()}.png")
    lab.page.set_viewport_size({"width": 900, "height": 800})
    lab.page.wait_for_function("figure => figure._fullLayout.width <= figure.offsetWidth", arg=figure.element_handle())
    assert figure.bounding_box()["height"] == pytest.approx(380, abs=2)
    lab.watched.assert_quiet()


@pytest.mark.browser
def test_a_figure_is_drawn_after_the_kernel_that_owed_plotly_is_gone(lab_page):
    from playwright.sync_api import expect

    large_frames = noting_large_frames(lab_page.page)
    lab = opened(lab_page, "labs/91_busy.ipynb", BUSY_ONCE)
    lab.page.evaluate("() => { delete window._JUPYTERLAB['jupyterlab-plotly'] }")  # as in another front end
    lab.page.evaluate("() => { void window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    waiting = lab.page.locator(".labkit-figure").last
    expect(waiting).to_have_text("The figure is being drawn.")
    expect(waiting).to_contain_text("run this cell")
    lab.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    lab.page.wait_for_function(KERNEL_IS_IDLE)
    lab.run_all()
    expect(drawn_as(lab.page, "rank 8")).to_be_visible()
    expect(drawn_as(lab.page, "another figure").locator(".gtitle")).to_have_text("rank 2")
    assert len(large_frames) == 1, "plotly.js must travel once for all figures of a page"


@pytest.mark.browser
def test_a_figure_that_changes_during_its_first_drawing_shows_the_change(lab_page):
    from playwright.sync_api import expect

    lab = opened(lab_page, "labs/95_early.ipynb", CHANGED_EARLY)
    lab.page.evaluate("() => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = 4; }")
    lab.command("notebook:run-all-above")
    expect(drawn_as(lab.page, "another figure")).to_be_visible()
    lab.page.evaluate(SLOW_DRAWING)
    lab.command("notebook:run-cell")
    expect(drawn_as(lab.page, "changed").locator(".gtitle")).to_have_text("rank 4")


@pytest.mark.browser
def test_a_figure_whose_kernel_is_lost_at_once_says_so(lab_page):
    from playwright.sync_api import expect

    lab = opened(lab_page, "labs/96_lost.ipynb", BUSY_ONCE.replace(".ran-before", ".ran-before-96"))
    lab.page.evaluate("() => { delete window._JUPYTERLAB['jupyterlab-plotly'] }")  # as in another front end
    lab.page.evaluate("() => { void window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    waiting = lab.page.locator(".labkit-figure").last
    expect(waiting).to_have_text("The figure is being drawn.")
    lab.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    expect(waiting).to_contain_text("run this cell")
    assert not [error for error in lab.watched.errors if "kernel is gone" in error]


def test_a_figure_travels_as_json_browsers_accept():
    live = LiveFigure(go.Figure(go.Scatter(y=[1.0, float("nan")])), label="two points")
    assert live.figure["data"][0]["y"] == [1.0, None]
    live.show(go.Figure(layout={"title": "new"}))
    assert live.figure["layout"]["title"]["text"] == "new"
    assert live.label == "two points"


def test_a_callback_s_exception_is_shown_escaped_raised_and_cleared():
    slider, message, seen = ipywidgets.IntSlider(1, 0, 9), ipywidgets.HTML(), []

    def callback() -> None:
        if slider.value == 5:
            raise ValueError("5 is\n<not> possible")
        if slider.value == 6:
            raise RequestError("rank=6 is not possible.")
        seen.append(slider.value)

    observe_safely([slider], callback, message)
    assert seen == [1]
    with pytest.raises(ValueError, match="possible"):
        slider.value = 5
    assert "ValueError: 5 is &lt;not&gt; possible" in message.value and CALLBACK_ERROR in message.value
    with pytest.raises(RequestError):
        slider.value = 6
    assert ">rank=6 is not possible.<" in message.value
    slider.value = 7
    assert seen == [1, 7] and message.value == ""


def test_a_callback_that_fails_at_once_fails_the_cell():
    with pytest.raises(ZeroDivisionError):
        observe_safely([], lambda: 1 / 0, ipywidgets.HTML())
