"""RunFolder: where a run keeps what it makes, and the rule that no run is ever overwritten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from relay_lightning.files import lock

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @classmethod
    def of(cls, trainer: Trainer) -> RunFolder:
        """The folder that the trainer's run works in."""
        return cls(Path(trainer.default_root_dir))

    @property
    def config(self) -> Path:
        """The complete configuration; reruns the run."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def baseline(self) -> Path:
        """What was measured before the first step; a resumed run reads it again."""
        return self.path / "baseline.json"

    @property
    def results(self) -> Path:
        """Measurements after the last step; an interrupted report goes on from them."""
        return self.path / "results.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def rollouts(self, rank: int = 0) -> Path:
        """Every rollout of one process; those of the first are simply `rollouts.jsonl`."""
        return self._of_rank("rollouts", rank)

    def predictions(self, rank: int = 0) -> Path:
        """What `predict` decoded."""
        return self._of_rank("predictions", rank)

    @property
    def lock(self) -> Path:
        """Held by the process that works in the folder."""
        return self.path / ".lock"

    def has_checkpoint(self) -> bool:
        """True if any checkpoint is here, `last.ckpt` or another."""
        return self.checkpoints.is_dir() and any(path.suffix != ".part" for path in self.checkpoints.iterdir())

    def holds_run(self) -> bool:
        """True if the folder must not be overwritten.

        A run that ended before its first checkpoint does not count: its folder has a lock file, but no configuration
        yet (see `ConfigWriter`).
        """
        is_foreign = self.rollouts().exists() and not self.lock.exists()
        return is_foreign or self.config.exists() or self.summary.exists() or self.has_checkpoint()

    def contains(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.path.resolve())

    def claim(self, *, is_continued: bool) -> IO[bytes]:
        """Takes the folder until the file that is given back is closed, or the process ends, however it ends.

        Raises FileExistsError if a run is here that is not to be continued, RuntimeError if one is still running, and
        OSError if the folder cannot be written.
        """
        if self.holds_run() and not is_continued:
            raise FileExistsError(
                f"The run folder {self.path} already holds a run, which is never overwritten: "
                f"continue it with --ckpt_path last, or start in another folder with --run_dir {self._free_name()}."
            )
        try:
            return lock(self.lock)
        except BlockingIOError:
            raise RuntimeError(f"The run in {self.path} is still running; stop it before it is continued.") from None
        except OSError as error:
            reason = getattr(error.__cause__, "strerror", error)
            raise OSError(f"The run folder {self.path} cannot be written: {reason}.") from error

    def _of_rank(self, name: str, rank: int) -> Path:
        return self.path / (f"{name}.jsonl" if rank == 0 else f"{name}-{rank}.jsonl")

    def _free_name(self) -> Path:
        """The first of `name-2`, `name-3`, ... that is free."""
        number = 2
        while (free := self.path.with_name(f"{self.path.name}-{number}")).exists():
            number += 1
        return free
