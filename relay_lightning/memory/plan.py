"""What a run will need, part by part, and when its peak comes."""

from __future__ import annotations

from dataclasses import dataclass

from relay_lightning.memory.passes import DecodePass, decode_pass, head_workspace, training_pass
from relay_lightning.memory.weights import (
    OptimizerFactory,
    optimizer_bytes,
    optimizer_workspace_bytes,
    plan_weights,
)
from relay_lightning.models.architecture import max_context
from relay_lightning.models.skeleton import ModelPlan
from relay_lightning.relay.capacity import student_capacity, teacher_capacity


@dataclass(frozen=True)
class Workload:
    """What memory depends on. All numbers are those of one process."""

    student: ModelPlan
    teacher: ModelPlan | None
    make_optimizer: OptimizerFactory
    num_slots: int
    """Completions decoded together."""
    num_prompt_tokens: int
    num_completion_tokens: int
    num_rows: int
    """Of a micro-batch; every row is as long as prompt and completion may be."""
    has_bridge: bool = False
    """Whether the models have different vocabularies."""
    device_type: str = "cuda"
    has_reference: bool = False
    """Whether a second copy of the student is kept for the KL term."""
    num_shards: int = 1
    """Processes that the student is spread over; each gathers it whole to decode."""
    draws_self_samples: bool = False
    """Whether a second copy of the student decodes alone before training."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part. What passes need is held only while they run; keys and values stay allocated."""

    student_weights: int
    """Of a sharded student this process's share and all of them, which decoding gathers; training gathers fewer."""
    teacher_weights: int
    reference_weights: int
    optimizer_state: int
    gradients: int
    student_cache: int
    teacher_cache: int
    decode_workspace: int
    """Highest need of a decode step or of reading prompts."""
    activations: int
    """Highest need of the decoder layers of a training pass."""
    head_workspace: int
    """Of the log-probabilities, when all saved activations are alive."""
    training_workspace: int
    """Highest need of a training pass, head included."""
    optimizer_workspace: int
    self_samples: int
    """Peak of drawing self-samples, before training; 0 if there are none."""

    @property
    def resident(self) -> int:
        """Held from the second optimiser step on, whatever runs."""
        return (
            self.student_weights
            + self.teacher_weights
            + self.reference_weights
            + self.optimizer_state
            + self.gradients
            + self.student_cache
            + self.teacher_cache
        )

    @property
    def phases(self) -> dict[str, int]:
        """Peak of each phase."""
        phases = {
            "decoding": self.resident + self.decode_workspace,
            "the training pass": self.resident + self.training_workspace,
            "the optimiser step": self.resident + self.optimizer_workspace,
        }
        return phases | ({"self-sampling": self.self_samples} if self.self_samples else {})

    @property
    def peak(self) -> int:
        return max(self.phases.values())


def plan_memory(workload: Workload) -> MemoryPlan:
    """The plan of a run, from architectures alone. Takes seconds, whatever the size of the models."""
    student, teacher = workload.student, workload.teacher
    weights = plan_weights(student)
    teacher_weights = 0 if teacher is None else plan_weights(teacher).num_bytes
    caches = _decode_passes(workload)
    longest = _student_capacity(workload)
    training = training_pass(student, workload.num_rows, longest)
    num_states = workload.num_rows * longest * int(student.config.hidden_size)
    head = training.hidden + head_workspace(
        student,
        workload.num_rows * min(longest, workload.num_completion_tokens),
        training.hidden // num_states,
        workload.device_type,
        is_trained=student.lora is None,
    )
    student_cache, teacher_cache = caches["student"], caches.get("teacher", DecodePass(0, 0))
    self_samples = 0
    if workload.draws_self_samples:
        self_samples = 2 * weights.num_bytes + teacher_weights + student_cache.cache + student_cache.workspace

    def share(num_bytes: int) -> int:
        return -(-num_bytes // workload.num_shards)

    return MemoryPlan(
        student_weights=weights.num_bytes + (share(weights.num_bytes) if workload.num_shards > 1 else 0),
        teacher_weights=teacher_weights,
        reference_weights=weights.num_bytes if workload.has_reference else 0,
        optimizer_state=share(optimizer_bytes(workload.make_optimizer, weights)),
        gradients=share(weights.trained_bytes),
        student_cache=student_cache.cache,
        teacher_cache=teacher_cache.cache,
        decode_workspace=max(student_cache.workspace, teacher_cache.workspace),
        activations=training.peak,
        head_workspace=head,
        training_workspace=max(training.peak, training.saved + head) + weights.largest_dequantized_bytes,
        optimizer_workspace=share(optimizer_workspace_bytes(workload.make_optimizer, weights, workload.device_type)),
        self_samples=self_samples,
    )


def max_positions(model: ModelPlan) -> int:
    """Tokens that the model reads at most. Raises ValueError when its config does not say."""
    return max_context(model.config)


def _student_capacity(workload: Workload) -> int:
    """Longest row: of a slot, and of a training pass."""
    return student_capacity(workload.num_prompt_tokens, workload.num_completion_tokens, max_positions(workload.student))


def _decode_passes(workload: Workload) -> dict[str, DecodePass]:
    """Of each side, for a full cache of its slots."""
    longest = _student_capacity(workload)
    sides = {"student": (workload.student, longest)}
    if workload.teacher is not None:
        capacity = teacher_capacity(
            longest,
            workload.num_prompt_tokens,
            workload.num_completion_tokens,
            max_positions(workload.teacher),
            has_bridge=workload.has_bridge,
        )
        sides["teacher"] = (workload.teacher, capacity)
    return {
        side: decode_pass(model, workload.num_slots, capacity, workload.num_prompt_tokens)
        for side, (model, capacity) in sides.items()
    }
