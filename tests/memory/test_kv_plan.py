"""As many KV blocks as fit, and as large as those of a real engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from relay_lightning.commands.workload import has_bridge, own_memory_bytes
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.memory.advice import advise, fits
from relay_lightning.memory.kv_plan import KVDemand, round_up
from relay_lightning.memory.plan import USABLE_SHARE, kv_demand, plan_memory
from relay_lightning.memory.workload import Workload
from relay_lightning.models.loading import load_config
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.settings import LoadSettings
from relay_lightning.models.skeleton import ModelPlan
from relay_lightning.pair import load_relay

MAX_NUM_SEQS, NUM_PROMPT_TOKENS, NUM_COMPLETION_TOKENS = 3, 40, 20


def workload_of(student: str, teacher: str, **options: object) -> Workload:
    models = (ModelPlan(name, load_config(name), LoadSettings(), is_trained=False) for name in (student, teacher))
    student_plan, teacher_plan = models
    workload = Workload(
        replace(student_plan, is_trained=True),
        teacher_plan,
        torch.optim.AdamW,
        max_num_seqs=MAX_NUM_SEQS,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        num_completion_tokens=NUM_COMPLETION_TOKENS,
        num_rows=1,
        memory_bytes=1e9,
        block_size=16,
        has_bridge=has_bridge(student_plan, teacher_plan),
    )
    return replace(workload, **options)


@pytest.fixture
def workload(small_pair) -> Workload:
    return workload_of(small_pair.student, small_pair.teacher)


def without_kv(workload: Workload) -> int:
    """The peak in decoding but for keys and values."""
    planned = plan_memory(workload)
    return planned.phases["decoding"] - planned.kv.num_bytes


@pytest.mark.parametrize("num_blocks", [4, 5, 11, 14])
def test_auto_on_a_gpu_takes_what_is_left_to_the_last_block(workload, num_blocks):
    bytes_per_block = plan_memory(workload).kv.num_bytes // plan_memory(workload).kv.num_blocks
    memory_bytes = (without_kv(workload) + num_blocks * bytes_per_block + 1) / USABLE_SHARE
    planned = plan_memory(replace(workload, memory_bytes=memory_bytes))
    assert planned.kv.num_blocks == num_blocks
    assert fits(planned, memory_bytes)
    assert planned.phases["decoding"] + bytes_per_block > USABLE_SHARE * memory_bytes


def test_auto_on_a_gpu_takes_no_more_than_its_sequences_need(workload):
    longest = NUM_PROMPT_TOKENS + NUM_COMPLETION_TOKENS + 16  # the teacher's row has a margin
    kv = plan_memory(workload).kv
    assert kv.num_blocks == MAX_NUM_SEQS * -(-longest // 16)
    assert kv.num_rows(NUM_PROMPT_TOKENS + NUM_COMPLETION_TOKENS) >= MAX_NUM_SEQS


def test_one_row_of_the_longest_length_is_left_when_nothing_fits(workload):
    planned = plan_memory(replace(workload, memory_bytes=1.0))
    assert planned.kv.num_rows(NUM_PROMPT_TOKENS + NUM_COMPLETION_TOKENS) == 1
    assert planned.kv.num_blocks == 4
    assert not fits(planned, 1.0)


def test_keys_and_values_count_in_decoding_alone(workload):
    some, more = (plan_memory(replace(workload, kv_cache_gb=gigabytes)) for gigabytes in (0.0005, 0.001))
    assert more.phases["decoding"] - some.phases["decoding"] == more.kv.num_bytes - some.kv.num_bytes > 0
    for phase in ("the training pass", "the optimiser step"):
        assert more.phases[phase] == some.phases[phase]


def test_auto_leaves_room_for_self_sampling_with_a_second_student(workload):
    student = replace(workload.student, lora=LoRASettings(rank=2))
    sampling = replace(workload, student=student, draws_self_samples=True)
    memory_bytes = (plan_memory(sampling).self_sampling + 10 * 16 * 1024) / USABLE_SHARE
    planned = plan_memory(replace(sampling, memory_bytes=memory_bytes))
    assert planned.kv.num_blocks == 10
    assert planned.peak == planned.phases["self-sampling"] > planned.phases["decoding"]
    assert fits(planned, memory_bytes)


def test_memory_for_less_than_the_longest_row_is_refused(workload):
    with pytest.raises(ValueError, match=r"kv_cache_gb: 1e-05 holds no KV block|kv_cache_gb=1e-05 holds no KV block"):
        plan_memory(replace(workload, kv_cache_gb=0.00001))
    with pytest.raises(ValueError, match=r"kv_cache_gb: 4e-05 holds 32 tokens, .* 60, which take 6\.56e-05 GB"):
        plan_memory(replace(workload, kv_cache_gb=0.00004))
    assert plan_memory(replace(workload, kv_cache_gb=0.0000656)).kv.num_blocks == 4


@pytest.mark.parametrize("teacher", ["of one vocabulary", "of another"])
@pytest.mark.parametrize("kv_cache_gb", ["auto", 0.0002])
def test_blocks_are_as_many_and_as_large_as_those_of_an_engine(small_pair, byte_teacher, teacher, kv_cache_gb):
    name = small_pair.teacher if teacher == "of one vocabulary" else byte_teacher
    options = {"device_type": "cpu", "memory_bytes": own_memory_bytes(False), "kv_cache_gb": kv_cache_gb}
    planned = plan_memory(workload_of(small_pair.student, name, **options))
    relay = load_relay(small_pair.student, name, max_num_seqs=MAX_NUM_SEQS, block_size=16, kv_cache_gb=kv_cache_gb)
    assert (relay.engine.bridge is None) == (teacher == "of one vocabulary")
    relay.generate(["How many kebu?"], SamplingParams(max_completion_tokens=4), policy="teacher_only")
    caches = [runner.cache for runner in (relay.engine._runner, relay.engine.teacher.runner)]
    assert [cache.num_blocks for cache in caches] == [planned.kv.num_blocks] * 2
    assert caches[1].num_bytes == planned.kv.teacher_bytes
    relay.generate(["How many kebu?"], SamplingParams(max_completion_tokens=4), policy="teacher_free")
    assert relay.engine._runner.cache.num_bytes == planned.kv.student_bytes


@pytest.mark.parametrize("room_for", [4, 5, 9])
def test_an_engine_makes_the_planned_blocks_of_the_planned_setting(small_pair, workload, room_for):
    bytes_per_block = plan_memory(workload).kv.num_bytes // plan_memory(workload).kv.num_blocks
    memory_bytes = (without_kv(workload) + room_for * bytes_per_block + 1) / USABLE_SHARE
    planned = plan_memory(replace(workload, memory_bytes=memory_bytes)).kv
    setting = planned.kv_cache_gb
    relay = load_relay(
        small_pair.student, small_pair.teacher, max_num_seqs=MAX_NUM_SEQS, block_size=16, kv_cache_gb=setting
    )
    relay.engine.acquire()
    assert relay.engine._runner.cache.num_blocks == planned.num_blocks == room_for


def test_auto_on_a_cpu_takes_a_quarter_of_its_memory():
    demand = KVDemand("auto", 16, 10**6, 100, 150, 64, 64, 512, "cpu", memory_bytes=4e6)
    assert demand.plan(0.0).num_blocks == 1e6 // (16 * 250)


def test_less_memory_for_keys_and_values_is_advised_down_to_one_row(workload):
    large = replace(workload, kv_cache_gb=kv_demand(workload).gb_for(20))
    memory_bytes = (without_kv(large) + 1e9 * kv_demand(large).gb_for(5)) / USABLE_SHARE
    large = replace(large, memory_bytes=memory_bytes)
    advice = advise(large, plan_memory(large), num_micro_batches=1)
    assert set(advice.changes) == {"model.kv_cache_gb"}
    assert fits(advice.plan, memory_bytes)
    followed = replace(large, kv_cache_gb=float(advice.changes["model.kv_cache_gb"]))
    assert plan_memory(followed) == advice.plan
    hopeless = replace(large, memory_bytes=1.0)
    advice = advise(hopeless, plan_memory(hopeless), num_micro_batches=1)
    assert float(advice.changes["model.kv_cache_gb"]) == kv_demand(advice.workload).gb_for(1)
    assert advice.workload.max_num_seqs == 1


@pytest.mark.parametrize(("value", "rounded"), [(1.2341, 1.24), (0.0012301, 0.00124), (999.2, 1000.0), (5.0, 5.0)])
def test_numbers_are_rounded_up_to_three_digits(value, rounded):
    assert round_up(value) == rounded
