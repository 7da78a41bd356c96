"""Keys and values have memory while completions are decoded, and at no other time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback

from relay_lightning.relay.engine import RelayEngine


def kv_bytes(engine: RelayEngine) -> int:
    """Bytes of keys and values of student and teacher."""
    caches = [engine._runner.cache] + ([engine.teacher.runner.cache] if engine.teacher else [])
    return sum(cache.num_bytes for cache in caches)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of keys and values at the end of every `generate`."""
    sizes: list[int] = []
    original = RelayEngine.generate

    def generate(self: RelayEngine, *arguments: Any, **options: Any) -> Any:
        try:
            return original(self, *arguments, **options)
        finally:
            sizes.append(kv_bytes(self))

    monkeypatch.setattr(RelayEngine, "generate", generate)
    yield sizes
    assert sizes
    assert all(sizes)


def test_nothing_is_held_in_updates_and_behind_evaluations(
    make_module: Any, make_data: Any, make_trainer: Any, decoded: list[int]
) -> None:
    sizes: dict[str, set[int]] = {}

    def note(moment: str, module: LightningModule) -> None:
        sizes.setdefault(moment, set()).add(kv_bytes(module.engine))

    watch = LambdaCallback(
        on_before_optimizer_step=lambda _, module, optimizer: note("update", module),  # noqa: ARG005
        on_validation_end=lambda _, module: note("validation", module),
        on_test_end=lambda _, module: note("test", module),
        on_predict_end=lambda _, module: note("predict", module),
    )
    trainer = make_trainer(2, callbacks=[watch], limit_val_batches=1.0, val_check_interval=1)
    module, data = make_module(dynamic_sampling=1), make_data()
    trainer.fit(module, data)
    trainer.test(module, data)
    trainer.predict(module, data)
    assert sizes == {moment: {0} for moment in ("update", "validation", "test", "predict")}
    assert len(decoded) >= 2 + 2 + 1 + 1
