"""A small model learns when to call a large one; one relay engine trains, evaluates and serves them.

The names below are imported on first use, so that `import relay_lightning` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay_lightning.engine.sampling import SamplingParams
    from relay_lightning.pair import load_relay
    from relay_lightning.relay.engine import RelayEngine
    from relay_lightning.relay.protocol import CallProtocol
    from relay_lightning.relay.relay import Relay
    from relay_lightning.relay.requests import CallLimits, RelayRequest, RequestOutput
    from relay_lightning.types import Completion, FinishReason, Prompt, RelaySpan, TokenSource

__all__ = [
    "CallLimits",
    "CallProtocol",
    "Completion",
    "FinishReason",
    "Prompt",
    "Relay",
    "RelayEngine",
    "RelayRequest",
    "RelaySpan",
    "RequestOutput",
    "SamplingParams",
    "TokenSource",
    "load_relay",
]
__version__ = "0.1.0"

_HOMES = {
    "SamplingParams": "engine.sampling",
    "load_relay": "pair",
    "RelayEngine": "relay.engine",
    "CallProtocol": "relay.protocol",
    "Relay": "relay.relay",
    "CallLimits": "relay.requests",
    "RelayRequest": "relay.requests",
    "RequestOutput": "relay.requests",
    "Completion": "types",
    "FinishReason": "types",
    "Prompt": "types",
    "RelaySpan": "types",
    "TokenSource": "types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
