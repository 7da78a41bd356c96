"""The reference policy of the KL term: the student as training began."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from relay_lightning.models.lora import adapters_off
from relay_lightning.modules.log_probs import fixed_log_probs


class ReferencePolicy:
    """Log-probabilities under the initial student, which no optimiser touches and no checkpoint holds.

    With adapters it is the student without them. Else it is a second copy, read from the student's own checkpoint, so
    that a resumed run compares with the same policy as the run it continues.
    """

    def __init__(
        self, student: Any, load_initial: Callable[[], Any], *, has_adapters: bool, temperature: float
    ) -> None:
        """load_initial: reads the initial student; called only without adapters."""
        self._temperature = temperature
        self._has_adapters = has_adapters
        if has_adapters:
            self._model = student
        else:
            self._model = load_initial().to(device=student.device, dtype=student.dtype).eval().requires_grad_(False)

    def log_probs(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, T] fp32 log-probabilities of the tokens that the [B, T] mask selects, 0 elsewhere."""
        with adapters_off(self._model) if self._has_adapters else nullcontext():
            return fixed_log_probs(self._model, token_ids, mask, self._temperature)
