"""One completion at a time: how much of the memory's bandwidth does decoding reach, beside Transformers' `generate`?

The ceiling is the weights, read once a token, at the bandwidth of a plain copy. The rival has a static cache, whose
decode step Transformers compiles on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.bench_relay_decode import EndlessModel, greedy
from benchmarks.gpu.scale import Scale, bar, text_tokenizer
from benchmarks.harness import seconds
from benchmarks.kernels.run import copy_bandwidth
from benchmarks.kernels.target import Target
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Prompt

BARS = {"1.7B": 60.0, "0.6B": 45.0, "8B": 70.0}
"""Per cent of the ceiling, by model; in the order they are measured in."""
STEPS_PER_SYNC = 16
REPEATS = 3
PROMPT_TOKENS = 16


def measure(scale: Scale) -> Iterator[dict[str, Any]]:
    """Figures of each model: ours, with CUDA graphs and without, then the rival's, whose failure is only noted."""
    tokenizer = text_tokenizer()
    copy_bytes_per_s = copy_bandwidth(Target.of(scale.device, "reference"))
    models = {name: scale.random_model(name, tokenizer) for name in BARS}
    for name, model in models.items():
        figures = timed("relay", name, model, relay_way(model, tokenizer, scale), scale, copy_bytes_per_s)
        yield figures | bar("% of copy bandwidth", figures["percent_of_bandwidth"], BARS[name], scale)
    for name, model in models.items() if scale.device.type == "cuda" else ():
        run = relay_way(model, tokenizer, scale, cuda_graphs=False)
        yield timed("relay without CUDA graphs", name, model, run, scale, copy_bytes_per_s)
    for name, model in models.items():
        try:
            yield timed("transformers", name, model, generate_way(model, scale), scale, copy_bytes_per_s)
        except Exception as error:
            yield {"model": name, "way": "transformers", "failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def timed(
    way: str, name: str, model: PreTrainedModel, run: Callable[[], object], scale: Scale, copy_bytes_per_s: float
) -> dict[str, Any]:
    """The figures of one way, from the fastest of a few runs after one that does not count."""
    run()
    token_s = min(seconds(run, scale.device) for _ in range(REPEATS)) / scale.batch_one_tokens
    return {
        "model": name,
        "way": way,
        "copy_bytes_per_s": copy_bytes_per_s,
        "weight_bytes": weight_bytes(model),
        "tokens_per_s": 1 / token_s,
        "percent_of_bandwidth": 100 * weight_bytes(model) / copy_bytes_per_s / token_s,
    }


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that a token reads: all, but of an embedding that is not the head too only a row."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    every = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return every - (0 if head is embedding else embedding.numel() * embedding.itemsize)


def relay_way(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scale: Scale, *, cuda_graphs: bool = True
) -> Callable[[], object]:
    protocol = CallProtocol().compile(tokenizer, model.config.vocab_size)
    engine = RelayEngine(
        EndlessModel(model), None, protocol, max_num_seqs=1, steps_per_sync=STEPS_PER_SYNC, cuda_graphs=cuda_graphs
    )
    prompt = Prompt(0, tuple(range(8, 8 + PROMPT_TOKENS)))
    request = RelayRequest(prompt, greedy(scale.batch_one_tokens), policy="teacher_free")
    return lambda: engine.generate([request])


def generate_way(model: PreTrainedModel, scale: Scale) -> Callable[[], object]:
    ids = torch.arange(8, 8 + PROMPT_TOKENS, device=scale.device)[None]
    model.generation_config.eos_token_id = None
    return lambda: model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=scale.batch_one_tokens,
        cache_implementation="static", pad_token_id=0,
    )  # fmt: skip
