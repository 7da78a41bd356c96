"""GRPOModule: stage 2, reinforcement learning of when and how long to call the teacher (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from relay_lightning.data.collate import TeacherTokens, make_train_batches
from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.stream import RolloutBatch
from relay_lightning.engine.kv_budget import KVCacheGB
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.modules.base import RelayModule
from relay_lightning.modules.log_probs import fixed_log_probs, token_log_probs
from relay_lightning.modules.metrics import answer_ratios, completion_ratios, divide, group_ratios
from relay_lightning.modules.phases import COLLATE, LOSS, REWARD, ROLLOUT
from relay_lightning.modules.precision import decoding_precision
from relay_lightning.modules.reference import ReferencePolicy
from relay_lightning.modules.rollout_buffer import RolloutBuffer
from relay_lightning.modules.rollouts import DecodeSettings, RewardSettings, RolloutSampler, Sample
from relay_lightning.objectives.grpo import LossOutput, grpo_loss
from relay_lightning.processes import gather_in_turn, gather_objects
from relay_lightning.relay.relay_config import AUTO, CallLimit
from relay_lightning.types import RolloutGroup, TrainBatch

ROLLOUT_KEY = "rollouts"
"""Where a checkpoint keeps the rollouts in use, one per process."""

PROGRESS_BAR = {"reward", "train/accuracy", "relay/call_ratio", "time/rollout_s"}


class GRPOModule(RelayModule):
    """Trains a student that calls a teacher, with group-relative policy optimisation.

    Loss and advantage options carry TRL's names and formulas (docs/numerics.md).

    Args:
        student: checkpoint to train: a folder, a hub id, or `tiny:warm-student`.
        teacher: checkpoint of the frozen teacher; null trains teacher-free (plain GRPO).
        student_loading: number format, quantisation and attention of the student.
        teacher_loading: the same of the teacher.
        group_size: completions per prompt.
        max_num_seqs: completions decoded at once, at most.
        kv_cache_gb: memory for the keys and values of student and teacher in GB; `auto` takes most of what is
            free, which `fit` on a GPU plans.
        block_size: tokens of a block of keys and values, a multiple of 16, and of 256 under flash_attention_2.
        cuda_graphs: on a GPU, whether decode steps are captured in CUDA graphs.
        max_completion_tokens: budget of a completion, the teacher's tokens included.
        temperature: of the student's samples; log-probabilities are taken at it as well.
        top_k: of the student's samples; 0 keeps all tokens.
        top_p: of the student's samples.
        min_p: of the student's samples.
        teacher_temperature: of the teacher's tokens; 0 is greedy.
        teacher_top_p: of the teacher's tokens.
        max_calls: calls of one completion; null sets no limit; `auto` takes that of the student's
            `relay_config.json`, else none.
        max_call_tokens: longest span that one call can get; null and `auto` as above.
        eos_policy: what the teacher's end of sequence does: `finish` the completion, `return` to the student, or `auto`
            as above, else `finish`.
        spent_calls: what a command does where no call is possible: it stays as `text`, or the tokens that would close
            it (`mask_close`) or its opening tag (`mask_open`) are banned; `auto` as above, else `text`.
        reward: `difficulty_aware` (paper) or `simple` (1[correct] - call ratio).
        bonus: reward of a correct completion without a call in a group with one.
        exploration: pay wrong completions that called, in a group that nobody solved, their call ratio.
        call_cost: teacher tokens that a correct completion pays for: those `delivered` (paper), or those `requested`,
            which `max_call_tokens` does not cut.
        scale_rewards: what advantages are divided by: the standard deviation of the `group`, of the `batch`, or `none`.
        advantage_estimator: `grpo` (group mean) or `rloo` (mean of the others).
        loss_type: how token losses are averaged, and their shape.
        epsilon: clip range of the probability ratio, below.
        epsilon_high: the same above; null takes `epsilon`.
        delta: upper bound of the ratio for negative advantages (dual clip); null sets none.
        importance_sampling_level: ratio per `token` or per `sequence` (GSPO).
        beta: weight of the KL term to the initial student; 0 needs no reference model.
        kl_estimator: `k1`, `k2` or `k3`.
        rollout_is_mode: correction for a sampler whose probabilities differ from the trainer's.
        rollout_is_clip_max: its bound.
        teacher_tokens: `mask` (not trained on), `on_policy` (as if the student had written them), or `luffy`.
        old_log_probs: the old policy's log-probabilities: the sampler's (`rollout`) or the trainer's (`recompute`).
        dynamic_sampling: sampling rounds to replace groups whose rewards are all equal; 0 keeps them.
        overlong_buffer: tokens before the budget over which a soft penalty grows to -1; 0 is off.
        mask_truncated_completions: do not train on completions that used the whole budget.
        lora: train adapters of this shape; null trains all weights, which a quantised student cannot.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        seed: of the samples.
        optimizer: from the trained parameters to an optimiser.
        lr_scheduler: from the optimiser to a schedule that is advanced once per optimiser step.
    """

    data_module_class = PromptDataModule

    def __init__(
        self,
        *,
        student: str = "tiny:warm-student",
        teacher: str | None = "tiny:teacher",
        student_loading: LoadSettings = DEFAULT,
        teacher_loading: LoadSettings = DEFAULT,
        group_size: int = 8,
        max_num_seqs: int = 128,
        kv_cache_gb: KVCacheGB = "auto",
        block_size: int = 64,
        cuda_graphs: bool = True,
        max_completion_tokens: int = 192,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        teacher_temperature: float = 0.7,
        teacher_top_p: float = 1.0,
        max_calls: CallLimit = AUTO,
        max_call_tokens: CallLimit = AUTO,
        eos_policy: Literal["finish", "return", "auto"] = AUTO,
        spent_calls: Literal["text", "mask_close", "mask_open", "auto"] = AUTO,
        reward: Literal["difficulty_aware", "simple"] = "difficulty_aware",
        bonus: float = 1.5,
        exploration: bool = True,
        call_cost: Literal["delivered", "requested"] = "delivered",
        scale_rewards: Literal["group", "none", "batch"] = "group",
        advantage_estimator: Literal["grpo", "rloo"] = "grpo",
        loss_type: Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo"] = "dapo",
        epsilon: float = 0.2,
        epsilon_high: float | None = 0.3,
        delta: float | None = 3.0,
        importance_sampling_level: Literal["token", "sequence"] = "token",
        beta: float = 0.0,
        kl_estimator: Literal["k1", "k2", "k3"] = "k3",
        rollout_is_mode: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none",
        rollout_is_clip_max: float = 3.0,
        teacher_tokens: TeacherTokens = "mask",
        old_log_probs: Literal["rollout", "recompute"] = "rollout",
        dynamic_sampling: int = 0,
        overlong_buffer: int = 0,
        mask_truncated_completions: bool = False,
        lora: LoRASettings | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2 to compare completions, but is {group_size}.")
        if temperature == 0.0:
            raise ValueError("temperature must be above 0: greedy completions of one prompt are all alike.")
        if rollout_is_mode != "none" and old_log_probs != "recompute":
            raise ValueError(
                f"rollout_is_mode '{rollout_is_mode}' compares with old_log_probs: 'recompute'; set that too."
            )
        super().__init__(
            student=student,
            teacher=teacher,
            student_loading=student_loading,
            teacher_loading=teacher_loading,
            max_num_seqs=max_num_seqs,
            kv_cache_gb=kv_cache_gb,
            block_size=block_size,
            cuda_graphs=cuda_graphs,
            max_completion_tokens=max_completion_tokens,
            max_calls=max_calls,
            max_call_tokens=max_call_tokens,
            eos_policy=eos_policy,
            spent_calls=spent_calls,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.decoding = DecodeSettings(
            group_size=group_size,
            student=SamplingParams(max_completion_tokens, temperature, top_k, top_p, min_p),
            teacher=SamplingParams(max_completion_tokens, teacher_temperature, top_p=teacher_top_p),
            policy="teacher_free" if teacher is None else "command",
            limits=self.call_limits,
            seed=seed,
        )
        self.rewards = RewardSettings(
            reward, bonus, exploration, scale_rewards, advantage_estimator, overlong_buffer, call_cost
        )
        self.loss_options: dict[str, Any] = {
            "loss_type": loss_type,
            "epsilon": epsilon,
            "epsilon_high": epsilon_high,
            "delta": delta,
            "importance_sampling_level": importance_sampling_level,
            "beta": beta,
            "kl_estimator": kl_estimator,
            "rollout_is_mode": rollout_is_mode,
            "rollout_is_clip_max": rollout_is_clip_max,
            "teacher_tokens": teacher_tokens,
            "max_completion_tokens": max_completion_tokens,
        }
        self.teacher_tokens: TeacherTokens = teacher_tokens
        self.mask_truncated_completions = mask_truncated_completions
        self.old_log_probs = old_log_probs
        self.dynamic_sampling = dynamic_sampling
        self.last_groups: list[RolloutGroup] = []
        """The rollout decoded last on this process, with the reward and advantage of every completion."""
        self._buffer = RolloutBuffer.empty()
        self._sampler: RolloutSampler | None = None
        self._reference: ReferencePolicy | None = None

    def setup(self, stage: str) -> None:
        """As of every relay module; the samples of training keep to the same limits of calls as those of evaluation."""
        super().setup(stage)
        self.decoding = replace(self.decoding, limits=self.call_limits)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of one micro-batch; the first of a rollout has the rollout decoded.

        Prompt -> relay decode -> RolloutGroup with rewards and advantages -> TrainBatch -> loss.
        """
        if batch.micro_batch_index == 0:
            with decoding_precision(self.device):
                samples = self.sampler.decode(batch)
                groups = self.sampler.score(samples)
                with self.clock(COLLATE):
                    train_batches = self.collate(groups, batch.num_micro_batches)
            self._buffer = RolloutBuffer(batch.rollout_index, train_batches, self.rollout_metrics(samples, groups))
            self.last_groups = groups
        micro_batch = self._buffer.micro_batch(batch)
        self.start_update(micro_batch.loss_mask)
        with self.clock(LOSS):
            output = self.loss(micro_batch.to(self.device))
        self.log_step(batch.batch_index, output.loss, output.metrics, output.num_tokens)
        self.log_rollout()
        return output.loss

    @property
    def sampler(self) -> RolloutSampler:
        """Decodes and scores rollouts of the live student."""
        if self._sampler is None:
            self._sampler = RolloutSampler(
                self.engine,
                self.decoding,
                self.rewards,
                max_sampling_rounds=1 + self.dynamic_sampling,
                gather=self.gather,
                gather_samples=gather_in_turn,
                rank=self.global_rank,
                clock=self.clock,
            )
        return self._sampler

    def collate(self, groups: list[RolloutGroup], num_micro_batches: int) -> list[TrainBatch]:
        """The rollout's micro-batches, with all processes' normalisers and the log-probabilities the loss needs."""
        micro_batches_per_step = self.trainer.accumulate_grad_batches
        batches = make_train_batches(
            groups,
            num_steps=num_micro_batches // micro_batches_per_step,
            micro_batches_per_step=micro_batches_per_step,
            teacher_tokens=self.teacher_tokens,
            mask_truncated_completions=self.mask_truncated_completions,
        )
        counts = torch.stack([torch.stack([batch.num_step_loss_tokens, batch.num_step_rollouts]) for batch in batches])
        return [
            replace(
                batch,
                num_step_loss_tokens=num_loss_tokens,
                num_step_rollouts=num_rollouts,
                old_log_probs=self._old_log_probs(batch) if self.old_log_probs == "recompute" else None,
                reference_log_probs=self._reference_log_probs(batch) if self.loss_options["beta"] else None,
            )
            for batch, (num_loss_tokens, num_rollouts) in zip(batches, self.sum_over_ranks(counts), strict=True)
        ]

    def loss(self, batch: TrainBatch) -> LossOutput:
        """The loss of a micro-batch, scaled so that the micro-batches of an optimiser step average to its loss."""
        with self.step_randomness():
            policy = token_log_probs(self.student, batch.token_ids, batch.loss_mask, self.decoding.student.temperature)
        return grpo_loss(
            policy.log_probs,
            batch,
            entropy=policy.entropy,
            num_micro_batches=self.trainer.accumulate_grad_batches * self.trainer.world_size,
            **self.loss_options,
        )

    def rollout_metrics(self, samples: list[Sample], groups: list[RolloutGroup]) -> dict[str, float]:
        """What is logged of a rollout, over all processes."""
        cost, stats, num_processes = self.sampler.cost, self.sampler.cost.stats, self.trainer.world_size
        seconds = self.clock.take(ROLLOUT, REWARD, COLLATE) | {
            "time/student_s": stats.student_s,
            "time/teacher_s": stats.teacher_s,
            "time/prefill_s": stats.prefill_s,
        }
        completions = [completion for sample in samples for completion in sample.completions]
        ratios = {
            **group_ratios(groups),
            **completion_ratios(completions),
            **answer_ratios([status for sample in samples for status in sample.statuses]),
            "relay/teacher_prefill_tokens": (float(stats.num_teacher_prefill_tokens), float(len(completions))),
            "sampling_rounds": (float(cost.num_rounds), 1.0),
            **{name: (value, 1.0) for name, value in seconds.items()},
            # Of all processes together, while the one or the other writes.
            "throughput/student_tokens_per_s": (float(stats.num_student_tokens * num_processes), stats.student_s),
            "throughput/teacher_tokens_per_s": (float(stats.num_teacher_tokens * num_processes), stats.teacher_s),
        }
        return divide(ratios, self.sum_over_ranks)

    def log_rollout(self) -> None:
        """Logs the figures of the rollout in use."""
        for name, value in self._buffer.metrics.items():
            self.log(name, value, prog_bar=name in PROGRESS_BAR)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the rollout in use, so that a run interrupted between two steps on it goes on exactly."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[ROLLOUT_KEY] = gather_objects(self._buffer.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        states = checkpoint.get(ROLLOUT_KEY, [])
        if self._trainer is not None and len(states) == self.trainer.world_size:
            self._buffer = RolloutBuffer.from_state_dict(states[self.global_rank])

    def _old_log_probs(self, batch: TrainBatch) -> Tensor:
        """[B, T] on the CPU: the policy's log-probabilities before the first update on this rollout."""
        batch = batch.to(self.device)
        temperature = self.decoding.student.temperature
        return fixed_log_probs(self.student, batch.token_ids, batch.loss_mask, temperature).cpu()

    def _reference_log_probs(self, batch: TrainBatch) -> Tensor:
        """[B, T] on the CPU: log-probabilities of the student that training began with."""
        if self._reference is None:
            self._reference = ReferencePolicy(
                self.student,
                self.load_untrained_student,
                has_adapters=self.lora is not None,
                temperature=self.decoding.student.temperature,
            )
        batch = batch.to(self.device)
        return self._reference.log_probs(batch.token_ids, batch.loss_mask).cpu()
