"""Formulas of saved pages need no MathJax: TeX becomes MathML, code stays as it is."""

import xml.etree.ElementTree as ElementTree

import pytest

from labkit.machine import repository_root
from labkit.runner.formulas import Formulas


def with_mathml(markdown: str) -> str:
    formulas = Formulas()
    return formulas.put_in(formulas.take_out(markdown))


def test_formulas_become_mathml_and_text_stays():
    page = with_mathml(
        r"It costs $\frac{\alpha}{r}$ per step, and $$n = \sum r(d_\mathrm{in} + d_\mathrm{out})$$ in all."
    )
    assert page.count("<math") == 2 and 'display="block"' in page and "$" not in page
    assert page.startswith("It costs <math") and page.endswith(" in all.")
    assert "α" in page or "&#x003B1;" in page


@pytest.mark.parametrize(
    "text",
    [
        "costs $5 and $6",
        "`$x$`",
        "``a ` and $x$``",
        "```\n$x$ and $y$\n```",
        "~~~\n$x$\n~~~",
        "<code>rank = $r$</code> and <pre>\n$x$\n</pre>",
        "a lone $",
        r"escaped \$x",
        "$ x $",
    ],
)
def test_what_is_no_formula_is_left_alone(text):
    assert with_mathml(text) == text


@pytest.mark.browser
def test_a_saved_page_draws_its_formulas(chromium_path, browser, tmp_path):
    """nbconvert would close every tag at once; a fraction that is drawn is taller than a letter."""
    import nbformat

    from labkit.runner.pages import lab_page
    from labkit.runner.store import LabRun

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell(r"A $x$ and $\frac{a}{b}$ and `$c$`.")]
    run = LabRun("01_x", "ok", 1.0, {}, "quick", [], None, "2026-01-01T00:00:00+00:00")
    page = tmp_path / "page.html"
    page.write_text(lab_page(notebook, run, tmp_path))
    tab = browser.new_page()
    tab.goto(page.as_uri())
    letter, fraction = (tab.locator("math").nth(i).bounding_box()["height"] for i in (0, 1))
    assert fraction > 1.5 * letter and tab.locator("code", has_text="$c$").count() == 1
    tab.close()


def test_every_formula_of_the_labs_converts():
    import nbformat

    for lab in sorted((repository_root() / "labs").glob("[0-9]*.ipynb")):
        for cell in nbformat.read(lab, as_version=4).cells:
            if cell.cell_type == "markdown":
                page = with_mathml(cell.source)
                assert "\\frac" not in page and "\\sum" not in page, (lab.name, cell.id)
                for part in page.split("<math")[1:]:
                    ElementTree.fromstring("<math" + part.split("</math>")[0] + "</math>")
