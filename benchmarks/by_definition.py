"""Whole runs in which one op is taken by its definition: what an op gains where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

from relay_kernels.linear_log_probs.reference import linear_log_probs_naive

from relay_lightning.engine import blocks, local, model_runner
from relay_lightning.modules import log_probs, rollouts

DECODING: dict[str, tuple[ModuleType, ...]] = {
    "relay_step": (model_runner,),
    "decode_attention": (blocks, local),
    "add_rms_norm": (blocks,),
    "rotate_heads": (blocks,),
    "silu_mul": (blocks,),
    "norm_linear": (blocks,),
}
"""The ops of a decode step, and the modules that call each."""
TRAINING: dict[str, tuple[ModuleType, ...]] = {"relay_advantages": (rollouts,), "linear_log_probs": (log_probs,)}
"""The ops of a GRPO step beside them."""


@contextmanager
def by_definition(op: str) -> Iterator[None]:
    """Within, the framework runs `op` in plain PyTorch; `linear_log_probs` with all [T, V] logits at once."""
    users = (DECODING | TRAINING)[op]
    call: Callable[..., Any] = getattr(users[0], op)

    def plain(*arguments: Any, **options: Any) -> Any:
        return call(*arguments, **options | {"backend": "reference"})

    with ExitStack() as patches:
        for user in users:
            patches.enter_context(patch.object(user, op, linear_log_probs_naive if op == "linear_log_probs" else plain))
        yield
