"""What a recipe hands to the engine: stages, their loaders and objectives, and callbacks.

An objective is a function `(model, batch) -> {name: (sum, count)}` or `{name: (sum, count, weight)}`: the sum
of a loss over the targets of this batch, on the graph, and how many targets that were. The engine divides by
the count of the whole step (all accumulated batches of all processes), so accumulation and several processes
equal the one large batch. The rules:

- the same names at every call and on every process; a batch without targets of a kind gives (a zero on the
  graph, 0);
- under FSDP2 every process calls every separately wrapped module in every batch (with a dummy input, times
  zero, where it has none), since its forward gathers shards from all; under DDP a process may leave modules
  out;
- what is only to be logged has weight 0;
- the model is called in any way that suits: methods and parts as well as forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from tessera.errors import UserError
from tessera.train.optim import Optimiser

Terms = Mapping[str, "tuple[Tensor, int | Tensor] | tuple[Tensor, int | Tensor, float]"]
Objective = Callable[[nn.Module, Any], Terms]


class Loader(Protocol):
    """Batches without end, epoch after epoch, already sliced for this process.

    A batch has `.to(device)` or is a mapping of tensors; `sample_ids` in it (flat, or a list a row) names its
    samples.
    """

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts, as JSON values: what was handed out counts, not what was read
        ahead."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...

    @property
    def fingerprint(self) -> str | Callable[[], str]:
        """Hash of what the data are: a text, or a method that gives it."""
        ...


def fingerprint(loader: Loader) -> str:
    """The fingerprint of a loader's data."""
    found = loader.fingerprint
    return found() if callable(found) else found


@dataclass(kw_only=True)
class Stage:
    """One part of a recipe: what is trained, on what, for how long.

    Args:
        objective: `(model, batch) -> {name: (sum, count[, weight])}`; see the head of this file.
        loader: see `Loader`.
        steps: updates, each over `accumulate` batches a process.
        trainable: name patterns (glob, "re:..." or "!..." to take out); see `select.set_trainable`.
        weights: factor on each named loss; wins over the objective's own.
        counts: `batch -> {name: count}`, every name that the objective gives. With accumulation the counts of all
            batches are needed before the first backward pass; without this they cost an extra forward pass.
        average: decay of a running mean of the weights, which becomes the result of the stage; None for none.
        activation_checkpointing: recompute activations in the backward pass.
    """

    name: str
    model: nn.Module
    objective: Objective
    loader: Loader
    steps: int
    optimiser: Optimiser = field(default_factory=Optimiser)
    trainable: Sequence[str] = ("*",)
    accumulate: int = 1
    weights: Mapping[str, float] = field(default_factory=dict)
    counts: Callable[[Any], Mapping[str, int]] | None = None
    average: float | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            given = f"steps {self.steps} and accumulate {self.accumulate}"
            raise UserError(f"stage {self.name!r} has {given}; both are at least 1")
        if not self.name or "/" in self.name:
            raise UserError(f"a stage's name is a part of a file name, not {self.name!r}")

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share: everything that changes the maths."""
        return {
            "name": self.name, "steps": self.steps, "accumulate": self.accumulate, "average": self.average,
            "trainable": list(self.trainable), "weights": dict(self.weights),
            "optimiser": asdict(self.optimiser),
        }  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What a callback is told. `model` is in evaluation mode; `note` prints a line beside the progress
    bar."""

    stage: Stage
    step: int
    model: nn.Module
    note: Callable[[str], None]


@dataclass(frozen=True)
class Callback:
    """Calls `function(event)` after every `every` steps of the run, on the main process. Its random draws
    leave the run's generators as they were. Not called under FSDP2, where a forward pass needs all
    processes."""

    every: int
    function: Callable[[Event], None]
