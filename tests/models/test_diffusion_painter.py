"""Painter: identities of its sampling, its noise levels, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from tessera.errors import CheckpointError, UserError
from tessera.models.diffusion import Painter
from tests.models.diffusion_tiny import PATCHES, WIDTH, conditions, mini_painter, seeds


@pytest.mark.light("vl-gpt", "exact")
def test_image_scale_zero_is_text_only_sampling_by_the_plain_unet(tmp_path: Path) -> None:
    painter = mini_painter()
    text, image = conditions(2)
    given = painter.sample(text, image, steps=3, image_scale=0.0, generator=seeds(5, 6))
    painter.save_pretrained(tmp_path / "p")
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "p" / "unet")
    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=one) for one in seeds(5, 6)])
    null = painter.null_text.expand(2, -1, -1)
    painter.scheduler.set_timesteps(3)
    with torch.no_grad():
        for step in painter.scheduler.timesteps:
            placed = torch.cat([latents, painter.positions.expand(2, -1, -1, -1)], dim=1)
            without, told = (plain(placed, step, states).sample for states in (null, text))
            latents = painter.scheduler.step(without + 2.0 * (told - without), step, latents).prev_sample
    torch.testing.assert_close(given, latents, rtol=1e-4, atol=1e-4)


def test_image_scale_zero_does_not_look_at_the_picture_tokens() -> None:
    painter = mini_painter()
    text, image = conditions(1)
    options = {"steps": 2, "image_scale": 0.0}
    first = painter.sample(text, image, generator=seeds(5), **options)
    second = painter.sample(text, -image, generator=seeds(5), **options)
    assert torch.equal(first, second)
    looked = painter.sample(text, image, generator=seeds(5), steps=2)
    assert not torch.allclose(first, looked, atol=1e-4)


def test_saved_and_loaded_painter_paints_the_same_pictures(tmp_path: Path) -> None:
    painter = mini_painter()
    painter.unet.to(memory_format=torch.channels_last)
    text, image = conditions(2)
    before = painter.paint(text, image, steps=2, generator=seeds(1, 2))
    painter.save_pretrained(tmp_path / "p")
    loaded = Painter.from_pretrained(tmp_path / "p")
    loaded.unet.to(memory_format=torch.channels_last)
    assert before.shape == (2, 32, 32, 3) and before.dtype == np.uint8
    assert np.array_equal(before, loaded.paint(text, image, steps=2, generator=seeds(1, 2)))
    states = torch.randn(1, PATCHES, WIDTH)
    assert torch.equal(painter.image_condition(states), loaded.image_condition(states))
    assert not list((tmp_path / "p").rglob("*.bin"))
    loaded.save_pretrained(tmp_path / "q")
    assert all(str(tmp_path) not in config.read_text() for config in (tmp_path / "q").rglob("*.json"))


def test_a_picture_with_its_own_generator_does_not_depend_on_its_batch() -> None:
    painter = mini_painter()
    text, image = conditions(3)
    together = painter.sample(text, image, steps=2, generator=seeds(1, 2, 3))
    alone = painter.sample(text[1:2], image[1:2], steps=2, generator=seeds(2))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_guidance_one_is_the_conditions_alone_and_null_conditions_need_no_guidance() -> None:
    painter = mini_painter()
    text, image = painter.null_conditions(1)
    mild = painter.sample(text, image, steps=2, guidance=1.0, generator=seeds(1))
    strong = painter.sample(text, image, steps=2, guidance=9.0, generator=seeds(1))
    torch.testing.assert_close(mild, strong, rtol=1e-4, atol=1e-4)


def test_latents_are_standardised_and_come_back() -> None:
    painter = mini_painter()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        plain = painter.vae.encode(pictures).latents
        latents = painter.encode(pictures)
        expected = (1.25 * plain - painter.latent_mean[:, None, None]) / painter.latent_spread[:, None, None]
        torch.testing.assert_close(latents, expected)
        torch.testing.assert_close(painter.decode(latents), painter.vae.decode(plain).sample, rtol=1e-4, atol=1e-4)


def test_timesteps_have_the_noise_that_was_asked_for() -> None:
    painter = mini_painter()
    levels = torch.tensor([-2.0, 0.0, 1.5])
    signal = painter.scheduler.alphas_cumprod[painter.timesteps_at(levels)]
    torch.testing.assert_close(0.5 * ((1 - signal) / signal).log(), levels, rtol=0, atol=0.02)
    assert painter.timesteps_at(torch.tensor([torch.inf])).item() == 999


def test_the_loss_is_a_sum_over_all_values_and_teaches_every_trained_part() -> None:
    painter = mini_painter()
    text, _ = conditions(2)
    tokens = painter.image_condition(torch.randn(2, PATCHES, WIDTH))
    levels = torch.tensor([0.5, torch.inf])
    total, count = painter.denoising_loss(torch.randn(2, 4, 8, 8), text, tokens, *seeds(0), levels)
    assert count == 2 * 4 * 8 * 8
    total.backward()
    silent = [n for n, p in painter.named_parameters() if p.grad is None and not n.startswith("vae.")]
    assert silent == []
    assert all(p.grad is None for p in painter.vae.parameters())


def test_conditions_of_another_width_and_no_steps_are_refused_in_a_sentence() -> None:
    painter = mini_painter()
    text, image = conditions(1)
    with pytest.raises(UserError, match="text condition is 16 wide; this painter takes 32"):
        painter.paint(text[..., :16], image, generator=seeds(1))
    with pytest.raises(UserError, match="at least 1 step"):
        painter.paint(text, image, steps=0, generator=seeds(1))


def test_damaged_folders_are_refused_in_a_sentence(tmp_path: Path) -> None:
    mini_painter().save_pretrained(tmp_path / "p")
    weights = tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Painter.from_pretrained(tmp_path / "p")
    weights.unlink()
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(whole)
    with pytest.raises(CheckpointError, match="safetensors"):
        Painter.from_pretrained(tmp_path / "p")
    with pytest.raises(CheckpointError, match="no folder 'unet'"):
        Painter.from_pretrained(tmp_path)
