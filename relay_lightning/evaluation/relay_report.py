"""The measurements a run is judged by: what student, teacher and relay reach before and after training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.evaluation.evaluate import EvalResult, evaluate
from relay_lightning.evaluation.routers import RouterResult, match_query_router, run_query_router, run_token_router
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.policies import Policy
from relay_lightning.relay.requests import CallLimits
from relay_lightning.types import Prompt


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts, the engine that decodes them, and the limits of its calls."""

    engine: RelayEngine
    prompts: Sequence[Prompt]
    max_completion_tokens: int
    limits: CallLimits = field(default_factory=CallLimits)
    """Limits of the relay's calls."""
    watch: Callable[[str], Callable[[int], None] | None] = lambda _: None
    """Name of a measurement -> what is told the number of finished completions."""
    gather: Callable[[EvalResult], EvalResult] = lambda result: result
    """This process's result -> that of all processes."""
    kept: MutableMapping[str, EvalResult] | None = None
    """Results by `measurement_key`: what is there is not measured again, and what is measured is put there."""

    @property
    def has_teacher(self) -> bool:
        return self.engine.teacher is not None

    def measure(self, name: str, policy: str | Policy, seed: int = 0, temperature: float = 0.0) -> EvalResult:
        """Returns the result under `policy`, and gives the memory of keys and values back.

        Limits of number and length hold for the calls of the learned policy only, not for those that chance drives.
        """
        key = measurement_key(name, policy, seed)
        if self.kept is not None and key in self.kept:
            return self.kept[key]
        sampling = SamplingParams(self.max_completion_tokens, temperature)
        limits = self.limits if policy == "command" else replace(self.limits, max_calls=None, max_call_tokens=None)
        result = evaluate(
            self.engine, self.prompts, sampling, policy, seed=seed, limits=limits, on_progress=self.watch(name)
        )
        self.engine.release()
        result = self.gather(result)
        if self.kept is not None:
            self.kept[key] = result
        return result


def measurement_key(name: str, policy: str | Policy, seed: int) -> str:
    """`relay_before` for "relay before"; a policy that draws adds itself and its seed."""
    key = re.sub(r"\W+", "_", name)
    return key if isinstance(policy, str) else f"{key} {policy!r} seed={seed}"


def measure_before(held_out: HeldOut, base: HeldOut | None = None, *, sampled: bool = False) -> dict[str, EvalResult]:
    """Student alone, teacher alone and the untrained relay. `base`, if given, is the student that counts as alone."""
    results = {"student_alone": (base or held_out).measure("student alone", "teacher_free")}
    if held_out.has_teacher:
        results["teacher_alone"] = held_out.measure("teacher alone", "teacher_only")
        results |= _measure_relay(held_out, "before", sampled)
    return results


def measure_after(held_out: HeldOut, *, sampled: bool = False) -> dict[str, EvalResult]:
    """The trained relay, and the trained student without its teacher."""
    results = _measure_relay(held_out, "after", sampled) if held_out.has_teacher else {}
    results["teacher_free_after"] = held_out.measure("teacher-free after", "teacher_free")
    return results


def _measure_relay(held_out: HeldOut, when: str, sampled: bool) -> dict[str, EvalResult]:
    """Greedy and perhaps sampled at temperature 1, as in training."""
    results = {f"relay_{when}": held_out.measure(f"relay {when}", "command")}
    if sampled:
        name = f"relay {when}, sampled"
        results[f"relay_{when}_sampled"] = held_out.measure(name, "command", temperature=1.0)
    return results


def measure_routers(
    held_out: HeldOut, results: Mapping[str, EvalResult], seeds: Sequence[int]
) -> dict[str, RouterResult]:
    """The routers that the trained relay is compared with.

    The query router is matched once with the trained student (and then run) and once with the student alone from
    before, so that the comparison can be made with whichever of them needs the teacher less.
    """
    after, teacher = results["relay_after"], results["teacher_alone"]
    matched = match_query_router(results["teacher_free_after"], teacher, after.accuracy, seeds)
    untrained = match_query_router(results["student_alone"], teacher, after.accuracy, seeds)
    return {
        "random_query_router_matched": run_query_router(
            lambda policy, seed: held_out.measure("random query router", policy, seed), matched, seeds
        ),
        "random_query_router_matched_untrained": untrained,
        "random_token_router_same_budget": run_token_router(
            lambda policy, seed: held_out.measure("random token router", policy, seed), after.call_ratio, seeds
        ),
    }
