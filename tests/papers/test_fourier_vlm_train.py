"""`tessera train fourier-vlm`: a user's conversations, with few tokens a picture and with all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.cli import main
from tessera.errors import UserError
from tessera.models.folder import read_folder
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.papers.fourier_vlm import RECIPES
from tessera.papers.settings import change
from tessera.vision.registry import create as create_backbone
from tessera.zoo.parts import locate

SMALL = ["connect.rows=2", "instruct.rows=2", "row_length=256"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of conversations about grey squares."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for number in range(12):
        Image.fromarray(np.full((24, 24, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"a grey {number}"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "llava.json"


def trained(data: Path, out: Path, *more: str) -> Path:
    line = ["train", "fourier-vlm", "--data", str(data), "--out", str(out), "--steps", "2", "--precision", "fp32"]
    assert main([*line, "--set", *SMALL, *more]) == 0
    return out / "model"


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that keeps four tokens."""
    return trained(data, tmp_path_factory.mktemp("few") / "run", "keep_side=2")


@pytest.mark.light("fourier-vlm", "use")
def test_a_trained_model_reads_as_few_tokens_after_loading_and_its_eyes_are_as_they_were(model: Path) -> None:
    loaded = read_folder(model, LVLMForConditionalGeneration, torch.float32, "cpu")
    assert (loaded.config.reducer, loaded.config.keep_side, loaded.num_image_tokens()) == ("dct", 2, 4)
    shown = torch.zeros(1, 3, 64, 64)
    assert loaded.encode_images(shown).shape == (1, 4, 256)
    eyes = create_backbone(locate("mini/clip"))
    torch.testing.assert_close(loaded.vision(shown).tokens, eyes(shown).tokens)


@pytest.mark.light("fourier-vlm", "use")
def test_a_fresh_process_asks_the_trained_model(model: Path, data: Path) -> None:
    picture = data.parent / "3.png"
    line = [sys.executable, "-m", "tessera", "ask", str(picture), "What is it?", "--model", str(model)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    assert found.stdout


def test_the_same_training_without_the_slot_reads_all_tokens(data: Path, tmp_path: Path) -> None:
    folder = trained(data, tmp_path / "run", "reducer=none")
    model = read_folder(folder, LVLMForConditionalGeneration, torch.float32, "cpu")
    assert model.slot is None and model.num_image_tokens() == 64


def test_recipes_are_shortened_in_proportion_and_refuse_parts_that_do_not_divide() -> None:
    assert [(one.connect.steps, one.instruct.steps) for one in (RECIPES["mini"].scaled(n) for n in (2, 40, None))] == [
        (1, 1), (6, 34), (60, 340)
    ]  # fmt: skip
    recipe = change(RECIPES["mini"], {"connect.accumulate": "3", "connect.rows": "9"})  # in any order
    assert recipe.connect.at_once == 3
    with pytest.raises(UserError, match="9 rows do not divide into 2 parts"):
        _ = change(recipe, {"connect.accumulate": "2"}).connect.at_once


def test_more_tokens_than_there_are_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "fourier-vlm", "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "2"]
    assert main([*line, "--set", *SMALL, "keep_side=12"]) == 2
    said = capsys.readouterr().err
    assert "keep_side is 12, and the encoder's grid is 8 x 8: more tokens are asked for than there are" in said
    assert not (tmp_path / "run" / "model").exists()
