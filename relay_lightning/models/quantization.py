"""Linear layers in 4 bits (NF4 with double quantisation, QLoRA, arXiv 2305.14314), through bitsandbytes."""

from __future__ import annotations

import logging
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel

# On AVX512-BF16 processors it misses, at its import, a kernel for inference that `keep_trainable` rules out.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
INSTALL = "pip install 'relay-lightning[quantization]'"


def nf4_arguments(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise the model `name` on `device` while it reads it.

    dtype: of the weights that stay whole, and of the products. Raises RuntimeError when this machine cannot.
    """
    require_bitsandbytes(name)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def require_bitsandbytes(name: str) -> None:
    """Raises RuntimeError, saying what to install, where `name` cannot be quantised."""
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        raise RuntimeError(
            f"The model {name!r} is to be quantised to nf4, but {' and '.join(missing)} is not installed; "
            f"{INSTALL}, or set quantization: null."
        )
    try:
        import bitsandbytes.functional  # noqa: F401
    except Exception as error:  # a broken native library shows itself as one of many types
        reason = " ".join(str(error).split())
        raise RuntimeError(
            f"The model {name!r} is to be quantised to nf4, but bitsandbytes {version('bitsandbytes')} cannot run on "
            f"this machine; set quantization: null. Reason: {reason}"
        ) from error


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether layers of the model are kept in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The model, which is changed, with whole fp32 weights that are what its 4 bits stand for."""
    whole = model.dequantize()
    whole.is_loaded_in_4bit = False
    return whole.float()


def keep_trainable(model: PreTrainedModel) -> None:
    """Forbids the quantised layers to repack their weights for inference, which no gradient survives.

    On processors with AVX512-BF16, bitsandbytes repacks a layer's weight in place and for good at its first forward
    pass in `eval()` without gradients, as decoding is; a later backward pass through it then gives nothing.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
