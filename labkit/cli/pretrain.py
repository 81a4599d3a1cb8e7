"""`labkit pretrain`: make the embedded model anew, or score an existing one on the frozen text."""

import argparse
import json
import sys
from pathlib import Path

from labkit.errors import RequestError

FROZEN = "tasks/held_out_code.txt"


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "pretrain", help="pre-train the embedded model on the standard library's source", allow_abbrev=False
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument(
        "--corpus", metavar="DIR", type=Path, help="folder of .py files (default: the standard library)"
    )
    parser.add_argument("--score", action="store_true", help="only score the model in DIR and renew its card")
    parser.add_argument("--json", action="store_true", help="print the card's facts as one JSON object")


def run(options: argparse.Namespace) -> int:
    for name, least in {"steps": 1, "batch_size": 1, "sequence_length": 2, "threads": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise RequestError(f"--{name.replace('_', '-')} {value} is not possible: it must be at least {least}.")
    if options.out.exists() and not options.out.is_dir():
        raise RequestError(f"--out {options.out} is a file; give a folder to write the model into.")
    if not 0 < options.learning_rate < 10:
        raise RequestError(f"--learning-rate {options.learning_rate} is not possible: it must lie between 0 and 10.")
    if options.corpus and not any(options.corpus.rglob("*.py")):
        raise RequestError(f"--corpus {options.corpus} holds no .py file to train on.")
    facts = _score(options) if options.score else _pretrain(options)
    print(json.dumps(facts) if options.json else _summary(options.out, facts))
    return 0


def _frozen_text() -> str | None:
    from labkit.machine import require_folder

    path = require_folder("data") / FROZEN
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _pretrain(options: argparse.Namespace) -> dict:
    import torch

    from labkit.train.corpus import standard_library
    from labkit.train.pretrain import Pretraining, pretrain

    if options.threads:
        torch.set_num_threads(options.threads)
    corpus = standard_library(options.corpus)
    if not (corpus.train and corpus.held_out):
        raise RequestError(f"--corpus {options.corpus} is too small: some files must be left to score the model on.")
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"Corpus: {len(corpus.train)} files to train, {len(corpus.held_out)} held out.", file=sys.stderr)
    settings = Pretraining(
        steps=options.steps,
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    return pretrain(corpus, options.out, settings, _frozen_text())


def _score(options: argparse.Namespace) -> dict:
    from labkit.train.corpus import standard_library
    from labkit.train.pretrain import rescore

    return rescore(options.out, standard_library(options.corpus), _frozen_text())


def _summary(folder: Path, facts: dict) -> str:
    text = f"{folder}: {facts['held_out']['bits_per_byte']:.4f} bits per byte on held-out library files"
    return text + (f", {facts['frozen']['bits_per_byte']:.4f} on the frozen text" if "frozen" in facts else "")
