"""Does a GRPO step fit 24 GB, and how does its memory grow with the length?

Student 1.7B in 4 bits with adapters and teacher 8B in 4 bits, as configs/trainer/gpu24gb.yaml has them, under a limit
of 24 GB. The two phases of a step are measured apart, at the same lengths: decoding, with the caches of both models
full to that length, as they are at the last token of a completion; and the update, forward, backward and optimiser step
of one completion. So no length has to be written token by token.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.scale import Scale, bar, text_tokenizer
from relay_lightning.engine.local import LocalEngine
from relay_lightning.models.loading import load_model
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.settings import LoadSettings
from relay_lightning.modules.log_probs import token_log_probs
from relay_lightning.objectives.grpo import grpo_loss
from relay_lightning.types import TokenSource, TrainBatch

LIMIT_BYTES = 24_000_000_000
NUM_SLOTS = 8
CHUNK_TOKENS = 128
PROMPT_TOKENS = 16
LORA = LoRASettings(rank=32, alpha=64.0)
LEARNING_RATE = 1e-5
BAR = "peak bytes of a GRPO step"


def measure(scale: Scale) -> Iterator[dict[str, Any]]:
    """Peak bytes of both phases at each length, None on a CPU. The first length that does not fit ends it."""
    device = scale.device
    student, teacher = _load(scale, "1.7B"), _load(scale, "8B")
    add_lora(student, LORA)
    student.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_BYTES / total), device)
    for length in scale.train_tokens:
        figures: dict[str, Any] = {"completion_tokens": length, "num_slots": NUM_SLOTS}
        try:
            figures["decode_peak_bytes"] = _peak_bytes(partial(_decode, student, teacher, length, device), device)
            figures["update_peak_bytes"] = _peak_bytes(partial(_update, student, optimizer, length, device), device)
        except torch.OutOfMemoryError as error:
            yield {**figures, **bar(BAR, math.inf, LIMIT_BYTES, scale, is_upper=True), "value": str(error)}
            return
        peaks = [figures["decode_peak_bytes"], figures["update_peak_bytes"]]
        peak = None if None in peaks else max(peaks)
        yield {**figures, **bar(BAR, peak, LIMIT_BYTES, scale, is_upper=True)}


def _load(scale: Scale, name: str) -> Any:
    """Qwen3-<name> with random weights, in 4 bits, the way a checkpoint is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = text_tokenizer()
        model = scale.random_model(name, tokenizer)
        model.save_pretrained(folder)
        del model
        _free(scale.device)
        settings = LoadSettings(dtype="bf16", quantization="nf4")
        return load_model(str(Path(folder)), None, settings, scale.device)


def _decode(student: Any, teacher: Any, length: int, device: torch.device) -> None:
    """A chunk and a step of each model over slots that are full but for those; the caches of both live together."""
    engines = [LocalEngine(model, max_context=length + PROMPT_TOKENS) for model in (student, teacher)]
    slots = torch.arange(NUM_SLOTS, device=device)
    width = min(CHUNK_TOKENS, length)
    for engine in engines:
        with engine.session(), torch.autocast(device.type, torch.bfloat16):
            engine.allocate(NUM_SLOTS, length + PROMPT_TOKENS)
            start = length + PROMPT_TOKENS - width - 1
            engine.truncate(slots, torch.full_like(slots, start))
            engine.tighten(start)
            engine.extend(slots, torch.zeros(NUM_SLOTS, width, dtype=torch.int64, device=device), slots * 0 + width)
            engine.step(torch.zeros_like(slots), torch.ones_like(slots, dtype=torch.bool))


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
