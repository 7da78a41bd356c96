"""RelayCLI: Lightning's command line, with the run folder and the callbacks of a relay run around `fit`."""

from __future__ import annotations

import inspect
import logging
import warnings
from pathlib import Path
from typing import IO, Any

import yaml
from lightning.fabric.utilities.enums import LightningEnum
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from relay_lightning.callbacks.checkpoint import LastCheckpoint
from relay_lightning.callbacks.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from relay_lightning.callbacks.config_writer import ConfigWriter
from relay_lightning.callbacks.evaluation_writer import EvaluationWriter
from relay_lightning.callbacks.graceful_stop import GracefulStop
from relay_lightning.callbacks.next_steps import NextSteps
from relay_lightning.callbacks.prediction_writer import PredictionWriter
from relay_lightning.callbacks.progress import StepProgress
from relay_lightning.callbacks.report import Report
from relay_lightning.callbacks.rollout_printer import RolloutPrinter
from relay_lightning.callbacks.rollout_writer import RolloutWriter
from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.callbacks.throughput import Throughput
from relay_lightning.commands.doubts import doubts, require_same_stage
from relay_lightning.commands.parser import OneSentenceErrors
from relay_lightning.commands.plan import OnMisfit, plan, plan_run
from relay_lightning.commands.trainer_settings import require_usable
from relay_lightning.commands.trust import require_trust
from relay_lightning.data.problems import ProblemDataModule
from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.modules.base import RelayModule
from relay_lightning.modules.grpo import GRPOModule
from relay_lightning.modules.sharded_strategy import resolve_strategy
from relay_lightning.modules.warmup import WarmupModule
from relay_lightning.terminal import escape_record

STAGES = {"model": (WarmupModule, GRPOModule), "data": (WarmupDataModule, PromptDataModule)}
"""Classes that a configuration can name without their modules, by the key that names them."""
WITHOUT_EXTRAS = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": None,
    "num_sanity_val_steps": None,
}
"""Settings of `trainer.barebones`, which times the loop alone; Lightning refuses others beside it."""
LAST = "last"
EVALUATIONS = ("validate", "test")
HELP = (
    "Options of the module and of the data depend on their class: "
    "python -m relay_lightning {0} --model.help GRPOModule (or WarmupModule), "
    "python -m relay_lightning {0} --data.help PromptDataModule (or WarmupDataModule)."
)
for record_filter in (lambda record: "Tip:" not in record.getMessage(), escape_record):
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(record_filter)
# A default of Lightning's Timer that PyYAML cannot write.
yaml.SafeDumper.add_multi_representer(LightningEnum, lambda dumper, value: dumper.represent_str(str(value.value)))
# Metrics of validation are summed over all processes before they are logged.
warnings.filterwarnings("ignore", message="It is recommended to use `self.log.*sync_dist=True")
warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's own use of PyTorch


def stage_arguments() -> dict[str, Any]:
    """Key -> type of every argument of the stages' classes: `model.group_size` -> int."""
    return {
        f"{key}.{parameter.name}": parameter.annotation
        for key, classes in STAGES.items()
        for stage_class in classes
        for parameter in inspect.signature(stage_class, eval_str=True).parameters.values()
    }


class RelayParser(OneSentenceErrors, LightningArgumentParser):
    """Lightning's parser, with errors of one sentence."""

    nested_keys = stage_arguments()


class RelayCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`: all accept the same configuration; `fit` alone has a run folder."""

    def __init__(self, subcommand: str, arguments: list[str]) -> None:
        self._chosen = subcommand
        self._resumed_step: int | None = None
        self._lock: IO[bytes] | None = None
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                parser_class=RelayParser,
                parser_kwargs={"prog": "python -m relay_lightning", "description": None},
                auto_configure_optimizers=False,
                seed_everything_default=0,
                args=[subcommand, *arguments],
            )
        finally:
            if self._lock is not None:
                self._lock.close()

    def subcommands(self) -> dict[str, set[str]]:
        """The chosen one alone: the parsers of the others are not built."""
        return {self._chosen: super().subcommands()[self._chosen]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of everything the run makes (default: runs/<stage>). A run in it is never overwritten.",
        )
        parser.add_argument(
            "--plan",
            type=OnMisfit | None,
            default=None,
            help="What happens before weights are loaded if memory will not suffice: stop, warn, or off, which does "
            "not look (default: stop on a GPU, off on a CPU). `python -m relay_lightning plan` shows the plan.",
        )
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.add_lightning_class_args(RolloutPrinter, "printer")
        parser.add_lightning_class_args(Report, "report")
        parser.add_lightning_class_args(EvaluationWriter, "evaluation")
        parser.epilog = HELP.format(self._chosen)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        require_trust(self.config, args)

    def _parse_ckpt_path(self) -> None:
        """Resolves the run folder and the checkpoint, and refuses what cannot be used before anything is built."""
        config = self.config[self._chosen]
        folder = RunFolder(Path(config.run_dir or config.trainer.default_root_dir or default_run_dir(config.model)))
        config.run_dir, config.trainer.default_root_dir = str(folder.path), None
        is_continued = config.ckpt_path == LAST
        if is_continued:
            config.ckpt_path = self._find_last(folder)
        if config.ckpt_path is not None:
            checkpoint = read_checkpoint(Path(config.ckpt_path), mmap=True)
            self._resumed_step = checkpoint["global_step"]
            if self._chosen == "fit":
                require_same_stage(checkpoint, config.ckpt_path, config.model.class_path)
            is_continued = is_continued or folder.contains(Path(config.ckpt_path))
        if self._writes_run_folder(config) and rank_zero_only.rank == 0:
            self._lock = folder.claim(is_continued=is_continued)

    def _find_last(self, folder: RunFolder) -> str | None:
        if folder.last_checkpoint.exists():
            return str(folder.last_checkpoint)
        if self._chosen != "fit":
            raise FileNotFoundError(f"The run folder {folder.path} has no checkpoint {folder.last_checkpoint.name}.")
        rank_zero_info(f"{folder.path} has no checkpoint yet: training starts from the beginning.")
        return None

    def _writes_run_folder(self, config: Any) -> bool:
        """False for what leaves nothing: a trial of a few batches, and a timing of the bare loop."""
        return self._chosen == "fit" and not config.trainer.fast_dev_run and not config.trainer.barebones

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if isinstance(self.datamodule, ProblemDataModule) and not hasattr(self.model, "build_prompts"):
            raise ValueError(
                f"data is {type(self.datamodule).__name__}, whose prompts a RelayModule builds, but model is "
                f"{type(self.model).__name__}; give it a data module of its own, or derive it from GRPOModule."
            )
        if isinstance(self.model, RelayModule):
            is_fit = self._chosen == "fit"
            if is_fit:
                for sentence in doubts(self.model):
                    rank_zero_warn(sentence)
            plan_run(self.model, self.datamodule, self.trainer, self.config[self._chosen].plan if is_fit else "off")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer of the configuration; for `fit` with the run folder and the callbacks of a run."""
        config = self.config[self._chosen]
        settings = {**self._get(self.config_init, "trainer"), **kwargs, "default_root_dir": config.run_dir}
        require_usable(settings)
        if settings["barebones"]:
            settings |= WITHOUT_EXTRAS
        if settings["enable_model_summary"] is None and isinstance(self.model, RelayModule):
            settings["enable_model_summary"] = False  # the module describes its student itself
        settings["enable_autolog_hparams"] = not isinstance(self.model, RelayModule)  # ConfigWriter logs them
        settings["strategy"] = resolve_strategy(settings["strategy"])
        settings["plugins"] = with_atomic_checkpoints(settings["plugins"])
        if not self._writes_run_folder(config):
            if settings["logger"] is None:
                settings["logger"] = False
            callbacks: list[Callback] = [PredictionWriter()] if self._chosen == "predict" else []
            if self._chosen in EVALUATIONS and isinstance(self.model, RelayModule):
                callbacks.append(self._get(self.config_init, "evaluation"))
            return self._instantiate_trainer(settings, [*callbacks, *_progress_bar(settings)])
        if settings["logger"] in (None, True):
            settings["logger"] = TensorBoardLogger(
                config.run_dir,
                name="",
                version="tensorboard",
                purge_step=self._resumed_step or 0,
                default_hp_metric=False,
            )
        return self._instantiate_trainer(settings, self._run_callbacks(settings))

    def _run_callbacks(self, settings: dict[str, Any]) -> list[Callback]:
        """Callbacks in the order in which they must act: stopping first, the checkpoint last, after all other files."""
        callbacks: list[Callback] = [GracefulStop()]
        if isinstance(self.model, RelayModule):
            callbacks.append(self._get(self.config_init, "report"))
        callbacks.append(ConfigWriter(self._dump_run()))
        if hasattr(self.model, "last_groups"):
            callbacks += [Throughput(), RolloutWriter(), self._get(self.config_init, "printer")]
        if settings["logger"] and not _has(settings["callbacks"], LearningRateMonitor):
            callbacks.append(LearningRateMonitor("step"))
        callbacks += _progress_bar(settings)
        if settings["enable_checkpointing"] is not False:
            callbacks.append(self._get(self.config_init, "checkpoint"))
            if isinstance(self.model, RelayModule):
                callbacks.append(NextSteps())
        return callbacks

    def _dump_run(self) -> str:
        """The configuration that runs this run again: complete, and from the beginning."""
        config = self.config[self._chosen].clone()
        config.ckpt_path = None
        return self._parser(self._chosen).dump(config, skip_none=False)


class PlanCLI(RelayCLI):
    """`plan`: takes what `fit` takes, and prints the memory that it would need."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__("fit", arguments)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--device_memory_gb",
            type=float | None,
            default=None,
            help="Memory to plan for, in units of 10^9 bytes (default: that of this machine's GPU, else its RAM).",
        )
        parser.add_argument(
            "--mean_completion_tokens",
            type=int | None,
            default=None,
            help="Mean length of a completion, for the number of rows that fit the KV blocks (default: a quarter of "
            "max_completion_tokens, at most 1000). Prompts are taken to have a quarter of max_prompt_tokens.",
        )

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def _parse_ckpt_path(self) -> None:
        """Nothing is read or written."""

    def instantiate_classes(self) -> None:
        """The modules alone, which load nothing yet: the trainer may want a device that is not here."""
        self.config_init = self.parser.instantiate_classes(self.config)

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config_init[subcommand]
        plan(config.model, config.data, config.trainer, config.device_memory_gb, config.mean_completion_tokens)


def _progress_bar(settings: dict[str, Any]) -> list[Callback]:
    """Our progress bar, unless there is to be none or another one."""
    is_wanted = settings["enable_progress_bar"] is not False and not _has(settings["callbacks"], ProgressBar)
    return [StepProgress()] if is_wanted else []


def _has(callbacks: Any, kind: type[Callback]) -> bool:
    """True if `trainer.callbacks`, one or a list, hold one of this kind."""
    return any(isinstance(callback, kind) for callback in (callbacks if isinstance(callbacks, list) else [callbacks]))


def default_run_dir(model: Any) -> Path:
    """`runs/<stage>`: `runs/grpo` for GRPOModule."""
    return Path("runs") / model.class_path.rpartition(".")[2].removesuffix("Module").lower()


def with_atomic_checkpoints(plugins: Any) -> list[Any]:
    """The trainer's plugins and, unless one of them writes checkpoints already, ours that does."""
    plugins = plugins if isinstance(plugins, list) else [plugins] if plugins else []
    return plugins if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [*plugins, AtomicCheckpointIO()]
