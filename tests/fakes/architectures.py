"""Small configurations of many architectures: those that the relay runs, and those that it refuses with a reason."""

from __future__ import annotations

from typing import Any

import torch
from small_vocabulary import VOCAB_SIZE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CONTEXT = 256
_SIZE = {"vocab_size": VOCAB_SIZE, "eos_token_id": 0, "initializer_range": 0.2}
LLAMA_LIKE = _SIZE | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "pad_token_id": 1,
}
GPT_LIKE = _SIZE | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "bos_token_id": 0}
OPT_LIKE = _SIZE | {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.2,
    "max_position_embeddings": CONTEXT, "bos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
RECURRENT = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": 0}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
DEEPSEEK = LATENT | {
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}  # fmt: skip
HEAD = {"head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FULL = {"sliding_window": None}
LONG_WINDOW = {"sliding_window": CONTEXT}
SHORT_WINDOW = {"sliding_window": 16}


def rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


LONGROPE = rope(
    "longrope", short_factor=[1.0] * 4, long_factor=[2.0, 3.0, 4.0, 6.0], original_max_position_embeddings=32
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", {}),
    "arcee": ("arcee", HEAD),
    "bitnet": ("bitnet", {}),
    "cohere": ("cohere", {"logit_scale": 0.0625}),
    "cohere2, long window": ("cohere2", LONG_WINDOW | {"logit_scale": 0.25}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK | {"q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK),
    "deepseek_v3, yarn": (
        "deepseek_v3",
        DEEPSEEK | rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0),
    ),
    "ernie4_5": ("ernie4_5", HEAD),
    "ernie4_5_moe": ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}),
    "exaone4": ("exaone4", FULL | {"layer_types": ["full_attention"] * 2}),
    "exaone4, long window": ("exaone4", LONG_WINDOW | {"sliding_window_pattern": 2}),
    "gemma": ("gemma", HEAD),
    "gemma2, long window": ("gemma2", HEAD | LONG_WINDOW | {"attn_logit_softcapping": None}),
    "gemma2, small cap": (
        "gemma2",
        HEAD
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 2.0,
            "layer_types": ["full_attention", "full_attention"],
        },
    ),
    "gemma3_text, long window, cap": (
        "gemma3_text",
        HEAD | LONG_WINDOW | {"final_logit_softcapping": 2.0, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "glm": ("glm", HEAD),
    "glm4": ("glm4", HEAD),
    "glm4_moe": ("glm4_moe", HEAD | DEEPSEEK | {"num_key_value_heads": 2}),
    "gpt2": ("gpt2", {}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_neox": ("gpt_neox", {}),
    "granite": (
        "granite",
        {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1},
    ),
    "granitemoe": ("granitemoe", EXPERTS | {"logits_scaling": 6.0}),
    "helium": ("helium", HEAD),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", HEAD),
    "hyperclovax": (
        "hyperclovax",
        {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
    "internlm3": ("internlm3", {}),
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, dynamic": ("llama", rope("dynamic", factor=4.0)),
    "llama, linear": ("llama", rope("linear", factor=4.0)),
    "llama, llama3": (
        "llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "llama, longrope": ("llama", LONGROPE),
    "llama, yarn": ("llama", YARN),
    "minicpm3": ("minicpm3", LATENT),
    "minimax_m2": ("minimax_m2", HEAD | EXPERTS),
    "ministral3": ("ministral3", HEAD),
    "mistral": ("mistral", FULL),
    "mistral, long window": ("mistral", LONG_WINDOW),
    "mixtral": ("mixtral", FULL | {"num_local_experts": 4}),
    "nanochat": ("nanochat", {}),
    "nemotron": ("nemotron", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3, long window": ("olmo3", LONG_WINDOW),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "opt": ("opt", {"word_embed_proj_dim": 32}),
    "opt, projected": ("opt", {"word_embed_proj_dim": 16}),
    "persimmon": ("persimmon", {}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", FULL),
    "phi3, long window": ("phi3", {"sliding_window": 262144}),
    "phi3, longrope": ("phi3", FULL | LONGROPE | {"original_max_position_embeddings": 32}),
    "phimoe": ("phimoe", FULL | {"num_local_experts": 4}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window off": ("qwen2", {"use_sliding_window": False, "sliding_window": 16}),
    "qwen2_moe": (
        "qwen2_moe",
        EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", HEAD | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "seed_oss": ("seed_oss", HEAD),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "starcoder2": ("starcoder2", FULL),
}
"""By name: the `model_type`, and settings beside those that its kind has in common."""

IN_EVERY_RUN = ("cohere", "deepseek_v3", "gemma3_text, long window, cap", "gpt2", "granite", "llama, longrope",
                "minicpm3", "mistral, long window", "nemotron", "opt, projected", "phi", "qwen2", "qwen3_moe",
                "smollm3")  # fmt: skip
"""Names that are tested by default: one of each mechanism. The others are marked slow."""

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "attention interface"),
    "codegen": ("codegen", {"rotary_dim": 8}, "attention interface"),
    "cohere2": ("cohere2", SHORT_WINDOW, "sliding_attention with a window of 16"),
    "diffllama": ("diffllama", {}, "attention interface"),
    "doge": ("doge", {"keep_window_size": 16}, "keep_window_size"),
    "falcon": ("falcon", {"num_attention_heads": 4, "alibi": False}, "attention interface"),
    "falcon, alibi": ("falcon", {"num_attention_heads": 4, "alibi": True}, "attention interface"),
    "falcon_h1": ("falcon_h1", {}, "recurrent state"),
    "gemma2": ("gemma2", HEAD | LONG_WINDOW | {"attn_logit_softcapping": 50.0}, "softcap"),
    "gemma3_text": ("gemma3_text", HEAD | SHORT_WINDOW, "sliding_attention with a window of 16"),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": CONTEXT,
        },
        "attention interface",
    ),
    "gpt_oss": ("gpt_oss", HEAD | EXPERTS | SHORT_WINDOW, "sliding_attention with a window of 16"),
    "gpt_oss, sinks": ("gpt_oss", HEAD | EXPERTS | LONG_WINDOW, "s_aux"),
    "gptj": ("gptj", {"rotary_dim": 4}, "attention interface"),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "conv"),
    "llama4_text": ("llama4_text", HEAD | EXPERTS | {"attention_chunk_size": 16}, "chunked_attention"),
    "mamba": ("mamba", {}, "recurrent state"),
    "minimax": ("minimax", HEAD | EXPERTS, "."),
    "mistral": ("mistral", SHORT_WINDOW, "sliding_attention with a window of 16"),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}, "attention interface"),
    "phi3": ("phi3", SHORT_WINDOW, "sliding_attention with a window of 16"),
    "qwen2": (
        "qwen2",
        SHORT_WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
        "sliding_attention with a window of 16",
    ),
    "qwen3_next": ("qwen3_next", HEAD | {"num_experts": 4, "moe_intermediate_size": 16}, "recurrent state"),
    "recurrent_gemma": ("recurrent_gemma", HEAD, "recurrent state"),
    "rwkv": ("rwkv", {"attention_hidden_size": 32}, "recurrent state"),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5}, "attention interface"),
    "starcoder2": ("starcoder2", SHORT_WINDOW, "sliding_attention with a window of 16"),
}
"""As `RUNS`, and a part of the reason."""

_COMMON = dict.fromkeys(("gpt2", "gpt_bigcode", "codegen", "gptj"), GPT_LIKE) | {
    "opt": OPT_LIKE,
    **dict.fromkeys(("mamba", "rwkv"), RECURRENT),
    **{key: {"vocab_size": VOCAB_SIZE, "eos_token_id": 0} for key in ("bloom", "mpt", "gpt_neo")},
    "falcon": RECURRENT,
}


def build(model_type: str, settings: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """An untrained fp32 model in evaluation mode; its end-of-sequence token is 0."""
    config = AutoConfig.for_model(model_type, **{**_COMMON.get(model_type, LLAMA_LIKE), **settings})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).float().eval()
