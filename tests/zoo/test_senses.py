"""Frozen encoders by name."""

from __future__ import annotations

import torch

from tessera.zoo.senses import read_perceptual


def test_the_perceptual_loss_sees_pictures_as_its_eyes_have_learned_to() -> None:
    loss = read_perceptual("mini/clip")
    torch.testing.assert_close(loss.mean.flatten(), torch.tensor([0.48145466, 0.4578275, 0.40821073]))
    pictures = torch.rand(2, 3, 64, 64)
    assert loss(pictures, pictures.flip(0)).total > 0
