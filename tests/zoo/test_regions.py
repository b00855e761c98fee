"""Features of regions: what stands under a box, seen alone, and remembered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PIL
from transformers import CLIPVisionModel

from tessera.data.regions import named, unnamed
from tessera.data.sample import Image
from tessera.data.worlds.scenes.draw import draw, object_boxes
from tessera.data.worlds.scenes.graph import COLOURS, SHAPES, random_scene
from tessera.weights import read_model
from tessera.zoo.parts import locate, quiet
from tessera.zoo.regions import RegionEncoder, alone, under


@pytest.fixture(scope="module")
def encoder() -> RegionEncoder:
    with quiet():
        return RegionEncoder(read_model(CLIPVisionModel, locate("mini/clip")))


def test_patches_under_a_box_count_by_their_share() -> None:
    assert under((0, 0, 1, 1), 2).tolist() == [0.25] * 4
    assert under((0.25, 0, 1, 0.5), 2).tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0])


def test_a_region_is_shown_alone_in_the_middle_at_a_third_of_the_side() -> None:
    pixels = np.full((40, 80, 3), 200, np.uint8)
    pixels[10:20, 30:50] = (255, 0, 0)
    pixels[25:35, 60:70] = (0, 255, 0)
    tile = alone(PIL.fromarray(pixels), (30 / 80, 10 / 40, 50 / 80, 20 / 40), 60)
    seen = np.asarray(tile.picture)
    assert tuple(seen[0, 0]) == (200, 200, 200) and tuple(seen[30, 30]) == (255, 0, 0)
    rows, columns = np.nonzero((seen == (255, 0, 0)).all(-1))
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (20, 40, 25, 35)
    assert tile.box == pytest.approx((20 / 60, 25 / 60, 40 / 60, 35 / 60))


def test_features_are_the_same_alone_and_together_and_equal_regions_are_looked_at_once(encoder: RegionEncoder) -> None:
    scenes = [random_scene(np.random.default_rng(index)) for index in range(3)]
    pictures = [Image(draw(scene), key=f"k{index}") for index, scene in enumerate(scenes)]
    regions = [unnamed(object_boxes(scene) / 64) for scene in scenes]
    fresh = RegionEncoder(encoder.encoder)
    together = fresh(pictures, regions)
    assert [one.shape for one in together] == [(len(row), fresh.width) for row in regions]
    for picture, row, expected in zip(pictures, regions, together, strict=True):
        torch.testing.assert_close(encoder([picture], [row])[0], expected, atol=2e-3, rtol=1e-3)
        assert torch.equal(fresh([picture], [row])[0], expected)
    looked = len(fresh._tiles._rows)
    fresh([Image(pictures[0].source, key="other name")], regions[:1])
    assert len(fresh._tiles._rows) == looked


def test_features_tell_shape_and_colour_of_objects_apart(encoder: RegionEncoder) -> None:
    """A linear map fitted to 300 scenes, on 60 others."""
    scenes = [random_scene(np.random.default_rng([8, index])) for index in range(360)]
    regions = [
        named(
            object_boxes(one) / 64,
            [SHAPES.index(o.shape) for o in one.objects],
            [COLOURS.index(o.colour) for o in one.objects],
        )
        for one in scenes
    ]
    seen = encoder([Image(draw(scene), key=f"p{index}") for index, scene in enumerate(scenes)], regions)
    for names, classes in ((SHAPES, "objects"), (COLOURS, "attributes")):
        labels = [torch.from_numpy(getattr(row, classes)) for row in regions]
        known, new = (torch.cat(part).double() for part in (seen[:300], seen[300:]))
        truth = F.one_hot(torch.cat(labels[:300]), len(names)).double()
        fitted = torch.linalg.solve(known.T @ known + torch.eye(encoder.width), known.T @ truth)
        guess = (new @ fitted).argmax(1)
        assert (guess == torch.cat(labels[300:])).float().mean() > 0.9, classes
