"""RelayConfig: how a trained student is meant to be run, as `relay_config.json` beside its weights says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.models.loading import read_model_file
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.requests import COMMAND_RULES, CallLimits, EosPolicy, SpentCalls

RELAY_CONFIG_FILE = "relay_config.json"
AUTO: Literal["auto"] = "auto"
"""An argument that was not given: the student's `relay_config.json` decides, else the default of `RelayConfig`."""
CallLimit = int | Literal["auto"] | None
"""A limit of calls or of their tokens; None is no limit."""


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """Limits and sampling of a student's relay. The defaults are those of a student that has no file."""

    tags: tuple[str, str] = (CallProtocol.open_tag, CallProtocol.close_tag)
    """What the student writes around the number of tokens it asks for."""
    max_calls: int | None = None
    """Calls of one completion at most; None is no limit."""
    max_call_tokens: int | None = None
    """Tokens of one call at most; None is no limit."""
    eos_policy: EosPolicy = "finish"
    """What the teacher's end of sequence does: `finish` the completion, or `return` control to the student."""
    spent_calls: SpentCalls = "text"
    """Effect of a command where no call is possible (`CallLimits.spent_calls`)."""
    sampling: SamplingParams | None = None
    """Sampling that the student was evaluated with; None without a file."""
    teacher: str | None = field(default=None, compare=False)
    """The teacher it was trained with, for information."""

    def override(
        self,
        max_calls: CallLimit = AUTO,
        max_call_tokens: CallLimit = AUTO,
        eos_policy: str = AUTO,
        spent_calls: str = AUTO,
    ) -> RelayConfig:
        """The same with every limit that was given, that is, which is not "auto"."""
        given = {"max_calls": max_calls, "max_call_tokens": max_call_tokens, "eos_policy": eos_policy}
        given["spent_calls"] = spent_calls
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value != AUTO}
        return replace(self, **chosen)

    @property
    def limits(self) -> CallLimits:
        """The limits that this record decides."""
        return CallLimits(self.max_calls, self.max_call_tokens, self.eos_policy, self.spent_calls)

    def to_json(self) -> str:
        """The text of `relay_config.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_relay_config(student: str) -> RelayConfig:
    """The `relay_config.json` of the student named so; the defaults where it has none. Raises as its parser does."""
    found = read_model_file(student, RELAY_CONFIG_FILE)
    return RelayConfig() if found is None else parse_relay_config(found[1], source=found[0])


def parse_relay_config(text: str, source: str) -> RelayConfig:
    """Reads the text of a `relay_config.json`; a key that it lacks takes its default.

    source: the file, for messages. Raises ValueError naming file and key for text that is no JSON object, an unknown
    key, a value of another type or out of range, and for tags that the relay does not read.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is damaged: it is not JSON ({error}).") from error
    values = _known_keys(content, RelayConfig, source)
    for name, (is_valid, expected) in _EXPECTED.items():
        if name in values and not is_valid(values[name]):
            raise ValueError(f"{source}: {name} must be {expected}, not {json.dumps(values[name])}.")
    if values.get("sampling") is not None:
        values["sampling"] = _parse_sampling(values["sampling"], source)
    if "tags" in values:
        values["tags"] = tuple(values["tags"])
    config = RelayConfig(**values)
    if config.tags != RelayConfig().tags:
        raise ValueError(
            f"{source}: the student calls with tags {' and '.join(map(repr, config.tags))}, but the relay reads only "
            f"{' and '.join(map(repr, RelayConfig().tags))}."
        )
    return config


def _parse_sampling(content: Any, source: str) -> SamplingParams:
    values = _known_keys(content, SamplingParams, f"{source}: sampling")
    if isinstance(values.get("stop"), list):
        values["stop"] = tuple(values["stop"])
    for name, value in values.items():
        if name == "stop":
            continue
        is_whole = name in ("max_completion_tokens", "top_k")
        if not (_is_whole(value) if is_whole else _is_number(value)):
            expected = "a whole number" if is_whole else "a number"
            raise ValueError(f"{source}: sampling.{name} must be {expected}, not {json.dumps(value)}.")
    try:
        return SamplingParams(**values)
    except ValueError as error:
        raise ValueError(f"{source}: sampling.{error}.") from error


def _known_keys(content: Any, record: Any, source: str) -> dict[str, Any]:
    """`content`, a JSON object whose keys are fields of `record`."""
    known = [each.name for each in fields(record)]
    if not isinstance(content, dict):
        raise ValueError(f"{source} must be a JSON object with the keys {', '.join(known)}.")
    for name in content:
        if name not in known:
            raise ValueError(f"{source}: there is no key {name!r}; the keys are {', '.join(known)}.")
    return dict(content)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tags": (
        lambda value: isinstance(value, list) and [type(tag) for tag in value] == [str, str],
        'a list of two texts, such as ["<call>", "</call>"]',
    ),
    "max_calls": (
        lambda value: value is None or (_is_whole(value) and value >= 0),
        "a whole number of at least 0, or null for no limit",
    ),
    "max_call_tokens": (
        lambda value: value is None or (_is_whole(value) and value >= 1),
        "a whole number of at least 1, or null for no limit",
    ),
    "eos_policy": (lambda value: value in ("finish", "return"), '"finish" or "return"'),
    "spent_calls": (lambda value: value in COMMAND_RULES, '"text", "mask_close" or "mask_open"'),
    "teacher": (lambda value: value is None or isinstance(value, str), "a text or null"),
}
"""Key -> (check of its value, what is expected)."""
