"""Public architectures by name, built with random weights: memory does not depend on the weights' values.

Each entry is the part of the model's published `config.json` that decides shapes and kernels (rope scaling, which
decides neither, is left out); a test asserts the parameter counts they give against the published ones. `mistral-7b` is
v0.3 (vocabulary of 32,768); v0.1 is 6,291,456 parameters smaller and attends to a sliding window of 4,096 tokens.
"""

from collections.abc import Mapping

from labkit.errors import RequestError

_LLAMA_3 = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "rope_theta": 500_000.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072}  # fmt: skip

ARCHITECTURES: dict[str, dict] = {
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
        "rope_theta": 100_000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True,
        "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False,
        "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 131_072,
    },
    "mistral-7b": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_768, "tie_word_embeddings": False,
        "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 32_768, "sliding_window": None,
    },
    "llama-3.2-1b": {
        **_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        **_LLAMA_3, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "head_dim": 128, "tie_word_embeddings": True,
    },
    "llama-2-7b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_000, "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
    },
    "llama-65b": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 22_016, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 32_000, "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
    },
    "llama-3.1-8b": {
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "tie_word_embeddings": False,
    },
    "llama-3.1-70b": {
        **_LLAMA_3, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "tie_word_embeddings": False,
    },
}  # fmt: skip


def refuse_impossible_shape(name: str, config: Mapping) -> None:
    """RequestError where the heads and the hidden size of a config do not divide one another."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    groups, width = config.get("num_key_value_heads") or heads, config.get("head_dim")
    if (not width and hidden % heads) or heads % groups:
        raise RequestError(
            f"Model {name!r} cannot be built: hidden_size {hidden}, num_attention_heads {heads} and "
            f"num_key_value_heads {groups} must divide one another."
        )
