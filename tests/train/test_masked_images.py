"""Batches of corrupted pictures: what they hold, and that order, workers and a second run change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.data.images import Augment, Pixels
from tessera.data.readers.pictures import TASK, open_pictures
from tessera.errors import DataError
from tessera.evaluate.restoration import restoration_errors
from tessera.models.masked_image import MaskedImageModel
from tessera.objectives.group_masking import GroupMasking
from tessera.train.masked_images import masked_loader, restoring_stage
from tessera.vision.registry import create

PIXELS = Pixels(16, (0.5,) * 3, (0.5,) * 3, Augment(crop=0.7, flip=0.5))
SMALL = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two folders."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        (root / str(number % 2)).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(root / str(number % 2) / f"{number}.png")
    return root


def loader(folder: Path, batch: int = 8, workers: int = 0, masking: GroupMasking | None = None):
    source = open_pictures(folder).source(TASK)
    return masked_loader(source, PIXELS, masking or GroupMasking(), batch, seed=3, workers=workers)


@pytest.mark.light("gmml", "exact")
def test_a_batch_is_clean_outside_its_mask_with_one_augmentation_for_both(folder: Path) -> None:
    batch = next(iter(loader(folder)))
    shown, clean, mask = batch["pixel_values"], batch["targets"], batch["mask"]
    assert shown.shape == clean.shape == (8, 3, 16, 16) and mask.shape == (8, 1, 16, 16)
    wide = mask.expand_as(clean)
    assert torch.equal(shown[~wide], clean[~wide])
    assert 0 < (shown != clean).float().mean() <= wide.float().mean()


@pytest.mark.light("gmml", "exact")
def test_readers_ahead_and_a_second_run_see_the_same_masks(folder: Path) -> None:
    runs = [iter(loader(folder, workers=workers)) for workers in (0, 0, 3)]
    for _ in range(3):
        first, *others = (next(run) for run in runs)
        for other in others:
            assert other["sample_ids"] == first["sample_ids"]
            assert all(torch.equal(other[name], first[name]) for name in ("pixel_values", "targets", "mask"))


def test_the_stage_counts_what_its_objective_counts(folder: Path) -> None:
    for everywhere in (False, True):
        model = MaskedImageModel.over(create("vit-mini", **SMALL), blocks=(-1,), everywhere=everywhere)
        stage = restoring_stage(model, loader(folder), 2)
        batch = next(iter(stage.loader))
        assert stage.counts is not None
        assert stage.counts(batch) == {"pixels": stage.objective(model, batch)["pixels"][1]}


def test_held_out_errors_are_of_each_picture_and_the_same_each_time(folder: Path) -> None:
    model = MaskedImageModel.over(create("vit-mini", **SMALL), blocks=(-1,)).eval()
    source, masking = open_pictures(folder).source(TASK), GroupMasking(replace=0)
    errors = restoration_errors(model, source, PIXELS, masking)
    assert errors.shape == (len(source),) and (errors > 0).all()
    assert np.array_equal(errors, restoration_errors(model, source, PIXELS, masking))
    assert not np.array_equal(errors, restoration_errors(model, source, PIXELS, masking, seed=1))


def test_pictures_are_read_whatever_lies_beside_them_and_none_is_an_error(folder: Path, tmp_path: Path) -> None:
    world = open_pictures(folder)
    assert len(world.source(TASK)) + len(world.source(TASK, "heldout")) == 12
    with pytest.raises(DataError, match="no such folder"):
        open_pictures(tmp_path / "none")
    with pytest.raises(DataError, match="holds no picture"):
        open_pictures(tmp_path)
