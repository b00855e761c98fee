"""What goes wrong in a step, said in one sentence: numbers that are none, no memory, no target, a signal."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import TesseraError, TrainingStopped


class Interrupted(TrainingStopped):
    """A signal ended the run after a checkpoint. `exit_code` is 143 for SIGTERM and 130 for SIGINT."""

    def __init__(self, number: int, where: str):
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after a checkpoint at {where}; run the same command with --resume to go on"
        )
        self.exit_code = 128 + number


class Signals:
    """While entered, notes the first SIGTERM or SIGINT in `number`; a second one acts as it did before."""

    WATCHED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def sample_ids(batches: Iterable[Any]) -> list[str]:
    """The ids in `batches`: `sample_ids` of each, as a field or an attribute, flat or a list a row."""
    found: list[str] = []
    for batch in batches:
        ids = batch.get("sample_ids") if isinstance(batch, Mapping) else getattr(batch, "sample_ids", None)
        for row in ids or ():
            found.extend([row] if isinstance(row, str) else [str(one) for one in row])
    return found


def name_ids(ids: list[str]) -> str:
    """The first ids and how many more there are."""
    if not ids:
        return "samples without ids"
    more = f" and {len(ids) - 16} more" if len(ids) > 16 else ""
    return f"samples {', '.join(ids[:16])}{more}"


def sizes(batch: Any) -> str:
    """Shapes of the tensors in a batch, for messages."""
    items = batch if isinstance(batch, Mapping) else getattr(batch, "__dict__", {})
    shapes = [f"{key} {list(value.shape)}" for key, value in items.items() if isinstance(value, Tensor)]
    return ", ".join(shapes) or type(batch).__name__


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(_finite(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return all(_finite(one) for one in value)
    return not isinstance(value, float) or math.isfinite(value)


def first_bad_module(model: nn.Module, forward: Callable[[], object]) -> str:
    """Where numbers stop being finite: a parameter, else the first module to end with such an output in
    `forward`, else a gradient."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name} is not finite"
    bad: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not bad and not _finite(output):
                bad.append(f"the first module with an output that is not finite is {name} ({type(module).__name__})")

        return hook

    hooks = [module.register_forward_hook(watch(name or "the model")) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in hooks:
            handle.remove()
    if not bad:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not _finite(parameter.grad):
                return f"all outputs are finite; the first gradient that is not is that of {name}"
    return bad[0] if bad else "all module outputs are finite; the loss itself is not"


def out_of_memory(error: BaseException, batch: Any, accumulate: int) -> TesseraError | None:
    """The sentence for an error that means "no memory left", else None."""
    signs = ("out of memory", "DefaultCPUAllocator", "can't allocate memory")
    if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
        return None
    return TrainingStopped(
        f"out of memory in a step of {accumulate} batch(es) with {sizes(batch)}; try one of: a smaller batch"
        f" with accumulate={2 * accumulate} (the same maths), activation_checkpointing=True, shorter rows or"
        " smaller images"
    )
