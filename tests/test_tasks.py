"""The training task: what the grammar generates, what the files hold, and what the scores mean."""

import ast
import collections
import functools
import itertools
import json
import math
import re
import socket

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.errors import RequestError
from labkit.train.pretrain import train_tokenizer
from labkit.train.tasks import files, grammar, interpreter
from labkit.train.tasks.files import COLUMNS, NAMES, load
from labkit.train.tasks.scoring import IGNORED, collate, complete, encode, prompt_of, score

ROWS = [
    {"instruction": "add 3 and 8", "expression": "3 + 8"},
    {"instruction": "the largest of 4, 9, 2", "expression": "max(4, 9, 2)"},
    {"instruction": "length of 'abc'", "expression": "len('abc')"},
]


@pytest.fixture(scope="module", params=grammar.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def splits(family):
    return grammar.generate(family)


# ------------------------------------------------------------------------------------------------ grammar


def test_sizes_are_as_promised_and_nothing_repeats(splits):
    assert {split: len(examples) for split, examples in splits.items()} == grammar.SIZES
    for column in COLUMNS:
        texts = [example[column] for examples in splits.values() for example in examples]
        assert len(set(texts)) == len(texts) == 5200


def test_items_are_short_and_every_expression_evaluates(splits):
    for examples in splits.values():
        for example in examples:
            assert len(example["instruction"]) <= 60 and len(example["expression"]) <= 44
            assert not re.search(r"\b[A-Z]+\b", example["instruction"] + example["expression"]), "an unfilled slot"
            interpreter.evaluate(example["expression"])


def test_every_slot_of_an_expression_is_in_its_phrases():
    """Otherwise the instruction would not determine the expression."""
    for group in grammar.RULES.values():
        for rule in group:
            asked = set(grammar.SLOT.findall(rule.expression))
            for phrase in rule.phrases:
                assert set(grammar.SLOT.findall(phrase)) == asked, phrase


TERMINAL_PATTERNS = {
    **dict.fromkeys(["A", "B", "K", "FEW", "LIMIT"], r"\d+"),
    **dict.fromkeys(["NOUN", "OTHER"], r"'[a-z]+'"),
    "NUMBERS": r"\d+(, \d+)+",
    "NAMES": r"'[a-z]+'(, '[a-z]+')+",
    "PHRASE": r"'[a-z ]+'",
    "LETTER": r"'[a-z]'",
    "MARK": r"'[^a-z ]'",
}


def splittings(parts, text):
    """Every way to cut `text` into the parts of a phrase, as the texts of its slots (the odd parts)."""
    if len(parts) == 1:
        return [[]] if text == parts[0] else []
    if not text.startswith(parts[0]):
        return []
    rest = text[len(parts[0]) :]
    return [[rest[:cut], *others] for cut in range(1, len(rest) + 1) for others in splittings(parts[2:], rest[cut:])]


@functools.cache
def readings(group, text):
    """Every expression that the rules allow for `text`: the grammar read backwards."""
    if group in TERMINAL_PATTERNS:
        return {text} if re.fullmatch(TERMINAL_PATTERNS[group], text) else set()
    found = set()
    for rule in [*grammar.RULES[group], *([grammar.LEAVES[group]] if group in grammar.LEAVES else [])]:
        for phrase in rule.phrases:
            slots = grammar.SLOT.findall(phrase)
            for texts in splittings(re.split(f"({grammar.SLOT.pattern})", phrase), text):
                choices = [readings(slot.rstrip("12"), part) for slot, part in zip(slots, texts, strict=True)]
                for chosen in itertools.product(*choices):
                    written = dict(zip(slots, chosen, strict=True))
                    found.add(grammar.SLOT.sub(lambda slot, written=written: written[slot[0]], rule.expression))
    return {f"({expression})" for expression in found}


def test_an_instruction_has_one_reading(family, splits):
    for example in splits["validation"]:
        groups = ["EASY"] if family == "easy" else grammar.HARD
        found = {reading for group in groups for reading in readings(group, example["instruction"])}
        assert found, example
        trees = {ast.dump(ast.parse(expression)) for expression in found}
        assert trees == {ast.dump(ast.parse(example["expression"]))}, example


def parts_of(example):
    """The operations an expression is made of: its syntax nodes, functions and methods."""
    nodes = list(ast.walk(ast.parse(example["expression"])))
    names = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in nodes
        if isinstance(node, ast.Call)
    }
    return names | {type(node).__name__ for node in nodes}


def test_the_splits_are_alike(splits):
    """What is tested is what was trained: every operation has about the same share of every split."""
    shares = {
        split: {
            part: count / len(examples)
            for part, count in collections.Counter(part for example in examples for part in parts_of(example)).items()
        }
        for split, examples in splits.items()
    }
    for split in ("validation", "test"):
        assert shares[split].keys() == shares["train"].keys()
        for part, share in shares["train"].items():
            assert shares[split][part] == pytest.approx(share, abs=0.06), part


def test_easy_items_apply_one_operation_and_hard_ones_compose_two_or_three(splits, family):
    operations = (ast.BinOp, ast.Call, ast.Subscript, ast.Compare, ast.IfExp, ast.ListComp, ast.DictComp)
    counts = collections.Counter(
        sum(isinstance(node, operations) for node in ast.walk(ast.parse(example["expression"])))
        for example in splits["test"]
    )
    usual = {1} if family == "easy" else {2, 3, 4, 5}  # a comprehension has an operation of its own
    assert sum(counts[number] for number in usual) > 0.95 * len(splits["test"]), counts


def test_an_unknown_family_is_refused():
    with pytest.raises(RequestError, match="no family medium; families are easy, hard"):
        grammar.generate("medium")


def test_a_seed_fixes_the_items_and_another_changes_them(family, monkeypatch):
    monkeypatch.setattr(grammar, "SIZES", {"train": 300})
    first, again, other = (grammar.generate(family, seed) for seed in (3, 3, 4))
    assert first == again
    overlap = {e["instruction"] for e in first["train"]} & {e["instruction"] for e in other["train"]}
    assert len(overlap) < len(first["train"]) / 2


def test_the_files_are_what_the_grammar_makes_today(family, splits):
    for split, examples in splits.items():
        path = files.TASKS / f"expressions-{family}" / f"{split}.jsonl"
        assert path.read_bytes() == grammar.to_jsonl(examples), "run: python -m labkit.train.tasks.grammar"


def test_the_command_writes_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TASKS", tmp_path / "tasks")
    monkeypatch.setattr(grammar, "SIZES", dict.fromkeys(grammar.SIZES, 5))
    grammar.main()
    written = sorted(path.relative_to(tmp_path / "tasks") for path in tmp_path.rglob("*.jsonl"))
    assert [path.parts[0] for path in written] == ["expressions-easy"] * 3 + ["expressions-hard"] * 3
    assert json.loads((tmp_path / "tasks" / written[0]).read_text().splitlines()[0]).keys() == set(COLUMNS)


# -------------------------------------------------------------------------------------------------- files


def write(path, rows, columns=COLUMNS):
    """Rows as the format that the path's name asks for."""
    import pyarrow
    from pyarrow import csv, parquet

    table = pyarrow.table({column: [row[column] for row in rows] for column in columns})
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        {".csv": csv.write_csv, ".parquet": parquet.write_table}[path.suffix](table, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_repositorys_tasks_load(name):
    for split, size in grammar.SIZES.items():
        dataset = load(name, split)
        assert dataset.column_names == list(COLUMNS) and dataset.num_rows == size
    lines = (files.TASKS / name / "test.jsonl").read_text().splitlines()
    assert dataset.to_list() == [json.loads(line) for line in lines]


def test_loading_asks_no_network_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    load(NAMES[0])
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_datasets_reads_the_same_files_itself(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    path = str(files.TASKS / NAMES[1] / "validation.jsonl")
    by_itself = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path))
    assert by_itself.to_list() == load(NAMES[1], "validation").to_list()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_local_files_and_folders_load_by_the_same_call(tmp_path, suffix):
    rows = [*ROWS, {"instruction": "nothing", "expression": "None"}, {"instruction": "7", "expression": "7"},
            {"instruction": "two,\n\"lines\"", "expression": "'NA'"}]  # fmt: skip
    file = write(tmp_path / f"mine{suffix}", rows)
    numbers = [{"instruction": "seven", "expression": "7"}, {"instruction": "yes", "expression": "12"}]
    write(tmp_path / f"test{suffix}", numbers)
    assert load(file).to_list() == load(str(file)).to_list() == rows
    assert load(tmp_path, "test").to_list() == numbers


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_other_columns_are_dropped_and_missing_ones_named(tmp_path, suffix):
    rows = [{"n": 1, **row} for row in ROWS]
    assert load(write(tmp_path / f"more{suffix}", rows, ["n", *COLUMNS])).to_list() == ROWS
    renamed = [{"question": row["instruction"], "expression": row["expression"]} for row in ROWS]
    path = write(tmp_path / f"other{suffix}", renamed, ["question", "expression"])
    with pytest.raises(RequestError, match="has the columns question, expression; wanted are instruction, expression"):
        load(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "a", "expression": ', "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b'["a", "b"]', "a list, where an object"),
        (b'{"instruction": "a"}', "has the columns instruction; wanted"),
        (b"{}", "has the columns none; wanted"),
        (b'{"instruction": "a", "expression": 7}', "expression is 7, not text"),
        (b'{"instruction": null, "expression": "7"}', "instruction is null, not text"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path, line, reason):
    good = [json.dumps(row).encode() for row in ROWS]
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join([good[0], b"", good[1], line, good[2]]))
    with pytest.raises(RequestError, match=re.escape(reason)) as error:
        load(path)
    assert str(error.value).startswith(f"{path}, line 4: ")


def test_broken_tables_are_refused_with_their_name(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "uneven.csv").write_text("instruction,expression\na,1\nb,2,3\n")
    (tmp_path / "false.parquet").write_bytes(b"not parquet")
    columns = {"instruction": ["a", "b"], "expression": ["1", None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "hole.parquet")
    parquet.write_table(pyarrow.table(columns | {"expression": [1, 2]}), tmp_path / "numbers.parquet")
    for name, reason in {
        "uneven.csv": "Row #3: Expected 2 columns, got 3",
        "false.parquet": "is not a Parquet table",
        "hole.parquet": "row 2: expression is missing",
        "numbers.parquet": "the column expression holds int64, not text",
    }.items():
        with pytest.raises(RequestError, match=reason) as error:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"empty{suffix}", [])
    with pytest.raises(RequestError, match="is empty"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(RequestError, match=re.escape(str(path))):
        load(path)


def test_wrong_requests_say_what_there_is(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="no file expressions-medium. Tasks are expressions-easy, expressions-hard"):
        load("expressions-medium")
    with pytest.raises(RequestError, match="has no split dev; it has test, train, validation"):
        load(NAMES[0], "dev")
    with pytest.raises(RequestError, match="has no split train; it has no .jsonl, .csv, .parquet file"):
        load(tmp_path)
    file = write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(RequestError, match=re.escape("give a folder with test.jsonl")):
        load(file, "test")
    write(tmp_path / "train.csv", ROWS)
    with pytest.raises(RequestError, match=re.escape("is there twice: train.jsonl, train.csv")):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(RequestError, match="must end in one of .jsonl, .csv, .parquet"):
        load(tmp_path / "notes.txt")
    monkeypatch.setattr(files, "TASKS", tmp_path / "absent")
    with pytest.raises(RequestError, match="labkit runs from a clone"):
        load(NAMES[0])


# ------------------------------------------------------------------------------------------------ scoring


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tuple(f"# {row['instruction']}\n{row['expression']}" for row in ROWS), 300)


def tiny_model(tokenizer, **changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Oracle(torch.nn.Module):
    """Knows the answer to each prompt, and gives every right token the probability `certainty`."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, examples, certainty=1.0):
        super().__init__()
        self.answers, self.certainty, self.size = {}, certainty, len(tokenizer)
        for ids, labels in encode(examples, tokenizer):
            start = labels.count(IGNORED)
            self.answers[tuple(ids[:start])] = ids[start:]

    def generate(self, input_ids, attention_mask, pad_token_id, **_):
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            rows.append(ids.tolist() + self.answers[tuple(ids[mask.bool()].tolist())])
        longest = max(map(len, rows))
        return torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows])

    def forward(self, input_ids, attention_mask):
        following = torch.nn.functional.one_hot(input_ids.roll(-1, 1), self.size).float()
        others = (1 - self.certainty) / (self.size - 1)
        probabilities = following * self.certainty + (1 - following) * others
        return type("Output", (), {"logits": probabilities.log()})


def test_encoding_scores_the_expression_and_its_end_alone(tokenizer):
    for row, (ids, labels) in zip(ROWS, encode(ROWS, tokenizer), strict=True):
        assert len(ids) == len(labels)
        scored = [label for label in labels if label != IGNORED]
        assert scored[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(scored[:-1]) == row["expression"]
        assert ids[-len(scored) :] == scored
        assert ids[: -len(scored)] == tokenizer(prompt_of(row["instruction"]))["input_ids"]
        assert tokenizer.decode(ids[:-1]) == f"# {row['instruction']}\n{row['expression']}"


def test_collating_pads_on_the_right():
    batch = collate([([5, 6, 7], [IGNORED, 6, 7]), ([8], [8])], pad_token_id=1)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 1, 1]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[IGNORED, 6, 7], [8, IGNORED, IGNORED]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_a_model_that_knows_the_truth_scores_one(tokenizer):
    scores = score(Oracle(tokenizer, ROWS), tokenizer, ROWS, batch_size=2)
    assert (scores.loss, scores.exact_match, scores.execution_match, scores.examples) == (0.0, 1.0, 1.0, 3)


def test_the_loss_is_in_nats_per_target_token(tokenizer):
    scores = score(Oracle(tokenizer, ROWS, certainty=0.25), tokenizer, ROWS, batch_size=2)
    assert scores.loss == pytest.approx(math.log(4), rel=1e-5)


def test_the_loss_is_transformers_own_on_one_example_and_weighted_by_tokens_over_more(tokenizer):
    model = tiny_model(tokenizer).eval()
    losses, tokens = [], []
    for row in ROWS:
        batch = collate(encode([row], tokenizer), tokenizer.pad_token_id)
        with torch.no_grad():
            losses.append(model(**batch).loss.item())
        tokens.append((batch["labels"] != IGNORED).sum().item())
        assert score(model, tokenizer, [row], max_new_tokens=1).loss == pytest.approx(losses[-1], rel=1e-5)
    assert len(set(tokens)) > 1
    weighted = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    for batch_size in (1, 2, 64):
        assert score(model, tokenizer, ROWS, batch_size, 1).loss == pytest.approx(weighted, rel=1e-5)


def test_exact_and_execution_match_count_different_things(tokenizer):
    answers = [
        {"instruction": ROWS[0]["instruction"], "expression": "11"},  # another way to the same value
        {"instruction": ROWS[1]["instruction"], "expression": " max(4, 9, 2) "},  # the same text
        {"instruction": ROWS[2]["instruction"], "expression": "len('abc"},  # refused
    ]
    scores = score(Oracle(tokenizer, answers), tokenizer, ROWS)
    assert (scores.exact_match, scores.execution_match) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_execution_match_is_unknown_where_the_truth_is_not_an_expression_of_the_language(tokenizer):
    prose = [*ROWS, {"instruction": "greet", "expression": "Hello, reader!"}]
    scores = score(Oracle(tokenizer, prose), tokenizer, prose)
    assert (scores.exact_match, scores.execution_match) == (1.0, None)


def test_scoring_leaves_every_module_in_its_mode_and_no_gradients(tokenizer):
    model = tiny_model(tokenizer).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    score(model, tokenizer, ROWS, max_new_tokens=2)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError):
        score(model, tokenizer, ROWS, batch_size=0)
    assert [module.training for module in model.modules()] == before, "not after an error either"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off_while_scoring(tokenizer):
    model = tiny_model(tokenizer, attention_dropout=0.9).train()
    first, second = (score(model, tokenizer, ROWS, max_new_tokens=1).loss for _ in range(2))
    assert first == second


def test_what_is_written_does_not_depend_on_the_batch(tokenizer):
    model = tiny_model(tokenizer, initializer_range=0.5)
    instructions = [row["instruction"] for row in ROWS]
    together = complete(model, tokenizer, instructions, max_new_tokens=12)
    assert together == [complete(model, tokenizer, [one], max_new_tokens=12)[0] for one in instructions]
    assert len(set(together)) == 3, "the comparison says nothing if all are alike"


def test_training_on_the_encoded_batch_teaches_generation(tokenizer):
    """The whole path: what the loss teaches on right-padded batches is what left-padded generation then writes."""
    torch.set_num_threads(1)
    model = tiny_model(tokenizer)
    before = score(model, tokenizer, ROWS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = collate(encode(ROWS, tokenizer), tokenizer.pad_token_id)
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = score(model, tokenizer, ROWS)
    assert before.exact_match == 0 and before.loss > 3
    assert (after.exact_match, after.execution_match) == (1.0, 1.0) and after.loss < 0.1
