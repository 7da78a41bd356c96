"""Admission: checks of a request before anything is computed, and its first sequence."""

from __future__ import annotations

from collections.abc import Iterable

from relay_lightning.engine.base import TokenModel
from relay_lightning.engine.context import Context
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.capacity import teacher_capacity
from relay_lightning.relay.policies import make_policy
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.relay.sequence import Sequence
from relay_lightning.relay.stop_strings import StopMatcher
from relay_lightning.relay.teacher import Teacher

NO_ROW = -1


class Admission:
    """Turns requests into sequences, or refuses them."""

    def __init__(
        self, student: TokenModel, teacher: Teacher | None, protocol: CompiledProtocol, bridge: TextBridge | None
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._protocol = protocol
        self._bridge = bridge

    @property
    def num_token_ids(self) -> tuple[int, int]:
        """How many ids student and teacher may write: those that the tokenizer names and that both models have.

        Over a bridge no id passes, and each is bound by its own tokenizer.
        """
        num_student_ids = self._protocol.vocabulary.num_token_ids
        if self._teacher is None:
            return num_student_ids, 0
        if self._bridge is not None:
            return num_student_ids, min(self._bridge.teacher.num_token_ids, self._teacher.vocab_size)
        num_shared_ids = min(num_student_ids, self._teacher.vocab_size)
        return num_shared_ids, num_shared_ids

    def sequence_of(self, request: RelayRequest, request_id: int, num_kv_tokens: int) -> Sequence:
        """Returns the request's sequence, not yet in any row. num_kv_tokens: what the KV blocks of a model hold.

        Raises ValueError, naming the prompt's id, for what can never be decoded.
        """
        prompt, budget = request.prompt, request.sampling.max_completion_tokens
        policy = make_policy(request.policy)
        if policy.needs_teacher and self._teacher is None:
            raise ValueError(f"{type(policy).__name__} needs a teacher and there is none; use policy='teacher_free'")
        self._check_prompt(prompt.prompt_id, "student", prompt.token_ids, self._student)
        num_prompt_tokens = len(prompt.token_ids)
        limit = min(budget, self._student.max_context - num_prompt_tokens)
        self._check_blocks(prompt.prompt_id, num_prompt_tokens + limit, num_kv_tokens)
        unread, teacher_context = [], 0
        if self._teacher is not None and policy.needs_teacher:
            unread = list(self._bridge.encode_prompt(prompt) if self._bridge else prompt.token_ids)
            self._check_prompt(prompt.prompt_id, "teacher", unread, self._teacher)
            teacher_context = teacher_capacity(
                num_prompt_tokens + limit,
                len(unread),
                budget,
                self._teacher.max_context,
                has_bridge=self._bridge is not None,
            )
            if self._teacher.is_local:
                self._check_blocks(prompt.prompt_id, len(unread) + limit, num_kv_tokens)
                teacher_context = min(teacher_context, num_kv_tokens)
        return Sequence(
            request_id=request_id,
            request=request,
            policy=policy,
            token_limit=limit,
            context=Context(request_id, NO_ROW, list(prompt.token_ids), num_prompt_tokens, num_prompt_tokens + limit),
            unread=unread,
            teacher_context=teacher_context,
            is_all_teacher=policy.begin(prompt.prompt_id, request.sample_index, request.seed),
            stop=StopMatcher(request.sampling.stop) if request.sampling.stop else None,
        )

    @staticmethod
    def longest(sequences: Iterable[Sequence]) -> int:
        """Returns how many tokens one of the sequences may have at most."""
        return max((max(each.context.max_tokens, each.teacher_context) for each in sequences), default=0)

    def _check_prompt(
        self, prompt_id: int, name: str, token_ids: list[int] | tuple[int, ...], model: TokenModel | Teacher
    ) -> None:
        """Raises ValueError for a prompt that is empty, that leaves no room in a model's context, or that holds an id
        that a model does not have."""
        if not token_ids:
            raise ValueError(f"prompt {prompt_id} is empty")
        if unknown := [token for token in token_ids if not 0 <= token < model.vocab_size]:
            raise ValueError(
                f"prompt {prompt_id} holds token id {unknown[0]}, and the {name}'s vocabulary ends at"
                f" {model.vocab_size - 1}"
            )
        if len(token_ids) >= model.max_context:
            raise ValueError(
                f"prompt {prompt_id} has {len(token_ids)} tokens and leaves no room"
                f" in the {name}'s context of {model.max_context}"
            )

    def _check_blocks(self, prompt_id: int, num_tokens: int, num_kv_tokens: int) -> None:
        if num_tokens > num_kv_tokens:
            raise ValueError(
                f"prompt {prompt_id} and its completion may take {num_tokens} tokens, and the KV blocks hold"
                f" {num_kv_tokens}; allow fewer max_completion_tokens or more kv_cache_gb"
            )
