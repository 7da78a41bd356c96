"""Low-rank adapters on a causal language model (LoRA, arXiv 2106.09685), through PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """Which low-rank adapters to train."""

    rank: int = 16
    alpha: float = 32.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter, or `all-linear`: every linear layer but the LM head."""

    def __hash__(self) -> int:
        return hash(repr(self))  # a list of names has none of its own


def add_lora(model: PreTrainedModel, settings: LoRASettings) -> None:
    """Adds fresh fp32 adapters to `model` in place and freezes everything else. They change nothing until trained.

    The frozen weights stay in the dtype they have, norms and embeddings included: no step is ever added to them, and
    norms compute in fp32 inside. PEFT's own preparation for 4 bits would double the embeddings for nothing. Adapters
    are fp32 whatever the base is, since the steps of an optimiser are lost in bf16.
    """
    from peft import LoraConfig

    model.add_adapter(
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
        )
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model computes as before any adapter was added."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
