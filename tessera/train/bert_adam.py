"""The optimiser of BERT's official code (Devlin et al. 2019), which LXMERT takes over: Adam that is never corrected for
its start, with decay on every parameter, and a rate that climbs and falls along straight lines."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class BertAdam(torch.optim.Optimizer):
    """w -= lr * (m / (sqrt(v) + eps) + decay * w), with m and v as running means that start at zero.

    Without correction the first step is (1 - b1) / sqrt(1 - b2), about 3.16 times that of Adam.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict], lr: float, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6, weight_decay: float = 0.01,
    ):  # fmt: skip
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            for parameter in weights:
                if not self.state[parameter]:
                    self.state[parameter] |= {
                        "mean": torch.zeros_like(parameter),
                        "square": torch.zeros_like(parameter),
                    }
            grads = [parameter.grad for parameter in weights]
            means, squares = ([self.state[parameter][name] for parameter in weights] for name in ("mean", "square"))
            first, second = group["betas"]
            torch._foreach_lerp_(means, grads, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, grads, grads, 1 - second)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
            updates = torch._foreach_div(means, roots)
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
        return loss


def linear_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the highest rate at `step` (0-based): from 0 up to 1 at `warmup`, a share of the steps, then down to 0.

    The first step has rate 0: it only fills the running means.
    """
    done = step / steps
    return done / warmup if done < warmup else max((done - 1) / (warmup - 1), 0.0)
