"""What training minimises: pure tensor functions, one copy of each formula. Definitions: docs/numerics.md."""

from relay_lightning.objectives.advantages import group_advantages
from relay_lightning.objectives.grpo import LossOutput, grpo_loss
from relay_lightning.objectives.sft import sft_loss

__all__ = ["LossOutput", "group_advantages", "grpo_loss", "sft_loss"]
