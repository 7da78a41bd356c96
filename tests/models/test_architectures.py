"""Every supported architecture: rollout, trainer and a plain forward pass agree. Every other one is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from architectures import IN_EVERY_RUN, REFUSED, RUNS, build
from small_vocabulary import FIRST_LETTER, VOCAB_SIZE, small_protocol
from torch import Tensor
from transformers import PreTrainedModel

from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.probe import require_decodable
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.models.lm_head import has_linear_logits
from relay_lightning.modules.log_probs import token_log_probs
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.requests import sample_requests
from relay_lightning.types import Completion, Prompt

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
TEMPERATURE = 0.8
PROMPT_LENGTHS = (3, 11)
NUM_SAMPLES = 2
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def runs(names: object) -> list:
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in IN_EVERY_RUN else slow, id=name) for name in names]


def roll_out(model: PreTrainedModel) -> list[tuple[Prompt, Completion]]:
    """Samples of different length, decoded together, fewer at once than there are."""
    generator = torch.Generator().manual_seed(0)
    prompts = [
        Prompt(index, tuple(torch.randint(FIRST_LETTER, VOCAB_SIZE, (length,), generator=generator).tolist()))
        for index, length in enumerate(PROMPT_LENGTHS)
    ]
    engine = RelayEngine(LocalModel(model), None, small_protocol(), max_num_seqs=3)
    sampling = SamplingParams(max_completion_tokens=40, temperature=TEMPERATURE)
    requests = sample_requests(prompts, sampling, NUM_SAMPLES, policy="teacher_free")
    completions = engine.generate(requests)
    return [(request.prompt, completion) for request, completion in zip(requests, completions, strict=True)]


def plain_log_probs(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    """Of every token but the first, by one pass over this row alone."""
    row = torch.tensor([token_ids])
    log_probs = (model(input_ids=row).logits / TEMPERATURE).log_softmax(-1)
    return log_probs[0, :-1].gather(1, row[0, 1:, None])[:, 0]


def stack(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    positions = torch.arange(width)
    return token_ids, (positions > 0) & (positions < lengths[:, None])


@pytest.mark.parametrize("name", runs(RUNS))
def test_rollout_trainer_and_plain_pass_agree(name: str):
    model = build(*RUNS[name])
    require_decodable(model)
    samples = roll_out(model)
    rows = [[*prompt.token_ids, *completion.token_ids] for prompt, completion in samples]
    token_ids, mask = stack(rows)
    with torch.no_grad():
        trained = token_log_probs(model, token_ids, mask, TEMPERATURE)
        for index, (prompt, completion) in enumerate(samples):
            plain = plain_log_probs(model, rows[index])
            torch.testing.assert_close(trained.log_probs[index, 1 : len(rows[index])], plain, **TOLERANCE)
            start = len(prompt.token_ids)
            torch.testing.assert_close(torch.tensor(completion.log_probs), plain[start - 1 :], **TOLERANCE)


@pytest.mark.parametrize("name", runs(RUNS))
def test_gradients_and_entropy_are_those_of_whole_logits(name: str):
    """Weights of the head and the embedding get the gradient of whatever the model does behind its head."""
    model = build(*RUNS[name])
    token_ids = torch.randint(2, VOCAB_SIZE, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(7).expand(2, 7) > 2
    log_probs = (model(input_ids=token_ids).logits / TEMPERATURE).log_softmax(-1)[:, 2:-1]
    expected = log_probs.gather(2, token_ids[:, 3:, None])[..., 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    expected_gradients = torch.autograd.grad((expected + 0.3 * entropy).sum(), weights)
    found = token_log_probs(model, token_ids, mask, TEMPERATURE)
    torch.testing.assert_close(found.entropy[:, 3:], entropy, **TOLERANCE)
    gradients = torch.autograd.grad((found.log_probs + 0.3 * found.entropy).sum(), weights)
    for gradient, whole in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_before_the_first_step_in_one_sentence(name: str):
    model_type, settings, reason = REFUSED[name]
    model = build(model_type, settings)
    with pytest.raises(ValueError, match=f"^{type(model).__name__} .*{reason}") as error:
        require_decodable(model)
    assert "\n" not in str(error.value)


def test_every_architecture_stands_in_the_documentation():
    rows = dict(re.findall(r"^\| `(\w+)` +\| (runs|refused|depends)", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    running = {model_type for model_type, _ in RUNS.values()}
    refused = {model_type for model_type, _, _ in REFUSED.values()}
    for model_type in running | refused:
        both = model_type in running & refused
        assert rows.get(model_type) == ("depends" if both else "runs" if model_type in running else "refused")


def test_a_model_without_weights_is_taken_to_have_a_linear_head():
    with torch.device("meta"):
        model = build(*RUNS["llama"])
    assert has_linear_logits(model)
