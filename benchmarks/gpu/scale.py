"""How large the parts of `benchmarks.gpu` are: on a GPU as the bars want them, on a CPU as small as they still run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config

from relay_lightning.models.loading import load_config, load_tokenizer

GIB = 1 << 30
ROOM_OF_256_ROWS = 120 * GIB
"""Device memory that holds the keys and values of 256 rows of 1,024 tokens in 1.7B and 8B, beside both models."""

BAR_TOKENS = 4096
"""Completion tokens of a step that has to fit 24 GB."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of all parts."""

    device: torch.device
    is_full: bool
    """Whether the shapes are those of the bars."""
    batch_one_tokens: int
    num_completions: int
    max_num_seqs: int
    completion_tokens: int
    num_calls: int
    call_tokens: int
    released_tokens: int
    """Length of the completions on which the released way is measured, which is too slow for the whole work."""
    train_tokens: tuple[int, ...]
    """Lengths whose memory is measured."""

    @property
    def bar_lengths(self) -> tuple[int, ...]:
        """The one that the bar on memory names, or on a CPU the shortest."""
        return (BAR_TOKENS,) if self.is_full else self.train_tokens[:1]

    @classmethod
    def of(cls, device: torch.device) -> Scale:
        if device.type == "cpu":
            return cls(device, False, 8, 6, 4, 48, 1, 2, 48, (32, 64))
        has_room = torch.cuda.get_device_properties(device).total_memory >= ROOM_OF_256_ROWS
        lengths = (1024, 2048, 4096, 8192, 16384)
        return cls(device, True, 256, 256, 256 if has_room else 128, 1024, 2, 5, 256, lengths)

    @property
    def dtype(self) -> torch.dtype:
        """bf16; fp32 on a CPU."""
        return torch.bfloat16 if self.is_full else torch.float32

    def config(self, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
        """The published architecture of Qwen3-<name>; on a CPU a minute one, larger for a larger name."""
        if self.is_full:
            return load_config(f"Qwen/Qwen3-{name}")
        return Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128,
            num_hidden_layers=3 if name == "8B" else 2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=1024, tie_word_embeddings=name != "8B", dtype="float32",
        )  # fmt: skip

    def random_model(self, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Qwen3-<name> with random weights that, greedily, writes only tokens which `tokenizer` knows as text.

        The logits of all other tokens are 0, and of many random ones the best is larger.
        """
        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                self.config(name, tokenizer), dtype=self.dtype, attn_implementation="sdpa"
            )
        head = model.get_output_embeddings().weight.data
        is_text = torch.zeros(head.shape[0], dtype=torch.bool)
        is_text[: len(tokenizer)] = True
        is_text[tokenizer.all_special_ids] = False
        head[~is_text.to(head.device)] = 0.0
        return model.eval().requires_grad_(False)


def text_tokenizer() -> PreTrainedTokenizerBase:
    """The embedded world's: nothing is downloaded."""
    return load_tokenizer("tiny:student")


def bar(name: str, value: float | None, limit: float, scale: Scale, *, is_upper: bool = False) -> dict[str, object]:
    """A figure beside what it must reach; open where it is missing or its shape is not the bar's."""
    is_open = value is None or not scale.is_full
    is_met = value is not None and (value <= limit if is_upper else value >= limit)
    return {"bar": name, "value": value, "limit": limit, "word": "open" if is_open else "met" if is_met else "not met"}
