"""The inputs of one relay step, as its checks and all backends take them.

Shapes: N rows of logits, S rows of the state, V vocabulary, E end-of-sequence tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relay_kernels.relay_step.commands import CommandTable
from relay_kernels.relay_step.state import RelayStepState, TokenSource


@dataclass(frozen=True, slots=True)
class RelayStepInputs:
    """The arguments of `relay_step` but the backend."""

    logits: Tensor
    """[N, V] bf16, fp16 or fp32."""
    state: RelayStepState
    """S rows; written in place."""
    writer: TokenSource
    """STUDENT or TEACHER: whose logits these are, and whose rows are stepped."""
    eos_token_ids: Tensor
    """[E] int64 or int32, in [0, V)."""
    rows: Tensor | None
    """[N] int64 or int32, distinct: the row of the state that each row of logits is for. None: all S in order."""
    table: CommandTable | None
    """The student's command automaton. None: no token completes a command."""
    truncates: bool
    """False: no row that is stepped has top-k, top-p or min-p on."""

    @property
    def command_table(self) -> CommandTable | None:
        """The table where the student writes; None for the teacher, whose commands are text."""
        return self.table if self.writer is TokenSource.STUDENT else None
