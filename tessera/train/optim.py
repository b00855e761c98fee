"""Optimisers: Muon on the hidden matrices, AdamW on everything else; warm-up and cosine; an average of the
weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.train.bert_adam import BertAdam, linear_rate
from tessera.train.shards import full, like

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # slope at zero made steep (Jordan et al. 2024, "Muon")


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of `matrices` [n, rows, columns] towards 1 by a quintic Newton-Schulz
    iteration."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024). Matrices of one shape are iterated as one batch;
    convolution kernels [out, in, h, w] count as [out, in*h*w].

    `torch.optim.Muon` iterates in bfloat16, four times slower than float32 on processors without bf16 units,
    one matrix at a time, and takes no kernels; hence this one.

    Args:
        parameters: tensors with two or more dimensions.
        dtype: of the iteration; bfloat16 only where the hardware multiplies it fast.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict], lr: float = 0.02,
        momentum: float = 0.95, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[0], parameter.numel() // parameter.shape[0]].append(parameter)
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
            look_ahead = parameter.grad.lerp(state["momentum_buffer"], group["momentum"])
            looks_ahead.append(full(look_ahead).flatten(1))  # sharded matrices are iterated whole
        stacked = torch.stack(looks_ahead).to(self.dtype)
        updates = orthogonalise(stacked).to(parameters[0].dtype)
        rows, columns = updates.shape[-2:]
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(like(update.view(parameter.shape), parameter), alpha=-scale)


def is_matrix(parameter: Tensor) -> bool:
    """Whether two or more of its sides are longer than 1: a class token of shape [1, 1, C] is a vector."""
    return sum(side > 1 for side in parameter.shape) >= 2


def split_for_muon(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (hidden matrices, the rest): embeddings, norms and biases are the rest, and what says so.

    A module says that its matrices are no hidden ones by the attribute `no_muon = True`. Heads that do not, as the
    output heads of transformers' language models, are hidden matrices like any other.
    """
    rest = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or getattr(module, "no_muon", False)
        for parameter in module.parameters()
    }
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (hidden if is_matrix(parameter) and id(parameter) not in rest else other).append(parameter)
    return hidden, other


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How weights are updated.

    Args:
        kind: "adamw"; "muon" for Muon on the hidden matrices and AdamW on the rest; "bertadam", BERT's Adam with its
            own schedule, straight lines up and down, and decay on every parameter; or "sgd", whose momentum is the
            first of `betas` and whose decay, on every parameter, is part of the gradient.
        lr: highest learning rate of all but Muon.
        muon_lr: highest learning rate of Muon, about that of the update's spectral norm.
        weight_decay: decoupled, on matrices and kernels, not on vectors.
        warmup: share of the stage's steps over which the rate climbs from zero.
        floor: share of the highest rate that is left at the last step of the cosine.
        clip: highest norm of the whole gradient; None never clips.
        factors: parameter name pattern -> factor on the rate; the first pattern that fits counts.
    """

    kind: Literal["adamw", "muon", "bertadam", "sgd"] = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: float = 0.05
    floor: float = 0.02
    clip: float | None = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon", "bertadam", "sgd"):
            raise UserError(f"unknown optimiser {self.kind!r}; known are 'adamw', 'bertadam', 'muon' and 'sgd'")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup is a share of the steps in [0, 1), not {self.warmup}")

    def rate(self, step: int, steps: int) -> float:
        """Share of the highest learning rate at `step` (0-based) of `steps`: linear warm-up, then half a
        cosine."""
        if self.kind == "bertadam":
            return linear_rate(step, steps, self.warmup)
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        through = (step - warm) / max(steps - warm, 1)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * through))

    def build(self, model: nn.Module, bf16: bool = False) -> list[torch.optim.Optimizer]:
        """The optimisers of the trainable parameters of `model`; `bf16` lets Muon iterate in bfloat16."""
        hidden, rest = split_for_muon(model)
        if self.kind != "muon":
            hidden, rest = [], [parameter for parameter in model.parameters() if parameter.requires_grad]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        built: list[torch.optim.Optimizer] = []
        if rest:
            groups = self._groups(rest, names, self.lr)
            if self.kind == "bertadam":
                return [BertAdam(groups, lr=self.lr, betas=self.betas)]
            if self.kind == "sgd":
                return [torch.optim.SGD(groups, lr=self.lr, momentum=self.betas[0])]
            fused = all(parameter.device.type in ("cpu", "cuda") for parameter in rest)
            built.append(torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=fused))
        if hidden:
            dtype = torch.bfloat16 if bf16 else torch.float32
            built.append(Muon(self._groups(hidden, names, self.muon_lr), lr=self.muon_lr, dtype=dtype))
        return built

    def _groups(self, parameters: list[nn.Parameter], names: dict[int, str], lr: float) -> list[dict]:
        groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            name = names[id(parameter)]
            factor = next((f for pattern, f in self.factors.items() if fnmatchcase(name, pattern)), 1.0)
            groups[factor, is_matrix(parameter) or self.kind in ("bertadam", "sgd")].append(parameter)
        return [
            {"params": members, "lr": lr * factor, "initial_lr": lr * factor,
             "weight_decay": self.weight_decay if decays else 0.0}
            for (factor, decays), members in groups.items()
        ]  # fmt: skip


class Average:
    """Running mean of the trainable weights: `decay` of the old and the rest of the new after every step."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` as they are now."""
        for name, parameter in model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter, 1 - self.decay)

    def whole(self) -> dict[str, Tensor]:
        """The averages by parameter name, whole and on the CPU."""
        return {name: full(tensor).to("cpu", copy=True).contiguous() for name, tensor in self.weights.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the averages of `whole` back."""
        for name, tensor in tensors.items():
            self.weights[name].copy_(like(tensor, self.weights[name]))
