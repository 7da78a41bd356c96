"""Rows of files, folders and data sets of the hub, read by the real datasets library where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from relay_lightning.data.presets import PRESETS, resolve_source
from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.records import Problem, load_problems
from relay_lightning.data.source import DataSource

GSM8K_ROWS = [
    {"question": "Natalia sold 48 clips, then half as many. How many?", "answer": "48/2=<<48/2=24>>24\n#### 72"},
    {"question": "Weng earns $12 an hour. For 50 minutes?", "answer": "12*50/60=10\n#### 10"},
]
MATH_ROWS = [
    {"problem": "What is half?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{\frac{1}{2}}$."},
    {"problem": "Solve $x^2=4$.", "level": "Level 2", "type": "Algebra", "solution": r"So $x=\boxed{\pm 2}$."},
]
DAPO_ORIGINAL_ROW = {
    "data_source": "math_dapo",
    "prompt": [
        {
            "content": "Solve the following math problem step by step. The last line of your response should be of the "
            "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nFind $a+b$.\n\n"
            'Remember to put your answer on its own line after "Answer:".',
            "role": "user",
        }
    ],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}
PRESET_ROWS = {
    "gsm8k": (GSM8K_ROWS, ["72", "10"]),
    "math": (MATH_ROWS, [r"\frac{1}{2}", r"\pm 2"]),
    "math500": ([{"problem": "q", "solution": r"\boxed{3}", "answer": "3", "unique_id": "test/a/1.json"}], ["3"]),
    "aime24": ([{"id": 60, "problem": "q", "solution": "...", "answer": "033", "year": "2024"}], ["033"]),
    "aime25": ([{"problem": "q", "answer": "70", "id": "0"}], ["70"]),
    "dapo-17k": ([{"prompt": "q", "data_source": "math_dapo", "solution": "34"}], ["34"]),
    "dapo-17k-filtered": ([{"problem": "q", "success_rate": 0.75, "answer": "34"}], ["34"]),
}


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The real library, with a cache of its own and no network."""
    library = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    yield library
    library.enable_progress_bars()


def write_parquet(path: Path, rows: list[dict]) -> str:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def local_copy(name: str, path: str) -> DataSource:
    """The preset's columns, read from a file."""
    preset = resolve_source(name)
    return DataSource(path, preset.question, preset.answer, preset.question_pattern, preset.answer_pattern)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_rows_of_its_schema(tmp_path, name) -> None:
    rows, answers = PRESET_ROWS[name.split(":")[0]]
    path = write_parquet(tmp_path / "a.parquet", rows)
    assert [problem.answer for problem in load_problems(local_copy(name, path))] == answers


def test_the_mapping_in_the_readme_reads_the_original_dapo(tmp_path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    arguments = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])["data"]["init_args"]
    path = write_parquet(tmp_path / "dapo.parquet", [DAPO_ORIGINAL_ROW])
    assert load_problems(arguments["train"] | {"path": path}) == [Problem(0, "Find $a+b$.", "34")]
    data = PromptDataModule(**arguments)
    assert data.sources["val"][0].answer_pattern == "boxed"
    assert data.sources["test"][0] == PRESETS["gsm8k:test"]


def test_parquet_and_jsonl_of_the_same_rows_give_the_same_problems(tmp_path, datasets) -> None:
    parquet = write_parquet(tmp_path / "a.parquet", MATH_ROWS * 3)
    jsonl = tmp_path / "a.jsonl"
    datasets.Dataset.from_list(MATH_ROWS * 3).to_json(jsonl)
    columns = {"question": "problem", "answer": "solution", "answer_pattern": "boxed"}
    assert load_problems(DataSource(parquet, **columns)) == load_problems(DataSource(str(jsonl), **columns))


@pytest.mark.usefixtures("datasets")
def test_a_folder_with_a_file_of_each_split_is_read_by_its_split(tmp_path) -> None:
    folder = tmp_path / "gsm8k"
    write_parquet(folder / "train-00000-of-00001.parquet", GSM8K_ROWS)
    write_parquet(folder / "test-00000-of-00001.parquet", GSM8K_ROWS[1:])
    source = DataSource(str(folder), answer_pattern=r"####\s*(.+)")
    assert [problem.answer for problem in load_problems(source)] == ["72", "10"]
    held_out = DataSource(str(folder), answer_pattern=r"####\s*(.+)", split="test")
    assert [problem.answer for problem in load_problems(held_out)] == ["10"]


@pytest.mark.usefixtures("datasets")
def test_a_subset_of_a_folder_is_read_as_its_card_declares_it(tmp_path) -> None:
    folder = tmp_path / "copy"
    write_parquet(folder / "main" / "train-0.parquet", GSM8K_ROWS)
    write_parquet(folder / "socratic" / "train-0.parquet", GSM8K_ROWS[1:])
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
        for name in ("main", "socratic")
    )
    (folder / "README.md").write_text(card + "---\n")
    for subset, num_problems in (("main", 2), ("socratic", 1)):
        source = DataSource(str(folder), answer_pattern=r"####\s*(.+)", subset=subset)
        assert len(load_problems(source)) == num_problems
    with pytest.raises(RuntimeError, match=r"The data set .*copy cannot be opened\. Reason: .*main.*socratic"):
        load_problems(DataSource(str(folder)))


@pytest.mark.parametrize("is_dict", [False, True])
def test_a_folder_that_was_saved_to_disk_is_read(tmp_path, datasets, is_dict) -> None:
    data_set = datasets.Dataset.from_list(MATH_ROWS)
    saved = datasets.DatasetDict({"train": data_set}) if is_dict else data_set
    saved.save_to_disk(tmp_path / "saved")
    source = DataSource(str(tmp_path / "saved"), question="problem", answer="solution", answer_pattern="boxed")
    assert load_problems(source)[1] == Problem(1, "Solve $x^2=4$.", r"\pm 2")


@pytest.mark.usefixtures("datasets")
def test_missing_columns_of_a_data_set_are_named_beside_those_there_are(tmp_path) -> None:
    folder = tmp_path / "math"
    write_parquet(folder / "train.parquet", MATH_ROWS)
    with pytest.raises(ValueError, match=r"math row 0 lacks 'question', 'answer'; its columns are 'problem', 'level'"):
        load_problems(str(folder))


@pytest.mark.usefixtures("datasets")
def test_a_hub_id_without_network_says_how_to_go_on_without_it() -> None:
    with pytest.raises(RuntimeError) as refused:
        load_problems("gsm8k:test")
    sentence = str(refused.value)
    assert "The data set openai/gsm8k (test) cannot be opened. It is not a local folder" in sentence
    mapping = r'{path: FOLDER_OR_FILE, answer_pattern: "####\\s*(.+)", split: "test", subset: "main"}'
    assert f"without network, copy it here and write {mapping} in its place." in sentence


@pytest.mark.usefixtures("datasets")
def test_the_mapping_that_the_sentence_shows_is_the_presets_own(tmp_path) -> None:
    folder = tmp_path / "main"
    write_parquet(folder / "test.parquet", GSM8K_ROWS)
    with pytest.raises(RuntimeError) as refused:
        load_problems("gsm8k:test")
    shown = "{" + str(refused.value).split("{")[1].split("}")[0] + "}"
    mapping = yaml.safe_load(shown.replace("FOLDER_OR_FILE", str(folder)))
    assert DataSource(**mapping | {"path": "openai/gsm8k"}) == PRESETS["gsm8k:test"]


def test_the_extra_is_named_when_it_is_not_installed(tmp_path, monkeypatch) -> None:
    for module in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for path in ("openai/gsm8k", str(tmp_path), str(tmp_path / "a.parquet")):
        with pytest.raises(ModuleNotFoundError, match=r"needs the package datasets.*'relay-lightning\[data\]'"):
            load_problems(path)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (DataSource("nope.jsonl"), r"The data file nope\.jsonl does not exist\.$"),
        (DataSource("/no/where"), r"The data file /no/where does not exist\.$"),
        (
            DataSource("gsm8k"),
            r"gsm8k does not exist\. Data sets with a name are tiny:train, .*gsm8k:test, math:",
        ),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(source, sentence) -> None:
    with pytest.raises(FileNotFoundError, match=sentence):
        load_problems(source)


def test_a_file_has_no_splits(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl is a file; only folders .* have split, subset and revision"):
        load_problems(DataSource(str(path), split="test"))


def test_a_damaged_parquet_file_is_named(tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        load_problems(str(tmp_path / "a.parquet"))
