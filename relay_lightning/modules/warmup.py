"""WarmupModule: stage 1, supervised training of the command's syntax on the student's own text (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from relay_lightning import progress
from relay_lightning.data.sft import SelfSample, SFTBatch, WarmupDataModule
from relay_lightning.engine.kv_budget import KVCacheGB
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.modules.base import RelayModule
from relay_lightning.modules.log_probs import token_log_probs
from relay_lightning.modules.monitors import VALIDATION
from relay_lightning.modules.phases import LOSS
from relay_lightning.modules.self_samples import (
    draw_self_samples,
    fingerprint,
    read_self_samples,
    write_self_samples,
)
from relay_lightning.objectives.sft import sft_loss
from relay_lightning.pair import local_model
from relay_lightning.processes import gather_in_turn
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.relay_config import AUTO, CallLimit
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Prompt


class WarmupModule(RelayModule):
    """Teaches a student to write commands, without changing how it writes anything else.

    Validation decodes with the teacher, greedily and once more at the sampling temperature: a student that is only
    warmed up seldom calls when it takes its most probable token. The figures of the second pass begin with `sampled_`;
    `val/sampled_malformed_call_frac` is the share of opened commands that were not well-formed.

    Args:
        student: checkpoint to train: a folder, a hub id, or `tiny:student`.
        teacher: checkpoint that answers calls in validation; null validates teacher-free.
        student_loading: number format, quantisation and attention of the student.
        teacher_loading: the same of the teacher.
        max_num_seqs: completions decoded at once, at most.
        kv_cache_gb: memory for the keys and values of student and teacher in GB; `auto` takes most of what is
            free, which `fit` on a GPU plans.
        block_size: tokens of a block of keys and values, a multiple of 16, and of 256 under flash_attention_2.
        cuda_graphs: on a GPU, whether decode steps are captured in CUDA graphs.
        max_completion_tokens: budget of a completion, the teacher's tokens included.
        temperature: of the self-sampled completions.
        top_k: of the self-sampled completions; 0 keeps all tokens.
        top_p: of the self-sampled completions.
        min_p: of the self-sampled completions.
        samples_per_prompt: self-sampled completions of each training problem.
        max_calls: calls of one completion in validation; null sets no limit, `auto` takes the student's
            `relay_config.json`, else none.
        max_call_tokens: longest span that one call can get in validation; null and `auto` as above.
        eos_policy: what the teacher's end of sequence does in validation; `auto` as above, else `finish`.
        spent_calls: what a command does in validation where no call is possible: it stays as `text`, or the tokens
            that would close it (`mask_close`) or its opening tag (`mask_open`) are banned; `auto` as above, else
            `text`.
        cache_dir: folder that keeps the self-sampled completions.
        lora: train adapters of this shape; null trains all weights, which a quantised student cannot.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        seed: of the samples.
        optimizer: from the trained parameters to an optimiser.
        lr_scheduler: from the optimiser to a schedule that is advanced once per optimiser step.
    """

    data_module_class = WarmupDataModule

    def __init__(
        self,
        *,
        student: str = "tiny:student",
        teacher: str | None = "tiny:teacher",
        student_loading: LoadSettings = DEFAULT,
        teacher_loading: LoadSettings = DEFAULT,
        max_num_seqs: int = 128,
        kv_cache_gb: KVCacheGB = "auto",
        block_size: int = 64,
        cuda_graphs: bool = True,
        max_completion_tokens: int = 192,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        samples_per_prompt: int = 1,
        max_calls: CallLimit = AUTO,
        max_call_tokens: CallLimit = AUTO,
        eos_policy: Literal["finish", "return", "auto"] = AUTO,
        spent_calls: Literal["text", "mask_close", "mask_open", "auto"] = AUTO,
        cache_dir: str = ".cache/self_samples",
        lora: LoRASettings | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
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
        self.sampling = SamplingParams(max_completion_tokens, temperature, top_k, top_p, min_p)
        self.samples_per_prompt = samples_per_prompt
        self.cache_dir = Path(cache_dir)
        self._vocabulary: Vocabulary | None = None

    def setup(self, stage: str) -> None:
        """Raises as `RelayModule.setup` does, and ValueError for a student that cannot spell a command."""
        super().setup(stage)
        self.encode_command(1)

    def training_step(self, batch: SFTBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of the completion's tokens, commands included; the prompt is masked."""
        self.start_update(batch.loss_mask)
        token_ids, loss_mask = batch.token_ids.to(self.device), batch.loss_mask.to(self.device)
        with self.step_randomness(), self.clock(LOSS):
            log_probs = token_log_probs(self.student, token_ids, loss_mask).log_probs
        num_micro_batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss = sft_loss(log_probs, loss_mask, batch.num_step_loss_tokens, num_micro_batches)
        self.log_step(batch.batch_index, loss)
        return loss

    @property
    def validation_metrics(self) -> set[str]:
        """As of every module, and those of the sampled pass."""
        greedy = super().validation_metrics
        return greedy | {name.replace(VALIDATION, f"{VALIDATION}sampled_") for name in greedy}

    def evaluate(self, prompts: Sequence[Prompt]) -> dict[str, tuple[float, float]]:
        """Greedy and sampled decoding, the latter under names that begin with `sampled_`."""
        sampled = self.judge(prompts, self.decode(prompts, self.sampling.temperature))
        return super().evaluate(prompts) | {f"sampled_{name}": ratio for name, ratio in sampled.items()}

    def encode_command(self, num_requested_tokens: int) -> list[int]:
        """The tokens of a command that asks for so many."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.of(self.tokenizer)
        return CallProtocol().spell(num_requested_tokens, self._vocabulary)

    def self_sample(self, prompts: Sequence[Prompt]) -> list[SelfSample]:
        """Completions of the prompts by the untrained student, from disk if they were drawn before.

        The untrained student is read afresh, so that a resumed run gets the samples of the run that it continues.
        """
        student = self.load_untrained_student().to(self.device)
        identity = fingerprint(
            student.state_dict(),
            prompts,
            self.sampling,
            samples_per_prompt=self.samples_per_prompt,
            seed=self.seed,
            eos_token_ids=local_model(student, self.tokenizer).eos_token_ids,
        )
        path = self.cache_dir / f"{identity}.jsonl"
        if not self.trainer.strategy.broadcast(path.exists()):  # one process decides, so that all draw or none
            own = self._draw(student, prompts[self.global_rank :: self.trainer.world_size])
            size = self.samples_per_prompt
            by_prompt = gather_in_turn([own[start : start + size] for start in range(0, len(own), size)])
            if self.trainer.is_global_zero:
                write_self_samples(path, list(chain.from_iterable(by_prompt)))
        self.trainer.strategy.barrier("self_sample")
        return read_self_samples(path)

    def _draw(self, student: torch.nn.Module, prompts: Sequence[Prompt]) -> list[SelfSample]:
        """New samples, with a progress bar."""
        engine = RelayEngine(
            local_model(student, self.tokenizer),
            None,
            self.engine.protocol,
            max_num_seqs=self.max_num_seqs,
            kv_cache_gb=self.kv_cache_gb,
            block_size=self.block_size,
            cuda_graphs=self.cuda_graphs,
        )
        with progress.work("self-sampling", len(prompts) * self.samples_per_prompt, "completions") as work:
            samples = draw_self_samples(
                engine,
                prompts,
                self.sampling,
                samples_per_prompt=self.samples_per_prompt,
                seed=self.seed,
                on_progress=work.update,
            )
        engine.release()
        return samples
