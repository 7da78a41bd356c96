"""A Hugging Face model over a paged cache: rows of different length give what a plain forward pass gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import MagicMock

import flash_attention
import pytest
import torch
from pretend_cuda import pretend_cuda, to_pretended
from random_models import ARCHITECTURES, random_model
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from relay_lightning.engine.base import ForwardPass
from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.local import PAGED_ATTENTION, LocalModel

VOCAB_SIZE = 50
LOGIT_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def plain_logits(model: PreTrainedModel, context: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([context])).logits[0, -1]


def random_tokens(count: int, seed: int) -> list[int]:
    return torch.randint(2, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


BLOCK_SIZE = 16


class Rows:
    """Rows of a paged cache, decoded by hand; the blocks of each lie apart."""

    def __init__(
        self, forward: ForwardPass, num_rows: int, max_length: int, model: LocalModel, block_size: int = BLOCK_SIZE
    ) -> None:
        self.forward = forward
        columns = -(-max_length // block_size)
        self.cache = PagedKVCache(
            num_rows * columns, block_size, num_rows, max_length, model.device, model.attention_backend
        )
        blocks = [(row, column, column * num_rows + row) for row in range(num_rows) for column in range(columns)]
        self.cache.set_blocks(blocks)

    def read(self, contexts: dict[int, list[int]]) -> None:
        """Reads more of each row's context as one right-padded chunk."""
        width = max(map(len, contexts.values()))
        tokens = self.tensor([context + [0] * (width - len(context)) for context in contexts.values()])
        num_new = self.tensor([len(context) for context in contexts.values()])
        self.forward.extend(tokens, self._begin(list(contexts), num_new, width), self.cache)

    def step(self, tokens: dict[int, int], *, idle: Sequence[int] = ()) -> Tensor:
        """Returns the logits after one more token of each row. idle: rows among them that do not read theirs."""
        num_new = self.tensor([row not in idle for row in tokens])
        positions = self._begin(list(tokens), num_new, 1)
        return self.forward.step(self.tensor(list(tokens.values()))[:, None], positions, self.cache)[0]

    def tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.cache.lengths.device)

    def _begin(self, rows: list[int], num_new: Tensor, width: int) -> Tensor:
        is_every = rows == list(range(len(self.cache.lengths)))
        return self.cache.begin(None if is_every else self.tensor(rows), num_new, width, self.cache.max_length)


@contextmanager
def open_rows(model: torch.nn.Module, num_rows: int, max_length: int) -> Iterator[Rows]:
    local = LocalModel(model)
    with torch.no_grad(), local.session() as forward:
        yield Rows(forward, num_rows, max_length, local)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_a_plain_forward_pass(architecture: str, attention: str):
    model = random_model(architecture, VOCAB_SIZE)
    model.set_attn_implementation(attention)
    contexts = {row: random_tokens(length, row) for row, length in enumerate([5, 1, 40, 17])}
    with open_rows(model, 4, 60) as rows:
        rows.read({row: contexts[row][:3] for row in (0, 2)})
        rows.read({row: contexts[row][:-1][3 if row in (0, 2) else 0 :] for row in (3, 2, 0)})
        logits = rows.step({row: contexts[row][-1] for row in range(4)})
        assert rows.cache.lengths.tolist() == [5, 1, 40, 17]
        some = rows.step({2: 7, 1: 8})
    for row, context in contexts.items():
        torch.testing.assert_close(logits[row], plain_logits(model, context), **LOGIT_TOLERANCE)
    torch.testing.assert_close(some[0], plain_logits(model, [*contexts[2], 7]), **LOGIT_TOLERANCE)
    torch.testing.assert_close(some[1], plain_logits(model, [*contexts[1], 8]), **LOGIT_TOLERANCE)


def test_a_model_with_flash_attention_decodes_with_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attention)
    monkeypatch.setattr(sys.modules["relay_kernels.decode_attention"], "why_not_flash", lambda *_: None)
    flash = MagicMock(side_effect=flash_attention.flash_attn_with_kvcache)
    monkeypatch.setattr(flash_attention, "flash_attn_with_kvcache", flash)
    model, context = random_model("qwen3", VOCAB_SIZE), random_tokens(9, 0)
    expected = [plain_logits(model, context), plain_logits(model, [*context[:4], 7])]
    model.config._attn_implementation = "flash_attention_2"
    with pretend_cuda():
        local = LocalModel(to_pretended(model))
        with torch.no_grad(), local.session() as forward:
            rows = Rows(forward, 2, 300, local, block_size=256)
            rows.read({0: context[:8], 1: context[:4]})
            logits = rows.step({0: context[8], 1: 7})
        for row, plain in zip(logits.to("cpu"), expected, strict=True):
            torch.testing.assert_close(row, plain, **LOGIT_TOLERANCE)
    assert flash.call_count == 2 * model.config.num_hidden_layers


def test_idle_rows_keep_their_cache():
    model = random_model("qwen3", VOCAB_SIZE)
    context = random_tokens(9, 0)
    with open_rows(model, 2, 16) as rows:
        rows.read({0: context, 1: context})
        for token in (3, 4, 5):
            rows.step({0: token, 1: token}, idle=[0])
        assert rows.cache.lengths.tolist() == [9, 12]
        logits = rows.step({0: 6, 1: 0}, idle=[1])
    torch.testing.assert_close(logits[0], plain_logits(model, [*context, 6]), **LOGIT_TOLERANCE)


def test_rows_that_share_or_copy_blocks_go_on_from_there():
    model = random_model("llama", VOCAB_SIZE)
    context = random_tokens(20, 0)
    with open_rows(model, 3, 64) as rows:
        rows.read({1: context})
        full, tail = rows.cache.block_table[1, :2].tolist()
        own = rows.cache.block_table[[0, 2], 1].tolist()
        rows.cache.set_blocks([(0, 0, full), (2, 0, full)])
        rows.cache.copy_blocks([(tail, block) for block in own])
        rows.cache.lengths[:] = torch.tensor([18, 20, 17])
        logits = rows.step({0: 30, 1: 31, 2: 32})
    for row, expected in enumerate([[*context[:18], 30], [*context, 31], [*context[:17], 32]]):
        torch.testing.assert_close(logits[row], plain_logits(model, expected), **LOGIT_TOLERANCE)


def test_shortened_rows_go_on_from_there():
    model = random_model("llama", VOCAB_SIZE)
    context = random_tokens(20, 0)
    with open_rows(model, 2, 64) as rows:
        rows.read({0: context, 1: context})
        rows.cache.lengths[:] = torch.tensor([15, 4])
        logits = rows.step({0: 31, 1: 32})
    for row, expected in enumerate([[*context[:15], 31], [*context[:4], 32]]):
        torch.testing.assert_close(logits[row], plain_logits(model, expected), **LOGIT_TOLERANCE)


def test_a_new_cache_is_empty_and_takes_the_models_dtype():
    model = random_model("qwen3", VOCAB_SIZE)
    for _ in range(2):
        with open_rows(model, 2, 30) as rows:
            assert rows.cache.lengths.tolist() == [0, 0]
            rows.read({0: [5, 6, 7], 1: [8]})
    model.double()
    with open_rows(model, 2, 30) as rows:
        logits = rows.step({0: 9, 1: 9})
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits[1], plain_logits(model, [9]), **LOGIT_TOLERANCE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_size_of_a_tokens_keys_and_values_is_that_of_the_cache(architecture: str):
    local = LocalModel(random_model(architecture, VOCAB_SIZE))
    with torch.no_grad(), local.session() as forward:
        rows = Rows(forward, 2, 32, local)
        rows.step({0: 4, 1: 5})
        num_tokens = rows.cache.num_blocks * BLOCK_SIZE
        assert local.kv_bytes_per_token() * num_tokens == rows.cache.num_bytes
        with torch.autocast("cpu", torch.bfloat16):
            assert local.kv_bytes_per_token() * num_tokens == rows.cache.num_bytes / 2


def test_logits_are_scaled_and_capped_as_the_model_does_it():
    config = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            **config, num_key_value_heads=2, vocab_size=VOCAB_SIZE, final_logit_softcapping=0.5, initializer_range=1.0,
            attn_logit_softcapping=None, layer_types=["full_attention"], attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    with open_rows(model, 1, 8) as rows:
        rows.read({0: [3, 4]})
        logits = rows.step({0: 5})
    assert logits.abs().max() <= 0.5
    torch.testing.assert_close(logits[0], plain_logits(model, [3, 4, 5]), **LOGIT_TOLERANCE)


def test_a_gate_that_is_not_silu_is_computed_as_the_model_does_it():
    torch.manual_seed(0)
    config = LlamaConfig(**_SMALL | {"vocab_size": VOCAB_SIZE, "hidden_act": "relu"}, initializer_range=1.0)
    model = LlamaForCausalLM(config).eval()
    with open_rows(model, 1, 8) as rows:
        rows.read({0: [3, 4]})
        logits = rows.step({0: 5})
    torch.testing.assert_close(logits[0], plain_logits(model, [3, 4, 5]), **LOGIT_TOLERANCE)


def test_session_restores_the_mode_of_every_module():
    model = random_model("qwen3", VOCAB_SIZE).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    with LocalModel(model).session():
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError, match="stop"), LocalModel(model).session():
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == modes


def test_a_session_restores_the_attention_when_the_last_of_several_ends():
    model = random_model("qwen3", VOCAB_SIZE)
    attention = model.config._attn_implementation
    with LocalModel(model).session():
        with pytest.raises(RuntimeError, match="stop"), LocalModel(model).session():
            raise RuntimeError("stop")
        assert model.config._attn_implementation == PAGED_ATTENTION
    assert model.config._attn_implementation == attention


def test_the_same_forward_pass_is_opened_until_weights_move():
    local = LocalModel(random_model("qwen3", VOCAB_SIZE))
    with local.session() as first:
        pass
    with torch.no_grad():
        next(local.model.parameters()).mul_(2.0)
    with local.session() as second:
        assert second is first
    parameter = next(local.model.parameters())
    parameter.data = parameter.data.clone()
    with local.session() as third:
        assert third is not first


def test_the_version_changes_with_every_write_to_the_weights():
    local = LocalModel(random_model("qwen3", VOCAB_SIZE))
    before = local.weights_version()
    assert local.weights_version() == before
    with torch.no_grad():
        list(local.model.parameters())[-1].add_(1.0)
    assert local.weights_version() != before


def test_a_model_that_attends_in_its_own_way_is_refused_at_its_first_pass():
    model = random_model("gpt_neox", VOCAB_SIZE)
    with open_rows(model, 1, 8) as rows:
        model.config._attn_implementation = "sdpa"
        with pytest.raises(ValueError, match="does not attend through Transformers' attention interface"):
            rows.step({0: 4})


def test_attention_that_is_not_plain_is_refused_with_the_reason():
    config = Gemma2Config(**_SMALL, head_dim=8, attn_logit_softcapping=50.0, layer_types=["full_attention"])
    with open_rows(Gemma2ForCausalLM(config), 1, 8) as rows, pytest.raises(ValueError, match="softcap"):
        rows.step({0: 4})


def test_weights_are_those_of_the_moment_and_stay_trainable():
    model = random_model("qwen3", VOCAB_SIZE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        with open_rows(model, 1, 8) as rows:
            logits = rows.step({0: 4})
        torch.testing.assert_close(logits[0], plain_logits(model, [4]), **LOGIT_TOLERANCE)
        model(input_ids=torch.tensor([[4, 5]])).logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()


def test_adapters_take_part():
    peft = pytest.importorskip("peft")
    model = random_model("qwen3", VOCAB_SIZE)
    before = plain_logits(model, [4, 5])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    with open_rows(adapted, 1, 8) as rows:
        rows.read({0: [4]})
        logits = rows.step({0: 5})[0]
    torch.testing.assert_close(logits, plain_logits(adapted, [4, 5]), **LOGIT_TOLERANCE)
    assert (logits - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: MistralForCausalLM(MistralConfig(**_SMALL, sliding_window=4)), "sliding"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1)), "recurrent state"),
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).transformer,
            "is not a causal",
        ),
    ],
)
def test_models_that_cannot_be_run_are_refused_with_the_reason(model: object, reason: str):
    with pytest.raises(ValueError, match=reason):
        LocalModel(model())  # type: ignore[operator]


_SMALL = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
