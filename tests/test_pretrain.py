"""Pre-training in miniature: the same command, a corpus of a few files, a model of a few thousand parameters."""

import json
import math
import sysconfig
from pathlib import Path

import pytest
import torch
from tiny import llama

from labkit.cli.main import main
from labkit.machine import repository_root
from labkit.train.corpus import is_held_out, is_source, standard_library
from labkit.train.pretrain import Pretraining, held_out_nats, learning_rate_factor, train_tokenizer

ROOT = repository_root()
ROOT_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture
def library(tmp_path):
    """Sixty small modules: enough that some are held out."""
    folder = tmp_path / "library"
    folder.mkdir()
    for number in range(60):
        lines = [f"def function_{number}_{i}(value):\n    return value + {i}\n\n" for i in range(12)]
        (folder / f"module_{number}.py").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_the_command_writes_a_model_that_loads(library, tmp_path, capsys):
    out = tmp_path / "model"
    arguments = ["pretrain", "--out", str(out), "--corpus", str(library), "--steps", "4", "--batch-size", "2",
                 "--sequence-length", "32", "--json"]  # fmt: skip
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["steps"] == 4 and facts["held_out_files"] > 0 and facts["train_files"] > 40
    assert 0 < facts["held_out"]["bits_per_byte"] < 8
    assert (
        "bits per byte" in (out / "README.md").read_text() and facts["corpus_sha256"] in (out / "README.md").read_text()
    )
    assert main(["pretrain", "--out", str(out), "--corpus", str(library), "--score", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["held_out"] == pytest.approx(facts["held_out"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "--steps 0"),
        (["--sequence-length", "1"], "--sequence-length 1"),
        (["--learning-rate", "nan"], "--learning-rate nan"),
        (["--learning-rate", "-1"], "--learning-rate -1.0"),
        (["--corpus", "/no/such/folder"], "/no/such/folder"),
        (["--score"], "pretraining.json"),
    ],
)
def test_bad_requests_write_nothing(tmp_path, capsys, arguments, words):
    out = tmp_path / "model"
    assert main(["pretrain", "--out", str(out), *arguments]) == 2
    assert words in capsys.readouterr().err and not out.exists()


def test_the_corpus_has_no_tests_and_keeps_its_sides():
    assert is_source(Path("json/decoder.py")) and not is_source(Path("test/test_json.py"))
    assert not is_source(Path("idlelib/idle_test/x.py")) and not is_source(Path("site-packages/a.py"))
    corpus = standard_library()
    share = len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out))
    assert 0.04 < share < 0.14 and corpus.size_bytes > 4_000_000
    sides = {name: is_held_out(Path(name)) for name in ("json/decoder.py", "ast.py", "heapq.py", "zipimport.py")}
    assert all(
        (ROOT_LIBRARY / name).read_text() in (corpus.held_out if held else corpus.train) for name, held in sides.items()
    )
    assert not set(corpus.train) & set(corpus.held_out) - {""}


def test_the_tokenizer_takes_any_bytes():
    tokenizer = train_tokenizer(("def f(x):\n    return x\n" * 50,), 300)
    for text in ("def f(x):\n\treturn 'é漢\x00'", "", "  \n\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_every_held_out_token_is_scored_once():
    """Against one window that holds the whole text: the sum differs only by the context, the count not at all."""
    model = llama(max_position_embeddings=512)
    tokens = torch.arange(150) % 300
    whole = held_out_nats(model, tokens, 149)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(tokens[None, :-1]).logits[0], tokens[1:], reduction="sum")
    assert whole == pytest.approx(expected.item(), rel=1e-5)
    uniform = llama()
    torch.nn.init.zeros_(uniform.lm_head.weight)  # every token is as likely as any other
    for length in (8, 31, 64):
        assert held_out_nats(uniform, tokens, length) == pytest.approx(149 * math.log(320), rel=1e-5)


def test_the_schedule_warms_up_and_ends_at_zero():
    settings = Pretraining(steps=100, warmup=10)
    factors = [learning_rate_factor(step, settings) for step in range(101)]
    assert factors[0] == 0.1 and factors[10] == 1.0 and factors[100] == pytest.approx(0) and max(factors) == 1.0


FACTS = json.loads((ROOT / "assets/model/pretraining.json").read_text())


def test_the_card_is_made_of_its_facts():
    from labkit.train.card import card

    assert (ROOT / "assets/model/README.md").read_text(encoding="utf-8") == card(FACTS)


def test_the_embedded_model_is_what_its_card_says():
    from labkit.case import Case
    from labkit.methods.counts import count_parameters
    from labkit.models.build import build_base

    model = build_base(Case(model="tiny", method="full").on("cpu"), "cpu")
    assert count_parameters(model).base == FACTS["parameters"] and 2e6 < FACTS["parameters"] < 3e6
    size = sum(file.stat().st_size for file in (ROOT / "assets/model").iterdir())
    assert size < 12e6
    assert FACTS["held_out"]["bits_per_byte"] < 1.40, "clearly under 1.45"


def test_the_embedded_models_score_on_the_frozen_text_can_be_had_again():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from labkit.train.pretrain import score_text

    folder = ROOT / "assets/model"
    text = (ROOT / "data/tasks/held_out_code.txt").read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = score_text(model, AutoTokenizer.from_pretrained(folder), (text,))
    assert found["bits_per_byte"] == pytest.approx(FACTS["frozen"]["bits_per_byte"], rel=1e-3)
    assert found["bytes"] == FACTS["frozen"]["bytes"]


def test_the_embedded_model_writes_python():
    import ast

    sample = FACTS["sample"]
    assert sample.startswith("def read_lines(path):\n    ")
    lines = sample.splitlines()
    parsed = [end for end in range(2, len(lines) + 1) if _parses("\n".join(lines[:end]), ast)]
    assert parsed, "no beginning of the sample is a whole function"


def _parses(text: str, ast) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
