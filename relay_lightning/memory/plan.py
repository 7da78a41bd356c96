"""MemoryPlan: the memory that a run needs, part by part, and the peak of each phase."""

from __future__ import annotations

from dataclasses import dataclass, replace

from relay_lightning.memory.kv_plan import KVDemand, KVPlan
from relay_lightning.memory.passes import DecodePass, TrainingPass, decode_pass, head_workspace, training_pass
from relay_lightning.memory.weights import (
    optimizer_bytes,
    optimizer_workspace_bytes,
    plan_weights,
)
from relay_lightning.memory.workload import Workload

USABLE_SHARE = 0.95
"""Share of a device's memory that a run may take. The rest is left to the driver and to fragmentation."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part. What passes need is held only while they run, keys and values only while completions are drawn."""

    student_weights: int
    """Weights of the student. A sharded one: this process's share, and all of them, which are gathered for decoding."""
    teacher_weights: int
    reference_weights: int
    optimizer_state: int
    gradients: int
    kv: KVPlan
    decode_workspace: int
    """Highest need of a decode step or a prefill pass."""
    activations: int
    """Highest need of the decoder layers of a training pass."""
    head_workspace: int
    """Bytes of the log-probabilities, when all saved activations are alive."""
    training_workspace: int
    """Highest need of a training pass, head included."""
    optimizer_workspace: int
    self_sampling: int
    """Peak of drawing self-samples before training, keys and values apart; 0 if there are none."""

    @property
    def student_cache(self) -> int:
        """Keys and values of the student."""
        return self.kv.student_bytes

    @property
    def teacher_cache(self) -> int:
        """Keys and values of the teacher."""
        return self.kv.teacher_bytes

    @property
    def resident(self) -> int:
        """Bytes held from the second optimiser step on in every phase."""
        return (
            self.student_weights + self.teacher_weights + self.reference_weights + self.optimizer_state + self.gradients
        )

    @property
    def phases(self) -> dict[str, int]:
        """Peak of each phase."""
        phases = {
            "decoding": self.resident + self.kv.num_bytes + self.decode_workspace,
            "the training pass": self.resident + self.training_workspace,
            "the optimiser step": self.resident + self.optimizer_workspace,
        }
        return phases | ({"self-sampling": self.self_sampling + self.kv.num_bytes} if self.self_sampling else {})

    @property
    def peak(self) -> int:
        return max(self.phases.values())


def plan_memory(workload: Workload) -> MemoryPlan:
    """Returns the plan of a run, from architectures alone. Takes seconds, whatever the size of the models.

    Raises ValueError for a `kv_cache_gb` that does not hold one row of the longest length.
    """
    student, teacher = workload.student, workload.teacher
    weights = plan_weights(student)
    teacher_weights = None if teacher is None else plan_weights(teacher)
    teacher_bytes = 0 if teacher_weights is None else teacher_weights.num_bytes
    student_pass, teacher_pass = decode_passes(workload)
    decode_workspace = student_pass.workspace + weights.largest_dequantized_bytes
    self_sampling = 2 * weights.num_bytes + teacher_bytes + decode_workspace if workload.draws_self_samples else 0
    if teacher_weights is not None:
        decode_workspace = max(decode_workspace, teacher_pass.workspace + teacher_weights.largest_dequantized_bytes)
    training, head = _training(workload)

    def share(num_bytes: int) -> int:
        return -(-num_bytes // workload.num_shards)

    planned = MemoryPlan(
        student_weights=weights.num_bytes + (share(weights.num_bytes) if workload.num_shards > 1 else 0),
        teacher_weights=teacher_bytes,
        reference_weights=weights.num_bytes if workload.has_reference else 0,
        optimizer_state=share(optimizer_bytes(workload.make_optimizer, weights)),
        gradients=share(weights.trained_bytes),
        kv=KVPlan(0, workload.block_size, 0, 0),
        decode_workspace=decode_workspace,
        activations=training.peak,
        head_workspace=head,
        training_workspace=max(training.peak, training.saved + head) + weights.largest_dequantized_bytes,
        optimizer_workspace=share(optimizer_workspace_bytes(workload.make_optimizer, weights, workload.device_type)),
        self_sampling=self_sampling,
    )
    free = USABLE_SHARE * workload.memory_bytes - max(planned.phases["decoding"], self_sampling)
    return replace(planned, kv=kv_demand(workload).plan(free))


def kv_demand(workload: Workload) -> KVDemand:
    """Returns what the keys and values of a run depend on."""
    student_pass, teacher_pass = decode_passes(workload)
    return KVDemand(
        kv_cache_gb=workload.kv_cache_gb,
        block_size=workload.block_size,
        max_num_seqs=workload.max_num_seqs,
        student_bytes_per_token=student_pass.kv_bytes_per_token,
        teacher_bytes_per_token=teacher_pass.kv_bytes_per_token,
        least_tokens=workload.longest_row,
        longest=max(workload.longest_row, workload.longest_teacher_row),
        max_context=workload.max_context,
        device_type=workload.device_type,
        memory_bytes=workload.memory_bytes,
    )


def decode_passes(workload: Workload) -> tuple[DecodePass, DecodePass]:
    """Returns the bytes that student and teacher need for decoding; zeros without a teacher."""
    shape = (workload.max_num_seqs, workload.block_size)
    student = decode_pass(workload.student, *shape, workload.longest_row)
    if workload.teacher is None:
        return student, DecodePass(0, 0)
    return student, decode_pass(workload.teacher, *shape, workload.longest_teacher_row)


def _training(workload: Workload) -> tuple[TrainingPass, int]:
    """Returns the bytes of a training pass over the decoder, and those of the log-probabilities after it."""
    student, longest = workload.student, workload.longest_row
    training = training_pass(student, workload.num_rows, longest)
    head = head_workspace(
        student,
        workload.num_rows * min(longest, workload.num_completion_tokens),
        training.hidden // (workload.num_rows * longest * int(student.config.hidden_size)),
        workload.device_type,
        is_trained=student.lora is None,
    )
    return training, training.hidden + head
