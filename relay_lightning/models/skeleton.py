"""Models without weights: the real modelling code, a few layers deep or whole, on the meta device.

Their passes run over fake tensors, which have shapes, dtypes and storages but no contents.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, masking_utils

from relay_lightning.models.architecture import recompute_activations
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.settings import FLASH_ATTENTION, LoadSettings

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
CONVERTED = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
FULL = ("32-true", "32", "64-true", "64")


@dataclass(frozen=True)
class ModelPlan:
    """A model as the run will hold it."""

    name: str
    config: PreTrainedConfig = field(compare=False)
    loading: LoadSettings
    is_trained: bool
    lora: LoRASettings | None = None
    gradient_checkpointing: bool = False
    precision: str = "32-true"
    """The trainer's. It sets autocast for both models, and under `-true` the dtype of the trained one."""
    architecture: str = field(init=False, repr=False)
    """The config as text, by which plans are compared."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", self.config.to_json_string())

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are not quantised, as the modules load them."""
        if self.is_trained and self.precision in CONVERTED:
            return CONVERTED[self.precision]
        if self.loading.torch_dtype is not None:
            return self.loading.torch_dtype
        is_whole_student = self.is_trained and self.loading.quantization is None
        return torch.float32 if is_whole_student else (self.config.dtype or torch.float32)

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)


def check_precision(precision: str) -> None:
    """Raises ValueError for a precision whose memory is not known."""
    known = (*FULL, *CONVERTED, *AUTOCAST)
    if precision not in known:
        raise ValueError(f"trainer.precision {precision!r} cannot be planned for; it is one of {', '.join(known)}.")


def build_skeleton(plan: ModelPlan, num_layers: int | None = None) -> PreTrainedModel:
    """The model with its adapters, its first `num_layers` layers or all.

    A quantised layer stands in it as a whole one of the same shape: its activations are the same.
    """
    config = copy.deepcopy(plan.config)
    if num_layers is not None:
        config.num_hidden_layers = num_layers
    attention = plan.loading.attention
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=plan.dtype,
            # FlashAttention keeps what sdpa's flash kernel keeps, but has no fake tensors.
            attn_implementation=None if attention in ("auto", FLASH_ATTENTION) else attention,
            trust_remote_code=plan.loading.trust_remote_code,
        )
    model.requires_grad_(plan.is_trained)
    if plan.lora is not None and plan.is_trained:
        add_lora(model, plan.lora)
        if plan.precision in CONVERTED:
            model.to(CONVERTED[plan.precision])
    if plan.gradient_checkpointing and plan.is_trained:
        recompute_activations(model)
    return model.train(plan.is_trained)


@contextmanager
def fake_pass(plan: ModelPlan, *, is_training: bool) -> Iterator[None]:
    """Around a pass over `with_fake_weights` of a skeleton, under the trainer's precision as on the device."""
    dtype = AUTOCAST.get(plan.precision)
    autocast = torch.autocast(
        "cpu",
        dtype=dtype or torch.bfloat16,
        enabled=dtype is not None,
        cache_enabled=not is_training,  # as Lightning has it around training steps, and `decoding_precision`
    )
    # Transformers reads the positions to see whether rows are packed, and fake ones cannot be read. Ours never are.
    rows_are_plain = patch.object(masking_utils, "find_packed_sequence_indices", return_value=None)
    # Anomaly detection reads gradients, and fake ones cannot be read.
    with FakeTensorMode(), autocast, rows_are_plain, torch.autograd.set_detect_anomaly(False):
        yield


def with_fake_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The skeleton with fake tensors on the CPU in place of those on the meta device; called within `fake_pass`."""
    made: dict[int, Any] = {}  # tied weights stay tied
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model
