"""The embedded model's card: a page for people and the same facts as JSON, both written from one mapping."""

import json
from pathlib import Path

from labkit.record import write_atomically

PAGE = """\
# The embedded model

A small Llama trained from scratch on the Python standard library's own source, so that every lab runs offline on real,
trained weights. Made by `labkit pretrain`; it writes recognisable Python and is of no other use. The library's modules
resemble one another; the frozen text is code of another project, so its figure says more about text of a kind the model
has not seen.

| | |
|---|---|
{table}

Sample, greedy, after `{prompt}`:

```python
{sample}
```
"""


def describe(folder: Path, facts: dict) -> None:
    """Write the card and its facts."""
    write_atomically(folder / "pretraining.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomically(folder / "README.md", card(facts).encode())


def card(facts: dict) -> str:
    """The model card, from the facts alone."""
    shape, held_out = facts["settings"]["shape"], facts["held_out"]
    rows = [
        ("Parameters", f"{facts['parameters']:,} (embedding tied to the head)"),
        (
            "Shape",
            f"{shape['num_hidden_layers']} layers, hidden {shape['hidden_size']}, MLP "
            f"{shape['intermediate_size']}, {shape['num_attention_heads']} heads, "
            f"{shape['num_key_value_heads']} key-value heads",
        ),
        (
            "Tokenizer",
            f"byte-level BPE, {facts['settings']['vocab_size']:,} tokens, "
            f"{held_out['bytes'] / held_out['tokens']:.2f} bytes per token on held-out files",
        ),
        (
            "Corpus",
            f"standard library of Python {facts['python']}, {facts['corpus_bytes']:,} bytes, "
            f"{facts['train_files']} files to train, {facts['held_out_files']} held out by path hash",
        ),
        ("Corpus SHA-256", f"`{facts['corpus_sha256']}`"),
        (
            "Training",
            f"{facts['settings']['steps']:,} steps of {facts['settings']['batch_size']} x "
            f"{facts['settings']['sequence_length']} tokens, seed {facts['settings']['seed']}, "
            f"{facts['seconds'] / 60:.0f} minutes on {facts['threads']} CPU thread(s) ({facts['device']}), "
            f"torch {facts['torch']}",
        ),
        (
            "Held-out library files",
            f"{held_out['bits_per_byte']:.4f} bits per byte, {held_out['nats_per_token']:.4f} nats per token",
        ),
    ]
    if "frozen" in facts:
        rows.append(
            (
                "Frozen text (`data/tasks/held_out_code.txt`)",
                f"{facts['frozen']['bits_per_byte']:.4f} bits per byte, "
                f"{facts['frozen']['nats_per_token']:.4f} nats per token",
            )
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return PAGE.format(table=table, prompt=facts["prompt"], sample=facts["sample"])
