"""Turn task items into training batches, and score a model on them: loss, exact match, execution match.

The model reads `# {instruction}` and a line break, and has to write the answer and the end token. Prompt and answer are
tokenised apart and joined, so the prompt's tokens are the same in training and in generation; only what the model has
to write counts in the loss. An item of more than `MAX_TOKENS` loses the end of its answer; one whose prompt alone is as
long has nothing left to learn from and is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch.nn.functional import cross_entropy

from labkit.errors import RequestError
from labkit.train.tasks.interpreter import ExpressionRefused, evaluate, same_value

IGNORED = -100  # the label that cross_entropy skips
MAX_TOKENS = 1024  # of one item, or less if the tokenizer's model takes less; the default of TRL's SFTConfig, too
Encoded = tuple[list[int], list[int]]


class Example(TypedDict):
    """One item of a task: what the model reads, and what it has to write."""

    instruction: str
    answer: str


@dataclass(frozen=True)
class Scores:
    """`loss`: nats per target token. `exact_match`, `execution_match`: shares of `examples`, 0 to 1.

    `execution_match` is None where an expected answer is no expression in the language of `interpreter`.
    """

    loss: float
    exact_match: float
    execution_match: float | None
    examples: int


def prompt_of(instruction: str) -> str:
    return f"# {instruction}\n"


def encode(examples: Iterable[Example], tokenizer) -> list[Encoded]:
    """`(input_ids, labels)` of each example, equally long: prompt, answer, end token; the prompt is not scored.

    RequestError if every prompt is too long (see the module's docstring).
    """
    encoded, longest = [], _longest(tokenizer)
    for example in examples:
        prompt = _ids(tokenizer, prompt_of(example["instruction"]))
        target = [*_ids(tokenizer, example["answer"], add_special_tokens=False), tokenizer.eos_token_id]
        if len(prompt) < longest:
            labels = [IGNORED] * len(prompt) + target
            encoded.append(((prompt + target)[:longest], labels[:longest]))
    if not encoded:
        raise RequestError(f"No item can be learnt from: every instruction has {longest:,} tokens or more.")
    return encoded


def _longest(tokenizer) -> int:
    return min(MAX_TOKENS, tokenizer.model_max_length)


def _ids(tokenizer, text: str, **options) -> list[int]:
    """The tokens of a text, without the tokenizer's warning about long ones: they are cut here."""
    return tokenizer(text, verbose=False, **options)["input_ids"]


def collate(encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
    """int64 tensors `input_ids`, `attention_mask`, `labels` of shape (batch, longest), padded on the right."""
    longest = max(len(ids) for ids, _ in encoded)

    def padded(rows: Iterable[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    return {
        "input_ids": padded((ids for ids, _ in encoded), pad_token_id),
        "attention_mask": padded(([1] * len(ids) for ids, _ in encoded), 0),
        "labels": padded((labels for _, labels in encoded), IGNORED),
    }


def score(model, tokenizer, examples: Iterable[Example], batch_size: int = 64, max_new_tokens: int = 32) -> Scores:
    """Score `model` on `examples` (a list or a `datasets.Dataset`) by greedy generation; its mode is left as it was."""
    examples = list(examples)
    expected = [example["answer"].strip() for example in examples]
    with _evaluating(model):
        loss = mean_loss(model, tokenizer, examples, batch_size)
        instructions = [example["instruction"] for example in examples]
        written = complete(model, tokenizer, instructions, batch_size, max_new_tokens)
    exact = [left == right for left, right in zip(written, expected, strict=True)]
    return Scores(loss, sum(exact) / len(exact), _execution_match(written, expected), len(examples))


def complete(
    model, tokenizer, instructions: Sequence[str], batch_size: int = 64, max_new_tokens: int = 32
) -> list[str]:
    """What the model writes, greedily, for each instruction: up to its end token, stripped of white space.

    Of a prompt that leaves no room for `max_new_tokens`, the model reads the end.
    """
    texts, room = [], max(1, _longest(tokenizer) - max_new_tokens)
    with _evaluating(model):
        for batch in _batches(instructions, batch_size):
            prompts = [_ids(tokenizer, prompt_of(instruction))[-room:] for instruction in batch]
            tokens = _generate(model, tokenizer, prompts, max_new_tokens)
            decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts += [text.strip() for text in decoded]
    return texts


def _generate(model, tokenizer, prompts: list[list[int]], max_new_tokens: int) -> torch.Tensor:
    """New tokens, shape (batch, at most `max_new_tokens`). Prompts are padded on the left, so all end together."""
    longest = max(map(len, prompts))
    ids = [[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return output[:, longest:]


def mean_loss(model, tokenizer, examples: Iterable[Example], batch_size: int = 64) -> float:
    """Nats per target token: the mean over all target tokens of all examples, whatever the batch size."""
    total, tokens = 0.0, 0
    with _evaluating(model):
        for batch in _batches(encode(examples, tokenizer), batch_size):
            inputs = {name: tensor.to(model.device) for name, tensor in collate(batch, tokenizer.pad_token_id).items()}
            targets = inputs.pop("labels")[:, 1:]
            scored = targets != IGNORED
            logits = model(**inputs).logits[:, :-1][scored].float()
            total += cross_entropy(logits, targets[scored], reduction="sum").item()
            tokens += scored.sum().item()
    return total / tokens


def _execution_match(written: list[str], expected: list[str]) -> float | None:
    try:
        for expression in expected:
            evaluate(expression)
    except ExpressionRefused:
        return None
    return sum(map(same_value, written, expected)) / len(expected)


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def _evaluating(model) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
