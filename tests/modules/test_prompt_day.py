"""A run keeps the date that its chat template writes: a resumed run trains on the same prompts on another day."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from relay_lightning.models.settings import LoadSettings
from relay_lightning.tiny.tokenizer import CHAT_TEMPLATE

DATED = "{{ '<|im_start|>system\\n' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}" + CHAT_TEMPLATE


@pytest.fixture
def set_today(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves the calendar's today."""

    def move(day: datetime.date) -> None:
        class Date(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return day

        for module in ("data.chat_template", "modules.base"):
            monkeypatch.setattr(f"relay_lightning.{module}.date", Date)

    return move


@pytest.mark.parametrize("has_bridge", [False, True])
def test_a_run_resumed_on_a_later_day_reads_the_prompts_of_its_first_day(
    small_pair, byte_teacher, make_module, make_data, make_trainer, set_today, tmp_path: Path, has_bridge
) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text(DATED)
    loading = LoadSettings(chat_template=str(template))
    teacher = byte_teacher if has_bridge else small_pair.teacher

    def run(saves: Path, max_steps: int, ckpt_path: Path | None = None) -> Any:
        module = make_module(teacher=teacher, student_loading=loading, teacher_loading=loading, max_completion_tokens=6)
        trainer = make_trainer(max_steps, saves=saves)
        trainer.fit(module, make_data(num_train_problems=None), ckpt_path=ckpt_path, weights_only=True)
        checkpoint = torch.load(saves / f"step={max_steps}.ckpt", weights_only=True)
        return module, checkpoint["state_dict"]

    set_today(datetime.date(2026, 11, 25))
    _, whole = run(tmp_path / "whole", 2)
    set_today(datetime.date(2026, 12, 3))
    module, resumed = run(tmp_path / "resumed", 2, tmp_path / "whole" / "step=1.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    [prompt] = module.build_prompts(make_problem())
    assert "25 Nov 2026" in prompt.text
    if has_bridge:
        read = module._teacher_tokenizer.decode(module.engine.bridge.encode_prompt(prompt))
        assert "25 Nov 2026" in read
    new_run = make_module(student_loading=loading)
    assert new_run.prompt_day == datetime.date(2026, 12, 3)


def make_problem() -> list[Any]:
    from relay_lightning.data.records import Problem

    return [Problem(0, "How many kebu?", "1")]
