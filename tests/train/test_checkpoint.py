"""Checkpoints: kept, checked, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import CheckpointError, UserError
from tessera.train import checkpoint, state
from tessera.train.engine import Trainer
from tessera.train.optim import Optimiser
from tests.train.tiny import TinyLoader, metrics, tiny_model, tiny_stage


def begin(out: Path, steps: int = 4, **settings: Any) -> None:
    """A run that was killed before its stage was finished, with checkpoints at its last two steps but one."""
    Trainer(out, device="cpu", save_every=1, **settings).run([tiny_stage(steps=steps)])
    for name in ("stages/0-one/manifest.json", "stages/0-one/state.json", "stages/0-one/weights.safetensors"):
        (out / name).unlink()
    (out / "stages" / "0-one").rmdir()


def again(out: Path, stage: Any = None, **settings: Any) -> None:
    Trainer(out, device="cpu", save_every=1, resume=True, **settings).run([stage or tiny_stage(steps=4)])


def test_the_last_n_are_kept(tmp_path: Path):
    Trainer(tmp_path, device="cpu", save_every=2, keep=3).run([tiny_stage(steps=12)])
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0000006", "step-0000008", "step-0000010"]
    with pytest.raises(UserError, match="at least 1, not 0"):
        Trainer(tmp_path, device="cpu", keep=0)


def test_files_are_safetensors_and_json_only(tmp_path: Path):
    begin(tmp_path)
    kinds = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert kinds == {".safetensors", ".json", ".jsonl"}
    for file in tmp_path.rglob("*.json*"):
        assert all(json.loads(line) is not None for line in file.read_text().splitlines() if file.suffix == ".jsonl")
    saved = checkpoint.read(tmp_path / "checkpoints" / "step-0000003")
    assert set(saved.tensors("optimiser")) >= {"0.weight|exp_avg", "0.weight|exp_avg_sq", "0.weight|step"}
    assert saved.state["stage"] == {"position": 0, "name": "one", "done": 3}
    assert saved.state["loader"] == [{"epoch": 0, "index": 12}]
    assert saved.state["config_hash"] == checkpoint.config_hash(saved.state["config"])


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no manifest", "bad manifest", "format"])
def test_a_damaged_checkpoint_is_ignored_with_one_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    begin(tmp_path)
    newest = tmp_path / "checkpoints" / "step-0000003"
    file, manifest = newest / "weights.safetensors", newest / "manifest.json"
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "bad manifest":
        manifest.write_text("{")
    else:
        manifest.write_text('{"format": 99, "files": {}}')
    capsys.readouterr()
    again(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith(f"ignored {newest}: ")]) == 1
    assert any(line.endswith("step-0000002: step 2") for line in said)
    assert [one["step"] for one in metrics(tmp_path)] == [1, 2, 3, 4]


def test_nothing_to_resume_starts_from_the_beginning(tmp_path: Path):
    again(tmp_path)
    assert len(metrics(tmp_path)) == 4


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path):
    begin(tmp_path)
    with pytest.raises(UserError, match="holds a run already; go on with --resume"):
        Trainer(tmp_path, device="cpu").run([tiny_stage()])


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"steps": 5}, {}, "stage.steps: 4 -> 5"),
        ({"optimiser": Optimiser(lr=0.5)}, {}, "stage.optimiser.lr: 0.001 -> 0.5"),
        ({"accumulate": 2}, {}, "stage.accumulate: 1 -> 2"),
        ({}, {"seed": 3}, "seed: 0 -> 3"),
        ({}, {"config": {"model": {"hidden": 32}}}, "run.model.hidden: 16 -> 32"),
        ({}, {"config": {"model": {"hidden": 16}, "new": 1}}, "run.new: 'absent' -> 1"),
        ({}, {"precision": "bf16"}, "precision: 'fp32' -> 'bf16'"),
    ],
)
def test_a_changed_field_is_refused_with_old_and_new_value(
    changes: dict[str, Any], settings: dict[str, Any], said: str, tmp_path: Path
):
    begin(tmp_path, config={"model": {"hidden": 16}}, precision="fp32")
    given = {"config": {"model": {"hidden": 16}}, "precision": "fp32"} | settings
    with pytest.raises(CheckpointError) as refused:
        again(tmp_path, tiny_stage(**({"steps": 4} | changes)), **given)
    assert said in str(refused.value)
    assert str(refused.value).count("->") == 1


def test_a_changed_field_of_a_finished_stage_is_refused(tmp_path: Path):
    Trainer(tmp_path, device="cpu").run([tiny_stage()])
    with pytest.raises(CheckpointError, match="stage.steps: 12 -> 13"):
        again(tmp_path, tiny_stage(steps=13))
    with pytest.raises(CheckpointError, match="another one than 'other'"):
        again(tmp_path, tiny_stage("other"))


def test_other_data_are_refused_and_allowed_when_asked(tmp_path: Path):
    begin(tmp_path)
    grown = tiny_stage(steps=4, loader=TinyLoader(total=28))
    with pytest.raises(CheckpointError, match="fingerprint tiny-24-0, these have tiny-28-0.*--allow-other-data"):
        again(tmp_path, grown)
    again(tmp_path, grown, allow_other_data=True)
    assert grown.loader.state_dict() == {"epoch": 0, "index": 4}  # one step, from the start of the new data
    assert len(metrics(tmp_path)) == 4


def test_other_data_are_refused_for_a_finished_stage_too(tmp_path: Path):
    Trainer(tmp_path, device="cpu").run([tiny_stage(steps=4)])
    with pytest.raises(CheckpointError, match="0-one was trained on data with fingerprint tiny-24-0"):
        again(tmp_path, tiny_stage(steps=4, loader=TinyLoader(seed=7)))


def test_a_damaged_result_of_a_stage_is_said(tmp_path: Path):
    Trainer(tmp_path, device="cpu", save_every=5).run([tiny_stage("one"), tiny_stage("two")])
    folder = tmp_path / "stages" / "0-one"
    (folder / "state.json").write_text("{")
    stages = [tiny_stage("one"), tiny_stage("two")]
    with pytest.raises(CheckpointError, match="0-one: state.json has 1 bytes.*delete the folder to train"):
        Trainer(tmp_path, device="cpu", resume=True).run(stages)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(CheckpointError, match="of a later stage, but stage 'one' has no final weights"):
        Trainer(tmp_path, device="cpu", resume=True).run(stages)


def test_other_frozen_weights_are_refused(tmp_path: Path):
    def stage(seed: int) -> Any:
        return tiny_stage(steps=4, model=tiny_model(seed), trainable=("4.*",))

    Trainer(tmp_path, device="cpu", save_every=2).run([stage(0)])
    with pytest.raises(CheckpointError, match="beside other frozen weights"):
        again(tmp_path, stage(1))


def test_weights_that_do_not_fit_are_named_in_three_lists():
    tensors = {"0.weight": torch.zeros(16, 9), "9.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError) as refused:
        state.load_weights(tiny_model(), tensors, "the file")
    text = str(refused.value)
    assert "the file does not fit the model" in text
    assert "missing ['0.bias'," in text
    assert "unexpected ['9.weight'] (1)" in text
    assert "other shape ['0.weight [16, 9] for [16, 8]'] (1)" in text


def test_generators_come_back(tmp_path: Path):
    import random

    import numpy as np

    state.seed_generators(1, 2)
    random.gauss(0, 1), np.random.standard_normal()  # noqa: NPY002  (both keep a second draw for the next call)
    before = state.generators()
    drawn = [torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1), random.random()]  # noqa: NPY002
    state.set_generators(before)
    once = [torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1), random.random()]  # noqa: NPY002
    assert drawn == once


def test_a_folder_being_replaced_when_killed_comes_back(tmp_path: Path):
    begin(tmp_path)
    newest = tmp_path / "checkpoints" / "step-0000003"
    newest.rename(newest.with_name(".step-0000003.old"))
    again(tmp_path)
    assert newest.exists()
    assert len(metrics(tmp_path)) == 4
