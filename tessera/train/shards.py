"""Sharded tensors made whole, and whole ones sharded. Plain tensors pass through."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded over processes. A collective call where it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """`tensor`, which every process holds whole, sharded as `pattern` is. No communication."""
    tensor = tensor.to(pattern.device)
    if not isinstance(pattern, DTensor):
        return tensor
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)
