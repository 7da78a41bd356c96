"""The Lightning shells: warm-up and GRPO."""
