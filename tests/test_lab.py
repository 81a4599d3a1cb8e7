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
