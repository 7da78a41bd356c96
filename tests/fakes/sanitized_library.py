"""A pytest plugin: the native library of this process is the file that RELAY_TEST_LIBRARY names."""

from __future__ import annotations

import os
from pathlib import Path

from relay_kernels import native

if "RELAY_TEST_LIBRARY" in os.environ:
    native.find_library = lambda: Path(os.environ["RELAY_TEST_LIBRARY"])
    _, why_not = native.load_library()
    assert why_not is None, why_not  # else its tests would be skipped
