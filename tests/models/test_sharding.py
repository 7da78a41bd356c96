"""A model sharded in place: one process suffices to see that it is run and trained through correctly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from architectures import RUNS, build
from plain_steps import logits_behind
from random_models import ARCHITECTURES, random_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from relay_lightning.engine.local import LocalModel
from relay_lightning.models.sharding import gathered, shard
from relay_lightning.modules.log_probs import token_log_probs

TOKEN_IDS = torch.arange(2, 14).reshape(2, 6)
MASK = torch.arange(6).expand(2, 6) > 1


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def make(architecture: str) -> PreTrainedModel:
    """A model of 20 token ids or more; the logits of granite are scaled behind its head."""
    return build(*RUNS["granite"]) if architecture == "granite" else random_model(architecture, 20)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "granite"])
def test_gradients_are_those_of_the_whole_model_when_it_decoded_in_inference_mode_before(
    mesh: DeviceMesh, architecture: str
) -> None:
    """Lightning validates in inference mode, before the first update too."""
    whole, sharded = make(architecture), make(architecture)
    shard(sharded, mesh)
    logits = []
    for model in (whole, sharded):
        with torch.inference_mode():
            logits.append(logits_behind(LocalModel(model), torch.tensor([[3], [4]]), TOKEN_IDS))
        token_log_probs(model, TOKEN_IDS, MASK).log_probs.sum().backward()
    torch.testing.assert_close(logits[1], logits[0])
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name])


def test_weights_are_whole_within_gathered_and_sharded_again_afterwards(mesh: DeviceMesh) -> None:
    model = random_model("llama", 20)
    shard(model, mesh)
    with gathered(model):
        assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
