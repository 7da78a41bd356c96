"""What the pictures show of results and runs."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
from benchmarks import plot
from benchmarks.plot_kernels import latest_panels
from benchmarks.plot_training import read_steps


def result(share, *, op="relay_step", gate="green", ceiling="copy", **contestants):
    shares = {"relay_kernels": share, **contestants}
    return {
        "benchmark": "kernels",
        "device": "a device",
        "op": op,
        "setting": "temperature only",
        "shape": {"B": 64, "V": 151_936},
        "is_full_shape": True,
        "gate": gate,
        "ceiling": ceiling,
        "contestants": {name: {"share_of_ceiling": value} for name, value in shares.items()},
    }


def test_last_green_result_of_each_op_is_shown_without_its_ceiling():
    rows = [
        {"benchmark": "relay_decode", "device": "a device"},
        result(0.5),
        result(0.7, reference=0.1),
        result(0.9, gate="red"),
        result(None, op="relay_advantages", ceiling=None),
        result(0.8, op="linear_log_probs", ceiling="bare GEMM", **{"bare GEMM": 1.0}),
    ]
    step, head = latest_panels(rows)
    assert step.values == pytest.approx({"relay_kernels": 70, "reference": 10})
    assert head.values == pytest.approx({"relay_kernels": 80})
    assert (step.unit, head.unit) == ("% of the copy bandwidth", "% of the bare GEMM")
    assert step.title == "relay_step, temperature only (B 64, V 151,936)"


def test_small_shapes_are_shown_by_their_time():
    row = result(4.0, ceiling=None) | {"is_full_shape": False, "contestants": {"relay_kernels": {"p50_s": 2e-6}}}
    assert not latest_panels([row | {"backend": "reference"}])
    [panel] = latest_panels([row | {"backend": "native"}])
    assert (panel.unit, panel.values, panel.is_share) == ("us", {"relay_kernels": 2.0}, False)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
    plot.main()


def test_pictures_are_written_with_their_figures(monkeypatch, tmp_path):
    results = tmp_path / "device.jsonl"
    results.write_text(json.dumps(result(0.734, reference=0.1)) + "\n")
    run(monkeypatch, "kernels", results, tmp_path / "new" / "kernels.svg")
    assert "73.4" in (tmp_path / "new" / "kernels.svg").read_text()
    row = {"step": 3, "is_correct": True, "token_ids": [1, 2], "call_ratio": 0.5}
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    run(monkeypatch, "training", tmp_path, tmp_path / "training.svg")
    assert (tmp_path / "training.svg").stat().st_size > 0
    [step] = read_steps([tmp_path / "rollouts.jsonl"])
    assert (step.step, step.accuracy, step.call_ratio) == (3, 1.0, 0.5)


@pytest.mark.parametrize("picture", ["training", "kernels"])
def test_source_is_named_when_it_has_nothing_to_show(monkeypatch, tmp_path, capsys, picture):
    source = tmp_path / "empty"
    source.mkdir() if picture == "training" else source.touch()
    with pytest.raises(SystemExit):
        run(monkeypatch, picture, source, tmp_path / "x.png")
    assert str(source) in capsys.readouterr().err


def test_a_half_written_rollout_is_skipped(tmp_path):
    row = json.dumps({"step": 3, "is_correct": True, "token_ids": [], "call_ratio": 0.0})
    (tmp_path / "rollouts.jsonl").write_bytes(f"{row}\n".encode() + b'{"step": 4, "text": "\xc3')
    [step] = read_steps([tmp_path / "rollouts.jsonl"])
    assert (step.step, step.accuracy, step.call_ratio) == (3, 1.0, 0.0)


@pytest.mark.parametrize("damage", [b"\xff\n", b"{\n", b"{}\n", b"5\n"])
@pytest.mark.parametrize(("picture", "source"), [("training", "rollouts.jsonl"), ("kernels", "device.jsonl")])
def test_a_damaged_source_is_named_and_no_picture_left(monkeypatch, tmp_path, capsys, picture, source, damage):
    (tmp_path / source).write_bytes(damage)
    with pytest.raises(SystemExit):
        run(monkeypatch, picture, tmp_path if picture == "training" else tmp_path / source, tmp_path / "x.svg")
    assert source in capsys.readouterr().err
    assert not (tmp_path / "x.svg").exists()


def test_a_damaged_summary_and_an_unknown_format_are_named(monkeypatch, tmp_path, capsys):
    row = {"step": 3, "is_correct": True, "token_ids": [1, 2], "call_ratio": 0.5}
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit):
        run(monkeypatch, "training", tmp_path, tmp_path / "x.nonsense")
    assert "nonsense" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(SystemExit):
        run(monkeypatch, "training", tmp_path, tmp_path / "x.svg")
    assert "summary.json" in capsys.readouterr().err
