"""The recipe of mini/mae at a few steps."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PIL
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tessera.data.sample import Image
from tessera.zoo import mae
from tessera.zoo.build import recipe
from tessera.zoo.parts import card
from tessera.zoo.senses import read_eyes, read_senses

pytest.importorskip("gymnasium")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return mae.table_pictures(seed=0, count=4)


def test_both_cameras_of_a_table_are_shown_at_one_size(pictures: np.ndarray) -> None:
    assert pictures.shape == (8, 64, 64, 3) and pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 8


def test_hidden_pixels_are_learned_and_the_saved_encoder_sees_whole_pictures(
    pictures: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mae, "BATCH", 8)
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(ViTMAEConfig(**mae.CONFIG))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for batch in islice(mae.feed(pictures, seed=0), 25):
        total, number = mae.objective(model, batch)["hidden pixels"]
        (total / number).backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total.item() / number)
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    mae.save(model, tmp_path)
    eyes, pixels = read_eyes(str(tmp_path))
    assert pixels.size == 64 and eyes.width == 64
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 2**20
    with torch.no_grad():
        seen = eyes(torch.randn(2, 3, 64, 64))
    assert seen.tokens.shape == (2, 64, 64)


def test_the_shipped_encoder_is_the_recipe_s_and_passed_its_gates() -> None:
    held = card("mini/mae")
    assert held["steps"] == mae.RECIPE.steps and set(held["gates"]) == set(mae.RECIPE.gates)
    assert all(gate["passes"] for gate in held["gates"].values())
    senses = read_senses("mini/mae", "mini/clip")
    looked = senses.look([Image(PIL.new("RGB", (80, 60)))])
    assert looked.shape == (1, 65, 64) and looked.isfinite().all()


def test_the_recipe_is_found_by_its_name() -> None:
    assert recipe("mae") is mae.RECIPE
