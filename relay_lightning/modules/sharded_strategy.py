"""ShardedStrategy: weights, gradients and optimiser state of the student spread over all processes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from typing_extensions import override


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` with every process in the data-parallel group: `trainer.strategy: fsdp2`.

    `RelayModule.configure_model` shards the student over its mesh. A checkpoint is one file with the whole weights,
    as that of one process.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


NAME = "fsdp2"
LIGHTNINGS_NAME = "fsdp"
"""Of a strategy that shards with the first generation of FSDP, and cannot decode; a configuration means ours by it."""
StrategyRegistry.register(NAME, ShardedStrategy, description="Student spread over all processes by fully_shard")


def resolve_strategy(strategy: Any) -> Any:
    """What `trainer.strategy` of a configuration means: `fsdp` is `fsdp2`; all else is left to Lightning."""
    return NAME if strategy == LIGHTNINGS_NAME else strategy


def is_sharded(strategy: Any) -> bool:
    """Whether a strategy, or what a configuration calls it, spreads the student over processes."""
    return isinstance(strategy, ShardedStrategy) or resolve_strategy(strategy) == NAME


def require_supported(strategy: Strategy) -> None:
    """Raises ValueError for a strategy that shards the student in a way that it cannot be decoded."""
    is_other_sharding = isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, ShardedStrategy)
    if isinstance(strategy, FSDPStrategy) or is_other_sharding:
        raise ValueError(
            f"trainer.strategy is {type(strategy).__name__}, under which a student cannot decode between its updates; "
            "set trainer.strategy to fsdp2, which shards weights, gradients and optimiser state, or to ddp."
        )
