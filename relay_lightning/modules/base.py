"""RelayModule: what warm-up and GRPO share. A student in training, perhaps a teacher beside it, and their engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from relay_lightning import progress
from relay_lightning.data.chat_template import encode_prompt, make_prompt
from relay_lightning.data.loader import read_position
from relay_lightning.data.problems import ProblemDataModule
from relay_lightning.data.prompt_limits import PromptLimit, context_limit
from relay_lightning.data.records import Problem
from relay_lightning.data.stream import CompletionBatch, PromptBatch
from relay_lightning.data.template_parts import template_parts
from relay_lightning.engine.kv_budget import KVCacheGB, require_sizes
from relay_lightning.engine.probe import require_decodable
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.evaluation.evaluate import Judged, judged
from relay_lightning.models.architecture import describe, recompute_activations
from relay_lightning.models.loading import (
    load_config,
    load_model,
    load_tokenizer,
    load_untrained,
    require_loadable,
)
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.settings import LoadSettings
from relay_lightning.models.sharding import shard
from relay_lightning.models.skeleton import ModelPlan
from relay_lightning.modules.flops import pass_flops
from relay_lightning.modules.metrics import add_ratios, answer_ratios, completion_ratios, divide
from relay_lightning.modules.monitors import VALIDATION, require_known, require_known_monitors
from relay_lightning.modules.optimizers import build_optimizers
from relay_lightning.modules.phases import PhaseClock
from relay_lightning.modules.precision import decoding_precision
from relay_lightning.modules.randomness import seeded
from relay_lightning.modules.sharded_strategy import require_supported
from relay_lightning.modules.step_metrics import StepMetrics
from relay_lightning.modules.unsupported_callbacks import require_supported_callbacks
from relay_lightning.modules.update_meter import UpdateMeter
from relay_lightning.pair import build_engine, needs_bridge
from relay_lightning.processes import gather_tensors
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.relay_config import CallLimit, RelayConfig, read_relay_config
from relay_lightning.relay.requests import CallLimits, sample_requests
from relay_lightning.rewards.answers import AnswerStatus, judge_answers
from relay_lightning.threads import yield_cores
from relay_lightning.types import Completion, Prompt

PROMPT_DAY = "prompt_day"
"""Key of a checkpoint."""
PROGRESS_BAR = {"accuracy", "call_ratio"}
"""Evaluation metrics that the progress bar shows."""
UPDATE_BAR = {"time/update_s", "throughput/mfu", "memory/peak_gb"}
"""Figures of the optimiser step that it shows."""


class RelayModule(LightningModule):
    """Builds the student as its only submodule; the teacher lives in the engine, where no checkpoint sees it.

    A checkpoint holds the trained weights alone: with LoRA the adapters, else the whole student.
    """

    data_module_class: type[ProblemDataModule]
    """Gives the batches that the module trains on."""

    def __init__(
        self,
        *,
        student: str,
        teacher: str | None,
        student_loading: LoadSettings,
        teacher_loading: LoadSettings,
        max_num_seqs: int,
        kv_cache_gb: KVCacheGB,
        block_size: int,
        cuda_graphs: bool,
        max_completion_tokens: int,
        max_calls: CallLimit,
        max_call_tokens: CallLimit,
        eos_policy: str,
        spent_calls: str,
        lora: LoRASettings | None,
        gradient_checkpointing: bool,
        seed: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__()
        if student_loading.quantization is not None and lora is None:
            raise ValueError(
                f"student_loading.quantization is {student_loading.quantization}, whose weights cannot be trained; "
                "set lora as well, or quantization: null."
            )
        require_sizes(max_num_seqs, kv_cache_gb, block_size)
        self.student_name = student
        self.teacher_name = teacher
        self.student_loading = student_loading
        self.teacher_loading = teacher_loading
        self.max_num_seqs = max_num_seqs
        self.kv_cache_gb = kv_cache_gb
        self.block_size = block_size
        self.cuda_graphs = cuda_graphs
        self.max_completion_tokens = max_completion_tokens
        self._relay_config = RelayConfig()
        """The student's own, from `setup` on; `_given_limits` come before it."""
        self._given_limits: dict[str, Any] = {
            "max_calls": max_calls,
            "max_call_tokens": max_call_tokens,
            "eos_policy": eos_policy,
            "spent_calls": spent_calls,
        }
        self.lora = lora
        self.gradient_checkpointing = gradient_checkpointing
        self.seed = seed
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.student: Any = None
        """The student: a Transformers causal language model, from `configure_model` on."""
        self.tokenizer: Any = None
        """The student's tokenizer, from `setup` on."""
        self.prompt_day = date.today()
        """The date that a chat template writes into prompts: of the run's first start, kept in its checkpoints."""
        self._teacher_tokenizer: Any = None
        self._engine: RelayEngine | None = None
        self.eval_num_samples = 1
        """Completions of every problem in validation and test."""
        self.eval_temperature = 0.0
        self.last_judged: list[Judged] = []
        """The completions that `judge` was given last."""
        self._evaluated: dict[str, tuple[float, float]] = {}
        self._has_new_validation = False
        """A validation ended after the schedule was advanced last."""
        self._step_metrics = StepMetrics()
        self.clock = PhaseClock(self._profile)
        """Seconds of the phases of training."""
        self._meter: UpdateMeter | None = None

    @property
    def strict_loading(self) -> bool:
        """With LoRA a checkpoint lacks the frozen weights, which come from the student's own folder."""
        return self.lora is None

    def configure_callbacks(self) -> list[Callback]:
        """Adds no callback. Raises ValueError for one of the trainer's that cannot work, before any is set up."""
        require_supported_callbacks(self.trainer.callbacks)
        return []

    def setup(self, stage: str) -> None:
        """Loads the tokenizers, and so finds out early whether both models are within reach; resolves "auto" limits.

        Raises ValueError for a strategy that no student can be trained under, for data of another module, for a
        monitored metric that does not exist, for a chat template that cannot be used, and as `load_model` does.
        """
        require_supported(self.trainer.strategy)
        self._require_data(stage)
        if stage == "fit":
            require_known_monitors(self.trainer, self.validation_metrics)
        if self.trainer.strategy.root_device.type == "cpu":
            yield_cores()
        if self.tokenizer is not None:
            return
        require_loadable(self.student_name, self.student_loading)
        self.tokenizer = load_tokenizer(self.student_name, self.student_loading)
        self._relay_config = read_relay_config(self.student_name)
        if self.teacher_name is not None:
            require_loadable(self.teacher_name, self.teacher_loading)
            self._teacher_tokenizer = load_tokenizer(self.teacher_name, self.teacher_loading)
        self.prompt_day = self.trainer.strategy.broadcast(self.prompt_day)
        for tokenizer in [self.tokenizer, *([self._teacher_tokenizer] if self._has_bridge else [])]:
            template_parts(tokenizer, self.prompt_day)

    @property
    def validation_metrics(self) -> set[str]:
        """Names under which `validation_step` logs."""
        return {f"{VALIDATION}{name}" for name in self.judge([], [])}

    def _require_data(self, stage: str) -> None:
        """Raises ValueError if the trainer's data module does not give what this module takes, or no whole steps."""
        data: Any = self.trainer.datamodule
        needed = self.data_module_class if stage == "fit" else ProblemDataModule
        if data is not None and not isinstance(data, needed):
            raise ValueError(
                f"data is {type(data).__name__}, but {type(self).__name__} takes the batches of a "
                f"{self.data_module_class.__name__}: set data.class_path to it, or to a subclass of your own."
            )
        if data is not None and stage == "fit":
            data.require_whole_steps()

    def configure_model(self) -> None:
        """Loads the student, with fresh adapters if there are to be any, sharded if asked.

        Raises ValueError for a model that the relay cannot run.
        """
        if self.student is not None:
            return
        student = self.load_untrained_student()
        require_decodable(student)
        if self.lora is not None:
            with seeded(student.device, "lora", self.seed):  # the same adapters on every process
                add_lora(student, self.lora)
        if self.gradient_checkpointing:
            recompute_activations(student)
        if self.device_mesh is not None:
            shard(student, self.device_mesh["data_parallel"])
        self.student = student.train()
        rank_zero_info(f"student {self.student_name}: {describe(student)}")

    def on_fit_start(self) -> None:
        """Loads the teacher, so that one that the relay cannot run is refused before the first step."""
        _ = self.engine

    def load_untrained_student(self) -> Any:
        """The student as training finds it, without adapters: on this process's device if it is quantised there."""
        return load_untrained(self.student_name, self.student_loading, self._own_device)

    @property
    def engine(self) -> RelayEngine:
        """The relay engine over the live student; the teacher is loaded when it is first asked for."""
        if self._engine is None:
            self._engine = self._build_engine()
        return self._engine

    def release_engine(self) -> None:
        """Gives the memory of keys and values back, until the engine decodes again."""
        if self._engine is not None:
            self._engine.release()

    def build_prompts(self, problems: Sequence[Problem]) -> list[Prompt]:
        """Chat-templated prompts in the student's vocabulary."""
        return [
            make_prompt(self.tokenizer, problem.problem_id, problem.question, problem.answer, self.prompt_day)
            for problem in problems
        ]

    def prompt_limits(self) -> list[PromptLimit]:
        """The contexts that a prompt and a first token have to fit: the student's and the teacher's."""
        limits = [context_limit("student", load_config(self.student_name, self.student_loading))]
        if self.teacher_name is not None:
            config = load_config(self.teacher_name, self.teacher_loading)
            encode = partial(encode_prompt, self._teacher_tokenizer, day=self.prompt_day) if self._has_bridge else None
            limits.append(context_limit("teacher", config, encode))
        return limits

    def decode(self, prompts: Sequence[Prompt], temperature: float = 0.0, num_samples: int = 1) -> list[Completion]:
        """`num_samples` completions per prompt, in a row: with the teacher if there is one, else teacher-free."""
        requests = sample_requests(
            prompts,
            SamplingParams(max_completion_tokens=self.max_completion_tokens, temperature=temperature),
            num_samples,
            policy="teacher_free" if self.teacher_name is None else "command",
            limits=self.call_limits,
            seed=self.seed,
        )
        stage = None if self._trainer is None else self.trainer.state.stage
        name = "decoding" if stage is None else stage.value.replace("_", " ")
        with decoding_precision(self.device), progress.work(name, len(requests), "completions") as work:
            return self.engine.generate(requests, on_progress=work.update)

    @property
    def call_limits(self) -> CallLimits:
        """The limits of calls; before `setup`, what is "auto" has the library's default."""
        return self._relay_config.override(**self._given_limits).limits

    def step_randomness(self) -> AbstractContextManager[None]:
        """Around the forward pass of a training step: its dropout depends on the step and on nothing before it."""
        position = read_position(self.trainer)
        return seeded(self.device, "dropout", self.seed, self.global_rank, position.epoch, position.batch_index)

    def start_update(self, loss_mask: Tensor) -> None:
        """A training pass begins. loss_mask: [B, T] bool, of the tokens that are trained on."""
        if self._meter is None:
            self._meter = UpdateMeter(pass_flops(self._student_plan), self.device, self._product_dtype)
        self._meter.start(*loss_mask.shape, int(loss_mask.sum()))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Logs what the optimiser step cost, with its last micro-batch."""
        assert self._meter is not None
        is_step_complete = (batch.batch_index + 1) % self.trainer.accumulate_grad_batches == 0
        for name, value in self._meter.stop(is_step_complete=is_step_complete).items():
            self.log(name, value, prog_bar=name in UPDATE_BAR)

    def log_step(
        self,
        batch_index: int,
        loss: Tensor,
        metrics: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Collects a micro-batch's loss and metrics; logs those of the optimiser step, of all processes, with its last.

        `weights`: what each metric weighs beside other micro-batches. Raises RuntimeError if the loss is not finite.
        """
        require_finite(loss.detach(), "loss", self.global_step)
        self._step_metrics.add({"loss": loss, **(metrics or {})}, {"loss": torch.ones_like(loss), **(weights or {})})
        if (batch_index + 1) % self.trainer.accumulate_grad_batches == 0:
            for name, value in self._step_metrics.reduce(self.gather).items():
                self.log(name, value, prog_bar=name == "loss")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Logs the gradient norm, and stops before a gradient that is not finite can reach the weights."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of sharded weights
        self.log("grad_norm", norm)
        # A gradient scaler (16-mixed) expects overflows and skips their steps by itself.
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            require_finite(norm, "gradient norm", self.global_step)

    def on_validation_epoch_start(self) -> None:
        self._evaluated = {}

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Judged]:  # noqa: ARG002
        self._evaluated = add_ratios(self._evaluated, self.evaluate(batch.prompts))
        return self.last_judged

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")
        self.release_engine()
        self._has_new_validation = not self.trainer.sanity_checking

    def on_test_epoch_start(self) -> None:
        self._evaluated = {}

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Judged]:  # noqa: ARG002
        self._evaluated = add_ratios(self._evaluated, self.evaluate(batch.prompts))
        return self.last_judged

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")
        self.release_engine()

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> CompletionBatch:  # noqa: ARG002
        return CompletionBatch(batch.prompts, self.decode(batch.prompts))

    def on_predict_epoch_end(self) -> None:
        self.release_engine()

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule. Raises ValueError, before the first step, for those that cannot work."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        built = build_optimizers(self.make_optimizer, self.make_lr_scheduler, trained, self.trainer.max_steps)
        if monitor := built.get("lr_scheduler", {}).get("monitor"):
            require_known(monitor, "model.lr_scheduler", self.trainer, self.validation_metrics)
        return built

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advances the schedule; one that follows a validation metric, only when there is a new value of it."""
        if metric is not None and scheduler.monitor.startswith(VALIDATION):
            if not self._has_new_validation:
                return
            self._has_new_validation = False
        super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves weights that are not trained out of the checkpoint, and keeps the date of the prompts."""
        checkpoint[PROMPT_DAY] = self.prompt_day.isoformat()
        # Tied weights have several names; a quantised weight brings tables that are neither parameter nor buffer.
        parameters = self.named_parameters(remove_duplicate=False)
        kept = {name for name, parameter in parameters if parameter.requires_grad}
        kept.update(name for name, _ in self.named_buffers())
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the date of the prompts.

        Raises ValueError, naming a weight, when the checkpoint is not of this student.
        """
        self._set_prompt_day(date.fromisoformat(checkpoint.get(PROMPT_DAY) or self.prompt_day.isoformat()))
        if "state_dict" not in checkpoint:
            return  # a strategy that shards weights has loaded them already
        saved = checkpoint["state_dict"]
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and (name not in saved or saved[name].shape != parameter.shape):
                found = f"has shape {list(saved[name].shape)}" if name in saved else "is missing"
                raise ValueError(
                    f"The checkpoint does not fit the student {self.student_name}: weight {name} {found}, "
                    f"but shape {list(parameter.shape)} is needed."
                )

    def _set_prompt_day(self, day: date) -> None:
        """Changes the date of the prompts; an engine that renders them for a teacher is built anew."""
        if day != self.prompt_day:
            self.prompt_day = day
            self._engine = None

    def gather(self, tensor: Tensor) -> Tensor:
        """A tensor of every process, stacked by rank, on the CPU."""
        return gather_tensors(tensor.to(self.device)).cpu()

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of a CPU tensor over all processes."""
        return self.trainer.strategy.reduce(tensor.to(self.device), reduce_op="sum").cpu()

    def _profile(self, region: str) -> AbstractContextManager[None]:
        return nullcontext() if self._trainer is None else self.trainer.profiler.profile(region)

    @property
    def _student_plan(self) -> ModelPlan:
        return ModelPlan(self.student_name, self.student.config, self.student_loading, is_trained=True, lora=self.lora)

    @property
    def _product_dtype(self) -> torch.dtype:
        """Of the matrix products of a training step, called within one."""
        device_type = self.device.type
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @property
    def _has_bridge(self) -> bool:
        return needs_bridge(self.tokenizer, self._teacher_tokenizer)

    @property
    def _own_device(self) -> torch.device:
        """Where the module is, or is about to be moved."""
        return self.device if self._trainer is None else self.trainer.strategy.root_device

    def _build_engine(self) -> RelayEngine:
        teacher = None
        if self.teacher_name is not None:
            teacher = load_model(self.teacher_name, None, self.teacher_loading, self.device).requires_grad_(False)
            rank_zero_info(f"teacher {self.teacher_name}: {describe(teacher)}")
        return build_engine(
            self.student,
            self.tokenizer,
            teacher,
            self._teacher_tokenizer,
            max_num_seqs=self.max_num_seqs,
            kv_cache_gb=self.kv_cache_gb,
            block_size=self.block_size,
            cuda_graphs=self.cuda_graphs,
            day=self.prompt_day,
        )

    def evaluate(self, prompts: Sequence[Prompt]) -> dict[str, tuple[float, float]]:
        """What validation and test report of some prompts, as numerators and denominators: greedy unless told."""
        completions = self.decode(prompts, self.eval_temperature, self.eval_num_samples)
        return self.judge([prompt for prompt in prompts for _ in range(self.eval_num_samples)], completions)

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, tuple[float, float]]:
        """Accuracy, answers that are missing or not understood, lengths and calls of a completion per prompt."""
        texts, answers = [completion.text for completion in completions], [prompt.answer or "" for prompt in prompts]
        statuses = judge_answers(texts, answers)
        self.last_judged = list(map(judged, completions, statuses))
        ratios = answer_ratios(statuses) | completion_ratios(completions)
        named = {name.rsplit("/")[-1]: ratio for name, ratio in ratios.items()}
        return {"accuracy": (float(statuses.count(AnswerStatus.CORRECT)), float(len(statuses))), **named}

    def _log_evaluation(self, stage: str) -> None:
        metrics = divide(self._evaluated, self.sum_over_ranks)
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in PROGRESS_BAR, batch_size=1)


def require_finite(value: Tensor, name: str, step: int) -> None:
    """Raises RuntimeError if `value`, a scalar, is NaN or infinite, naming the optimiser step counted from 0."""
    if not torch.isfinite(value):
        raise RuntimeError(
            f"The {name} is {value.item()} at optimiser step {step}; training stops before it reaches the weights."
        )
