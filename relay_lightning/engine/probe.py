"""A check, before any work, that a model decodes through the relay's cache as it computes by itself."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.local import LocalModel
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


def require_decodable(module: Any) -> None:
    """Raises ValueError, with the model's name and the reason, unless decoding over a paged cache gives its own
    logits.

    Compares the logits of a few made-up tokens with those of a plain forward pass. Two rows of different length are
    read in chunks and then decoded, so that positions, cache and attention all take part. Leaves the random
    generators as they are, and checks a model once. Its weights must not be sharded.
    """
    model = LocalModel(module)
    if model.model in _PASSED:
        return
    name, is_cuda = model_title(model.model), model.device.type == "cuda"
    with torch.random.fork_rng([model.device] if is_cuda else []), torch.autocast(model.device.type, enabled=False):
        try:
            error = _largest_error(model)
            has_linear_logits(model.model)
        except torch.OutOfMemoryError:
            raise
        except Exception as cause:  # other code fails on another cache in ways of its own
            raise ValueError(f"{name} cannot be decoded by the relay: {_reason(cause)}") from cause
    is_exact = model.model.dtype in (torch.float32, torch.float64) and not is_cuda
    if not error <= (EXACT if is_exact else ROUNDED):
        raise ValueError(
            f"{name} cannot be decoded by the relay: with cached keys and values its logits differ from those of a "
            f"plain forward pass by {error:.1%} of their spread"
        )
    _PASSED.add(model.model)


def _reason(error: Exception) -> str:
    """The error as part of a sentence."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _largest_error(model: LocalModel) -> float:
    """The largest error of the logits of a sequence's last position, relative to the spread of the true ones."""
    tokens = _tokens(model)  # [2, T]
    lengths = [tokens.shape[1], max(1, tokens.shape[1] // 2)]
    with torch.no_grad(), evaluating(model.model):
        plain = model.model(input_ids=tokens, use_cache=False).logits.float()
    if plain.shape[-1] != model.vocab_size:
        raise ValueError(f"vocab_size is {model.vocab_size} in its config, and its logits have {plain.shape[-1]}")
    ends = torch.tensor(lengths, device=tokens.device) - 1
    found = _paged_logits(model, tokens, ends).float()
    expected = plain[torch.arange(2, device=tokens.device), ends]
    return float(((found - expected).abs().amax(-1) / expected.std(-1).clamp(min=1e-6)).max())


def _paged_logits(model: LocalModel, tokens: Tensor, ends: Tensor) -> Tensor:
    """Returns the logits after token ends[i] of row i, [2, V], all tokens before it having been read as a chunk."""
    length, device = tokens.shape[1], tokens.device
    cache = PagedKVCache.with_own_blocks(2, length, device, model.attention_backend)
    with model.session() as forward, torch.no_grad():
        if length > 1:
            positions = cache.begin(None, ends, length - 1, length)
            forward.extend(tokens[:, :-1], positions, cache)
        positions = cache.begin(None, torch.ones_like(ends), 1, length)
        return forward.step(tokens.gather(1, ends[:, None]), positions, cache)[0]


def _tokens(model: LocalModel) -> Tensor:
    """Two rows of token ids, the same on every device and at every call."""
    num_tokens = min(NUM_TOKENS, known_context(model.model.config) or NUM_TOKENS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.vocab_size, (2, num_tokens), generator=generator).to(model.device)
