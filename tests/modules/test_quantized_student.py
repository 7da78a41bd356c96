"""GRPO of a student in 4 bits: what is saved and exported is the student that was trained."""

from __future__ import annotations

import pytest
import torch
import yaml

from relay_lightning.callbacks.config_writer import CONFIG_KEY
from relay_lightning.commands.export import export
from relay_lightning.models.loading import load_model
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.quantization import dequantized
from relay_lightning.models.settings import LoadSettings

pytest.importorskip("bitsandbytes")

NF4 = LoadSettings(dtype="bf16", quantization="nf4")
LORA = LoRASettings(rank=4)


def test_a_student_without_adapters_is_refused_when_it_is_quantised(make_module):
    with pytest.raises(ValueError, match=r"student_loading.quantization is nf4.*set lora"):
        make_module(student_loading=NF4)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_checkpoint_and_export_hold_the_trained_student(
    make_module, make_data, make_trainer, tmp_path, small_pair, gradient_checkpointing
):
    module = make_module(
        student_loading=NF4, teacher_loading=NF4, lora=LORA, beta=0.01, gradient_checkpointing=gradient_checkpointing
    )
    make_trainer(2, saves=tmp_path).fit(module, make_data())
    path = tmp_path / "step=2.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"]
    assert all("lora_" in name for name in checkpoint["state_dict"])

    loading = {"dtype": "bf16", "quantization": "nf4"}
    settings = {"student": small_pair.student, "student_loading": loading, "lora": {"rank": 4}}
    torch.save(checkpoint | {CONFIG_KEY: yaml.safe_dump({"model": {"init_args": settings}})}, path)
    export(str(path), str(tmp_path / "adapters"))
    export(str(path), str(tmp_path / "merged"), merge=True)
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    assert (tmp_path / "adapters" / "adapter_model.safetensors").exists()

    merged = load_model(str(tmp_path / "merged"))
    untrained = dequantized(load_model(small_pair.student, settings=NF4))
    token_ids = torch.arange(60).view(3, 20)
    with torch.no_grad():
        trained = module.student.eval()(token_ids).logits.float()
        distance = (merged(token_ids).logits - trained).abs().mean()
        assert distance < 0.25 * (untrained(token_ids).logits - trained).abs().mean()
