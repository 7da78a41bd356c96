"""As many slots as fit, and slots as large as those of a real decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from relay_lightning.commands.workload import has_bridge
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.memory.advice import USABLE_SHARE, fits
from relay_lightning.memory.plan import Workload, plan_memory
from relay_lightning.memory.slots import with_most_slots
from relay_lightning.models.loading import load_config
from relay_lightning.models.settings import LoadSettings
from relay_lightning.models.skeleton import ModelPlan
from relay_lightning.pair import load_relay

NUM_SLOTS, NUM_COMPLETION_TOKENS = 3, 20


def workload_of(student: str, teacher: str, num_prompt_tokens: int = 40) -> Workload:
    models = (ModelPlan(name, load_config(name), LoadSettings(), is_trained=False) for name in (student, teacher))
    student_plan, teacher_plan = models
    return Workload(
        replace(student_plan, is_trained=True),
        teacher_plan,
        torch.optim.AdamW,
        num_slots=NUM_SLOTS,
        num_prompt_tokens=num_prompt_tokens,
        num_completion_tokens=NUM_COMPLETION_TOKENS,
        num_rows=1,
        has_bridge=has_bridge(student_plan, teacher_plan),
        device_type="cpu",
    )


@pytest.mark.parametrize("room_for", [1, 2, 5, 12, 40])
def test_one_slot_more_would_not_fit(small_pair, room_for):
    workload = replace(workload_of(small_pair.student, small_pair.teacher), num_slots=12)

    def peak(num_slots):
        return plan_memory(replace(workload, num_slots=num_slots)).peak

    memory_bytes = (peak(room_for) + 1) / USABLE_SHARE
    chosen = with_most_slots(workload, memory_bytes)
    assert chosen.num_slots == min(room_for, 12)
    assert room_for > 12 or not fits(plan_memory(replace(workload, num_slots=room_for + 1)), memory_bytes)


def test_one_slot_is_left_when_none_fits(small_pair):
    assert with_most_slots(workload_of(small_pair.student, small_pair.teacher), 1.0).num_slots == 1


@pytest.mark.parametrize("teacher", ["of one vocabulary", "of another"])
def test_slots_are_as_large_as_those_of_a_run(small_pair, byte_teacher, teacher):
    name = small_pair.teacher if teacher == "of one vocabulary" else byte_teacher
    relay = load_relay(small_pair.student, name, num_slots=NUM_SLOTS)
    # As long in either vocabulary, as a plan takes them to be.
    question = [0] * 40
    prompts = [replace(relay.make_prompt(index, question), text="x" * 40) for index in range(NUM_SLOTS)]
    if relay.decoder.bridge is not None:
        relay.decoder.bridge = replace(relay.decoder.bridge, encode_prompt=lambda _: [0] * 40)
    relay.make_prompt = lambda prompt_id, _: prompts[prompt_id]
    sampling = SamplingParams(max_completion_tokens=NUM_COMPLETION_TOKENS)
    relay.generate([question] * NUM_SLOTS, sampling, policy="teacher_only")
    planned = plan_memory(workload_of(small_pair.student, name))
    assert (relay.decoder.bridge is None) == (teacher == "of one vocabulary")
    assert planned.teacher_cache == relay.decoder.teacher.cache_bytes
