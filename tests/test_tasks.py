"""The training task: what the grammar generates, and what the scores mean."""

import ast
import collections
import copy
import functools
import itertools
import json
import math
import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from labkit.errors import RequestError
from labkit.train.pretrain import train_tokenizer
from labkit.train.tasks import files, grammar, interpreter, scoring
from labkit.train.tasks.scoring import IGNORED, collate, complete, encode, prompt_of, score

WRITTEN = ("instruction", "expression")  # the columns of the repository's own files
ROWS = [
    {"instruction": "add 3 and 8", "answer": "3 + 8"},
    {"instruction": "the largest of 4, 9, 2", "answer": "max(4, 9, 2)"},
    {"instruction": "length of 'abc'", "answer": "len('abc')"},
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
    for column in WRITTEN:
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
    assert json.loads((tmp_path / "tasks" / written[0]).read_text().splitlines()[0]).keys() == set(WRITTEN)


# ------------------------------------------------------------------------------------------------ scoring


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tuple(f"# {row['instruction']}\n{row['answer']}" for row in ROWS), 300)


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
        assert tokenizer.decode(scored[:-1]) == row["answer"]
        assert ids[-len(scored) :] == scored
        assert ids[: -len(scored)] == tokenizer(prompt_of(row["instruction"]))["input_ids"]
        assert tokenizer.decode(ids[:-1]) == f"# {row['instruction']}\n{row['answer']}"


def test_long_items_lose_the_end_of_their_answer_and_endless_prompts_are_left_out(tokenizer, monkeypatch):
    whole = encode(ROWS, tokenizer)
    prompts = [labels.count(IGNORED) for _, labels in whole]
    limit = sorted(prompts)[-1]  # the longest prompt leaves no room
    monkeypatch.setattr(scoring, "MAX_TOKENS", limit)
    kept = [one for one, prompt in zip(whole, prompts, strict=True) if prompt < limit]
    assert encode(ROWS, tokenizer) == [(ids[:limit], labels[:limit]) for ids, labels in kept] != whole
    monkeypatch.setattr(scoring, "MAX_TOKENS", 1)
    with pytest.raises(RequestError, match="every instruction has 1 tokens or more"):
        encode(ROWS, tokenizer)


def test_a_model_of_few_positions_is_never_given_more(tokenizer):
    """GPT-2 looks positions up in a table: one too many is an error, not a bad guess."""
    short = copy.copy(tokenizer)
    short.model_max_length = 24
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 24, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(**size, eos_token_id=tokenizer.eos_token_id))
    items = [{"instruction": "add 3 and 8 " * repeats, "answer": "3 + 8" * 20} for repeats in (1, 40)]
    assert score(model, short, items, max_new_tokens=8).examples == 2


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
        {"instruction": ROWS[0]["instruction"], "answer": "11"},  # another way to the same value
        {"instruction": ROWS[1]["instruction"], "answer": " max(4, 9, 2) "},  # the same text
        {"instruction": ROWS[2]["instruction"], "answer": "len('abc"},  # refused
    ]
    scores = score(Oracle(tokenizer, answers), tokenizer, ROWS)
    assert (scores.exact_match, scores.execution_match) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_execution_match_is_unknown_where_the_truth_is_not_an_expression_of_the_language(tokenizer):
    prose = [*ROWS, {"instruction": "greet", "answer": "Hello, reader!"}]
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
