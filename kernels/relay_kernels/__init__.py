"""Operators of the relay: one folder per op, each with a plain PyTorch reference that defines it."""
