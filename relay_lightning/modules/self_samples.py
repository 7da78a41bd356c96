"""Completions that a student writes on its own, kept on disk under a fingerprint of everything that made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from relay_lightning.data.sft import SelfSample
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.files import write_atomically
from relay_lightning.json_lines import json_line, read_rows
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.requests import CallLimits, sample_requests
from relay_lightning.types import Completion, Prompt


def draw_self_samples(
    engine: RelayEngine,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    *,
    samples_per_prompt: int = 1,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[SelfSample]:
    """`samples_per_prompt` completions of every prompt, written by the student alone; commands are forbidden."""
    limits = CallLimits(spent_calls="mask_close")
    requests = sample_requests(prompts, sampling, samples_per_prompt, policy="teacher_free", limits=limits, seed=seed)
    completions = engine.generate(requests, on_progress)
    return [
        _self_sample(request.prompt, completion, engine.student.eos_token_ids)
        for request, completion in zip(requests, completions, strict=True)
    ]


def fingerprint(
    weights: dict[str, torch.Tensor],
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    *,
    samples_per_prompt: int,
    seed: int,
    eos_token_ids: Sequence[int] = (),
) -> str:
    """Identity of what `draw_self_samples` gives: the weights' bytes, the prompts, how they are sampled and end."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    made_by = [
        [(prompt.prompt_id, prompt.token_ids) for prompt in prompts],
        asdict(sampling),
        samples_per_prompt,
        seed,
        sorted(eos_token_ids),
    ]
    digest.update(json.dumps(made_by).encode())
    return digest.hexdigest()[:20]


def write_self_samples(path: Path, samples: Sequence[SelfSample]) -> None:
    """Writes one JSON row per sample; the file appears complete or not at all."""
    write_atomically(path, "".join(json_line(asdict(sample)) for sample in samples))


def read_self_samples(path: Path) -> list[SelfSample]:
    """The inverse of `write_self_samples`. Raises ValueError naming file and line of a row that is none."""
    samples = []
    for line_number, (_, row) in enumerate(read_rows(path), start=1):
        try:
            samples.append(_from_row(row))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}:{line_number} is not a self-sampled completion ({error}).") from None
    return samples


def _from_row(row: dict[str, Any]) -> SelfSample:
    return SelfSample(
        prompt_token_ids=tuple(row["prompt_token_ids"]),
        completion_token_ids=tuple(row["completion_token_ids"]),
        eos_token_id=row["eos_token_id"],
    )


def _self_sample(prompt: Prompt, completion: Completion, eos_token_ids: Sequence[int]) -> SelfSample:
    token_ids = tuple(completion.token_ids)
    if token_ids and token_ids[-1] in eos_token_ids:
        return SelfSample(prompt.token_ids, token_ids[:-1], token_ids[-1])
    return SelfSample(prompt.token_ids, token_ids, None)
