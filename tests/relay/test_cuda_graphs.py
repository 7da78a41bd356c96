"""Decoding by captured steps equals decoding step by step. On a CPU a double of a graph repeats what was recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_model import UniformEngine, relay_engine
from pretend_cuda import pretend_cuda, to_pretended
from random_models import random_model
from recorded_graph import RecordedCapture
from relay_kernels import backends
from relay_kernels.decode_attention import checks as attention_checks
from relay_kernels.relay_step import checks as step_checks
from small_vocabulary import VOCAB_SIZE, small_protocol, spell
from torch import Tensor, nn

from benchmarks.bench_relay_decode import ForcedCommands
from relay_lightning import load_relay
from relay_lightning.engine import cuda_graphs as graphs_module
from relay_lightning.engine.cuda_graphs import StepGraphs
from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.settings import LoadSettings
from relay_lightning.relay import engine as engine_module
from relay_lightning.relay.engine import CUDA_STEPS_PER_SYNC
from relay_lightning.relay.policies import EntropyPolicy, FixedPolicy, Policy, PolicyView, RandomTokenPolicy
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Completion, Prompt

NUM_PROMPTS, BUDGET, NUM_ROWS = 11, 40, 6
"""More columns than one view has, more prompts than rows, and a number of rows that is no power of two."""
SAMPLED = SamplingParams(max_completion_tokens=BUDGET, temperature=1.0, top_p=0.9)
LOG_PROB_TOLERANCE = 1e-4
"""As for other batches: fp32, products of other shapes."""


def scripted() -> ForcedCommands:
    """Two commands in each completion, at its own places."""
    scripts = torch.full((NUM_PROMPTS, BUDGET), -1)
    for index, row in enumerate(scripts):
        for start, text in ((3 + index, "<call>5</call>"), (20 + index, "<call>2</call>")):
            tokens = torch.tensor(spell(text))
            row[start : start + len(tokens)] = tokens
    return ForcedCommands(scripts)


POLICIES: dict[str, str | Policy] = {
    "learned": "command",
    "forced commands": scripted(),
    "random tokens": RandomTokenPolicy(3, 0.1),
    "entropy": EntropyPolicy(4, 2.5),
    "fixed": FixedPolicy(2, 9),
    "teacher only": "teacher_only",
}


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> RecordedCapture:
    """Operators that the double can record, without the looks at values that only a CPU allows itself."""
    monkeypatch.setattr(backends, "load_library", lambda: (None, "a double records PyTorch's operators alone"))
    for checks in (attention_checks, step_checks):
        monkeypatch.setattr(checks, "_check_values", lambda *_: None)
    recorded = RecordedCapture()
    monkeypatch.setattr(engine_module, "new_capture", lambda _: recorded)
    return recorded


def engine_of(student: nn.Module, teacher: nn.Module, **settings: Any) -> UniformEngine:
    return relay_engine(LocalModel(student), LocalModel(teacher), small_protocol(), max_num_seqs=NUM_ROWS, **settings)


def decode(student: nn.Module, teacher: nn.Module, policy: str | Policy, **settings: Any) -> list[Completion]:
    engine = engine_of(student, teacher, **settings)
    return engine.decode(requests(), SAMPLED, seed=5, policy=policy, eos_policy="return")


def requests() -> list[RelayRequest]:
    return [RelayRequest(Prompt(index, (2 + index, *range(3, 3 + index % 4)))) for index in range(NUM_PROMPTS)]


def assert_same(some: list[Completion], others: list[Completion]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.token_ids == other.token_ids
        assert one.token_source == other.token_source
        assert one.spans == other.spans
        assert one.finish_reason == other.finish_reason
        for name in ("log_probs", "sampling_log_probs"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=LOG_PROB_TOLERANCE)


@pytest.mark.parametrize("name", list(POLICIES))
def test_captured_steps_write_what_single_steps_write(capture: RecordedCapture, name: str):
    pair = random_model("qwen3", VOCAB_SIZE), random_model("llama", VOCAB_SIZE, seed=1)
    expected = decode(*pair, POLICIES[name], cuda_graphs=False)
    assert_same(decode(*pair, POLICIES[name], steps_per_sync=3), expected)
    assert capture.num_replays > BUDGET // 2
    assert name == "learned" or any(completion.spans for completion in expected)


def test_steps_of_an_architecture_without_blocks_are_captured(capture: RecordedCapture):
    pair = random_model("gpt_neox", VOCAB_SIZE), random_model("gpt_neox", VOCAB_SIZE, seed=1)
    assert_same(decode(*pair, scripted()), decode(*pair, scripted(), cuda_graphs=False))
    assert capture.num_replays > 0


def test_adapters_are_captured(capture: RecordedCapture):
    student = random_model("qwen3", VOCAB_SIZE)
    add_lora(student, LoRASettings(rank=4))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    teacher = random_model("qwen3", VOCAB_SIZE, seed=1)
    assert_same(decode(student, teacher, scripted()), decode(student, teacher, scripted(), cuda_graphs=False))
    assert capture.num_replays > 0


def test_models_in_four_bits_are_captured(capture: RecordedCapture, small_pair: Any):
    pytest.importorskip("bitsandbytes")
    loading = LoadSettings(dtype="bf16", quantization="nf4")
    pair = (small_pair.student, small_pair.teacher)
    both = []
    for cuda_graphs in (False, True):
        relay = load_relay(
            *pair, max_num_seqs=1, cuda_graphs=cuda_graphs, student_loading=loading, teacher_loading=loading
        )
        torch.manual_seed(0)
        add_lora(relay.engine.student.model, LoRASettings(rank=4))
        both.append(relay.generate(["How many kebu?", "How many lomi?", "How many tari?"], SAMPLED, seed=1))
    expected, found = both
    assert_same(found, expected)
    assert any(completion.spans for completion in expected)
    assert capture.num_replays > 0


class LookingPolicy(FixedPolicy):
    """Reads a value back, which no graph can."""

    def decide(self, logits: Tensor, view: PolicyView) -> Tensor:
        assert view.num_tokens.max().item() >= 0
        return super().decide(logits, view)


@pytest.mark.usefixtures("capture")
def test_a_step_that_cannot_be_captured_runs_as_it_is_with_a_warning(caplog: pytest.LogCaptureFixture):
    pair = random_model("qwen3", VOCAB_SIZE), random_model("qwen3", VOCAB_SIZE, seed=1)
    with caplog.at_level(logging.WARNING):
        completions = decode(*pair, LookingPolicy(2, 9))
    assert_same(completions, decode(*pair, FixedPolicy(2, 9), cuda_graphs=False))
    assert [record.message for record in caplog.records] == [
        "CUDA graphs are off, a decode step cannot be captured: operation not permitted when stream is capturing:"
        " aten::_local_scalar_dense"
    ]


class EndlessModel(LocalModel):
    """No token ends a text, so that equal requests take equal steps whatever the weights are."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return ()


def rollout(engine: UniformEngine, budget: int = 20) -> list[Completion]:
    sampling = SamplingParams(max_completion_tokens=budget)
    return engine.decode(requests()[:2], sampling, seed=5, policy=FixedPolicy(2, 4))


def move_weights(engine: UniformEngine) -> None:
    """Leaves all weights as they are, at other addresses."""
    for model in (engine.student, engine.teacher.model):
        for parameter in model.model.parameters():
            parameter.data = parameter.data.clone()


def train(engine: UniformEngine) -> None:
    """Changes the student's weights in place."""
    with torch.no_grad():
        for parameter in engine.student.model.parameters():
            parameter.mul_(1.25)


CHANGES: dict[str, tuple[Callable[[UniformEngine], object], bool]] = {
    "nothing": (lambda _: None, True),
    "other completions": (
        lambda engine: engine.decode(requests()[:1], SamplingParams(10), policy="teacher_free"),
        True,
    ),
    "weights trained in place": (train, True),
    "memory released": (lambda engine: engine.release(), False),
    "longer completions": (lambda engine: rollout(engine, 60), False),
    "weights moved": (move_weights, False),
}
"""What happens between two rollouts, and whether graphs of the first one are used in the second."""


@pytest.mark.parametrize("name", list(CHANGES))
def test_graphs_live_as_long_as_what_they_refer_to(capture: RecordedCapture, name: str):
    change, stays_valid = CHANGES[name]
    pair = [random_model("qwen3", VOCAB_SIZE), random_model("gpt_neox", VOCAB_SIZE, seed=1)]

    def new_engine(**settings: Any) -> UniformEngine:
        return relay_engine(*map(EndlessModel, pair), small_protocol(), max_num_seqs=2, **settings)

    engine = new_engine()
    rollout(engine)
    before = rollout(engine)  # A step is captured when it comes a second time.
    change(engine)
    num_captures = capture.num_captures
    after = rollout(engine)
    assert_same(after, rollout(new_engine(cuda_graphs=False)))
    assert (after == before) is (name != "weights trained in place")
    assert (capture.num_captures == num_captures) is stays_valid


@pytest.mark.parametrize("max_num_seqs", [1, 2, 6, 8, 13])
def test_rows_are_filled_up_to_a_power_of_two_with_others(max_num_seqs: int):
    graphs = StepGraphs(RecordedCapture(), max_num_seqs, torch.device("cpu"))
    addresses = set()
    for num_running in range(1, max_num_seqs + 1):
        running = list(range(max_num_seqs - num_running, max_num_seqs))
        rows = graphs.place(running)
        if rows is None:
            assert num_running > max_num_seqs // 2
            continue
        assert rows[:num_running].tolist() == running
        assert len(set(rows.tolist())) == len(rows) < 2 * num_running
        assert len(rows).bit_count() == 1
        addresses.add(rows.data_ptr())
    assert len(addresses) <= 1


def test_a_decoder_on_a_gpu_captures_by_itself_mixes_no_devices_and_seldom_reads_back(monkeypatch: pytest.MonkeyPatch):
    pair = random_model("qwen3", VOCAB_SIZE), random_model("llama", VOCAB_SIZE, seed=1)
    few, budget, policy = requests()[:3], SamplingParams(max_completion_tokens=20, temperature=0.0), FixedPolicy(2, 5)
    engine = relay_engine(*map(LocalModel, pair), small_protocol(), max_num_seqs=2)
    expected = engine.decode(few, budget, seed=5, policy=policy)
    capture = RecordedCapture()
    monkeypatch.setattr(graphs_module, "CudaCapture", lambda _: capture)
    with pretend_cuda() as device:
        models = [LocalModel(to_pretended(model)) for model in pair]
        engine = relay_engine(*models, small_protocol(), max_num_seqs=2, kv_cache_gb=0.01)
        assert_same(engine.decode(few, budget, seed=5, policy=policy), expected)
    num_steps = engine.stats.num_student_steps + engine.stats.num_teacher_steps
    # A host sync every few steps, which reads the tokens and log-probs of rows that moved as well.
    assert device.num_reads <= 3 * num_steps // CUDA_STEPS_PER_SYNC + len(few)
    assert capture.num_replays > num_steps // 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(POLICIES))
def test_cuda_graphs_write_what_single_steps_write(name: str):
    pair = [random_model("qwen3", VOCAB_SIZE, seed=seed).cuda() for seed in (0, 1)]
    policy = POLICIES[name] if name != "forced commands" else ForcedCommands(scripted().scripts.cuda())
    both = []
    for cuda_graphs in (False, True):
        both.append(engine_of(*pair, cuda_graphs=cuda_graphs).decode(requests(), SAMPLED, seed=5, policy=policy))
    assert_same(*both)
