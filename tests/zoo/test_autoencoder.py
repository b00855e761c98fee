"""The autoencoder's recipe: its start, its losses, its pictures and its files."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from tessera.zoo import autoencoder as recipe


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    loose = np.stack([recipe.loose_picture(rng) for _ in range(20)])
    return np.concatenate([recipe.scene_pictures(rng, 20), loose])


def test_untrained_encoder_gives_principal_components_of_patches(pictures: np.ndarray) -> None:
    torch.manual_seed(0)
    model = recipe.build(pictures)
    with torch.no_grad():
        latents = model.encode(recipe.to_tensor(pictures)).latents
    flat = latents.permute(1, 0, 2, 3).flatten(1)
    assert flat.mean(dim=1).abs().max() < 1e-3
    correlated = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlated.abs().max() < 1e-2
    assert float(flat.var(dim=1).mean()) == pytest.approx(1.0, abs=0.01)
    components, mean = recipe._components(pictures)
    patch = torch.from_numpy(pictures[3, 4:8, 8:12]).float().div(255)  # row 1, column 2 of the latents
    tiles = patch.reshape(2, 2, 2, 2, 3).permute(0, 2, 1, 3, 4)
    expected = ((tiles - mean) * components).flatten(1).sum(dim=1)
    torch.testing.assert_close(latents[3, :, 1, 2], expected, rtol=1e-3, atol=1e-3)


def test_losses_are_sums_over_all_values_on_the_scale_of_zero_to_one(
    pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "LATENT_NOISE", 0.0)
    torch.manual_seed(0)
    model, batch = recipe.build(pictures), recipe.to_tensor(pictures[:2])
    losses = recipe.objective(model, {"pictures": batch})
    error = (model.decode(model.encode(batch).latents).sample - batch) / 2
    assert losses["squared"][1] == losses["absolute"][1] == 2 * 3 * 64 * 64
    torch.testing.assert_close(losses["squared"][0], error.square().sum())
    torch.testing.assert_close(losses["absolute"][0], error.abs().sum())


def test_the_recipe_learns(pictures: np.ndarray) -> None:
    torch.manual_seed(0)
    model = recipe.build(pictures)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.5e-3)
    found = []
    for batch in islice(recipe.feed(pictures, seed=0), 12):
        total, count = recipe.objective(model, batch)["squared"]
        (total / count).backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(total.item() / count)
    assert np.mean(found[-3:]) < 0.5 * np.mean(found[:3])


def test_feed_repeats_itself_and_goes_on_where_it_stopped(pictures: np.ndarray) -> None:
    first, second = recipe.feed(pictures, seed=4), recipe.feed(pictures, seed=4)
    batches = [batch["pictures"] for batch in islice(first, 3)]
    second.load_state_dict({"step": 2})
    assert torch.equal(next(iter(second))["pictures"], batches[2])
    assert not torch.equal(batches[0], batches[1])
    assert batches[0].shape == (recipe.BATCH, 3, recipe.CROP, recipe.CROP)


def test_saved_autoencoder_has_latents_of_unit_spread_and_a_clean_configuration(
    pictures: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    recipe.save(recipe.build(pictures), tmp_path / "a")
    model = AutoencoderTiny.from_pretrained(tmp_path / "a", torch_dtype=torch.float32)
    scenes = recipe.to_tensor(recipe.scene_pictures(np.random.default_rng(6), 256))
    with torch.no_grad():
        spread = float((model.encode(scenes).latents * model.config.scaling_factor).std())
    assert spread == pytest.approx(1.0, abs=0.02)
    assert "block_out_channels" not in json.loads((tmp_path / "a" / "config.json").read_text())


def test_pictures_survive_the_way_to_tensors_and_back(pictures: np.ndarray) -> None:
    assert np.array_equal(recipe.to_pictures(recipe.to_tensor(pictures)), pictures)
