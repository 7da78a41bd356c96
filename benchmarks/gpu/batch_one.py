"""One completion at a time: how much of the memory's bandwidth does decoding reach, beside Transformers' `generate`?

The ceiling is the weights, read once a token, at the bandwidth of a plain copy. The rival has a static cache, whose
decode step Transformers compiles on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.bench_relay_decode import EndlessEngine, greedy
from benchmarks.gpu.scale import Scale, bar, text_tokenizer
from benchmarks.harness import seconds
from benchmarks.kernels.run import copy_bandwidth
from benchmarks.kernels.target import Target
from relay_lightning.relay.decoder import RelayDecoder, RelayRequest
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.types import Prompt

BARS = {"1.7B": 60.0, "0.6B": 45.0, "8B": 70.0}
"""Per cent of the ceiling, by model; in the order they are measured in."""
STEPS_PER_LOOK = 16
REPEATS = 3
PROMPT_TOKENS = 16


def measure(scale: Scale) -> Iterator[dict[str, Any]]:
    """Figures of each model: ours as soon as they are there, then the rival's."""
    tokenizer = text_tokenizer()
    copy_bytes_per_s = copy_bandwidth(Target.of(scale.device, "reference"))
    for name, limit in BARS.items():
        model = scale.random_model(name, tokenizer)
        least_s = weight_bytes(model) / copy_bytes_per_s
        shared = {"model": name, "copy_bytes_per_s": copy_bytes_per_s, "weight_bytes": weight_bytes(model)}
        ways = {"relay": relay_way(model, tokenizer, scale), "transformers": generate_way(model, scale)}
        for way, run in ways.items():
            token_s = fastest(run, scale) / scale.batch_one_tokens
            percent = 100 * least_s / token_s
            figures = {**shared, "way": way, "tokens_per_s": 1 / token_s, "percent_of_bandwidth": percent}
            yield figures | (bar("% of copy bandwidth", percent, limit, scale) if way == "relay" else {})
        del model, ways
        gc.collect()
        if scale.is_full:
            torch.cuda.empty_cache()


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that a token reads: all, but of an embedding that is not the head too only a row."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    every = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return every - (0 if head is embedding else embedding.numel() * embedding.itemsize)


def relay_way(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scale: Scale) -> Callable[[], object]:
    protocol = CallProtocol().compile(tokenizer, model.config.vocab_size)
    decoder = RelayDecoder(EndlessEngine(model), None, protocol, num_slots=1, steps_per_look=STEPS_PER_LOOK)
    request = RelayRequest(Prompt(0, tuple(range(8, 8 + PROMPT_TOKENS))))
    return lambda: decoder.generate([request], greedy(scale.batch_one_tokens), policy="teacher_free")


def generate_way(model: PreTrainedModel, scale: Scale) -> Callable[[], object]:
    ids = torch.arange(8, 8 + PROMPT_TOKENS, device=scale.device)[None]
    model.generation_config.eos_token_id = None
    return lambda: model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=scale.batch_one_tokens,
        cache_implementation="static", pad_token_id=0,
    )  # fmt: skip


def fastest(run: Callable[[], object], scale: Scale) -> float:
    """Seconds of the fastest of a few runs, after one that does not count."""
    run()
    return min(seconds(run, scale.device) for _ in range(REPEATS))
