"""The one training step of the project: build the model of a Case, then forward, loss, backward, optimizer.

Everything that measures, predicts or trains goes through `prepare` and `train_step`, which announce their phases
(`load`, `forward`, `backward`, `optimizer`) to whoever listens.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from labkit.case import Case
from labkit.errors import RequestError
from labkit.methods import build
from labkit.models.build import DTYPES
from labkit.optimizers import make_optimizer
from labkit.train.tasks.scoring import IGNORED

Announce = Callable[[str], None]
Batch = dict[str, torch.Tensor]


def _silent(phase: str) -> None:
    pass


@dataclass
class Training:
    """A model ready to be trained, and what its steps need. `scaler` exists for fp16 autocast alone."""

    case: Case
    device: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def prepare(case: Case, device: str, announce: Announce = _silent, learning_rate: float = 1e-3) -> Training:
    """Build the model and the optimizer of `case` on `device` ('cpu' or 'cuda')."""
    case = case.on(torch.device(device).type)
    if case.world_size > 1:
        raise RequestError(f"world_size={case.world_size} cannot be run by one process; measure world_size=1.")
    announce("load")
    model = build(case, device)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(case, trainable, learning_rate)
    scaler = torch.amp.GradScaler(torch.device(device).type) if case.autocast == "fp16" else None
    return Training(case, device, model, optimizer, scaler)


def target_count(batches: Iterable[Batch]) -> torch.Tensor:
    """Positions that carry a loss. Position 0 of a row predicts nothing: token n is predicted from those before it."""
    return torch.stack([(batch["labels"][:, 1:] != IGNORED).sum() for batch in batches]).sum()


def autocast_of(training: Training):
    if training.case.autocast is None:
        return nullcontext()
    return torch.autocast(torch.device(training.device).type, DTYPES[training.case.autocast])


def train_step(training: Training, batches: list[Batch], announce: Announce = _silent) -> torch.Tensor:
    """One optimizer step over `batches` (one per accumulation); the mean loss per target token, in nats, a scalar.

    A batch holds `input_ids` and `labels`, both (batch, sequence) int64. The loss of every micro-batch is divided by
    the targets of the whole step, so accumulation changes nothing but memory.
    """
    count, total = target_count(batches), 0
    for batch in batches:
        announce("forward")
        with autocast_of(training):
            loss = training.model(**batch, num_items_in_batch=count).loss
        announce("backward")
        (training.scaler.scale(loss) if training.scaler else loss).backward()
        total += loss.detach()
        del loss
    announce("optimizer")
    _update(training)
    return total


def _update(training: Training) -> None:
    optimizer, scaler, clip_norm = training.optimizer, training.scaler, training.case.clip_norm
    if scaler:
        scaler.unscale_(optimizer)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(training.parameters, clip_norm)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def random_batches(case: Case, device: str, vocabulary: int) -> list[Batch]:
    """Token ids drawn from the case's seed: one batch per accumulation, every position a target."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.accumulation, case.batch_size, case.sequence_length)
    tokens = torch.randint(vocabulary, shape, generator=generator).to(device)
    return [{"input_ids": ids, "labels": ids.clone()} for ids in tokens]
