"""Models that several callers decode with: threads take turns, and a model is opened once and closed by the last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from weakref import WeakKeyDictionary

from torch import nn

DECODING = threading.RLock()
"""Held while an engine decodes; other threads wait for it.

A session changes the attention function and the mode of the whole model, and a model may be shared by several engines,
so the lock is that of the process and not of an engine. One lock cannot deadlock, whatever models threads share.
"""

_SESSIONS: WeakKeyDictionary[nn.Module, list[AbstractContextManager[None]]] = WeakKeyDictionary()
"""Models in a session: the preparation that the first caller entered, once for each caller."""


@contextmanager
def open_model(model: nn.Module, prepare: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Enters `prepare()` unless `model` is open already; the last caller to leave exits it."""
    with DECODING:
        if model not in _SESSIONS:
            stack = ExitStack()
            stack.enter_context(prepare())
            _SESSIONS[model] = [stack]
        else:
            _SESSIONS[model].append(_SESSIONS[model][0])
    try:
        yield
    finally:
        with DECODING:
            prepared = _SESSIONS[model].pop()
            if not _SESSIONS[model]:
                del _SESSIONS[model]
                prepared.__exit__(None, None, None)
