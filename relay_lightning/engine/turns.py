"""One generate at a time: threads that decode take turns."""

from __future__ import annotations

import threading

DECODING = threading.RLock()
"""Held while a pair decodes; other threads wait for it.

A session changes the attention function and the mode of the whole model, and a model may be shared by several engines,
so turns are taken by the process and not by the engine. One lock cannot deadlock, whatever models threads share.
"""
