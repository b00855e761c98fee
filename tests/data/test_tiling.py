"""Pictures of any shape as tiles of one size."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from PIL import Image as PIL
from transformers.image_processing_utils import select_best_resolution

from tessera.data.conversation import ConversationBuilder
from tessera.data.images import Augment
from tessera.data.mixture import SourceStream
from tessera.data.packing import Packer
from tessera.data.sample import Image, pair
from tessera.data.tiling import TiledPixels
from tessera.errors import UserError
from tests.data.tiny import Numbered, tokenizer

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
TILED = TiledPixels(8, **PLAIN, most=4)


def drawn(width, height):
    """A picture whose red grows from left to right and green from top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return PIL.fromarray(np.stack([red, green, np.zeros_like(red)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (30, 7), (7, 30), (21, 10), (100, 100), (3, 3), (17, 9), (40, 1)])
def test_the_grid_is_that_which_llava_next_chooses(size):
    grids = [(rows * 8, cols * 8) for rows in range(1, 5) for cols in range(1, 5) if rows * cols <= 4]
    chosen = select_best_resolution(size[::-1], grids)
    assert TILED.grid(*size) == (chosen[0] // 8, chosen[1] // 8)


def test_tiles_side_by_side_are_the_picture_and_the_first_is_all_of_it():
    picture = drawn(16, 16)
    whole, *tiles = TILED.several(picture)
    assert TILED.count(picture) == 5 and whole.shape == (3, 8, 8)
    rows = [np.concatenate(tiles[start : start + 2], axis=2) for start in (0, 2)]
    found = np.concatenate(rows, axis=1)
    assert np.array_equal(found, np.asarray(picture, np.float32).transpose(2, 0, 1) / 255)
    assert abs(whole.mean() - found.mean()) < 0.01


def test_a_long_picture_keeps_its_proportions_and_the_rest_of_its_sheet_is_black():
    _, *tiles = TILED.several(PIL.new("RGB", (32, 4), "white"))
    assert len(tiles) == 4
    for tile in tiles:
        assert np.array_equal(tile.any(axis=(0, 2)), [False, False, True, True, True, True, False, False])


def test_a_picture_no_larger_than_a_tile_needs_none():
    assert TILED.count(drawn(8, 8)) == len(TILED.several(drawn(8, 8))) == 1


def test_a_packed_row_holds_as_many_pictures_as_its_places_say():
    class Shapes(Numbered):
        def __getitem__(self, index, /):
            return pair(Image(np.asarray(drawn(8 * (1 + index % 3), 8))), f"a red circle {index}", id=str(index))

    builder = ConversationBuilder(tokenizer(), partial(TILED.places, each=2), max_length=64)
    packer = Packer(builder, rows=2, row_length=64, pixels=TILED)
    stream = SourceStream(Shapes(12), seed=0)
    groups, _ = packer.plan([packer.read(stream.draw(place)) for place in range(12)])
    batch = packer.batch(groups[0], lambda draw, error: pytest.fail(str(error)))
    places = int((batch.input_ids == builder.place_id).sum())
    assert batch.pixel_values.shape == (places // 2, 3, 8, 8)
    assert len(batch.pixel_values) > len(batch.images)


def test_no_tile_at_all_is_refused():
    with pytest.raises(UserError, match="most is 0 tiles"):
        TiledPixels(8, most=0)
    with pytest.raises(UserError, match="cannot be augmented"):
        TiledPixels(8, augment=Augment())
