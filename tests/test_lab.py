"""What runs inside a notebook: set-up refuses bad parameters, claims fail loudly, checks say what they should."""

import pytest

from labkit import lab
from labkit.errors import LabkitError, RequestError
from labkit.lab import checks, claims, reveal


@pytest.fixture
def shown(monkeypatch):
    """Collect what would be displayed."""
    texts = []
    for module in (reveal, checks):
        monkeypatch.setattr(module, "show", texts.append)
    return texts


def test_claims_that_hold(shown):
    found = lab.Claims()
    found.equal("one is one", 1, 1)
    found.close("pi", 3.14159, 3.1416, 1e-4)
    found.true("so it is", True)
    found.verify()
    assert shown[0].count("| yes |") == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c.equal("the sentence", 1, 2),
        lambda c: c.close("the sentence", 1.02, 1.0, 0.01),
        lambda c: c.close("the sentence", float("nan"), 1.0, 0.5),
        lambda c: c.true("the sentence", False),
    ],
)
def test_a_claim_that_fails_fails_the_lab_and_is_named(shown, make):
    found = lab.Claims()
    found.equal("fine", 1, 1)
    make(found)
    with pytest.raises(claims.ClaimFailed, match=r"1 of 2 claims .*the sentence"):
        found.verify()
    assert "**no**" in shown[0]


def test_check_number(shown):
    assert lab.check_number(None, 5, {}) is None
    assert lab.check_number(5, 5, {}) is True
    assert lab.check_number(10, 5, {}) is False and "2 times" in shown[-1]
    assert lab.check_number(7, 5, {7: "you added two"}) is False and "you added two" in shown[-1]
    assert lab.check_number(5.2, 5, {}, tolerance=0.05) is True


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"preset": "fast"}, "preset='fast'"),
        ({"preset": "quick", "rank": "abc"}, "rank='abc'"),
        ({"preset": "quick", "model": "no/such"}, "no/such"),
        ({"preset": "quick", "task": "nosuch"}, "nosuch"),
    ],
)
def test_setup_refuses(parameters, words):
    with pytest.raises(RequestError, match=words):
        lab.setup(**parameters)


def test_setup_themes_figures_and_shows_the_machine(monkeypatch, capsys):
    import plotly.io as pio

    before = pio.templates.default, pio.renderers.default
    try:
        lab.setup("quick", rank=4, model="tiny")
        assert pio.templates.default == "labkit" and pio.renderers.default == "plotly_mimetype"
    finally:
        pio.templates.default, pio.renderers.default = before


def test_notebooks_show_one_line_for_an_error():
    assert issubclass(RequestError, LabkitError)
    assert RequestError("rank=0 is not possible.")._render_traceback_() == ["RequestError: rank=0 is not possible."]


@pytest.fixture
def map_shown(monkeypatch, tmp_path):
    """The HTML of the map of two labs, the second with a recorded picture."""
    import IPython.display
    from tiny_labs import write_lab

    from labkit import machine

    write_lab(tmp_path / "labs" / "00_start.ipynb", text="# 00 What can <this> do?\n\n**Time**: a minute.")
    write_lab(tmp_path / "labs" / "03_memory.ipynb")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "lab-03.png").write_bytes(b"picture")
    monkeypatch.setattr(machine, "repository_root", lambda: tmp_path)
    monkeypatch.setattr("labkit.lab.map.repository_root", lambda: tmp_path)
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.chdir(tmp_path)
    lab.map_of_labs()
    return shown[0].data


def test_the_map_has_a_card_for_every_lab_with_a_link_and_what_it_says_of_itself(map_shown):
    first, second = map_shown.split('role="listitem"')[1:]
    assert 'href="00_start.ipynb"' in first and "00 What can &lt;this&gt; do?" in first and "a minute" in first
    assert "<img" not in first and 'href="03_memory.ipynb"' in second
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in second and 'alt="Picture of lab 03, recorded' in second
    assert "recorded picture, not this run" in second and "<script" not in map_shown


def test_in_a_page_the_map_leads_to_the_gallery(map_shown, tmp_path):
    import nbformat

    from labkit.runner import LabRun
    from labkit.runner.pages import lab_page

    cell = nbformat.v4.new_code_cell("lab.map_of_labs()", id="map")
    cell.outputs = [nbformat.v4.new_output("display_data", data={"text/html": map_shown})]
    run = LabRun("00_start", "ok", 1.0, {}, "quick", [], None, "2026-01-01T00:00:00+00:00")
    page = lab_page(nbformat.v4.new_notebook(cells=[cell]), run, tmp_path)
    assert 'href="index.html#03_memory"' in page and '.ipynb"' not in page
