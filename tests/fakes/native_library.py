"""Which tests need the native library."""

from __future__ import annotations

import pytest
import torch
from relay_kernels.backends import why_not_native

_REASON = why_not_native(torch.device("cpu"))
needs_library = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
