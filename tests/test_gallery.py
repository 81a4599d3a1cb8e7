"""The gallery and the pages: cards say what came of every lab, and all of it stands alone, on a phone, too."""

import base64
import html.parser
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from tiny_labs import write_lab

from labkit.errors import RequestError
from labkit.lab.catalog import card_of, find_labs, read_card
from labkit.runner import LabRun, run_labs
from labkit.runner.drawn import first_figure, thumbnail, title_lines
from labkit.runner.gallery import gallery_page
from labkit.runner.numbers import LARGEST_TABLE, numbers_of
from labkit.runner.pages import lab_page
from labkit.runner.serve import gallery_server

ROOT = Path(__file__).resolve().parents[1]
EMIT = "from labkit.lab.results import emit"
TITLE = "# 03 What does `rank` cost? <b>\n\n**Time**: a minute\non two cores (`quick`), less for smoke. $\\frac{a}{b}$"
WIDE = """
from IPython.display import Markdown, display
head = " | ".join(f"column_{i}" for i in range(30))
display(Markdown(f"| {head} |\\n|" + "---|" * 30 + "\\n|" + "1234567 |" * 30))
display(Markdown("$$" + " + ".join("\\\\frac{a}{b}" for i in range(60)) + "$$ and `$x$`"))
print("a_long_line_" * 40)
"""
FIGURES = """
import ipywidgets, plotly.graph_objects as go, plotly.io as pio
from IPython.display import display
from labkit.figures.template import METHOD_TITLES, new_figure
from labkit.widgets import LiveFigure, observe_safely

pio.renderers.default = "plotly_mimetype"
slider = ipywidgets.IntSlider(rank, 1, 64, description="rank")
choice = ipywidgets.Dropdown(options=["qv", "all-linear"], value="all-linear", description="targets")
message, live = ipywidgets.HTML(), LiveFigure(go.Figure())

def update():
    live.show(go.Figure(go.Bar(y=[slider.value]), dict(title=f"live, rank {slider.value}")))
    message.value = f"<b>{slider.value} & more</b>"

observe_safely([slider], update, message)
display(ipywidgets.VBox([slider, choice, message, live]))
lines = [go.Scatter(x=[1, 2], y=[3, rank / 3], name=name) for name in METHOD_TITLES.values()]
new_figure("a figure with a legend", "measured on cpu, 2026-01-31", data=lines).show()
go.Figure(go.Scatter(y=[3, 1, 2]), dict(title="a plain </script> figure"))
"""


def run_of(name: str, **more) -> LabRun:
    facts = {"outcome": "ok", "seconds": 75.2, "parameters": {}, "preset": "quick", "results": [], "error": None}
    return LabRun(name=name, created="2026-01-31T12:30:59+00:00", machine="A CPU, 2 cores, no GPU", **facts | more)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """The output folder of a run: one good lab, one that fails, one that was not run."""
    folder = tmp_path_factory.mktemp("gallery")
    emit = f"{EMIT}\nemit('peak_bytes', 2048 * rank, 'bytes', 0.0)\nemit('curve', [1, 2])"
    write_lab(
        folder / "labs" / "03_good.ipynb", emit, FIGURES, WIDE, text=TITLE, headline="peak_bytes", picture="cell-1"
    )
    write_lab(folder / "labs" / "04_bad.ipynb", "raise ValueError('<no> & never')", picture="cell-0")
    write_lab(folder / "labs" / "05_later.ipynb", text="# 05 What comes later?")
    labs = find_labs(["3", "4"], folder / "labs")
    runs = run_labs(labs, folder / "out", parameters={"rank": 4}, preset="smoke", jobs=2)
    assert [run.outcome for run in runs.values()] == ["ok", "failed"], runs
    return folder / "out"


class References(html.parser.HTMLParser):
    """What a browser would fetch to show a page, and where its links lead."""

    def __init__(self):
        super().__init__()
        self.fetched, self.links, self.in_style = [], [], False

    def handle_starttag(self, tag, attributes):
        self.in_style = tag == "style"
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "action") or (name == "href" and tag != "a"):
                self.fetched.append(value)
            elif name == "href":
                self.links.append(value)

    def handle_data(self, data):
        if self.in_style:
            self.fetched += re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", data)


def test_pages_fetch_nothing_from_elsewhere_and_link_to_what_exists(gallery):
    for path in gallery.glob("*.html"):
        found = References()
        found.feed(path.read_text())
        assert {address for address in found.fetched if not address.startswith("data:")} <= {"plotly.min.js"}, path.name
        for link in found.links:
            assert link.startswith("#") or (gallery / link).is_file(), (path.name, link)
    page = (gallery / "03_good.html").read_text()
    for text in ("rank: 4", "targets: all-linear", "<b>4 &amp; more</b>", 'aria-label="live, rank 4"', "preset smoke"):
        assert text in page
    assert page.count('class="labkit-figure"') == 3 and len(page) < 600_000


def test_a_card_says_question_headline_outcome_when_where_and_with_what(gallery):
    page = (gallery / "index.html").read_text()
    good, bad, later = re.findall(r"<article.*?</article>", page, re.DOTALL)
    for text in (
        "03 What does rank cost? &lt;b&gt;", "<strong>8,192 bytes (8.00 KiB)</strong> peak bytes", "preset smoke",
        "rank=4", ">ok<", "<time datetime=", " UTC<", "cores", 'href="03_good.html"', "live, rank 4", "labkit-figure",
        "peak_bytes = 8,192 bytes (8.00 KiB)",
    ):  # fmt: skip
        assert text in good, text
    assert ">failed<" in bad and "ValueError: &lt;no&gt; &amp; never" in bad and "labkit-figure" not in bad
    assert "05 What comes later?" in later and "<code>labkit run 05</code>" in later and "href" not in later
    assert "Labs: 1 ok, 1 failed, 1 not run here." in page and page.count('src="plotly.min.js"') == 1
    assert len(page) < 40_000


def test_a_gallery_is_made_even_of_runs_whose_notebooks_are_gone_or_not_as_expected(tmp_path):
    runs = {name: run_of(name) for name in ("01_gone", "02_torn", "03_odd")}
    (tmp_path / "02_torn.ipynb").write_text("{")
    (tmp_path / "03_odd.ipynb").write_text('{"metadata": {"labkit": {"picture": "x"}}, "cells": []}')
    page = gallery_page(runs, tmp_path)
    assert page.count("<article") == 3 and "01 gone" in page and 'class="labkit-figure"' not in page


def test_a_card_is_read_from_the_notebook(tmp_path):
    lab = write_lab(tmp_path / "03_x.ipynb", text=TITLE, headline="peak", picture="cell-0")
    card = read_card(lab)
    assert (card.number, card.question, card.time) == ("03", "What does rank cost? <b>", "a minute on two cores")
    assert (card.headline, card.picture) == ("peak", "cell-0")
    assert card_of("07_target_modules", {}).question == "target modules"
    lab.write_text("no notebook")
    assert read_card(lab).question == "x"


@pytest.mark.parametrize("lab", find_labs(), ids=lambda path: path.stem)
def test_every_lab_has_a_question_and_names_its_headline_and_picture(lab):
    card, notebook = read_card(lab), nbformat.read(lab, as_version=4)
    assert notebook.cells[0].source.startswith(f"# {card.number} ") and card.time and card.headline
    assert card.picture in {cell.id for cell in notebook.cells if cell.cell_type == "code"}


def test_a_thumbnail_keeps_the_marks_and_drops_what_needs_room():
    title = {"text": "Peak<br><span style='font-size: 12px'>measured on cpu, 2026-01-31</span>"}
    layout = {"title": title, "height": 420, "annotations": [{"text": "total"}], "yaxis": {"title": {"text": "MiB"}}}
    figure = {"data": [{"type": "bar", "y": [1, 2]}], "layout": layout}
    assert title_lines(figure) == ["Peak", "measured on cpu, 2026-01-31"]
    markup = thumbnail(figure)
    assert '"y": [1, 2]' in markup and '"staticPlot": true' in markup and "MiB" in markup and "total" not in markup
    assert 'aria-label="Small picture of the figure: Peak, measured on cpu, 2026-01-31"' in markup
    assert "</script>" in thumbnail({"data": [{"name": "</script><b>"}]}) and layout["annotations"]
    assert thumbnail({"data": [{"name": "</script>"}]}).count("</script>") == 1


def test_a_figure_s_numbers_are_in_the_page_as_drawn():
    packed = {"dtype": "f8", "bdata": base64.b64encode(struct.pack("<4d", 1, 2.5, 3, 4)).decode()}
    heatmap = {"type": "heatmap", "z": packed | {"shape": "2, 2"}, "x": ["a", "b"], "y": ["<c>", "d"]}
    bars = [{"name": name, "x": ["full<br>fine-tuning"], "y": [size]} for name, size in (("one", 1500), ("two", 0.25))]
    layout = {"xaxis": {"title": {"text": "method"}}, "yaxis": {"title": "MiB"}}
    found = numbers_of({"data": [heatmap, *bars], "layout": layout})
    assert re.findall(r"<td>(.*?)</td>", found) == ["1", "2.5", "3", "4", "1,500", "0.25"]
    assert "full fine-tuning</th>" in found and "<caption>MiB by method</caption>" in found and "<c>" not in found
    many = numbers_of({"data": [{"y": list(range(LARGEST_TABLE + 5))}]})
    assert many.count("<td>") == LARGEST_TABLE and f"first {LARGEST_TABLE} of {LARGEST_TABLE + 5} rows" in many
    assert numbers_of({"data": [{"y": []}]}) == ""


def test_the_first_figure_of_a_cell_may_be_plain_or_inside_widgets():
    models = {
        "box": {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_text", "IPY_MODEL_live"]}},
        "text": {"model_name": "HTMLModel", "state": {"value": "x"}},
        "live": {"model_name": "AnyModel", "state": {"figure": {"data": [1]}}},
    }
    plain = {"data": {"application/vnd.plotly.v1+json": {"data": [2]}}}
    live = {"data": {"application/vnd.jupyter.widget-view+json": {"model_id": "box"}}}
    assert first_figure({"outputs": [{"text": "x"}, live, plain]}, models) == {"data": [1]}
    assert first_figure({"outputs": [plain, live]}, models) == {"data": [2]}
    assert first_figure({"outputs": []}, models) is None and first_figure({}, models) is None


def test_of_a_progress_bar_a_page_keeps_the_last_state(tmp_path):
    cell = nbformat.v4.new_code_cell("train()", id="a")
    pieces = ["before\n", "\rstep 1", "\rstep 2 of 2", "\n", "after\r\n"]
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=piece) for piece in pieces]
    page = lab_page(nbformat.v4.new_notebook(cells=[cell]), run_of("01_x"), tmp_path)
    assert "step 1" not in page and "before\nstep 2 of 2\nafter" in page


def test_a_page_that_cannot_be_made_fails_its_lab_alone(tmp_path, monkeypatch):
    labs = [write_lab(tmp_path / "labs" / f"0{n}_x.ipynb", f"{EMIT}\nemit('n', {n})") for n in (1, 2)]
    real = lab_page

    def broken(notebook, run, folder):
        if run.name == "01_x":
            raise KeyError("an output nobody knows")
        return real(notebook, run, folder)

    monkeypatch.setattr("labkit.runner.pages.lab_page", broken)
    first, second = run_labs(labs, tmp_path / "out", preset="smoke").values()
    assert "its page could not be made (KeyError: 'an output nobody knows')" in first.error and first.values == {"n": 1}
    assert second.ok and "could not be made" in (tmp_path / "out" / "01_x.html").read_text()
    assert nbformat.read(tmp_path / "out" / "01_x.ipynb", as_version=4).cells[-1].outputs


@pytest.fixture
def served(gallery):
    """The address of the gallery's server."""
    with gallery_server(gallery, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def status_of(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/03_good.html?x=1", "text/html; charset=utf-8"),
        ("/plotly.min.js", "text/javascript; charset=utf-8"),
        ("/results.json", "application/json"),
        ("/03_good.ipynb", "application/x-ipynb+json"),
    ],
)
def test_the_gallery_is_served_with_the_right_types(served, path, kind):
    with urllib.request.urlopen(served + path) as answer:
        assert answer.headers["Content-Type"] == kind and answer.headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_but_the_files_of_the_gallery_is_served(served, gallery):
    (gallery / "linked").symlink_to(gallery.parent / "labs")
    (gallery / "secret").symlink_to("/etc/passwd")
    (gallery / "folder").mkdir()
    try:
        outside = ("/../labs/03_good.ipynb", "/%2e%2e/labs/03_good.ipynb", "/linked/03_good.ipynb", "/linked/")
        for path in (*outside, "/secret", "/folder", "/folder/", "/.lock", "/none.html", "//etc/passwd", "/..%5clabs"):
            assert status_of(served + path) == 404, path
        assert status_of(f"{served}/", Host="rebound.example.org") == 403
        assert status_of(f"{served}/", Host="localhost:1") == 200
    finally:
        (gallery / "linked").unlink()
        (gallery / "secret").unlink()
        (gallery / "folder").rmdir()


def test_a_gallery_that_cannot_be_served_is_refused_in_a_sentence(gallery, tmp_path):
    with pytest.raises(RequestError, match="no gallery in .* yet: `labkit run` makes one"):
        gallery_server(tmp_path)
    with pytest.raises(RequestError, match="--port 70000 is not possible"):
        gallery_server(gallery, 70000)
    with gallery_server(gallery, 0) as first:
        assert first.server_address[0] == "127.0.0.1"
        with pytest.raises(RequestError, match=f"cannot be served at port {first.server_port}"):
            gallery_server(gallery, first.server_port)
    with gallery_server(gallery) as one, gallery_server(gallery) as other:
        assert one.server_port != other.server_port


def test_ctrl_c_ends_the_server_well(gallery):
    command = [sys.executable, "-P", "-m", "labkit", "gallery", "--out", str(gallery), "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        address = process.stdout.readline().strip()
        assert status_of(address) == 200
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, said) == (0, "")


# What sticks out of the window but is in no box that scrolls and fits, and what is too small for a finger.
STICKS_OUT = """() => {
    const fits = element => element.getBoundingClientRect().right <= innerWidth + 1;
    const scrolls = element => /auto|scroll/.test(getComputedStyle(element).overflowX) && fits(element);
    const isBoxed = element => element !== document.body && (scrolls(element) || isBoxed(element.parentElement));
    const all = [...document.querySelectorAll('body *:not(.labkit-figure *)')];
    return all.filter(element => !fits(element) && !isBoxed(element)).slice(0, 5).map(e => e.outerHTML.slice(0, 80));
}"""
TOO_SMALL = """() => [...document.querySelectorAll('header a, article a, footer a, summary')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && (box.height < 44 || box.width < 44);
}).map(element => element.outerHTML.slice(0, 80))"""
CLIPPED_LEGENDS = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(figure => {
    const legend = figure.querySelector('.legend')?.getBoundingClientRect(), box = figure.getBoundingClientRect();
    const inside = legend && legend.left >= box.left && legend.right <= box.right && legend.bottom <= box.bottom;
    return figure._fullLayout.showlegend && !(inside && legend.height > 10);
}).length"""
TEXT_COLOURS = """() => [getComputedStyle(document.documentElement).getPropertyValue('--text').trim(),
    [...document.querySelectorAll('.js-plotly-plot')].map(figure => figure._fullLayout)
        .map(({ paper_bgcolor, title }) => [paper_bgcolor, title.font.color])]"""
OUTLINE = """() => ({
    language: document.documentElement.lang, title: document.title, mains: document.querySelectorAll('main').length,
    headings: [...document.querySelectorAll('h1')].map(heading => heading.textContent.replace('¶', '').trim()),
    nameless: [...document.querySelectorAll('img:not([alt]), [role=img]:not([aria-label])')].length,
    ids: [...document.querySelectorAll('[id]')].map(element => element.id),
})"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "03_good.html", "04_bad.html"])
def test_on_a_phone_everything_fits_from_disk_without_a_network(gallery, browser, screenshots, name, scheme):
    from browser import watched_page

    phone = {"viewport": {"width": 380, "height": 800}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    with watched_page(browser, gallery.as_uri(), **phone) as watched:
        page = watched.page
        page.goto((gallery / name).as_uri())
        page.wait_for_function("() => document.querySelectorAll('.labkit-figure:not(:has(.main-svg))').length === 0")
        page.screenshot(path=screenshots / f"phone-{scheme}-{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 380
        assert page.evaluate(STICKS_OUT) == [] and page.evaluate(TOO_SMALL) == []
        assert page.evaluate(CLIPPED_LEGENDS) == 0
        text, figures = page.evaluate(TEXT_COLOURS)
        assert all((colour == text) == (paper == "rgba(0,0,0,0)") for paper, colour in figures)
        if name == "03_good.html":
            assert page.locator(".legend .traces").count() == 3
        page.set_viewport_size({"width": 800, "height": 800})
        assert page.evaluate(STICKS_OUT) == []
        background = page.evaluate("getComputedStyle(document.documentElement).colorScheme")
        text = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
        assert "dark" in background and (sum(map(int, re.findall(r"\d+", text)[:3])) > 380) == (scheme == "dark")
        outline = page.evaluate(OUTLINE)
        assert (outline["language"], outline["mains"], outline["nameless"]) == ("en", 1, 0) and outline["title"]
        assert len(outline["headings"]) == 1 and len(set(outline["ids"])) == len(outline["ids"])
        watched.assert_quiet()


@pytest.mark.browser
def test_pages_draw_the_figures_of_this_run_served_and_from_disk(gallery, served, browser, screenshots):
    from browser import watched_page

    drawn = "all => all.map(f => f.calcdata[0][0].y ?? f.calcdata[0][0].s)"
    for base in (gallery.as_uri(), served):
        with watched_page(browser, base) as watched:
            page = watched.page
            page.goto(f"{base}/03_good.html")
            assert page.locator(".js-plotly-plot").evaluate_all(drawn) == [4, 3, 3]
            page.goto(f"{base}/index.html")
            assert page.locator(".js-plotly-plot").evaluate_all(drawn) == [4]
            page.screenshot(path=screenshots / "index.png", full_page=True)
            page.locator("h2 a", has_text="03").click()
            page.wait_for_url(f"{base}/03_good.html")
            page.locator("header a", has_text="All labs").click()
            page.wait_for_url(f"{base}/index.html")
            watched.assert_quiet()


@pytest.mark.browser
def test_without_javascript_all_text_is_there(gallery, browser):
    from browser import watched_page

    with watched_page(browser, gallery.as_uri(), java_script_enabled=False) as watched:
        page = watched.page
        page.goto((gallery / "index.html").as_uri())
        words = page.locator("body").inner_text()
        for text in ("Figures need JavaScript", "What does rank cost?", "8,192 bytes", "never", "labkit run 05"):
            assert text in words
        assert not page.locator(".labkit-figure").first.is_visible()
        page.goto((gallery / "03_good.html").as_uri())
        assert not any(box.is_visible() for box in page.locator(".labkit-figure").all())
        numbers = page.locator("details.labkit-numbers")
        assert numbers.count() == 3
        numbers.nth(1).locator("summary").click()
        rows = [re.split(r"\s+", row) for row in numbers.nth(1).get_by_role("row").all_inner_texts()]
        assert rows[1:] == [["1", "3", "3", "3"], ["2", "1.333", "1.333", "1.333"]] and "QLoRA" in rows[0]
        words = page.locator("body").inner_text()
        for text in ("Figures need JavaScript", "peak_bytes = 8,192 bytes", "rank: 4", "column_29", "a_long_line_"):
            assert text in words
        assert page.locator("math").count() == 2 and page.locator("code", has_text="$x$").count() >= 1
        watched.assert_quiet()
