"""DataSource: where problems come from, and where question and answer stand in a row."""

from dataclasses import asdict, dataclass, fields
from typing import TypedDict

DEFAULT_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where problems come from, and where question and answer stand in a row.

    Args:
        path: JSONL or Parquet file, folder of a data set, or id (owner/name) of a Hugging Face data set.
        question: column of the question; `prompt[0].content` reaches into a nested one.
        answer: column of the reference answer, likewise.
        question_pattern: regular expression whose one group is the question; null takes the whole column.
        answer_pattern: regular expression whose one group is the answer, where it matches last, or `boxed` for the
            last \\boxed{} of a worked solution; null takes the whole column.
        split: of a folder or a Hugging Face data set, such as `test` or `train[:1000]`.
        subset: configuration of a folder or a Hugging Face data set; null takes its default.
        revision: git revision of a Hugging Face data set; null takes the newest.
    """

    path: str
    question: str = "question"
    answer: str = "answer"
    question_pattern: str | None = None
    answer_pattern: str | None = None
    split: str = DEFAULT_SPLIT
    subset: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """How messages name it: its path, and the split where it is not the usual one."""
        return self.path if self.split == DEFAULT_SPLIT else f"{self.path} ({self.split})"

    def changed_keys(self) -> dict[str, str]:
        """The keys that are not at their default, as a YAML mapping would state them."""
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}


SourceMapping = TypedDict("SourceMapping", DataSource.__annotations__, total=False)  # type: ignore[misc]
"""A data source as a configuration states it, without the keys that keep their default.

Not the class itself: a file that is given for a class is parsed as the class's configuration, and here files are data.
"""
SourceMapping.__doc__ = DataSource.__doc__
