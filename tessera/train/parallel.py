"""What one process and many share: joining the group, sums over all processes, a lost one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tessera.errors import TesseraError, TrainingStopped, UserError


def open_accelerator(device: str) -> Accelerator:
    """Join the process group that the launcher set up, or stand alone.

    Collectives give up after 10 minutes, or TESSERA_TIMEOUT seconds: a lost process ends the run, never hangs
    it. Mixed precision belongs to the engine, hence "no" here.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: an unknown device, or "cuda" where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}; known are 'auto', 'cpu' and 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but PyTorch sees no CUDA device; use device 'cpu' or 'auto'")
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run may have chosen another device
        PartialState._reset_state()
    timeout = timedelta(seconds=float(os.environ.get("TESSERA_TIMEOUT", 600)))
    alone = device == "auto" and not torch.accelerator.is_available()
    return Accelerator(
        cpu=device == "cpu" or alone,  # without this word Accelerate leaves each process on a CPU to itself
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
    )


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP2.

    Accelerate itself drops the wish on CPU without a word, so the engine takes the process group and the wish
    from the launcher and shards by torch's `fully_shard`.

    Raises:
        UserError: FSDP 1 was asked for.
    """
    if accelerator.num_processes == 1 or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("only FSDP 2 is supported; add --fsdp_version 2 to accelerate launch")
    return True


def wrap(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """`module` on its device, in DDP, or sharded in place under FSDP2; as it is for one process.

    Under DDP a process may leave parameters out of a step: it gives them a zero gradient. FSDP2 units are the blocks
    that the parts' `_no_split_modules` name, and the rest as one.

    Raises:
        UserError: a trainable scalar, which FSDP2 cannot shard; a codebook that is written in training, which it would
            undo.
    """
    device = accelerator.device
    if accelerator.num_processes == 1:
        return module.to(device)
    if not is_sharded(accelerator):
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(module.to(device), device_ids=devices, find_unused_parameters=True)
    scalars = {name: p for name, p in module.named_parameters() if p.ndim == 0}
    trained = [name for name, p in scalars.items() if p.requires_grad]
    if trained:
        raise UserError(f"FSDP2 cannot shard the scalar {trained[0]}; give it shape [1], freeze it, or use DDP")
    written = [name for name, part in module.named_modules() if part.training and getattr(part, "writes_codes", False)]
    if written:
        raise UserError(
            f"FSDP2 would undo what {written[0]} writes into its codes (running means, restarts); use DDP, or codes"
            " that the loss alone moves (update=loss, restart=0)"
        )
    mesh = init_device_mesh(device.type, (accelerator.num_processes,))
    blocks = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    for part in reversed(list(module.modules())):
        if type(part).__name__ in blocks and part is not module:
            fully_shard(part, mesh=mesh, ignored_params=set(scalars.values()))
    fully_shard(module, mesh=mesh, ignored_params=set(scalars.values()))
    return module


@contextmanager
def synchronised(module: nn.Module, now: bool) -> Iterator[None]:
    """Gradients of the backward pass inside go to all processes only if `now`."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
        yield
    elif isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
    else:
        yield


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
