"""The nouns: a `Case` is one fine-tuning step's configuration, a `Trial` a Case plus what a training run adds.

Both are frozen, validated on creation, hashable, and go to JSON and back. `FIELD_RULES` is the one place that says
what a field may hold; the labs, the command and the meters all ask it.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from labkit.errors import RequestError

METHODS = ("full", "lora", "qlora", "bottleneck", "prefix")
AVAILABLE_METHODS = METHODS[:3]  # what can be run and estimated so far
DTYPES = ("fp32", "fp16", "bf16")
OPTIMIZERS = (
    "sgd", "adamw-loop", "adamw-foreach", "adamw-fused", "adamw-32bit", "adamw-8bit",
    "paged-adamw-32bit", "paged-adamw-8bit", "lion-8bit",
)  # fmt: skip
TARGETS = ("qv", "attention", "mlp", "all-linear")
SCALINGS = ("alpha/r", "alpha/sqrt(r)")
QUANT_TYPES = ("nf4", "fp4", "int8")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # what bitsandbytes' kernels accept
NESTED_BLOCK_SIZE = 256  # double quantisation: the second level's blocks (QLoRA, arXiv:2305.14314, section 3)
CHECKPOINTING = ("none", "reentrant", "non-reentrant")
ATTENTION = ("eager", "math", "efficient", "flash", "cudnn")
SCHEDULES = ("constant", "linear", "cosine")
CONFIG_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "vocab_size", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """What one field may hold. `optional` allows None; bounds apply to numbers."""

    kind: type | tuple[type, ...]
    choices: tuple = ()
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    maximum: float | None = None
    optional: bool = False

    def describe(self) -> str:
        """The rule in words, for error messages."""
        if self.choices:
            words = "one of " + ", ".join(map(str, self.choices))
        elif self.kind is bool:
            words = "true or false"
        else:
            words = "a whole number" if self.kind is int else "text" if self.kind is str else "a number"
            bounds = (
                ("of at least", self.minimum),
                ("above", self.above),
                ("below", self.below),
                ("up to", self.maximum),
            )
            words += "".join(f" {name} {value:g}" for name, value in bounds if value is not None)
        return words + (" or null" if self.optional else "")

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) != (self.kind is bool) or not isinstance(value, self.kind):
            return False
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return bool(value.strip())
        in_bounds = (self.minimum is None or value >= self.minimum) and (self.above is None or value > self.above)
        in_bounds = in_bounds and (self.maximum is None or value <= self.maximum)
        return in_bounds and (self.below is None or value < self.below)


NUMBER = (int, float)
COUNT = Rule(int, minimum=1)
LARGEST = 1e9  # no sensible alpha, norm or rate comes near it
FIELD_RULES: dict[str, Rule] = {
    "method": Rule(str, METHODS),
    "rank": COUNT,
    "alpha": Rule(NUMBER, above=0, below=LARGEST),
    "dropout": Rule(NUMBER, minimum=0, below=1),
    "scaling": Rule(str, SCALINGS),
    "bottleneck_size": COUNT,
    "prefix_length": COUNT,
    "precision": Rule(str, DTYPES, optional=True),
    "compute_dtype": Rule(str, DTYPES, optional=True),
    "autocast": Rule(str, ("fp16", "bf16"), optional=True),
    "quant_type": Rule(str, QUANT_TYPES),
    "block_size": Rule(int, BLOCK_SIZES),
    "double_quant": Rule(bool),
    "upcast": Rule(bool, optional=True),
    "optimizer": Rule(str, OPTIMIZERS),
    "batch_size": COUNT,
    "sequence_length": COUNT,
    "accumulation": COUNT,
    "clip_norm": Rule(NUMBER, above=0, below=LARGEST, optional=True),
    "checkpointing": Rule(str, CHECKPOINTING),
    "attention": Rule(str, ATTENTION, optional=True),
    "seed": Rule(int, minimum=0, maximum=2**63 - 1),  # what torch.manual_seed takes
    "world_size": COUNT,
    "task": Rule(str),
    "steps": COUNT,
    "learning_rate": Rule(NUMBER, above=0, below=LARGEST),
    "schedule": Rule(str, SCHEDULES),
    "warmup": Rule(int, minimum=0),
}
FIELD_NAMES = ("model", "targets", *FIELD_RULES)


def field_of(parameter: str) -> str | None:
    """The field whose rule a lab's parameter obeys: its own name, or `learning_rate` for `learning_rate_full`."""
    name = "learning_rate" if parameter.startswith("learning_rate") else parameter
    return name if name in FIELD_NAMES else None


def check_field(name: str, value: Any) -> None:
    """Raise RequestError, in one sentence, unless field `name` may hold `value`."""
    if name == "model":
        _check_model(value)
    elif name == "targets":
        _check_targets(value)
    elif name not in FIELD_RULES:
        raise RequestError(_unknown_keys([name], FIELD_NAMES))
    elif not FIELD_RULES[name].allows(value):
        raise RequestError(f"{name}={value!r} is not possible: {name} must be {FIELD_RULES[name].describe()}.")


def _check_model(value: Any) -> None:
    if isinstance(value, str) and value.strip():
        return
    if not isinstance(value, Mapping):
        raise RequestError(
            f"model={value!r} is not possible: model must be a name, a folder, a hub id, or an object of config keys."
        )
    missing = [key for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size") if key not in value]
    if missing:
        raise RequestError(f"The model object lacks {', '.join(missing)}; give Hugging Face config keys such as "
                           f"{', '.join(CONFIG_KEYS)}.")  # fmt: skip
    if not isinstance(value["model_type"], str):
        raise RequestError(
            f"model.model_type={value['model_type']!r} is not possible: it must be text, such as 'llama'."
        )
    for key in (*CONFIG_KEYS[1:-1], "head_dim"):
        if value.get(key) is not None and not COUNT.allows(value[key]):
            raise RequestError(f"model.{key}={value[key]!r} is not possible: it must be {COUNT.describe()}.")


def _check_targets(value: Any) -> None:
    names = isinstance(value, list | tuple) and value and all(isinstance(name, str) and name for name in value)
    if not names and value not in TARGETS:
        raise RequestError(f"targets={value!r} is not possible: targets must be one of {', '.join(TARGETS)}, "
                           "or a list of module names.")  # fmt: skip


def _unknown_keys(unknown: list[str], known: tuple[str, ...] | list[str]) -> str:
    hints = [close[0] for name in unknown if (close := difflib.get_close_matches(name, known, 1))]
    hint = f"did you mean {', '.join(hints)}?" if hints else f"the known ones are {', '.join(known)}."
    return f"Unknown {'key' if len(unknown) == 1 else 'keys'} {', '.join(map(repr, unknown))}: {hint}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fine-tuning step. `None` in `precision`, `compute_dtype`, `upcast` and `attention` means "the usual value for
    the device and method"; `on(device_type)` fills it in, and Records hold the filled-in Case.
    """

    model: str | dict
    method: str
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    scaling: str = "alpha/r"
    targets: str | tuple[str, ...] = "all-linear"
    bottleneck_size: int = 16
    prefix_length: int = 16
    precision: str | None = None
    compute_dtype: str | None = None
    autocast: str | None = None
    quant_type: str = "nf4"
    block_size: int = 64
    double_quant: bool = True
    upcast: bool | None = None
    optimizer: str = "adamw-fused"
    batch_size: int = 1
    sequence_length: int = 512
    accumulation: int = 1
    clip_norm: float | None = 1.0
    checkpointing: str = "none"
    attention: str | None = None
    seed: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            check_field(item.name, getattr(self, item.name))
        if isinstance(self.model, Mapping):  # a private copy, in a fixed order
            object.__setattr__(self, "model", dict(sorted(json.loads(json.dumps(self.model)).items())))
        for item in fields(self):  # 16 and 16.0 are one Case
            if getattr(FIELD_RULES.get(item.name), "kind", None) == NUMBER and isinstance(
                getattr(self, item.name), int
            ):
                object.__setattr__(self, item.name, float(getattr(self, item.name)))
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        if self.method == "full" and self.autocast == "fp16" and self.precision == "fp16":
            raise RequestError("method='full' with precision='fp16' and autocast='fp16' is not possible: a gradient "
                               "scaler cannot unscale fp16 gradients; use precision='fp32'.")  # fmt: skip

    def __hash__(self) -> int:
        return hash(self.to_json())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from JSON's object. RequestError names every unknown key, missing key or impossible value."""
        known = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping):
            raise RequestError(f"A {cls.__name__} must be a JSON object of {', '.join(known[:4])}, ...")
        if unknown := [str(key) for key in values if key not in known]:
            raise RequestError(_unknown_keys(unknown, known))
        if missing := [name for name in ("model", "method") if name not in values]:
            raise RequestError(f"The {cls.__name__} lacks {' and '.join(missing)}, which must be given.")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse one JSON object; RequestError if it is not JSON."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"The {cls.__name__} is not valid JSON: {error}.") from None
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if isinstance(self.targets, tuple):
            values["targets"] = list(self.targets)
        return values

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    def on(self, device_type: str) -> Self:
        """The same case with the device's usual values filled in. `device_type` is 'cpu' or 'cuda'."""
        cpu = device_type == "cpu"
        precision = self.precision or ("fp32" if cpu else "bf16")
        return replace(
            self,
            precision=precision,
            compute_dtype=self.compute_dtype or precision,
            attention=self.attention or ("math" if cpu else "efficient"),
            upcast=self.method == "qlora" if self.upcast is None else self.upcast,
        )

    @property
    def quantised(self) -> bool:
        return self.method == "qlora"

    @property
    def stream_precision(self) -> str | None:
        """Dtype of what flows from block to block: embeddings that are upcast to fp32 make all that follows fp32."""
        return "fp32" if self.quantised and self.upcast else self.precision


@dataclass(frozen=True, kw_only=True)
class Trial(Case):
    """A training run: a Case plus task, steps and learning-rate schedule (`warmup` counts optimizer steps)."""

    task: str = "expressions-easy"
    steps: int = 100
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup: int = field(default=0)
    __hash__ = Case.__hash__

    @property
    def case(self) -> Case:
        """The Case alone."""
        return Case(**{item.name: getattr(self, item.name) for item in fields(Case)})
