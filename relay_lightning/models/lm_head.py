"""What a model does behind its last hidden state: the LM head, and any scale, cap or bias that follows it.

Shapes: N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from transformers.utils import ModelOutput

from relay_lightning.models.architecture import model_title

logger = logging.getLogger(__name__)

PROBE_SCALES = (0.0, 1.0, 30.0, 1000.0)
"""Sizes of the largest logit of the probed tokens: a bias shows at 0, a soft cap at the large ones."""
TOLERANCES = {2: 0.02, 4: 1e-4, 8: 1e-4}
"""Largest error of a logit that rounding explains, relative to the token's largest one, by bytes of a number."""
_IS_LINEAR: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""What `has_linear_logits` found out, by model."""


@dataclass
class _DecoderOutput(ModelOutput):
    """A decoder's output with hidden states and nothing else: any other field is None."""

    last_hidden_state: Tensor

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def model_logits(model: Any, hidden: Tensor) -> Tensor:
    """The logits [N, V] that `model` itself computes from last hidden states [N, D]; differentiable.

    Runs the model's own forward pass with its decoder replaced by the hidden states. Raises ValueError for a model that
    does not take them from `get_decoder()`.
    """
    with _decoder_returning(model.get_decoder(), hidden[None]) as calls:
        # Not through `__call__`: hooks of a sharded model belong to whole passes.
        token_ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        logits: Tensor = model.forward(input_ids=token_ids, use_cache=False).logits[0]
    if len(calls) != 1:
        raise ValueError(f"{model_title(model)} does not compute its logits from one pass of its decoder")
    return logits


def has_linear_logits(model: Any) -> bool:
    """Whether the logits of `model` are its last hidden states times the weight of the head, plus its bias.

    Found out once per model by comparing both on a few made-up hidden states, with a warning if it is not so. Weights
    without contents, of a model on the meta device or under fake tensors, are taken to be such.
    """
    if model not in _IS_LINEAR:
        head = model.get_output_embeddings()
        if head.weight.is_meta or isinstance(head.weight, FakeTensor):
            return True
        _IS_LINEAR[model] = _probe(model, head)
        if not _IS_LINEAR[model]:
            logger.warning(
                "%s computes more than a linear head behind its hidden states: log-probabilities of training are taken "
                "from whole logits, in chunks, which is slower.",
                model_title(model),
            )
    return _IS_LINEAR[model]


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a layer is nothing but its weight and bias: no adapter, not quantised, without hooks."""
    return type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks


@torch.no_grad()
def _probe(model: Any, head: nn.Module) -> bool:
    if not is_plain_linear(head):
        return False
    weight: Tensor = head.weight
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(PROBE_SCALES), weight.shape[1], generator=generator).to(weight)
    largest = functional.linear(hidden, weight).abs().amax(dim=-1, keepdim=True).clamp(min=1e-6)
    hidden = hidden * (torch.tensor(PROBE_SCALES)[:, None].to(weight) / largest)
    # Autocast would keep the weight it casts here, without gradients, for the training pass around it.
    with torch.autocast(weight.device.type, enabled=False):
        expected, found = functional.linear(hidden, weight, head.bias), model_logits(model, hidden)
    if found.shape != expected.shape:
        return False
    error = (found - expected).float().abs().amax(dim=-1)
    tolerance = TOLERANCES[min(found.dtype.itemsize, expected.dtype.itemsize)]
    return bool((error <= tolerance * expected.float().abs().amax(dim=-1)).all())


@contextmanager
def _decoder_returning(decoder: nn.Module, hidden: Tensor) -> Iterator[list[None]]:
    """Within it a forward pass of `decoder` only returns `hidden`; the list has one entry per pass."""
    calls: list[None] = []

    def forward(*_args: Any, **_kwargs: Any) -> _DecoderOutput:
        calls.append(None)
        return _DecoderOutput(last_hidden_state=hidden)

    own = decoder.__dict__.get("forward")
    decoder.forward = forward
    try:
        yield calls
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own
