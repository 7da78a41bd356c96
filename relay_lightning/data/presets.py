"""Well-known data sets by name, with the columns that their publishers gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from relay_lightning.data.source import DataSource, SourceMapping
from relay_lightning.terminal import quote

BOXED = "boxed"
"""The answer pattern that takes the last balanced box, which no regular expression can."""

_GSM8K = DataSource("openai/gsm8k", answer_pattern=r"####\s*(.+)", subset="main")
_MATH = DataSource("DigitalLearningGmbH/MATH-lighteval", question="problem", answer="solution", answer_pattern=BOXED)

PRESETS: Mapping[str, DataSource] = {
    "gsm8k:train": _GSM8K,
    "gsm8k:test": replace(_GSM8K, split="test"),
    "math:train": _MATH,
    "math:test": replace(_MATH, split="test"),
    "math500": DataSource("HuggingFaceH4/MATH-500", question="problem", split="test"),
    "aime24": DataSource("HuggingFaceH4/aime_2024", question="problem"),
    "aime25": DataSource("math-ai/aime25", question="problem", split="test"),
    # The original of DAPO holds every problem many times, inside a prompt that asks for another answer format.
    "dapo-17k": DataSource("open-r1/DAPO-Math-17k-Processed", question="prompt", answer="solution", subset="all"),
    # What Qwen3-8B solves of it, as the paper's authors published it.
    "dapo-17k-filtered": DataSource("HINT-lab/8B_filtered_data", question="problem"),
}


def resolve_source(source: str | SourceMapping | DataSource) -> DataSource:
    """The preset of that name; any other text is a path or an id, with the default columns.

    Raises ValueError for a mapping without a path.
    """
    if isinstance(source, str):
        return PRESETS.get(source) or DataSource(source)
    if isinstance(source, DataSource):
        return source
    if "path" not in source:
        raise ValueError(f"A data source needs the key 'path', but has only {', '.join(map(quote, source)) or 'none'}.")
    return DataSource(**source)
