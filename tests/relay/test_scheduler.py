"""Who runs when KV blocks are scarce, and which of two models goes next."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
import torch
from fake_model import FakeModel
from relay_kernels.relay_step import RowStatus, TokenSource
from small_vocabulary import VOCAB_SIZE

from relay_lightning.engine.context import Context
from relay_lightning.engine.model_runner import ModelRunner
from relay_lightning.relay.scheduler import BURST, MAX_WAIT, TEACHER_WEIGHT, Scheduler, TurnTaker

BLOCK_SIZE, NUM_ROWS = 16, 8


class Desk:
    """A scheduler whose contexts grow by hand."""

    def __init__(self, num_blocks: int) -> None:
        model = FakeModel(lambda _: torch.zeros(VOCAB_SIZE), vocab_size=VOCAB_SIZE)
        self.runner = ModelRunner(model, TokenSource.STUDENT, NUM_ROWS, BLOCK_SIZE, VOCAB_SIZE)
        self.runner.open()
        self.runner.allocate(num_blocks)
        self.scheduler = Scheduler(self.runner)
        self.runner.stop = self.preempt  # type: ignore[method-assign]
        self.preempted: list[int] = []

    def preempt(self, context: Context) -> None:
        assert context.blocks, "its tokens are fetched before its blocks are taken"
        self.preempted.append(context.age)

    def wait(self, age: int, num_tokens: int, room: int = 64, *, is_new: bool = False) -> Context:
        """Adds a waiting context; rows are in another order than ages. is_new: nothing of it has been written yet."""
        tokens = [2 + age] * num_tokens
        context = Context(age, NUM_ROWS - 1 - age, tokens, num_tokens, num_tokens + room)
        context.position = context.num_written = int(not is_new)
        self.scheduler.wait(context)
        return context

    def admit(self) -> list[int]:
        """Ages of the contexts that begin to run, in the order in which they got their blocks."""
        started: list[int] = []
        self.scheduler.admit(1, lambda contexts: started.extend(context.age for context in contexts))
        return started

    def write(self, context: Context, count: int) -> None:
        """A running context decodes so many tokens."""
        context.token_ids += [2 + context.age] * count
        context.num_cached = len(context.token_ids) - 1
        context.position = context.num_written = context.num_written + count

    @property
    def running(self) -> list[int]:
        return sorted(context.age for context in self.scheduler.running.values())

    @property
    def num_free(self) -> int:
        return self.runner.prefiller.blocks.num_free


def test_contexts_are_admitted_in_the_order_of_their_age():
    desk = Desk(20)
    for age in (3, 0, 2, 1):
        desk.wait(age, 10)
    assert desk.admit() == [0, 1, 2, 3]
    assert desk.scheduler.num_active == 4
    assert not desk.scheduler.waiting


def test_no_younger_context_overtakes_one_that_does_not_fit():
    desk = Desk(4)
    desk.wait(0, 40)
    desk.wait(1, 40)
    desk.wait(2, 2)
    assert desk.admit() == [0]
    assert desk.admit() == []
    assert len(desk.scheduler.waiting) == 2


def test_a_new_context_leaves_room_for_those_that_run_to_grow():
    desk = Desk(5)
    for age in range(4):
        desk.wait(age, 10)
    desk.admit()
    desk.wait(4, 10, is_new=True)
    assert desk.admit() == []
    desk.wait(4, 10)
    assert desk.admit() == [4]
    assert desk.preempted == []


@pytest.mark.parametrize("method", ["grow", "admit"])
def test_idle_contexts_give_their_blocks_first_and_the_youngest_of_them_first(method: str):
    desk = Desk(6)
    contexts = [desk.wait(age, 20) for age in (1, 2, 3)]
    desk.admit()
    old_idle, running, young_idle = contexts
    desk.scheduler.pause(old_idle)
    desk.scheduler.pause(young_idle)
    assert desk.num_free == 0
    if method == "grow":
        desk.write(running, 13)
        desk.scheduler.grow(1)
    else:
        desk.wait(0, 20)
        assert desk.admit() == [0]
    assert (young_idle.blocks, len(old_idle.blocks)) == ([], 2)
    assert desk.preempted == []
    assert (desk.scheduler.num_evictions, desk.scheduler.num_preemptions) == (1, 0)


def test_the_youngest_running_context_is_preempted_when_none_is_idle():
    desk = Desk(6)
    contexts = [desk.wait(age, 20) for age in (1, 2, 3)]
    desk.admit()
    desk.write(contexts[0], 13)
    desk.scheduler.grow(1)
    assert desk.preempted == [3]
    assert desk.running == [1, 2]
    assert contexts[2].blocks == []
    assert list(desk.scheduler.waiting.values()) == [contexts[2]]
    assert desk.scheduler.num_preemptions == 1


def test_the_youngest_gives_way_when_it_is_the_one_that_must_grow():
    desk = Desk(4)
    old, young = desk.wait(0, 20), desk.wait(1, 20)
    desk.admit()
    desk.write(young, 13)
    desk.scheduler.grow(1)
    assert desk.preempted == [1]
    assert desk.running == [0]
    assert len(old.blocks) == 2


def test_a_context_is_removed_wherever_it_is():
    desk = Desk(8)
    running, idle, parked = desk.wait(0, 20), desk.wait(1, 20), desk.wait(2, 20)
    desk.admit()
    for context in (idle, parked):
        desk.scheduler.pause(context)
    desk.scheduler.wait(parked)
    for context in (running, idle, parked):
        desk.scheduler.remove(context)
    assert desk.num_free == 8
    assert desk.scheduler.num_active == 0
    assert not desk.scheduler.idle


def test_a_context_waits_again_when_it_could_not_be_read_or_started(monkeypatch: pytest.MonkeyPatch):
    desk = Desk(8)
    context = desk.wait(0, 20)

    def fail(*_: object) -> None:
        raise ValueError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(desk.runner.model, "extend", fail)
        with pytest.raises(ValueError, match="stop"):
            desk.admit()
    with pytest.raises(ValueError, match="stop"):
        desk.scheduler.admit(1, fail)
    assert list(desk.scheduler.waiting.values()) == [context]
    assert not desk.scheduler.running
    assert (context.blocks, desk.num_free) == ([], 8)
    assert desk.runner.state.status[context.row] == RowStatus.EMPTY
    assert desk.admit() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_the_oldest_never_gives_way_and_all_end_when_blocks_hold_little_more_than_one(seed: int):
    rng, desk = Random(seed), Desk(rng_blocks := 5 + seed % 4)
    live = {age: desk.wait(age, rng.randint(1, 30), room=rng.randint(2, 5 * BLOCK_SIZE - 31)) for age in range(8)}
    paused: list[Context] = []
    for _ in range(1500):
        if paused and rng.random() < 0.5:
            desk.scheduler.wait(paused.pop(rng.randrange(len(paused))))
        desk.preempted.clear()
        desk.scheduler.grow(1)
        desk.admit()
        oldest = min(live)
        assert oldest not in desk.preempted
        assert live[oldest] in paused or oldest in desk.running, "the oldest runs whenever it can"
        for context in list(desk.scheduler.running.values()):
            desk.write(context, 1)
            if context.num_tokens == context.max_tokens:
                desk.scheduler.remove(live.pop(context.age))
            elif rng.random() < 0.1:
                desk.scheduler.pause(context)
                paused.append(context)
        if not live:
            break
    assert not live, "all come to their end"
    assert desk.num_free == rng_blocks


def loads(kind: str, turns: TurnTaker) -> Iterator[tuple[int, int]]:
    """Sequences that student and teacher could run, always some for both."""
    rng, is_teachers = Random(0), False
    for turn in range(10_000):
        if kind == "random":
            load = rng.randint(1, 64), rng.randint(1, 64)
        elif kind == "many students":
            load = 64, 1
        elif kind == "many calls":
            load = 1, 64
        elif kind == "equal":
            load = TEACHER_WEIGHT, 1
        elif kind == "against the one that waits":
            load = (1, 64) if is_teachers else (64, 1)
        else:
            load = (64, 1) if turn // (MAX_WAIT + 3) % 2 else (1, 64)
        is_teachers = turns._is_teachers
        yield load


@pytest.mark.parametrize(
    "kind", ["random", "many students", "many calls", "equal", "against the one that waits", "changing late"]
)
def test_no_model_waits_longer_than_max_wait(kind: str):
    turns, waited = TurnTaker(), {False: 0, True: 0}
    for num_students, num_calls in loads(kind, turns):
        chosen = turns.is_teachers(num_students, num_calls)
        waited[chosen], waited[not chosen] = 0, waited[not chosen] + 1
        assert max(waited.values()) <= MAX_WAIT


def test_a_model_that_has_waited_keeps_its_turn_for_a_while():
    turns = TurnTaker()
    chosen = [turns.is_teachers(64, 1) for _ in range(2 * MAX_WAIT)]
    first = chosen.index(True)
    assert chosen[first : first + BURST + 1] == [True] * BURST + [False]


def test_the_model_with_more_to_do_goes_next_and_a_call_counts_more():
    turns = TurnTaker()
    assert not turns.is_teachers(10, 10 // TEACHER_WEIGHT)
    assert turns.is_teachers(10, 10 // TEACHER_WEIGHT + 1)
    assert turns.is_teachers(10, 10 // TEACHER_WEIGHT)
    assert not turns.is_teachers(10, 10 // TEACHER_WEIGHT - 1)


def test_the_only_model_with_work_goes_next():
    turns = TurnTaker()
    assert [turns.is_teachers(*load) for load in ((0, 1), (64, 0), (0, 3), (1, 0), (0, 0))] == [
        True, False, True, False, False,
    ]  # fmt: skip
