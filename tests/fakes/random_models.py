"""Random models of three architectures, small enough for a test."""

from __future__ import annotations

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ARCHITECTURES = ("qwen3", "llama", "gpt_neox")
_SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "bos_token_id": None, "pad_token_id": 1}


def random_model(
    architecture: str, vocab_size: int, *, seed: int = 0, num_layers: int = 2, max_context: int = 256
) -> PreTrainedModel:
    """An untrained fp32 causal language model with wide-spread logits; its end-of-sequence token is 0."""
    common = {
        **_SIZE,
        "vocab_size": vocab_size,
        "num_hidden_layers": num_layers,
        "max_position_embeddings": max_context,
        "eos_token_id": 0,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    if architecture == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**common, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True))
    elif architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**common))
    return model.eval()
