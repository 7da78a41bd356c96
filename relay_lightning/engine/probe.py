"""A check, before any work, that a model decodes through the relay's cache as it computes by itself."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from relay_lightning.engine.local import LocalEngine
from relay_lightning.models.architecture import known_context, model_title
from relay_lightning.models.evaluating import evaluating
from relay_lightning.models.lm_head import has_linear_logits

NUM_TOKENS = 6
"""Length of the probe's longer sequence; the other one is half as long. Each pass reads all weights of the model once,
which is what it costs."""
EXACT, ROUNDED = 1e-3, 0.2
"""Largest error of a position's logits in fp32 on a CPU and in other formats, relative to their spread. Routing of
experts and tf32 make the latter coarse; another attention or position gives an error of the order of 1."""


_PASSED: WeakSet[nn.Module] = WeakSet()


def require_decodable(model: Any) -> None:
    """Raises ValueError, with the model's name and the reason, unless decoding in slots gives the model's own logits.

    Compares the logits of a few made-up tokens with those of a plain forward pass. Two slots of different length are
    read in chunks and then written to, so that positions, cache and attention all take part. Leaves the random
    generators as they are, and checks a model once. Its weights must not be sharded.
    """
    engine = LocalEngine(model)
    if engine.model in _PASSED:
        return
    name, is_cuda = model_title(engine.model), engine.device.type == "cuda"
    with torch.random.fork_rng([engine.device] if is_cuda else []), torch.autocast(engine.device.type, enabled=False):
        try:
            error = _largest_error(engine)
            has_linear_logits(engine.model)
        except torch.OutOfMemoryError:
            raise
        except Exception as cause:  # other code fails on another cache in ways of its own
            raise ValueError(f"{name} cannot be decoded by the relay: {_reason(cause)}") from cause
    is_exact = engine.model.dtype in (torch.float32, torch.float64) and not is_cuda
    if not error <= (EXACT if is_exact else ROUNDED):
        raise ValueError(
            f"{name} cannot be decoded by the relay: with cached keys and values its logits differ from those of a "
            f"plain forward pass by {error:.1%} of their spread"
        )
    _PASSED.add(engine.model)


def _reason(error: Exception) -> str:
    """The error as part of a sentence."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _largest_error(engine: LocalEngine) -> float:
    """The largest error of the logits of a sequence's last position, relative to the spread of the true ones."""
    tokens = _tokens(engine)  # [2, T]
    lengths = [tokens.shape[1], max(1, tokens.shape[1] // 2)]
    with torch.no_grad(), evaluating(engine.model):
        plain = engine.model(input_ids=tokens, use_cache=False).logits.float()
    if plain.shape[-1] != engine.vocab_size:
        raise ValueError(f"vocab_size is {engine.vocab_size} in its config, and its logits have {plain.shape[-1]}")
    ends = torch.tensor(lengths, device=tokens.device) - 1
    with engine.session():
        engine.allocate(2, tokens.shape[1])
        if ends.max() > 0:
            engine.extend(torch.arange(2, device=tokens.device), tokens[:, :-1], ends)
        found = engine.step(tokens.gather(1, ends[:, None])[:, 0], torch.ones_like(ends, dtype=torch.bool)).float()
        engine.allocate(0, 0)
    expected = plain[torch.arange(2, device=tokens.device), ends]
    return float(((found - expected).abs().amax(-1) / expected.std(-1).clamp(min=1e-6)).max())


def _tokens(engine: LocalEngine) -> Tensor:
    """Two rows of token ids, the same on every device and at every call."""
    num_tokens = min(NUM_TOKENS, known_context(engine.model.config) or NUM_TOKENS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(engine.vocab_size, (2, num_tokens), generator=generator).to(engine.device)
