"""Train a Trial on its task: seeded batches, a learning-rate schedule, progress, scores at the end."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from labkit.case import Trial
from labkit.models.build import tokenizer_of
from labkit.progress import progress
from labkit.train.step import Batch, Training, prepare, train_step
from labkit.train.tasks.files import load
from labkit.train.tasks.scoring import Scores, collate, encode, mean_loss, score


@dataclass
class Trained:
    """What a Trial leaves: the trained model, the loss of every step (nats per target token), scores, seconds."""

    trial: Trial
    training: Training
    losses: list[float] = field(default_factory=list)
    loss_before: float | None = None
    after: Scores | None = None
    seconds: float = 0.0


def seeded_batches(encoded: list, trial: Trial, pad_token_id: int, device: str) -> Iterator[list[Batch]]:
    """Endless epochs in an order drawn from the trial's seed; yields the micro-batches of one step.

    Right padding needs no attention mask: a causal model never looks to the right, and padded labels are ignored.
    """
    generator = torch.Generator().manual_seed(trial.seed)
    pending: list[int] = []
    while True:
        step = []
        for _ in range(trial.accumulation):
            while len(pending) < trial.batch_size:
                pending += torch.randperm(len(encoded), generator=generator).tolist()
            rows, pending = pending[: trial.batch_size], pending[trial.batch_size :]
            batch = collate([encoded[row] for row in rows], pad_token_id)
            step.append({name: batch[name].to(device) for name in ("input_ids", "labels")})
        yield step


def first_rows(dataset, count: int):
    """The first `count` rows, or all if there are fewer."""
    return dataset.select(range(min(count, len(dataset))))


def make_schedule(training: Training, trial: Trial):
    """transformers' `constant`, `linear` or `cosine` schedule with warm-up."""
    from transformers import get_scheduler  # imports bitsandbytes, so not before `quiet_libraries`

    name = "constant_with_warmup" if trial.schedule == "constant" else trial.schedule
    return get_scheduler(name, training.optimizer, num_warmup_steps=trial.warmup, num_training_steps=trial.steps)


def optimise(training: Training, trial: Trial, batches: Iterator[list[Batch]], label: str) -> list[float]:
    """Run the trial's steps; returns the loss of every step in nats per target token."""
    schedule, losses = make_schedule(training, trial), []
    training.model.train()
    for _ in (bar := progress(range(trial.steps), label, unit="step")):
        losses.append(float(train_step(training, next(batches))))
        schedule.step()
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return losses


def train(
    trial: Trial, device: str | None = None, score_examples: int = 200, training: Training | None = None
) -> Trained:
    """Train `trial`; score it on `score_examples` validation items (0: none), before training by the loss alone.

    `training`: what `prepare` made of this very trial, for those who look at the model before; default: make it.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tokenizer_of(trial)
    training = training or prepare(trial, device, learning_rate=trial.learning_rate)
    encoded = encode(load(trial.task, "train"), tokenizer)
    validation = first_rows(load(trial.task, "validation"), score_examples) if score_examples else None
    result = Trained(trial, training)
    if validation is not None:
        result.loss_before = mean_loss(training.model, tokenizer, validation)
    torch.manual_seed(trial.seed)
    started = time.perf_counter()
    batches = seeded_batches(encoded, trial, tokenizer.pad_token_id, device)
    result.losses = optimise(training, trial, batches, f"{trial.method} on {trial.task}")
    result.seconds = time.perf_counter() - started
    if validation is not None:
        result.after = score(training.model, tokenizer, validation)
    return result
