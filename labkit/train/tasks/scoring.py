"""Turn task items into training batches, and score a model on them: loss, exact match, execution match.

The model reads `# {instruction}` and a line break, and has to write the expression and the end token. Prompt and
expression are tokenised apart and joined, so the prompt's tokens are the same in training and in generation; only what
the model has to write counts in the loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from labkit.train.tasks.grammar import Example
from labkit.train.tasks.interpreter import ExpressionRefused, evaluate, same_value

IGNORED = -100  # the label that cross_entropy skips
Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Scores:
    """`loss`: nats per target token. `exact_match`, `execution_match`: shares of `examples`, 0 to 1.

    `execution_match` is None where an expected expression is outside the language of `interpreter`.
    """

    loss: float
    exact_match: float
    execution_match: float | None
    examples: int


def prompt_of(instruction: str) -> str:
    return f"# {instruction}\n"


def encode(examples: Iterable[Example], tokenizer) -> list[Encoded]:
    """`(input_ids, labels)` of each example, equally long: prompt, expression, end token; the prompt is not scored."""
    encoded = []
    for example in examples:
        prompt = tokenizer(prompt_of(example["instruction"]))["input_ids"]
        target = tokenizer(example["expression"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        encoded.append((prompt + target, [IGNORED] * len(prompt) + target))
    return encoded


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
    expected = [example["expression"].strip() for example in examples]
    with _evaluating(model):
        loss = mean_loss(model, tokenizer, examples, batch_size)
        instructions = [example["instruction"] for example in examples]
        written = complete(model, tokenizer, instructions, batch_size, max_new_tokens)
    exact = [left == right for left, right in zip(written, expected, strict=True)]
    return Scores(loss, sum(exact) / len(exact), _execution_match(written, expected), len(examples))


def complete(
    model, tokenizer, instructions: Sequence[str], batch_size: int = 64, max_new_tokens: int = 32
) -> list[str]:
    """What the model writes, greedily, for each instruction: up to its end token, stripped of white space."""
    texts = []
    with _evaluating(model):
        for batch in _batches(instructions, batch_size):
            prompts = [tokenizer(prompt_of(instruction))["input_ids"] for instruction in batch]
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
