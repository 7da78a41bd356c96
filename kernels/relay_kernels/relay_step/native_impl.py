"""The relay step in the native library: `kernels/csrc/relay_step.cc`, on CPU and CUDA tensors."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter

import torch

from relay_kernels.backends import on_device
from relay_kernels.native import run_native
from relay_kernels.relay_step.commands import CommandTable
from relay_kernels.relay_step.inputs import RelayStepInputs
from relay_kernels.relay_step.state import RelayStepState

REFUSED = "eos_token_ids is not int64, or on a CUDA device the vocabulary has more than 1,048,576 tokens"
"""What it means when the library refuses a call whose arguments are good; it has then written nothing."""

_tensors_of_state = attrgetter(*(field.name for field in fields(RelayStepState) if field.name != "num_arrived"))
_tensors_of_table = attrgetter(*(field.name for field in fields(CommandTable)))
_NO_TABLE = (None,) * len(fields(CommandTable))


def relay_step_native(inputs: RelayStepInputs) -> bool:
    """`relay_step`, in place; False, and nothing done, where the library refuses the arguments."""
    table = inputs.command_table
    with on_device(inputs.logits):
        return run_native(
            "relay_step",
            inputs.logits,
            inputs.rows,
            int(inputs.writer),
            *_tensors_of_state(inputs.state),  # The library takes them in the order of the record's fields.
            *(_NO_TABLE if table is None else _tensors_of_table(table)),
            inputs.eos_token_ids,
            inputs.truncates,
            torch.get_num_threads(),
        )
