"""`relay_config.json`: what it may say, what is refused, and that an argument goes before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from relay_lightning import SamplingParams, load_relay
from relay_lightning.relay.relay_config import RELAY_CONFIG_FILE, RelayConfig, parse_relay_config, read_relay_config

QUESTION = "How many kebu?"


@pytest.fixture
def student(small_pair, tmp_path) -> Path:
    """A student of its own folder, without a relay_config.json."""
    return Path(shutil.copytree(small_pair.student, tmp_path / "student"))


def write(student: Path, **values: object) -> None:
    (student / RELAY_CONFIG_FILE).write_text(json.dumps(values))


def test_what_is_written_is_read_again():
    config = RelayConfig(
        max_calls=0, max_call_tokens=7, eos_policy="return", sampling=SamplingParams(9, 0.5, 3, 0.5, 0.1)
    )
    assert parse_relay_config(config.to_json(), "x") == config
    assert parse_relay_config(RelayConfig().to_json(), "x") == RelayConfig() == parse_relay_config("{}", "x")


def test_a_key_that_is_left_out_has_its_default(student):
    assert read_relay_config(str(student)) == RelayConfig()
    write(student, max_calls=2, sampling={"temperature": 0.25})
    assert read_relay_config(str(student)) == RelayConfig(max_calls=2, sampling=SamplingParams(temperature=0.25))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"relay_config.json is damaged: it is not JSON"),
        ("[]", r"relay_config.json must be a JSON object with the keys tags, max_calls"),
        ('{"max_cals": 1}', r"relay_config.json: there is no key 'max_cals'; the keys are tags, max_calls"),
        ('{"max_calls": "3"}', r'relay_config.json: max_calls must be a whole number .*, not "3"'),
        ('{"max_calls": true}', r"relay_config.json: max_calls must be a whole number .*, not true"),
        ('{"max_calls": -1}', r"relay_config.json: max_calls must be a whole number of at least 0"),
        ('{"max_call_tokens": 0}', r"relay_config.json: max_call_tokens must be a whole number of at least 1"),
        ('{"max_call_tokens": 2.5}', r"relay_config.json: max_call_tokens must be a whole number"),
        ('{"eos_policy": "stop"}', r'relay_config.json: eos_policy must be "finish" or "return", not "stop"'),
        ('{"eos_policy": []}', r"relay_config.json: eos_policy must be"),
        ('{"teacher": 3}', r"relay_config.json: teacher must be a text or null, not 3"),
        ('{"tags": "<call>"}', r"relay_config.json: tags must be a list of two texts"),
        ('{"tags": ["<ask>", "</ask>"]}', r"relay_config.json: the student calls with tags '<ask>' and '</ask>', but"),
        ('{"sampling": 1}', r"relay_config.json: sampling must be a JSON object with the keys max_completion_tokens"),
        ('{"sampling": {"temp": 1}}', r"relay_config.json: sampling: there is no key 'temp'"),
        ('{"sampling": {"temperature": "1"}}', r'relay_config.json: sampling.temperature must be a number, not "1"'),
        ('{"sampling": {"top_k": 1.5}}', r"relay_config.json: sampling.top_k must be a whole number, not 1.5"),
        ('{"sampling": {"temperature": NaN}}', r"relay_config.json: sampling.temperature must be at least 0"),
        ('{"sampling": {"top_p": 2}}', r"relay_config.json: sampling.top_p must lie in"),
    ],
)
def test_a_file_that_says_something_else_is_refused_by_name(student, small_pair, text, sentence):
    (student / RELAY_CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match=sentence) as raised:
        load_relay(str(student), small_pair.teacher)
    assert "\n" not in str(raised.value)
    assert str(student) in str(raised.value)


def test_a_file_that_is_no_text_is_refused_by_name(student):
    (student / RELAY_CONFIG_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"relay_config.json is damaged: it is not UTF-8 text"):
        read_relay_config(str(student))


def calls(relay, **options: object) -> tuple[int, int]:
    """Calls, and the longest span, over samples of the student, which calls in half of them for 1 to 4 tokens."""
    sampling = SamplingParams(max_completion_tokens=24)
    completions = relay.generate([QUESTION] * 24, sampling, **options)
    spans = [span for completion in completions for span in completion.spans]
    return len(spans), max((span.num_tokens for span in spans), default=0)


def test_an_argument_goes_before_the_file_and_the_file_before_the_default(student, small_pair):
    free = calls(load_relay(str(student), small_pair.teacher))
    assert free[0] > 0
    assert free[1] > 1
    write(student, max_call_tokens=1)
    relay = load_relay(str(student), small_pair.teacher)
    assert calls(relay)[1] == 1
    assert calls(relay, max_call_tokens=2)[1] == 2
    assert calls(relay, max_call_tokens=None) == free
    assert calls(relay, max_calls=0)[0] == 0
    write(student, max_calls=0)
    relay = load_relay(str(student), small_pair.teacher)
    assert calls(relay)[0] == 0
    assert calls(relay, max_calls=None) == free


def test_sampling_is_the_files_when_none_is_given(student, small_pair):
    write(student, sampling={"max_completion_tokens": 5, "temperature": 0.0})
    relay = load_relay(str(student), small_pair.teacher)
    first, second = relay.generate([QUESTION, QUESTION])
    assert first.num_tokens <= 5
    assert first.token_ids == second.token_ids
