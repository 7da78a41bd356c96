"""How a model is brought into memory, as a configuration says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Number formats by the names that configurations use."""
FLASH_ATTENTION = "flash_attention_2"

DtypeName = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)  # no slots: the parser reads the __dict__ of a default
class LoadSettings:
    """How one model, student or teacher, is loaded.

    Args:
        dtype: of the weights, or with `quantization` of those that stay whole and of the products. null takes the
            dtype of the checkpoint's config, and fp32 for a student whose weights are trained: steps of 1e-6 vanish in
            the 8 bits of bf16.
        quantization: `nf4` keeps the linear layers but the LM head in 4 bits with double quantisation (QLoRA, arXiv
            2305.14314), through bitsandbytes. It saves memory and costs time. A student is then trained through `lora`.
        attention: Transformers' attention in training; `auto` is sdpa where the model has it, else eager.
            flash_attention_2 needs flash-attn and a GPU, and serves decoding there too, which else runs on a kernel of
            our own.
        chat_template: file with a Jinja chat template that replaces the tokenizer's own.
        trust_remote_code: whether code that comes with the model may run.
    """

    dtype: DtypeName | None = None
    quantization: Literal["nf4"] | None = None
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    trust_remote_code: bool = False
    chat_template: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else DTYPES[self.dtype]


DEFAULT = LoadSettings()
