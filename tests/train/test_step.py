"""Losses are means over the targets of the whole step, whatever the batches; targets and names are checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import TrainingStopped, UserError
from tessera.train.engine import Trainer
from tessera.train.optim import Optimiser
from tests.train.tiny import TinyLoader, metrics, objective, tiny_model, tiny_stage


def run(out: Path, **changes: Any) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    stage = tiny_stage(**({"steps": 6, "model": tiny_model(dropout=0.0)} | changes))
    Trainer(out, device="cpu", precision="fp32").run([stage])
    return stage.model, metrics(out)


def close(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("counted", [False, True])
def test_accumulation_equals_the_large_batch(counted: bool, tmp_path: Path):
    # The batches hold different numbers of targets, and the two losses count differently.
    def counts(batch: dict[str, Any]) -> dict[str, int]:
        return {name: int(term[1]) for name, term in objective(tiny_model(dropout=0.0), batch).items()}

    large, large_log = run(tmp_path / "large", loader=TinyLoader(size=12))
    small, small_log = run(
        tmp_path / "small", loader=TinyLoader(size=4), accumulate=3, counts=counts if counted else None
    )
    assert close(large, small)
    for a, b in zip(large_log, small_log, strict=True):
        for key in ("loss", "text", "square", "gradient_norm"):
            assert a[key] == pytest.approx(b[key], abs=1e-6)


def test_loss_and_gradient_are_those_of_the_formula(tmp_path: Path):
    loader, model = TinyLoader(), tiny_model(dropout=0.0)
    batch = next(iter(TinyLoader()))
    out = model(batch["x"])
    known = batch["y"] != -100
    text = torch.nn.functional.cross_entropy(out[known], batch["y"][known])
    expected = text + 0.1 * out.square().mean()
    expected.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    _, log = run(tmp_path, loader=loader, steps=1)
    assert log[0]["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert log[0]["text"] == pytest.approx(text.item(), abs=1e-6)
    assert log[0]["gradient_norm"] == pytest.approx(norm, abs=1e-5)


def test_weights_of_the_stage_win_over_the_objective(tmp_path: Path):
    _, log = run(tmp_path, weights={"square": 2.0}, steps=1)
    assert log[0]["loss"] == pytest.approx(log[0]["text"] + 2.0 * log[0]["square"], abs=1e-6)


def test_clipping_bounds_the_update_and_logs_the_norm_before(tmp_path: Path):
    still, log = run(tmp_path / "a", steps=1, optimiser=Optimiser(clip=1e-12, weight_decay=0.0, warmup=0.0))
    moved, _ = run(tmp_path / "b", steps=1, optimiser=Optimiser(clip=None, weight_decay=0.0, warmup=0.0))
    assert log[0]["gradient_norm"] > 0.01
    start = list(tiny_model().parameters())
    far = max((a - b).abs().max().item() for a, b in zip(moved.parameters(), start, strict=True))
    near = max((a - b).abs().max().item() for a, b in zip(still.parameters(), start, strict=True))
    assert near < 0.01 * far  # gradients of 1e-12 vanish beside Adam's epsilon


def test_frozen_parts_do_not_move_and_are_not_saved(tmp_path: Path):
    from safetensors.torch import load_file

    start = tiny_model()
    model, _ = run(tmp_path, model=tiny_model(), trainable=("re:^[34]\\.",))
    assert torch.equal(model[0].weight, start[0].weight)
    assert not torch.equal(model[3].weight, start[3].weight)
    saved = load_file(tmp_path / "stages" / "0-one" / "weights.safetensors")
    assert sorted(saved) == ["3.bias", "3.weight", "4.bias", "4.weight"]


def test_a_batch_without_a_target_stops_the_run_and_names_its_samples(tmp_path: Path):
    class Blank(TinyLoader):
        def batch(self, chosen: Any) -> dict[str, Any]:
            batch = super().batch(chosen)
            if self.index == 12:
                batch["y"] = torch.full_like(batch["y"], -100)
                self.blank = batch["sample_ids"]
            return batch

    loader, model = Blank(), tiny_model()
    with pytest.raises(TrainingStopped, match="step 3: 1 batch.* without a single training target") as stopped:
        run(tmp_path, loader=loader, model=model)
    assert all(one in str(stopped.value) for one in loader.blank)
    assert [one["step"] for one in metrics(tmp_path)] == [1, 2]


def test_an_objective_that_changes_its_losses_is_refused(tmp_path: Path):
    calls = [0]

    def fickle(model: torch.nn.Module, batch: Any) -> Any:
        calls[0] += 1
        terms = objective(model, batch)
        return terms if calls[0] % 2 else {"text": terms["text"]}

    with pytest.raises(UserError, match="gave the losses"):
        run(tmp_path, objective=fickle, accumulate=2)


def test_an_objective_without_gradient_is_refused(tmp_path: Path):
    def blind(model: torch.nn.Module, batch: Any) -> Any:
        return {"text": (model(batch["x"]).sum().detach(), 4)}

    with pytest.raises(UserError, match="no loss of stage 'one' depends on a trainable parameter"):
        run(tmp_path, objective=blind)


def test_a_loader_that_ends_is_an_error_not_a_short_stage(tmp_path: Path):
    class Short(TinyLoader):
        def __iter__(self) -> Any:
            whole = super().__iter__()
            return (next(whole) for _ in range(2))

    with pytest.raises(TrainingStopped, match="gave no batch for step 3"):
        run(tmp_path, loader=Short())


def test_averaged_weights_are_the_result_of_the_stage(tmp_path: Path):
    plain, _ = run(tmp_path / "plain", steps=1, optimiser=Optimiser(warmup=0.0))
    averaged, _ = run(tmp_path / "averaged", steps=1, optimiser=Optimiser(warmup=0.0), average=0.75)
    for start, end, mean in zip(tiny_model().parameters(), plain.parameters(), averaged.parameters(), strict=True):
        assert torch.allclose(mean, 0.75 * start + 0.25 * end, atol=1e-7)


def test_bf16_trains_close_to_fp32_with_fp32_weights(tmp_path: Path):
    stage = tiny_stage(steps=3, model=tiny_model(dropout=0.0))
    Trainer(tmp_path / "half", device="cpu", precision="bf16").run([stage])
    _, whole = run(tmp_path / "whole", steps=3)
    assert all(p.dtype == torch.float32 for p in stage.model.parameters())
    for a, b in zip(metrics(tmp_path / "half"), whole, strict=True):
        assert a["loss"] != b["loss"]
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
