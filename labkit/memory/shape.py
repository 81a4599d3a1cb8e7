"""The shapes of a Llama-like model, from its config alone: what the closed formulas count with."""

from collections.abc import Mapping
from dataclasses import dataclass

from labkit.errors import RequestError
from labkit.models.architectures import refuse_impossible_shape
from labkit.models.layers import selects
from labkit.models.sources import find

REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
QKV_BIAS = {"llama": False, "mistral": False, "qwen2": True}  # model types the formulas cover
OTHER_BIASES = ("attention_bias", "mlp_bias")


@dataclass(frozen=True)
class Linear:
    """One linear layer of a block: `features_in` x `features_out` weights."""

    name: str
    features_in: int
    features_out: int
    bias: bool = False

    @property
    def elements(self) -> int:
        return self.features_in * self.features_out

    @property
    def in_attention(self) -> bool:
        return self.name in ("q_proj", "k_proj", "v_proj", "o_proj")

    @property
    def path(self) -> str:
        """Its name inside the block."""
        return f"{'self_attn' if self.in_attention else 'mlp'}.{self.name}"


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, in elements. `attention_width` is heads x head_dim."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qkv_bias: bool

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The seven linear layers of one block."""
        hidden, width, narrow = self.hidden, self.attention_width, self.key_value_heads * self.head_dim
        return (
            Linear("q_proj", hidden, width, self.qkv_bias),
            Linear("k_proj", hidden, narrow, self.qkv_bias),
            Linear("v_proj", hidden, narrow, self.qkv_bias),
            Linear("o_proj", width, hidden),
            Linear("gate_proj", hidden, self.mlp),
            Linear("up_proj", hidden, self.mlp),
            Linear("down_proj", self.mlp, hidden),
        )

    @property
    def tensors(self) -> list[int]:
        """Elements of every parameter tensor of the base model."""
        block = [linear.elements for linear in self.linears]
        block += [linear.features_out for linear in self.linears if linear.bias]
        block += [self.hidden, self.hidden]  # the two norms
        embeddings = [self.vocabulary * self.hidden] * (1 if self.tied else 2)
        return block * self.layers + embeddings + [self.hidden]

    @property
    def linear_elements(self) -> int:
        return self.layers * sum(linear.elements for linear in self.linears)

    @property
    def parameters(self) -> int:
        return sum(self.tensors)


def shape_of(model: str | Mapping) -> Shape:
    """The shape of a Case's model. RequestError for model types the formulas do not cover."""
    source = find(model, weights=False)
    config = source.config
    kind = config.get("model_type")
    if kind not in QKV_BIAS:
        raise RequestError(f"The closed formulas do not cover model_type={kind!r}; they cover {', '.join(QKV_BIAS)}.")
    required = REQUIRED if kind == "llama" else (*REQUIRED, "num_key_value_heads")  # other types have a default
    if biased := [key for key in OTHER_BIASES if config.get(key)]:
        raise RequestError(
            f"The closed formulas do not cover {biased[0]}={config[biased[0]]!r}; measure the case instead."
        )
    if missing := [key for key in required if key not in config]:
        raise RequestError(f"The model object lacks {', '.join(missing)}, which the closed formulas need.")
    refuse_impossible_shape(source.name, config)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if head_dim < 1 or head_dim % 2:
        raise RequestError(
            f"Model {source.name!r} cannot be built: its head_dim is {head_dim}, and must be even and above zero."
        )
    return Shape(
        hidden=config["hidden_size"],
        mlp=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        qkv_bias=QKV_BIAS[kind],
    )


def adapted(shape: Shape, targets: str | tuple[str, ...]) -> tuple[Linear, ...]:
    """The linear layers of one block that `targets` selects."""
    return tuple(linear for linear in shape.linears if selects(targets, linear.path))
