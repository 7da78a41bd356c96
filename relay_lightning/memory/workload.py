"""Workload: what the memory of a run depends on."""

from __future__ import annotations

from dataclasses import dataclass

from relay_lightning.engine.kv_budget import KVCacheGB
from relay_lightning.memory.weights import OptimizerFactory
from relay_lightning.models.architecture import max_context
from relay_lightning.models.skeleton import ModelPlan
from relay_lightning.relay.capacity import student_capacity, teacher_capacity


@dataclass(frozen=True)
class Workload:
    """What the memory of a run depends on. All numbers are those of one process."""

    student: ModelPlan
    teacher: ModelPlan | None
    make_optimizer: OptimizerFactory
    max_num_seqs: int
    """Completions in flight at most."""
    num_prompt_tokens: int
    num_completion_tokens: int
    num_rows: int
    """Rows of a micro-batch; every row is as long as prompt and completion may be."""
    memory_bytes: float
    """Size of the device's memory, of which `kv_cache_gb: auto` takes its part."""
    kv_cache_gb: KVCacheGB = "auto"
    block_size: int = 64
    has_bridge: bool = False
    """Whether the models have different vocabularies."""
    device_type: str = "cuda"
    has_reference: bool = False
    """Whether a second copy of the student is kept for the KL term."""
    num_shards: int = 1
    """Processes that the student is spread over; each gathers it whole to decode."""
    draws_self_samples: bool = False
    """Whether a second copy of the student decodes alone before training."""

    @property
    def longest_row(self) -> int:
        """Tokens of the student's longest row, in decoding and in training."""
        return student_capacity(self.num_prompt_tokens, self.num_completion_tokens, max_positions(self.student))

    @property
    def longest_teacher_row(self) -> int:
        """Tokens of the teacher's longest row; 0 without a teacher."""
        if self.teacher is None:
            return 0
        return teacher_capacity(
            self.longest_row,
            self.num_prompt_tokens,
            self.num_completion_tokens,
            max_positions(self.teacher),
            has_bridge=self.has_bridge,
        )

    @property
    def max_context(self) -> int:
        """Longest context of the models."""
        return max(max_positions(model) for model in (self.student, self.teacher) if model is not None)


def max_positions(model: ModelPlan) -> int:
    """Returns how many tokens the model reads at most. Raises ValueError when its config does not say."""
    return max_context(model.config)
