"""Pre-train the embedded model: a byte-level BPE tokenizer and a small Llama on the standard library's source.

    labkit pretrain --steps 5500 --out assets/model

writes a folder that `from_pretrained` reads: `model.safetensors` (bf16), `config.json`, the tokenizer, and a card
(`README.md`, with the same facts as JSON in `pretraining.json`): seeds, corpus hash, time, held-out loss.
"""

import json
import math
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.errors import RequestError
from labkit.models.quiet import quiet_libraries
from labkit.progress import progress
from labkit.train.card import describe
from labkit.train.corpus import Corpus

END, PAD = "<|end|>", "<|pad|>"
PROMPT = "def read_lines(path):"  # what the card's sample goes on from
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Pretraining:
    """Settings of one run. Tokens seen = steps x batch_size x sequence_length."""

    steps: int = 5500
    batch_size: int = 16
    sequence_length: int = 256
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0
    vocab_size: int = 2048
    shape: dict = field(default_factory=lambda: dict(SHAPE))


def train_tokenizer(texts: tuple[str, ...], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every byte has a token, so no text is out of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=PAD)


def encode(texts: tuple[str, ...], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """One long int64 vector; every text begins and ends at an end token."""
    end = tokenizer.eos_token_id
    pieces = tokenizer(list(texts), verbose=False)["input_ids"]
    return torch.tensor([end] + [token for ids in pieces for token in [*ids, end]])


def learning_rate_factor(step: int, settings: Pretraining) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def held_out_nats(model, tokens: torch.Tensor, sequence_length: int) -> float:
    """Sum of -log p over all tokens but the first, each scored once in overlapping windows.

    Windows advance by half their length, so a token has at least `sequence_length // 2` tokens of context
    wherever that many precede it.
    """
    model.eval()
    stride, total, scored = sequence_length // 2, 0.0, 1
    for start in range(0, len(tokens) - 1, stride):
        window = tokens[start : start + sequence_length + 1]
        if start + len(window) <= scored:
            break
        logits = model(input_ids=window[None, :-1]).logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        total += loss[scored - start - 1 :].sum().item()
        scored = start + len(window)
    model.train()
    return total


def score_text(model, tokenizer, texts: tuple[str, ...], sequence_length: int = 256) -> dict[str, float]:
    """Held-out loss of `texts`: nats per token and bits per byte (total nats / ln 2 / UTF-8 bytes)."""
    tokens = encode(texts, tokenizer)
    nats = held_out_nats(model, tokens.to(model.device), sequence_length)
    size_bytes = sum(len(text.encode()) for text in texts)
    return {
        "nats_per_token": nats / (len(tokens) - 1),
        "bits_per_byte": nats / math.log(2) / size_bytes,
        "bytes": size_bytes,
        "tokens": len(tokens) - 1,
    }


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Pretraining) -> LlamaForCausalLM:
    torch.manual_seed(settings.seed)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids, **settings.shape)
    return LlamaForCausalLM(config)


def optimise(model, tokens: torch.Tensor, settings: Pretraining, autocast: bool) -> list[float]:
    """The pre-training loop (AdamW, random windows of the corpus); returns the loss of every step in nats."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
    generator = torch.Generator().manual_seed(settings.seed)
    offsets = torch.arange(settings.sequence_length)
    losses = []
    for _ in (bar := progress(range(settings.steps), "pre-training", unit="step")):
        starts = torch.randint(len(tokens) - settings.sequence_length, (settings.batch_size, 1), generator=generator)
        batch = tokens[starts + offsets].to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}", refresh=False)
    return losses


@torch.no_grad()
def sample(model, tokenizer, prompt: str, tokens: int = 80) -> str:
    """Greedy continuation of `prompt`, prompt included."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(out[0])


def pretrain(corpus: Corpus, out: Path, settings: Pretraining, frozen: str | None = None) -> dict:
    """Train tokenizer and model on `corpus`, write the folder `out`, return the card's facts."""
    started = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(corpus.train, settings.vocab_size)
    model = build_model(tokenizer, settings).to(device)
    autocast = device == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    losses = optimise(model, encode(corpus.train, tokenizer), settings, autocast)
    model = model.to(torch.bfloat16)
    quiet_libraries()
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    model = model.float()  # what is scored is what was saved: rounded to bf16
    facts = {
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "corpus_sha256": corpus.sha256,
        "corpus_bytes": corpus.size_bytes,
        "train_files": len(corpus.train),
        "held_out_files": len(corpus.held_out),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "autocast_bf16": autocast,
        "threads": torch.get_num_threads(),
        "seconds": time.monotonic() - started,
        "last_losses": losses[-10:],
        "held_out": score_text(model, tokenizer, corpus.held_out, settings.sequence_length),
        "prompt": PROMPT,
        "sample": sample(model, tokenizer, PROMPT),
    }
    if frozen:
        facts["frozen"] = score_text(model, tokenizer, (frozen,), settings.sequence_length)
    describe(out, facts)
    return facts


def rescore(folder: Path, corpus: Corpus, frozen: str | None) -> dict:
    """Score the model in `folder` again, sample from it, and renew its card; the training facts stay.

    RequestError if the folder holds no pre-trained model, or if its corpus was another one than `corpus`.
    """
    facts_file = folder / "pretraining.json"
    if not facts_file.is_file():
        raise RequestError(f"{folder} holds no pretraining.json; give a folder that `labkit pretrain` wrote.")
    facts = json.loads(facts_file.read_text())
    if facts["corpus_sha256"] != corpus.sha256:
        raise RequestError(
            f"{folder} was trained on the library of Python {facts['python']}, another corpus than this "
            "interpreter's; score it with that Python."
        )
    quiet_libraries()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    length = facts["settings"]["sequence_length"]
    facts |= {"prompt": PROMPT, "sample": sample(model, tokenizer, PROMPT)}
    facts["held_out"] = score_text(model, tokenizer, corpus.held_out, length)
    if frozen:
        facts["frozen"] = score_text(model, tokenizer, (frozen,), length)
    describe(folder, facts)
    return facts
