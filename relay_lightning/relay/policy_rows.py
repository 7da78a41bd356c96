"""PolicyRows: asks the policies of a mixed batch, each for its own rows. Shapes: R rows, N rows of a call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from relay_kernels.relay_step import RowStatus
from torch import Tensor

from relay_lightning.engine.model_runner import BeforeSampling, ModelRunner
from relay_lightning.relay.policies import Policy, PolicyView

NEVER = 2**62
"""A completion length that no row reaches."""

NO_POLICY = -1


class PolicyRows:
    """What policies need of each of the student's rows, on its device."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._segment_start = torch.zeros(runner.num_rows, dtype=torch.int64, device=runner.model.device)
        """[R]: completion tokens when the student last took over."""
        self._call_floor = torch.zeros_like(self._segment_start)
        """[R]: completion length below which a policy may not hand over."""
        self._policy_id = torch.full_like(self._segment_start, NO_POLICY)
        """[R]: index of the row's policy in `_policies`, if it decides per token."""
        self._policies: list[Policy] = []

    def write(
        self, rows: Sequence[int], policies: Sequence[Policy], segment_start: Sequence[int], call_floor: Sequence[int]
    ) -> None:
        """Sets what belongs to `rows`, which begin a segment."""
        ids = [self._id(policy) if policy.decides_per_token else NO_POLICY for policy in policies]
        if not self._policies:
            return
        values = torch.tensor([rows, ids, segment_start, call_floor], device=self._policy_id.device)
        self._policy_id[values[0]], self._segment_start[values[0]], self._call_floor[values[0]] = values[1:]

    def before_sampling(self, policies: Sequence[Policy]) -> tuple[BeforeSampling | None, tuple[int, ...]]:
        """Returns what asks those of the given policies that decide per token, and their ids."""
        ids = tuple(sorted({self._id(policy) for policy in policies if policy.decides_per_token}))
        if not ids:
            return None, ()

        def ask(logits: Tensor, hidden: Tensor | None, rows: Tensor) -> None:
            for index in ids:
                self._ask(index, logits, hidden, rows)

        return ask, ids

    def _ask(self, index: int, logits: Tensor, hidden: Tensor | None, rows: Tensor) -> None:
        """Marks the rows that a policy hands over before their next token. logits: [N, V] of `rows`."""
        state, policy = self._runner.state, self._policies[index]
        num_tokens = state.num_tokens[rows]
        view = PolicyView(
            state.prompt_id[rows],
            state.sample_index[rows],
            num_tokens,
            self._segment_start[rows],
            state.seed[rows],
            hidden if policy.needs_hidden else None,
        )
        requested = policy.decide(logits, view)
        if requested is None:
            return
        status, n = state.status[rows], state.command_n[rows]
        is_own = (self._policy_id[rows] == index) & (status == RowStatus.STUDENT)
        wanted = (requested > 0) & is_own & (num_tokens >= self._call_floor[rows])
        state.command_n[rows] = torch.where(wanted, requested, n)
        state.status[rows] = status.masked_fill(wanted, int(RowStatus.CALLED))

    def _id(self, policy: Policy) -> int:
        if policy not in self._policies:
            self._policies.append(policy)
        return self._policies.index(policy)
