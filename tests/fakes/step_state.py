"""Sets the fields of a relay step's state as a test wants them."""

from __future__ import annotations

from typing import Any

import torch
from relay_kernels.relay_step import RelayStepState, signed_seed


def put(state: RelayStepState, **values: Any) -> RelayStepState:
    """Writes each value, one number for all rows or one a row, to the field of its name; a seed may be any integer."""
    for name, value in values.items():
        number = signed_seed(value) if name == "seed" and isinstance(value, int) else value
        field = getattr(state, name)
        field.copy_(torch.as_tensor(number).to(field))
    return state
