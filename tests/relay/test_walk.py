"""A reader's walk from prompts to the first kernel is short, and so are the files on the way."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import relay_lightning
from relay_lightning import load_relay
from relay_lightning.engine import blocks
from relay_lightning.engine.sampling import SamplingParams

PACKAGE = Path(relay_lightning.__file__).parent
MOST_FRAMES, MOST_FILES, MOST_LINES = 8, 5, 250


def test_a_prompt_reaches_a_kernel_in_few_frames_and_files(monkeypatch: pytest.MonkeyPatch):
    relay = load_relay("tiny:student", None, max_num_seqs=1)
    walks: list[list[str]] = []
    attend = blocks.decode_attention

    def watched(**inputs):
        frames = [(frame.filename, frame.function) for frame in inspect.stack()[1:]]
        if any(function == "decode" for _, function in frames):
            walks.append([name for name, _ in frames if Path(name).is_relative_to(PACKAGE)])
        return attend(**inputs)

    monkeypatch.setattr(blocks, "decode_attention", watched)
    relay.generate(["What is 2 + 2?"], SamplingParams(max_completion_tokens=2), policy="teacher_free")
    assert walks
    assert max(map(len, walks)) <= MOST_FRAMES, walks[0]
    assert max(len(set(walk)) for walk in walks) <= MOST_FILES, walks[0]


@pytest.mark.parametrize("folder", ["relay", "engine"])
def test_no_file_of_the_engine_is_long(folder: str):
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE / folder).glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
