"""Optimisers: Muon on the hidden matrices, AdamW on everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # slope at zero made steep (Jordan et al. 2024, "Muon")


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of `matrices` [n, rows, columns] towards 1 by a quintic Newton-Schulz iteration."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024). Matrices of one shape are iterated as one batch; convolution
    kernels [out, in, h, w] count as [out, in*h*w].

    `torch.optim.Muon` iterates in bfloat16, four times slower than float32 on processors without bf16 units, one
    matrix at a time, and takes no kernels; hence this one.

    Args:
        parameters: tensors with two or more dimensions.
        dtype: of the iteration; bfloat16 only where the hardware multiplies it fast.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95,
        weight_decay: float = 0.0, dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.flatten(1).shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict) -> None:
        looks_ahead = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            looks_ahead.append(parameter.grad.lerp(state["momentum_buffer"], group["momentum"]).flatten(1))
        stacked = torch.stack(looks_ahead).to(self.dtype)
        updates = orthogonalise(stacked).to(parameters[0].dtype)
        rows, columns = updates.shape[-2:]
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-scale)


def split_for_muon(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (hidden matrices, the rest): embeddings, norms, biases and output heads are the rest.

    A module says that its matrices are no hidden ones by the attribute `no_muon = True`.
    """
    rest = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or getattr(module, "no_muon", False)
        for parameter in module.parameters()
    }
    hidden, other = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (hidden if parameter.ndim >= 2 and id(parameter) not in rest else other).append(parameter)
    return hidden, other
