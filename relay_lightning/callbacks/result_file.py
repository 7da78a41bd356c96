"""ResultFile: named results of a report, each on the disk as soon as it is measured."""

from __future__ import annotations

import hashlib
from collections import UserDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from relay_lightning.evaluation.baseline import dump_results, load_results
from relay_lightning.evaluation.evaluate import EvalResult
from relay_lightning.files import write_atomically

DIGEST_VALUES = 1024


class ResultFile(UserDict[str, EvalResult]):
    """A dictionary of results whose file is written anew with every result that is set."""

    def __init__(self, path: Path, identity: Mapping[str, Any], results: Mapping[str, EvalResult]) -> None:
        super().__init__()
        self.data.update(results)
        self._path = path
        self._identity = identity

    def __setitem__(self, name: str, result: EvalResult) -> None:
        super().__setitem__(name, result)
        write_atomically(self._path, dump_results(self.data, self._identity))


def read_results(path: Path, identity: Mapping[str, Any]) -> dict[str, EvalResult]:
    """The results at `path`; empty if there are none of `identity`. Raises ValueError naming a damaged file."""
    if not path.exists():
        return {}
    try:
        return load_results(path.read_text(encoding="utf-8"), identity)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to go on without the figures in it.") from error


def weights_digest(model: torch.nn.Module) -> str:
    """Digest of a sample of every parameter; of a sharded one, of this process's share."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        values = (values.to_local() if isinstance(values, DTensor) else values).flatten()
        sample = values[:: max(1, len(values) // DIGEST_VALUES)]
        digest.update(name.encode() + sample.double().cpu().numpy().tobytes())
    return digest.hexdigest()
