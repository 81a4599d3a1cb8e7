"""The step equals the Hugging Face Trainer's, accumulation changes nothing, and every optimizer's state is counted."""

import copy
import math

import pytest
import torch
from tiny import SHAPE, llama
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from labkit.case import OPTIMIZERS, Case, Trial
from labkit.optimizers import make_optimizer, state_bytes
from labkit.train.loop import make_schedule, seeded_batches, train
from labkit.train.step import prepare, random_batches, train_step
from labkit.train.tasks.scoring import IGNORED, collate

STEPS, BATCH, ACCUMULATION = 6, 3, 2


def rows(count: int) -> list[tuple[list[int], list[int]]]:
    """Items of unequal length whose first tokens carry no loss."""
    generator = torch.Generator().manual_seed(3)
    items = []
    for _ in range(count):
        length = int(torch.randint(6, 20, (1,), generator=generator))
        ids = torch.randint(1, 300, (length,), generator=generator).tolist()
        items.append((ids, [IGNORED] * 4 + ids[4:]))
    return items


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, arguments, state, control, logs, **_):
        if "loss" in logs:
            self.values.append(logs["loss"])


def trainers_losses(items, tmp_path, schedule: str, warmup: int) -> list[float]:
    """The Hugging Face Trainer on the same model, data and settings."""
    listener = Losses()
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION, max_steps=STEPS,
        learning_rate=1e-2, lr_scheduler_type=schedule, warmup_steps=warmup, max_grad_norm=1.0, weight_decay=0.0,
        logging_steps=1, optim="adamw_torch_fused", use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        seed=0, data_seed=0, logging_nan_inf_filter=False,
    )  # fmt: skip

    def without_mask(batch):
        return {name: tensor for name, tensor in collate(batch, 0).items() if name != "attention_mask"}

    trainer = InOrder(llama(), arguments, train_dataset=items, data_collator=without_mask, callbacks=[listener])
    trainer.train()
    return listener.values


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 2), ("linear", 0), ("constant_with_warmup", 3)])
def test_losses_are_the_trainers(tmp_path, schedule, warmup):
    items = rows(BATCH * ACCUMULATION) * STEPS  # the same step again, so that the loss must fall
    llama().save_pretrained(tmp_path / "model")
    trial = Trial(
        model=str(tmp_path / "model"), method="full", steps=STEPS, learning_rate=1e-2, batch_size=BATCH, warmup=warmup,
        accumulation=ACCUMULATION, schedule=schedule.removesuffix("_with_warmup"),
    )  # fmt: skip
    training = prepare(trial, "cpu", learning_rate=trial.learning_rate)
    steps = make_schedule(training, trial)
    ours = []
    for step in range(STEPS):
        start = step * BATCH * ACCUMULATION
        parts = [items[start + i * BATCH : start + (i + 1) * BATCH] for i in range(ACCUMULATION)]
        batches = [{k: v for k, v in collate(part, 0).items() if k != "attention_mask"} for part in parts]
        ours.append(float(train_step(training, batches)))
        steps.step()
    theirs = trainers_losses(items, tmp_path / "out", schedule, warmup)
    assert ours == pytest.approx(theirs, rel=2e-5) and ours[-1] < 0.9 * ours[0]


def test_accumulation_changes_nothing_but_memory():
    found = []
    for accumulation in (1, 3):
        training = prepare(Case(model=SHAPE, method="full", accumulation=accumulation, optimizer="sgd"), "cpu")
        batch = {k: v for k, v in collate(rows(6), 0).items() if k != "attention_mask"}
        parts = [{k: v[i::accumulation] for k, v in batch.items()} for i in range(accumulation)]
        loss = float(train_step(training, parts))
        found.append((loss, copy.deepcopy(training.model.state_dict())))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_update():
    case = Case(model=SHAPE, method="full", optimizer="sgd", clip_norm=1e-3, sequence_length=16)
    training = prepare(case, "cpu", learning_rate=1.0)
    before = copy.deepcopy(training.model.state_dict())
    train_step(training, random_batches(training.case, "cpu", 320))
    moved = sum(
        (value.detach() - before[name]).square().sum().item() for name, value in training.model.named_parameters()
    )
    assert math.sqrt(moved) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_autocast_trains_and_fp16_has_a_scaler(autocast):
    training = prepare(
        Case(model=SHAPE, method="lora", autocast=autocast, sequence_length=32), "cpu", learning_rate=1e-2
    )
    assert (training.scaler is not None) == (autocast == "fp16")
    batches = random_batches(training.case, "cpu", 320)
    losses = [float(train_step(training, batches)) for _ in range(8)]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]


def test_autocast_computes_in_16_bits():
    seen = []
    training = prepare(Case(model=SHAPE, method="full", autocast="bf16", sequence_length=8), "cpu")
    training.model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    train_step(training, random_batches(training.case, "cpu", 320))
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_gives_the_same_gradients(method, checkpointing):
    gradients = []
    for mode in ("none", checkpointing):
        training = prepare(Case(model=SHAPE, method=method, checkpointing=mode, sequence_length=16), "cpu")
        batch = random_batches(training.case, "cpu", 320)[0]
        training.model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in training.parameters])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("elements", [100, 4095, 4096, 100_000])
def test_state_bytes_are_what_the_optimizer_keeps(optimizer, elements):
    parameter = torch.nn.Parameter(torch.ones(elements))
    made = make_optimizer(Case(model="tiny", method="full", optimizer=optimizer), [parameter], 1e-3)
    parameter.grad = torch.ones(elements)
    with pytest.warns(UserWarning) if optimizer.startswith("paged") else _nothing():
        made.step()
    shared = {"qmap1", "qmap2"}  # bitsandbytes: one 256-entry table for all tensors
    kept = [value for key, value in made.state[parameter].items() if torch.is_tensor(value) and key not in shared]
    assert sum(tensor.nbytes for tensor in kept) == state_bytes(optimizer, elements, 4)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_batches_are_seeded_and_cover_an_epoch():
    trial = Trial(model="tiny", method="full", batch_size=2, accumulation=2, seed=5)
    items = [([token, token], [token, token]) for token in range(8)]
    firsts = [step for step, _ in zip(seeded_batches(items, trial, 0, "cpu"), range(2), strict=False)]
    again = [step for step, _ in zip(seeded_batches(items, trial, 0, "cpu"), range(2), strict=False)]
    seen = [token for step in firsts for batch in step for token in batch["input_ids"][:, 0].tolist()]
    assert sorted(seen) == list(range(8)) and seen != sorted(seen)
    assert seen == [token for step in again for batch in step for token in batch["input_ids"][:, 0].tolist()]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_training_the_embedded_model_lowers_its_loss_and_repeats(method):
    trial = Trial(model="tiny", method=method, steps=6, batch_size=4, learning_rate=3e-3, schedule="constant")
    first, second = (train(trial, "cpu", score_examples=8) for _ in range(2))
    assert first.losses == second.losses and len(first.losses) == 6
    assert first.after.loss < first.loss_before and first.after == second.after


def test_a_short_validation_split_is_scored_whole(tmp_path):
    for split, count in (("train", 8), ("validation", 3)):
        lines = [f'{{"instruction": "add {i} and 1", "expression": "{i} + 1"}}\n' for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    trial = Trial(model="tiny", method="lora", task=str(tmp_path), steps=1, batch_size=2)
    assert train(trial, "cpu", score_examples=50).after.examples == 3
