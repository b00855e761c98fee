"""What one process and many share: joining the group, sums over all processes, a lost one."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from tessera.errors import TesseraError, TrainingStopped, UserError


def open_accelerator(device: str) -> Accelerator:
    """Join the process group that the launcher set up, or stand alone.

    Collectives give up after 10 minutes, or TESSERA_TIMEOUT seconds: a lost process ends the run, never hangs
    it. Parameters that a process did not touch in a step get zero gradients, so text-only batches on one
    process are fine under DDP. Mixed precision belongs to the engine, hence "no" here.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: an unknown device, or "cuda" where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}; known are 'auto', 'cpu' and 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device 'cuda' was asked for, but PyTorch sees no CUDA device; use device 'cpu' or 'auto'"
        )
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # an earlier run may have chosen another device
        PartialState._reset_state()
    timeout = timedelta(seconds=float(os.environ.get("TESSERA_TIMEOUT", 600)))
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timeout),
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ],
    )


def launch_note() -> str | None:
    """A sentence where a launcher was asked for several processes but started one, else None."""
    if "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        return (
            "a launcher set MASTER_ADDR but no RANK, so this run has one process"
            " (accelerate launch --cpu starts only one);"
            " for two on CPU use: accelerate launch --multi_gpu --num_processes 2"
        )
    return None


def together(accelerator: Accelerator, value: Any) -> list[Any]:
    """`value` of every process, in order of rank."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def total(accelerator: Accelerator, vector: Tensor) -> Tensor:
    """Sum of `vector` over all processes."""
    return accelerator.reduce(vector, "sum") if accelerator.num_processes > 1 else vector


def lost_process(error: BaseException) -> TesseraError | None:
    """The sentence for a collective that failed because another process is gone, else None."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "imed out", "Broken pipe", "NCCL")
    if not (torch.distributed.is_initialized() and any(sign in text for sign in signs)):
        return None
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return TrainingStopped(
        f"process {rank} of {world} lost touch with another one ({text.splitlines()[0][:200]});"
        " see the launcher's report for the first that ended; start again with --resume"
    )
