"""What goes wrong ends in one sentence that names it, and leaves the last checkpoint whole."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from tessera.errors import TrainingStopped, UserError
from tessera.train import checkpoint, faults, parallel
from tessera.train.engine import Callback, Event, Trainer
from tests.train.tiny import TinyLoader, metrics, tiny_model, tiny_stage


class Poisoned(TinyLoader):
    """An input that is not a number in the third batch."""

    def batch(self, chosen: Any) -> dict[str, Any]:
        batch = super().batch(chosen)
        if self.index == 12:
            batch["x"][1, 0] = float("nan")
            self.bad = batch["sample_ids"]
        return batch


def test_a_loss_that_is_nan_stops_before_the_update_and_names_step_samples_and_module(tmp_path: Path):
    loader, model = Poisoned(), tiny_model()
    before: list[torch.Tensor] = []

    def keep(event: Event) -> None:
        before[:] = [p.clone() for p in event.model.parameters()]

    trainer = Trainer(tmp_path, device="cpu", save_every=2, callbacks=[Callback(1, keep)])
    with pytest.raises(TrainingStopped, match="step 3: loss nan") as stopped:
        trainer.run([tiny_stage(model=model, loader=loader)])
    text = str(stopped.value)
    assert all(one in text for one in loader.bad)
    assert "first module with an output that is not finite is 0 (Linear)" in text
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    checkpoint.read(tmp_path / "checkpoints" / "step-0000002")
    assert len(metrics(tmp_path)) == 2


def test_only_the_bad_one_of_accumulated_batches_is_named(tmp_path: Path):
    loader = Poisoned()
    with pytest.raises(TrainingStopped) as stopped:
        Trainer(tmp_path, device="cpu").run([tiny_stage(loader=loader, accumulate=6)])
    assert f"(samples {', '.join(loader.bad)}, process 0)" in str(stopped.value)


def test_a_parameter_that_is_not_finite_is_named(tmp_path: Path):
    model = tiny_model()
    with torch.no_grad():
        model[3].bias[2] = float("inf")
    with pytest.raises(TrainingStopped, match="the parameter 3.bias is not finite"):
        Trainer(tmp_path, device="cpu").run([tiny_stage(model=model)])


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is(tmp_path: Path):
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt(self.scale.square()).expand(len(x), 5)  # the slope of the root at 0

    with pytest.raises(TrainingStopped, match="gradient norm nan.*the first gradient that is not is that of scale"):
        Trainer(tmp_path, device="cpu").run([tiny_stage(model=Root())])


@pytest.mark.parametrize(("number", "code", "step"), [(signal.SIGTERM, 143, 4), (signal.SIGINT, 130, 12)])
def test_a_signal_saves_at_the_end_of_the_step_and_gives_its_exit_code(
    number: int, code: int, step: int, tmp_path: Path
):
    def send(event: Event) -> None:
        if event.step == step:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(faults.Interrupted, match=f"after a checkpoint at step {step};") as stopped:
        Trainer(tmp_path, device="cpu", save_every=0, callbacks=[Callback(1, send)]).run([tiny_stage()])
    assert stopped.value.exit_code == code
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{step:07d}"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    Trainer(tmp_path, device="cpu", save_every=0, resume=True).run([tiny_stage()])
    assert len(metrics(tmp_path)) == 12


def test_no_memory_is_said_with_sizes_and_three_settings(tmp_path: Path):
    def greedy(model: nn.Module, batch: Any) -> Any:
        return {"text": (torch.empty(2**50).sum(), 1)}

    with pytest.raises(TrainingStopped, match="out of memory") as stopped:
        Trainer(tmp_path, device="cpu").run([tiny_stage(objective=greedy)])
    assert "x [4, 8], y [4]" in str(stopped.value)
    for setting in ("accumulate=2", "activation_checkpointing=True", "shorter rows"):
        assert setting in str(stopped.value)


def test_an_error_of_the_objective_is_not_dressed_up(tmp_path: Path):
    def broken(model: nn.Module, batch: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Trainer(tmp_path, device="cpu").run([tiny_stage(objective=broken)])


@pytest.mark.parametrize("how", ["before", "library", "system"])
def test_a_full_disk_stops_the_run_and_leaves_the_older_checkpoint_whole(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saves = [0]
    save_file = checkpoint.save_file

    def full(tensors: Any, file: Path) -> None:
        saves[0] += 1
        if saves[0] <= 3:  # the files of the first checkpoint
            return save_file(tensors, file)
        if how == "library":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    if how == "before":
        usage = checkpoint.shutil.disk_usage
        free = iter([2**30, 1024])
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda p: usage(p)._replace(free=next(free)))
    else:
        monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingStopped, match="the disk is full.*MiB") as stopped:
        Trainer(tmp_path, device="cpu", save_every=2).run([tiny_stage()])
    if how == "before":
        assert "needs 0.0 MiB and 0.0 MiB are free" in str(stopped.value)
    folders = list((tmp_path / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-0000002"]
    checkpoint.read(folders[0])


def test_unknown_devices_and_precisions_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        Trainer(tmp_path, device="tpu")
    with pytest.raises(UserError, match="unknown precision 'fp16'"):
        Trainer(tmp_path, device="cpu", precision="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            Trainer(tmp_path, device="cuda")


def test_a_launcher_that_started_one_process_only_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "--multi_gpu --num_processes 2" in (parallel.launch_note() or "")
    monkeypatch.delenv("MASTER_ADDR")
    assert parallel.launch_note() is None


def test_sample_ids_are_found_flat_nested_and_as_an_attribute():
    class Batch:
        sample_ids = (["a"], ["b", "c"])

    assert faults.sample_ids([{"sample_ids": ["x", "y"]}, Batch(), {}]) == ["x", "y", "a", "b", "c"]
    assert faults.name_ids([str(i) for i in range(20)]).endswith("15 and 4 more")
