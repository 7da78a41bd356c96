"""What does relay decoding cost? `python -m benchmarks.bench_relay_decode`

Three questions, answered on the embedded pair (or another that is named) with commands forced at scripted positions, so
that every rival does the same work:

1. How many completion tokens per second, beside a faithful imitation of the released way (`released_way.py`)?
2. Does the cost of a token grow with the number of calls, or faster with the length than plain decoding does?
3. What does the relay add to plain decoding when nobody calls?

and with --by-op, in place of these, a fourth: what does each op gain, beside a run that takes it by its definition?
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.bare_rows import BareRows
from benchmarks.by_definition import DECODING, by_definition
from benchmarks.harness import best_of, print_table, write_result
from benchmarks.released_way import Conversation, ReleasedRelay, force
from relay_lightning.data.chat_template import make_prompt
from relay_lightning.engine.base import ForwardPass
from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.models.loading import load_model, load_tokenizer
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.local_teacher import LocalTeacher
from relay_lightning.relay.policies import CommandPolicy, PolicyView
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.requests import CallLimits, sample_requests
from relay_lightning.tiny.task import generate_problems
from relay_lightning.types import Completion, Prompt

CALLS = (0, 1, 2, 4, 8)
LENGTHS = (64, 128, 256, 512)
TEACHER_TOKENS = 32
"""Of each completion in question 2, whatever the number of calls that share them."""


class ForcedCommands(CommandPolicy):
    """The student writes scripts[prompt_id, position] wherever that is not negative. Commands then act as always."""

    decides_per_token = True

    def __init__(self, scripts: Tensor) -> None:
        self.scripts = scripts  # [prompts, L] int64

    def decide(self, logits: Tensor, view: PolicyView) -> None:
        column = view.num_tokens.clamp(max=self.scripts.shape[1] - 1)
        force(logits, self.scripts[view.prompt_id, column])


class EndlessModel(LocalModel):
    """No token ends a text: completions run to their budget."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class Setup:
    """What all questions share."""

    student: torch.nn.Module
    teacher: torch.nn.Module
    tokenizer: object
    prompts: list[Prompt]
    max_num_seqs: int
    repeats: int

    @property
    def device(self) -> torch.device:
        return self.student.device  # type: ignore[return-value]

    def engine(self, model: type[LocalModel] = LocalModel) -> RelayEngine:
        protocol = CallProtocol().compile(self.tokenizer, self.student.config.vocab_size)  # type: ignore[union-attr]
        student, teacher = model(self.student), LocalTeacher(model(self.teacher))
        return RelayEngine(student, teacher, protocol, max_num_seqs=self.max_num_seqs)

    def scripts(self, num_calls: int, num_requested: int, length: int) -> Tensor:
        """[prompts, length] int64: that many commands at random positions of each completion; -1 elsewhere."""
        command = self.tokenizer.encode(f"<call>{num_requested}</call>", add_special_tokens=False)  # type: ignore[attr-defined]
        cost = len(command) + num_requested
        rng = random.Random(0)
        scripts = torch.full((len(self.prompts), length), -1)
        for row in scripts:
            room = length - num_calls * cost
            starts = sorted(rng.randrange(room) for _ in range(num_calls))
            for index, start in enumerate(starts):
                position = start + index * cost
                row[position : position + len(command)] = torch.tensor(command)
        return scripts.to(self.device)


def greedy(length: int) -> SamplingParams:
    return SamplingParams(max_completion_tokens=length, temperature=0.0)


def relay_run(setup: Setup, engine: RelayEngine, scripts: Tensor, length: int) -> Callable[[], list[Completion]]:
    requests = sample_requests(setup.prompts, greedy(length), policy=ForcedCommands(scripts))
    return lambda: engine.generate(requests)


def released_run(setup: Setup, scripts: Tensor, length: int, eos: int, rows: list[Conversation]) -> Callable[[], None]:
    """The same work by the released way; each run leaves its conversations in `rows`."""
    released = ReleasedRelay(setup.student, setup.teacher, setup.tokenizer, eos=eos)

    def run() -> None:
        rows[:] = [Conversation(prompt.text, scripts[prompt.prompt_id].cpu()) for prompt in setup.prompts]
        for start in range(0, len(rows), setup.max_num_seqs):
            released.generate(rows[start : start + setup.max_num_seqs], length)

    return run


def against_the_released_way(setup: Setup, length: int) -> dict[str, float]:
    """Question 1: completions of natural length with about four calls of eight tokens."""
    scripts = setup.scripts(4, 8, 100)
    engine = setup.engine()
    run = relay_run(setup, engine, scripts, length)
    rows: list[Conversation] = []
    run_released = released_run(setup, scripts, length, engine.student.eos_token_ids[0], rows)
    seconds = best_of({"relay": run, "released": run_released}, setup.device, setup.repeats)
    stats = engine.stats
    num_released_tokens = sum(row.num_tokens for row in rows)
    same_text = sum(completion.text == row.completion for completion, row in zip(run(), rows, strict=True)) / len(rows)
    relay_rate, released_rate = stats.num_tokens / seconds["relay"], num_released_tokens / seconds["released"]
    print_table(
        f"1. {len(rows)} completions, {setup.max_num_seqs} at a time, {stats.num_calls / len(rows):.1f} calls each",
        ["way", "completion tokens/s", "seconds", "tokens", "calls"],
        [
            ["relay", relay_rate, seconds["relay"], stats.num_tokens, stats.num_calls],
            ["released", released_rate, seconds["released"], num_released_tokens, sum(row.num_calls for row in rows)],
        ],
    )
    print(f"  {relay_rate / released_rate:.2f} times as fast; {same_text:.0%} of the texts are the same")
    return {
        "relay_tokens_per_s": relay_rate,
        "released_tokens_per_s": released_rate,
        "speedup": relay_rate / released_rate,
        "calls_per_completion": stats.num_calls / len(rows),
        "same_text": same_text,
    }


def cost_per_token(setup: Setup) -> dict[str, list[float]]:
    """Question 2: microseconds per completion token, with the teacher's share of the tokens held fixed."""
    engine, student = setup.engine(EndlessModel), EndlessModel(setup.student)
    by_calls = []
    for num_calls in CALLS:
        scripts = setup.scripts(num_calls, TEACHER_TOKENS // max(num_calls, 1), 256)
        seconds = best_of({"relay": relay_run(setup, engine, scripts, 256)}, setup.device, setup.repeats)["relay"]
        by_calls.append(1e6 * seconds / engine.stats.num_tokens)
    print_table(
        f"2a. 256 tokens a completion, {TEACHER_TOKENS} of them the teacher's",
        ["calls", "us per token"],
        list(zip(CALLS, by_calls, strict=True)),
    )
    relay, plain = [], []
    for length in LENGTHS:
        num_calls = length // 64
        scripts = setup.scripts(num_calls, 8, length)
        runs = {
            "relay": relay_run(setup, engine, scripts, length),
            "plain": lambda length=length: plain_decode(student, setup.prompts, setup.max_num_seqs, length),
        }
        seconds = best_of(runs, setup.device, setup.repeats)
        num_tokens = length * len(setup.prompts)
        relay.append(1e6 * seconds["relay"] / num_tokens)
        plain.append(1e6 * seconds["plain"] / num_tokens)
    print_table(
        "2b. one call of 8 tokens in 64",
        ["tokens a completion", "us per token", "student alone", "ratio"],
        [[length, one, other, one / other] for length, one, other in zip(LENGTHS, relay, plain, strict=True)],
    )
    return {"us_per_token_by_calls": by_calls, "us_per_token_by_length": relay, "plain_us_by_length": plain}


def overhead_when_nobody_calls(setup: Setup, length: int) -> dict[str, Any]:
    """Question 3: the same tokens by the relay, by a bare loop over the same model, and by `transformers.generate`."""
    engine, student = setup.engine(EndlessModel), EndlessModel(setup.student)
    requests = sample_requests(setup.prompts, greedy(length), limits=CallLimits(max_calls=0))
    hugging_face = ReleasedRelay(setup.student, setup.teacher, setup.tokenizer, eos=None)

    def generate() -> None:
        size = setup.max_num_seqs
        for start in range(0, len(setup.prompts), size):
            hugging_face.student_alone([prompt.text for prompt in setup.prompts[start : start + size]], length)

    rivals = {
        "relay": lambda: engine.generate(requests),
        "bare loop": lambda: plain_decode(student, setup.prompts, setup.max_num_seqs, length),
        "transformers.generate": generate,
    }
    seconds = best_of(rivals, setup.device, setup.repeats)
    rates = {name: len(requests) * length / value for name, value in seconds.items()}
    overhead = seconds["relay"] / seconds["bare loop"] - 1
    print_table(
        f"3. the student alone, {length} tokens a completion",
        ["way", "completion tokens/s", "time"],
        [[name, rate, seconds[name] / seconds["bare loop"]] for name, rate in rates.items()],
    )
    return {"overhead": overhead, "alone_tokens_per_s": rates}


def gain_of_each_op(setup: Setup, length: int) -> dict[str, Any]:
    """Question 4: the work of question 1, by all ops and with one of them by its definition."""
    run = relay_run(setup, setup.engine(), setup.scripts(4, 8, 100), length)

    def without(op: str) -> list[Completion]:
        with by_definition(op):
            return run()

    rivals = {"all ops": run, **{op: partial(without, op) for op in DECODING}}
    seconds = best_of(rivals, setup.device, setup.repeats)
    gains = {op: seconds[op] / seconds["all ops"] for op in DECODING}
    print_table(
        "4. relay decoding with one op by its definition",
        ["op", "seconds", "times all ops"],
        [["none", seconds["all ops"], 1.0], *([op, seconds[op], gain] for op, gain in gains.items())],
    )
    return {"seconds": seconds, "gains": gains}


def plain_decode(model: LocalModel, prompts: Sequence[Prompt], num_rows: int, length: int) -> Tensor:
    """[prompts, length]: greedy tokens of the student alone, with nothing but the model and an argmax per token."""
    batches = [prompts[start : start + num_rows] for start in range(0, len(prompts), num_rows)]
    with model.session() as forward:
        return torch.cat([plain_decode_batch(model, forward, batch, length) for batch in batches])


def plain_decode_batch(model: LocalModel, forward: ForwardPass, prompts: Sequence[Prompt], length: int) -> Tensor:
    """`plain_decode` of prompts that are decoded at once."""
    widest = max(len(prompt.token_ids) for prompt in prompts)
    rows = BareRows(model, len(prompts), widest + length)
    ids = torch.tensor([[*p.token_ids, *[0] * (widest - len(p.token_ids))] for p in prompts], device=model.device)
    lengths = torch.tensor([len(prompt.token_ids) for prompt in prompts], device=model.device)
    rows.extend(forward, ids[:, :-1], lengths - 1)
    return rows.decode(forward, ids.gather(1, lengths[:, None] - 1)[:, 0], length)


def main() -> None:
    """Reads the command line and answers the questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="tiny:warm-student")
    parser.add_argument("--teacher", default="tiny:teacher")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="completions decoded at once")
    parser.add_argument("--num-prompts", type=int, default=128)
    parser.add_argument("--length", type=int, default=256, help="completion tokens at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--by-op", action="store_true", help="what each op gains, and nothing else")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.student)
    problems = generate_problems("test", arguments.num_prompts, seed=0)
    setup = Setup(
        load_model(arguments.student).to(arguments.device).eval(),
        load_model(arguments.teacher).to(arguments.device).eval(),
        tokenizer,
        [make_prompt(tokenizer, index, problem.question) for index, problem in enumerate(problems)],
        arguments.max_num_seqs,
        arguments.repeats,
    )
    if arguments.by_op:
        gains = gain_of_each_op(setup, arguments.length)
        write_result("relay_decode_by_op", setup.device, {"batch": arguments.max_num_seqs, **gains})
        return
    figures = {
        "batch": arguments.max_num_seqs,
        **against_the_released_way(setup, arguments.length),
        **cost_per_token(setup),
        **overhead_when_nobody_calls(setup, arguments.length),
    }
    write_result("relay_decode", setup.device, figures)


if __name__ == "__main__":
    main()
