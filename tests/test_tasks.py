"""The training task: what the grammar generates, what the files hold, and what the scores mean."""

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

FAMILIES = ("easy", "hard")
ROWS = [
    {"instruction": "add 3 and 8", "expression": "3 + 8"},
    {"instruction": "the largest of 4, 9, 2", "expression": "max(4, 9, 2)"},
    {"instruction": "length of 'abc'", "expression": "len('abc')"},
]


@pytest.fixture(scope="module", params=FAMILIES)
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
            assert len(example["instruction"]) <= 60 and len(example["expression"]) <= 48
            assert not re.search(r"\b[A-Z]+\b", example["instruction"] + example["expression"]), "an unfilled slot"
            interpreter.evaluate(example["expression"])


def test_a_phrase_never_has_two_meanings():
    phrases = [phrase for family in FAMILIES for phrases, _ in grammar.rules(family) for phrase in phrases]
    assert len(set(phrases)) == len(phrases)


def test_every_slot_of_an_expression_is_in_its_phrases():
    """Otherwise the instruction would not determine the expression."""
    for family in FAMILIES:
        for phrases, expression in grammar.rules(family):
            asked = set(re.findall(r"\b[A-Z]+\b", expression))
            for phrase in phrases:
                assert set(re.findall(r"\b[A-Z]+\b", phrase)) == asked, phrase


def test_the_splits_are_alike(family, splits):
    """Every rule has its share of every split: no rule is only tested, none only trained."""
    share = 1 / len(grammar.rules(family))
    for examples in splits.values():
        for _, expression in grammar.rules(family):
            pattern = re.sub(r"\\?\b[A-Z]+\b", ".+", re.escape(expression))
            found = sum(bool(re.fullmatch(pattern, example["expression"])) for example in examples)
            assert found > 0.3 * share * len(examples), expression


def test_the_hard_family_composes(splits, family):
    import ast

    operations = (
        ast.BinOp,
        ast.Call,
        ast.Subscript,
        ast.Compare,
        ast.IfExp,
        ast.ListComp,
        ast.DictComp,
        ast.GeneratorExp,
    )
    counts = [
        sum(isinstance(node, operations) for node in ast.walk(ast.parse(example["expression"])))
        for example in splits["test"]
    ]
    mean = sum(counts) / len(counts)
    assert 1 <= mean < 1.2 if family == "easy" else 2 < mean < 3.5


def test_a_seed_fixes_the_items_and_another_changes_them(family):
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
    assert dataset[0] == grammar.generate(name.removeprefix("expressions-"))["test"][0]


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
