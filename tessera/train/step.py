"""One step: its gradients, every loss divided by its count over all accumulated batches of all processes, and the
update."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tessera.errors import UserError
from tessera.train.optim import Optimiser
from tessera.train.parallel import synchronised, total
from tessera.train.shards import full
from tessera.train.stage import Objective, Stage, Terms

LISTENED = (signal.SIGTERM, signal.SIGINT)


class StepModule(nn.Module):
    """Model and objective as one module: wrappers see one forward pass, however the objective uses the
    model."""

    def __init__(self, model: nn.Module, objective: Objective, bf16: bool, touch: bool = False):
        super().__init__()
        self.model, self.objective, self.bf16, self.touch = model, objective, bf16, touch

    def forward(self, batch: Any) -> Terms:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            terms = self.objective(self.model, batch)
        return self._touched(terms) if self.touch and torch.is_grad_enabled() else terms

    def _touched(self, terms: Terms) -> Terms:
        """`terms` with a zero from each parameter that is whole here: a process whose batch leaves one out
        must still take part in the exchange of its gradient."""
        whole = [p for p in self.model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        zero = sum(p.flatten()[:1].sum().float() * 0 for p in whole)
        first = min(name for name in terms if terms[name][0].requires_grad)
        return {**terms, first: (terms[first][0] + zero, *terms[first][1:])}


@dataclass(frozen=True)
class Outcome:
    """A step's losses (means over its targets, all processes), and what else all processes agreed on.

    Args:
        loss: the weighted sum of `losses`.
        empty: batches, of all processes, without a single target.
        interrupt: signal that some process received, or 0.
        sums: [batches, losses] of this process.
    """

    loss: float
    losses: dict[str, float]
    empty: int
    interrupt: int
    sums: Tensor

    def bad_batches(self) -> list[int]:
        """Batches of this process with a loss that is not finite."""
        return (~torch.isfinite(self.sums).all(dim=1)).nonzero().flatten().tolist()


def _numbers(values: list[Any], device: torch.device) -> Tensor:
    # Counts and sums go up to billions in a large step, beyond what float32 counts exactly.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([torch.as_tensor(value, device=device).detach().to(dtype).reshape(()) for value in values])


def _count_vector(counts: Mapping[str, Any], names: tuple[str, ...], device: torch.device) -> Tensor:
    """Counts in the order of `names`, and a last 1 where all are zero."""
    vector = _numbers([counts[name] for name in names], device)
    return torch.cat([vector, (vector.sum() == 0).to(vector.dtype).reshape(1)])


def _check_names(found: Mapping[str, Any], names: tuple[str, ...], stage: Stage) -> None:
    if set(found) != set(names):
        raise UserError(
            f"the objective of stage {stage.name!r} gave the losses {sorted(found)} and {sorted(names)};"
            " every call must give the same, with a zero on the graph and count 0 where a batch has no target"
        )


def _counts_ahead(module: nn.Module, stage: Stage, batches: list[Any], device: torch.device) -> dict[str, Any]:
    found: list[Mapping[str, Any]] = []
    for batch in batches:
        if stage.counts is not None:
            found.append(stage.counts(batch))
        else:
            with torch.no_grad():
                found.append({name: term[1] for name, term in module(batch).items()})
        _check_names(found[-1], tuple(found[0]), stage)
    names = tuple(sorted(found[0]))
    return {
        "names": names,
        "vector": torch.stack([_count_vector(one, names, device) for one in found]).sum(0),
    }


def gradients(accelerator: Accelerator, module: nn.Module, stage: Stage, batches: list[Any], received: int) -> Outcome:
    """Add the gradients of one step to the parameters of `module`, a prepared `StepModule`.

    Args:
        received: the signal that this process received, or 0.

    Raises:
        UserError: an objective whose losses change their names, or have no gradient.
    """
    device = accelerator.device
    names: tuple[str, ...] = ()
    totals: Tensor | None = None
    if len(batches) > 1 or stage.counts is not None:
        ahead = _counts_ahead(module, stage, batches, device)
        names, totals = ahead["names"], total(accelerator, ahead["vector"])
    sums: list[Tensor] = []
    weights: list[float] = []
    for index, batch in enumerate(batches):
        with synchronised(module, now=index == len(batches) - 1):
            terms = module(batch)
            names = names or tuple(sorted(terms))
            _check_names(terms, names, stage)
            if totals is None:
                totals = total(accelerator, _count_vector({n: terms[n][1] for n in names}, names, device))
            weights = _weights(terms, names, stage)
            _backward(terms, names, weights, totals, accelerator.num_processes, stage)
            sums.append(_numbers([terms[name][0] for name in names], device))
    assert totals is not None
    return _outcome(accelerator, names, torch.stack(sums), totals, weights, received)


def norm_of_gradient(model: nn.Module) -> Tensor:
    """Of all parameters that have a gradient, in whole where they are sharded."""
    return full(get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def update(
    model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], chosen: Optimiser, rate: float, norm: Tensor
) -> None:
    """Clip the gradients, whose norm is known, take a step at `rate` of the highest learning rates, and clear them."""
    if chosen.clip is not None:
        clip_grads_with_norm_([p for p in model.parameters() if p.grad is not None], chosen.clip, norm)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def _weights(terms: Terms, names: tuple[str, ...], stage: Stage) -> list[float]:
    own = {name: term[2] if len(term) > 2 else 1.0 for name, term in terms.items()}
    return [float(stage.weights.get(name, own[name])) for name in names]


def _backward(
    terms: Terms, names: tuple[str, ...], weights: list[float], totals: Tensor, processes: int, stage: Stage
) -> None:
    scales = processes / totals[:-1].clamp(min=1)  # times processes: DDP and FSDP take the mean over them
    parts = [
        terms[name][0].float().reshape(()) * (weight * scale).float()
        for name, weight, scale in zip(names, weights, scales, strict=True)
        if terms[name][0].requires_grad
    ]
    if not parts:
        raise UserError(f"no loss of stage {stage.name!r} depends on a trainable parameter; see its trainable patterns")
    torch.stack(parts).sum().backward()


def _outcome(
    accelerator: Accelerator,
    names: tuple[str, ...],
    sums: Tensor,
    totals: Tensor,
    weights: list[float],
    received: int,
) -> Outcome:
    """Everything the host needs of a step, in one transfer."""
    flags = _numbers([received == number for number in LISTENED], accelerator.device)
    report = total(accelerator, torch.cat([sums.sum(0), flags]))
    means = report[: len(names)] / totals[:-1].clamp(min=1)
    *values, terminated, interrupted, empty = torch.cat([means, report[len(names) :], totals[-1:]]).tolist()
    loss = math.fsum(weight * value for weight, value in zip(weights, values, strict=True) if weight)
    signals = [number for number, flag in zip(LISTENED, (terminated, interrupted), strict=True) if flag]
    return Outcome(loss, dict(zip(names, values, strict=True)), int(empty), int(signals[0]) if signals else 0, sums)
