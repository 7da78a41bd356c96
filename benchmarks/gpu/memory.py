"""Does a GRPO step fit 24 GB, and how does its memory grow with the length?

Students 0.6B and 1.7B in 4 bits with adapters and teacher 8B in 4 bits, as configs/trainer/gpu24gb.yaml has them, under
a limit of 24 GB; then 0.6B and 8B in bf16, without a limit. The two phases of a step are measured apart, at the same
lengths: decoding, with the caches of both models full to that length, as they are at the last tokens of a completion;
and the update, forward, backward and optimiser step of one completion. So no length has to be written token by token.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.bare_rows import BareRows
from benchmarks.gpu.scale import Scale, bar, text_tokenizer
from relay_lightning.engine.local import LocalModel
from relay_lightning.models.architecture import recompute_activations
from relay_lightning.models.loading import load_model
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.quantization import require_bitsandbytes
from relay_lightning.models.settings import LoadSettings
from relay_lightning.modules.log_probs import token_log_probs
from relay_lightning.objectives.grpo import grpo_loss
from relay_lightning.types import TokenSource, TrainBatch

LIMIT_BYTES = 24_000_000_000
NUM_ROWS = 8
CHUNK_TOKENS = 128
PROMPT_TOKENS = 16
NUM_STEPS = 3
"""A step is run, captured and repeated."""
LORA = LoRASettings(rank=32, alpha=64.0)
LEARNING_RATE = 1e-5
BAR = "peak bytes of a GRPO step"
BF16 = LoadSettings(dtype="bf16")
NF4 = LoadSettings(dtype="bf16", quantization="nf4")


def measure(scale: Scale) -> Iterator[dict[str, Any]]:
    """Peak bytes of both phases, None on a CPU; at one length, and of the larger student at all of them."""
    try:
        require_bitsandbytes("8B")
    except RuntimeError as error:
        yield {"weights": "nf4", "failed": str(error)}
    else:
        yield from _in_four_bits(scale)
    _limit(None, scale.device)
    bf16 = _student(scale, "0.6B", BF16), _load(scale, "8B", BF16)
    for figures in _at_lengths(*bf16, scale.bar_lengths, scale, {"student": "0.6B", "weights": "bf16"}):
        yield {**figures, "word": "open"}  # What 4 bits save; the bar is not for it.


def _in_four_bits(scale: Scale) -> Iterator[dict[str, Any]]:
    teacher = _load(scale, "8B", NF4)
    _limit(LIMIT_BYTES, scale.device)
    for student, lengths in (("0.6B", scale.bar_lengths), ("1.7B", scale.train_tokens)):
        names = {"student": student, "weights": "nf4"}
        yield from _at_lengths(_student(scale, student, NF4), teacher, lengths, scale, names)


def _at_lengths(
    student: Any, teacher: Any, lengths: Sequence[int], scale: Scale, names: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Figures of one pair. The first length that does not fit ends it."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer, device = torch.optim.AdamW(trained, lr=LEARNING_RATE), scale.device
    for length in lengths:
        figures: dict[str, Any] = {**names, "completion_tokens": length, "num_rows": NUM_ROWS}
        try:
            figures["decode_peak_bytes"] = _peak_bytes(partial(_decode, student, teacher, length, device), device)
            figures["update_peak_bytes"] = _peak_bytes(partial(_update, student, optimizer, length, device), device)
        except torch.OutOfMemoryError as error:
            yield {**figures, **bar(BAR, math.inf, LIMIT_BYTES, scale, is_upper=True), "value": str(error)}
            return
        peaks = [figures["decode_peak_bytes"], figures["update_peak_bytes"]]
        peak = None if None in peaks else max(peaks)
        yield {**figures, **bar(BAR, peak, LIMIT_BYTES, scale, is_upper=True)}


def _limit(num_bytes: int | None, device: torch.device) -> None:
    """Lets this process have so much of a GPU's memory; None for all."""
    if device.type == "cuda":
        _free(device)
        share = 1.0 if num_bytes is None else num_bytes / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)


def _student(scale: Scale, name: str, settings: LoadSettings) -> Any:
    """A model that trains adapters and recomputes its activations."""
    student = _load(scale, name, settings)
    add_lora(student, LORA)
    recompute_activations(student)
    return student


def _load(scale: Scale, name: str, settings: LoadSettings) -> Any:
    """Qwen3-<name> with random weights, in 4 bits the way a checkpoint is loaded."""
    model = scale.random_model(name, text_tokenizer())
    if settings.quantization is None:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        _free(scale.device)
        return load_model(folder, None, settings, scale.device)


def _decode(student: Any, teacher: Any, length: int, device: torch.device) -> None:
    """A chunk and a step of each model over rows that are full but for those; the caches of both live together."""
    models = [LocalModel(model, max_context=length + PROMPT_TOKENS) for model in (student, teacher)]
    caches = [BareRows(model, NUM_ROWS, length + PROMPT_TOKENS, cuda_graphs=True) for model in models]
    width = min(CHUNK_TOKENS, length - NUM_STEPS)
    tokens = torch.zeros(NUM_ROWS, width, dtype=torch.int64, device=device)
    for model, rows in zip(models, caches, strict=True):
        with model.session() as forward, torch.autocast(device.type, torch.bfloat16):
            rows.reset(length + PROMPT_TOKENS - width - NUM_STEPS)
            rows.extend(forward, tokens)
            rows.decode(forward, tokens[:, 0].clone(), NUM_STEPS)


def _update(student: Any, optimizer: torch.optim.Optimizer, length: int, device: torch.device) -> None:
    """One optimiser step on one completion."""
    batch = _batch(length, device, student.config.vocab_size)
    student.train()
    with torch.autocast(device.type, torch.bfloat16):
        policy = token_log_probs(student, batch.token_ids, batch.loss_mask)
    grpo_loss(policy.log_probs, batch, entropy=policy.entropy).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _batch(length: int, device: torch.device, vocab_size: int) -> TrainBatch:
    num_tokens = PROMPT_TOKENS + length
    is_completion = (torch.arange(num_tokens, device=device) >= PROMPT_TOKENS)[None]
    return TrainBatch(
        token_ids=torch.randint(vocab_size, (1, num_tokens), device=device),
        attention_mask=torch.ones_like(is_completion),
        loss_mask=is_completion,
        token_source=torch.where(is_completion, int(TokenSource.STUDENT), int(TokenSource.PROMPT)).to(torch.uint8),
        advantages=torch.ones(1, device=device),
        rollout_log_probs=torch.zeros(1, num_tokens, device=device),
        old_log_probs=None,
        reference_log_probs=None,
        num_step_loss_tokens=torch.tensor(float(length), device=device),
        num_step_rollouts=torch.tensor(1.0, device=device),
    )


def _peak_bytes(run: Any, device: torch.device) -> int | None:
    """Most bytes that the device held during a run, weights included; None on a CPU."""
    _free(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
