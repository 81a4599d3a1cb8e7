"""Lab 00, run as its readers run it: by the runner, by plain papermill from anywhere, and in a browser.

And its text: the commands it shows are parsed by the programs they are for.
"""

import json
import re
import shlex
import subprocess
import sys

import nbformat
import pytest

from labkit.case import Case, check_field, field_of
from labkit.lab.catalog import find_labs, read_parameters
from labkit.machine import repository_root
from labkit.memory.estimate import trainable_tensors
from labkit.memory.shape import shape_of
from labkit.runner import run_lab

NAME = "00_start_here"
LAB = repository_root() / "labs" / f"{NAME}.ipynb"
FITS = "figure => Math.abs(figure._fullLayout.width - figure.offsetWidth) < 2"
DRAWN = "figure => figure.calcdata.map(trace => trace.map(point => point.y))"


@pytest.fixture(scope="module")
def text() -> str:
    """All the prose of the lab."""
    cells = nbformat.read(LAB, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def trained_parameters(**changes) -> int:
    return sum(trainable_tensors(shape_of("tiny"), Case(model="tiny", method="lora", **changes)))


@pytest.mark.slow
def test_parameters_reach_the_results(tmp_path):
    run = run_lab("00", out=tmp_path / "out", preset="smoke", method="lora", rank=24, targets="qv", sequence_length=32)
    results = {result["name"]: result["value"] for result in run.results}
    assert results["trained_parameters"] == trained_parameters(rank=24, targets="qv")
    assert results["peak_allocated_bytes"] == pytest.approx(results["estimated_peak_bytes"], rel=0.02)
    assert results["loss_after"] < results["loss_before"]
    page = (tmp_path / "out" / f"{NAME}.html").read_text()
    assert "Traceback" not in page and "미세 조정" in page


@pytest.mark.slow
def test_full_fine_tuning_and_a_folder_and_data_of_ones_own(tmp_path):
    """The answers of this data are no expressions: execution match is then unknown."""
    folder, data = repository_root() / "assets" / "model", tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [{"prompt": f"say {split} {number}", "completion": f"{split} says {number}"} for number in range(20)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = run_lab("00", out=tmp_path / "out", preset="smoke", method="full", model=str(folder), task=str(data))
    results = {result["name"]: result["value"] for result in run.results}
    assert results["trained_parameters"] == shape_of("tiny").parameters
    assert results["execution_match_after"] is None and results["loss_after"] < results["loss_before"]


@pytest.mark.slow
def test_plain_papermill_works_from_any_directory_and_the_lab_itself_refuses_nonsense(tmp_path):
    command = [sys.executable, "-m", "papermill", str(LAB), "out.ipynb", "-p", "preset", "smoke", "-p", "rank", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "rank=0 is not possible" in done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    (error,) = [output for output in outputs if output["output_type"] == "error"]
    assert error["traceback"] == ["RequestError: rank=0 is not possible: rank must be a whole number of at least 1."]


def commands(text: str, program: str) -> list[list[str]]:
    """The arguments of every command of `program` in the prose's code."""
    code = re.findall(r"```bash\n(.*?)```", text, re.S) + re.findall(r"`([^`\n]+)`", text)
    lines = [line.strip() for block in code for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.split(" ")[0] == program]


def test_labkits_commands_in_the_text_parse_and_name_labs_and_parameters_that_exist(text, monkeypatch):
    from labkit.cli import main as cli
    from labkit.runner import parse_parameters

    found, parsed = commands(text, "labkit"), []
    for name in cli.COMMANDS:
        monkeypatch.setattr(f"labkit.cli.{name}.run", lambda options: parsed.append(options) or 0)
    for arguments in found:
        assert cli.main(arguments) == 0, arguments
    assert len(parsed) == len(found) >= 8
    used = {options.command for options in parsed}
    assert {"run", "lab", "doctor", "measure"} <= used
    for options in parsed:
        labs = find_labs(getattr(options, "labs", None) or [])
        known = {name: value for lab in labs for name, value in read_parameters(lab).items()}
        for name, value in parse_parameters(getattr(options, "parameters", ())).items():
            assert name in known, f"{name} is no parameter of {labs}"
            if field_of(name):
                check_field(field_of(name), value)
        if getattr(options, "reset", None):
            assert find_labs([options.reset])


def test_papermills_commands_in_the_text_parse(text):
    from papermill.cli import papermill

    found = commands(text, "papermill")
    assert found
    for arguments in found:
        options = papermill.make_context("papermill", arguments).params
        lab = repository_root() / options["notebook_path"]
        assert lab.is_file() and {name for name, _ in options["parameters"]} <= read_parameters(lab).keys()


def test_the_config_in_the_text_is_a_model_and_the_formulas_cover_what_it_says(text):
    from labkit.memory.shape import QKV_BIAS

    (config,) = re.findall(r"`(\{[^`]*\})`", text)
    assert trainable_tensors(shape_of(json.loads(config)), Case(model=json.loads(config), method="full"))
    covered = re.search(r"formulas cover the model\s+types ([^.]*)\.", text).group(1)
    assert set(re.findall(r"`(\w+)`", covered)) == set(QKV_BIAS)


@pytest.mark.parametrize("heading", ["### Your own data", "## Your model, your data"])
def test_the_rule_for_columns_in_the_text_is_the_codes(text, heading):
    from labkit.train.tasks.columns import CHATS, PAIRS

    if heading not in text:
        text = (repository_root() / "README.md").read_text()
    section = text.partition(heading)[2].partition("\n## ")[0]
    rows = [re.findall("`(.*?)`", row) for row in re.findall(r"^\| `.*", section, re.M)]
    pairs = [(*row[:2], row[3] if len(row) == 5 else None) for row in rows if len(row) > 2]
    assert [pair for pair in pairs if pair[0] not in CHATS] == list(PAIRS)
    assert rows[len(PAIRS)] == list(CHATS)


def test_what_the_text_says_of_files_is_the_codes(text):
    from labkit.train.tasks.files import HELD_OUT_ROWS, NAMES
    from labkit.train.tasks.layout import SUFFIXES, splits_of

    section = text.partition("### Your own data")[2].partition("\n## ")[0]
    assert f"at most {HELD_OUT_ROWS}" in " ".join(section.split())
    quoted = re.findall("`([^`]*)`", section)
    assert {*NAMES, *SUFFIXES} <= {*quoted}
    named = [name for name in quoted if name.endswith(SUFFIXES) and name not in SUFFIXES]
    assert {split: names[0] for split, names in splits_of(named).items()}.keys() == {"train", "validation", "test"}


def test_the_learning_rates_are_those_of_lab_03():
    (other,) = find_labs(["03"])
    for name in ("learning_rate_full", "learning_rate_adapter", "rank", "alpha", "batch_size", "task"):
        assert read_parameters(LAB)[name] == read_parameters(other)[name]


def test_the_glossary_is_whole(text):
    rows = re.findall(r"^\| .* \|$", text.partition("## Glossary")[2].partition("\n## ")[0], re.M)[1:]
    assert len(rows) >= 25
    for row in rows:
        term, korean, meaning, korean_meaning = (cell.strip() for cell in row.strip("|").split("|"))
        assert term and meaning and re.search("[가-힣]", korean) and re.search("[가-힣]", korean_meaning), row
        assert not re.search("[가-힣]", term + meaning), row
    terms = [row.split("|")[1].strip().lower() for row in rows]
    assert len(terms) == len(set(terms))


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser_the_first_slider_moves_the_drawn_numbers(lab_page, screenshots):
    from playwright.sync_api import expect

    page = lab_page.open(f"labs/{NAME}.ipynb", preset="smoke").run_all().page
    cell = page.locator(".jp-Cell", has=page.locator(".widget-slider"))
    figure, first = cell.locator(".js-plotly-plot"), cell.locator(".noUi-handle").first
    figure.scroll_into_view_if_needed()
    expect(figure.locator(".gtitle")).to_contain_text("tiny, QLoRA")
    before = figure.evaluate(DRAWN)
    first.focus()
    for _ in range(8):
        first.press("ArrowRight")
    expect(figure.locator(".gtitle")).to_contain_text("llama-3.1-8b, QLoRA")
    after = figure.evaluate(DRAWN)
    assert after != before

    cell.get_by_label("card").select_option("NVIDIA T4")
    expect(figure.locator(".gtitle")).to_contain_text("QLoRA: may just fit")
    page.set_viewport_size({"width": 1450, "height": 1200})
    page.wait_for_function(FITS, arg=figure.element_handle())
    for theme in ("Light", "Dark"):
        lab_page.use_theme(f"JupyterLab {theme}")
        cell.locator(".labkit-panel").screenshot(path=str(screenshots / f"lab-00-{theme.lower()}.png"))
    cell.locator(".widget-button", has_text="reset").press("Enter")
    expect(figure.locator(".gtitle")).to_contain_text("tiny, QLoRA")
    page.wait_for_function("([figure, before]) => JSON.stringify(figure.calcdata.map(trace => trace.map(p => p.y))) "
                           "=== JSON.stringify(before)", arg=[figure.element_handle(), before])  # fmt: skip

    box = page.get_by_label("instruction")
    answer = page.get_by_role("status").filter(visible=True).last
    shown = answer.inner_text()
    box.fill("the largest of 3, 9, 4 and then some more words")
    box.press("Enter")
    expect(answer).not_to_have_text(shown)
    lab_page.watched.assert_quiet()
