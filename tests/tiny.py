"""A Llama-shaped model that builds in milliseconds, and what tests make of it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}
UNTIED = SHAPE | {"num_key_value_heads": 4, "tie_word_embeddings": False, "num_hidden_layers": 3}


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | changes)))
