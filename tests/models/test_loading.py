"""Opening models: number formats, 4 bits, attention, and what is refused."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from plain_steps import logits_behind

from relay_lightning.engine.local import LocalModel
from relay_lightning.models import loading
from relay_lightning.models.architecture import describe, recompute_activations
from relay_lightning.models.loading import load_config, load_model
from relay_lightning.models.settings import DTYPES, FLASH_ATTENTION, LoadSettings


@pytest.mark.parametrize("name", DTYPES)
def test_weights_have_the_named_dtype_when_one_is_named(small_pair, name):
    model = load_model(small_pair.student, torch.float64, LoadSettings(dtype=name))
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[name]}


def test_attention_is_what_was_asked_for(small_pair):
    assert load_model(small_pair.student).config._attn_implementation == "sdpa"
    eager = load_model(small_pair.student, settings=LoadSettings(attention="eager"))
    assert "attention eager" in describe(eager)


@pytest.mark.filterwarnings("error")
def test_activations_are_recomputed_without_a_warning(small_pair):
    model = load_model(small_pair.student)
    recompute_activations(model)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_decoding_uses_sdpa_when_training_uses_flash_attention(small_pair):
    model = load_model(small_pair.student)
    model.config._attn_implementation = FLASH_ATTENTION
    logits = logits_behind(LocalModel(model), torch.tensor([[3]]))
    assert logits.isfinite().all()
    assert model.config._attn_implementation == FLASH_ATTENTION


def test_loading_is_refused_when_flash_attention_is_missing(small_pair, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"flash-attn is not installed; .* or set attention: sdpa"):
        load_model(small_pair.student, settings=LoadSettings(attention=FLASH_ATTENTION))


def test_loading_is_refused_when_bitsandbytes_is_missing(small_pair, monkeypatch):
    monkeypatch.setattr("relay_lightning.models.quantization.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"bitsandbytes and accelerate is not installed; pip install .*quantization"):
        load_model(small_pair.student, settings=LoadSettings(quantization="nf4"))


def test_loading_is_refused_when_bitsandbytes_cannot_run(small_pair, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(RuntimeError, match=r"bitsandbytes [\d.]+ cannot run on this machine"):
        load_model(small_pair.student, settings=LoadSettings(quantization="nf4"))


def test_a_folder_is_suggested_when_a_hub_id_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"'Qwen/None-of-these' is not a local folder.*such as ./None-of-these"):
        load_model("Qwen/None-of-these")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "unheard_of"}, r"cannot be opened. Reason: .*unheard_of"),
        ({"model_type": "t5"}, r"cannot be opened. Reason: .*T5Config"),
    ],
)
def test_a_folder_is_refused_when_its_model_cannot_be_used(tmp_path, config, sentence):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=sentence):
        load_model(str(tmp_path))


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_code_of_a_model_runs_only_when_it_is_asked_for(tmp_path, monkeypatch, trust_remote_code):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code_of_model.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code_of_model.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedConfig\n"
        f"Path({str(tmp_path / 'has_run')!r}).touch()\n"
        "class Own(PreTrainedConfig):\n    model_type = 'own'\n"
    )
    settings = LoadSettings(trust_remote_code=trust_remote_code)
    if trust_remote_code:
        assert load_config(str(folder), settings).model_type == "own"
    else:
        with pytest.raises(RuntimeError, match="trust_remote_code"):
            load_config(str(folder), settings)
    assert (tmp_path / "has_run").exists() == trust_remote_code


def test_pickled_weights_are_refused(small_pair, tmp_path):
    model = load_model(small_pair.student)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match="safetensors"):
        load_model(str(tmp_path))


def test_keys_and_values_have_the_dtype_of_the_weights(small_pair):
    model = LocalModel(load_model(small_pair.student, settings=LoadSettings(dtype="bf16")))
    with torch.no_grad(), model.session():
        num_bytes = model.kv_bytes_per_token()
    config = model.model.config
    num_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert num_bytes == num_values * torch.bfloat16.itemsize
