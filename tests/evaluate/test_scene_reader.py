from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tessera.data.worlds.scenes.draw import draw, object_boxes
from tessera.data.worlds.scenes.graph import Scene, random_scene
from tessera.errors import UserError
from tessera.evaluate.scene_match import agreement, contains, matches, relation, relations
from tessera.evaluate.scene_reader import UNKNOWN, ReadObject, read_scene

PICTURES = 250


@cache
def _read(objects: int) -> list[tuple[Scene, tuple[ReadObject, ...]]]:
    rng = np.random.default_rng(objects)
    counts = tuple(float(number == objects) for number in range(1, 5))
    scenes = [random_scene(rng, "heldout" if index % 2 else "train", counts) for index in range(PICTURES)]
    return [(scene, read_scene(draw(scene))) for scene in scenes]


def _share(objects: int, *fields: str) -> float:
    return float(np.mean([matches(read, scene, fields) for scene, read in _read(objects)]))


@pytest.mark.parametrize("objects", [1, 2, 3, 4])
def test_true_pictures_are_read_exactly(objects: int) -> None:
    assert _share(objects, "colour", "shape", "place") >= 0.99
    assert _share(objects, "colour", "shape", "place", "size") >= 0.99
    assert _share(objects, "colour", "shape", "place", "texture") >= 0.99


@pytest.mark.parametrize("objects", [2, 3, 4])
def test_relations_of_true_pictures_are_read_exactly(objects: int) -> None:
    right = [relations(scene.objects) == relations(read) for scene, read in _read(objects)]
    assert np.mean(right) >= 0.99


def test_boxes_lie_within_two_pixels_of_the_visible_parts() -> None:
    for scene, read in _read(2):
        for thing, box in zip(scene.objects, object_boxes(scene), strict=True):
            found = [one for one in read if one.place == thing.place]
            assert len(found) == 1
            assert np.abs(np.array(found[0].box) - box).max() <= 2


def _blurred(picture: np.ndarray, pixels: float) -> np.ndarray:
    return gaussian_filter(picture.astype(np.float32), (pixels, pixels, 0)).astype(np.uint8)


def test_a_soft_blob_is_no_shape() -> None:
    rng = np.random.default_rng(7)
    scenes = [random_scene(rng, "train") for _ in range(60)]
    shapes = [one.shape for scene in scenes for one in read_scene(_blurred(draw(scene), 2.0))]
    assert len(shapes) > 60
    assert np.mean([shape == UNKNOWN for shape in shapes]) >= 0.95


def test_an_edge_blurred_by_half_a_pixel_is_still_a_shape() -> None:
    rng = np.random.default_rng(8)
    scenes = [random_scene(rng, "train") for _ in range(60)]
    right = [matches(read_scene(_blurred(draw(scene), 0.5)), scene) for scene in scenes]
    assert np.mean(right) >= 0.95


def test_grain_of_a_lossy_decoder_is_tolerated() -> None:
    rng = np.random.default_rng(9)
    scenes = [random_scene(rng, "train") for _ in range(60)]
    grainy = [np.clip(draw(scene) + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8) for scene in scenes]
    assert np.mean([matches(read_scene(p), s) for p, s in zip(grainy, scenes, strict=True)]) >= 0.95


def test_nothing_is_read_where_nothing_is_drawn() -> None:
    rng = np.random.default_rng(10)
    for _ in range(20):
        scene = random_scene(rng, "train")
        assert read_scene(draw(replace(scene, objects=()))) == ()
    assert read_scene(rng.integers(100, 120, (64, 64, 3), dtype=np.uint8)) == ()


def test_objects_of_one_hue_that_touch_are_told_apart() -> None:
    touching = right = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng, "train", (0.0, 1.0))
        one, other = scene.objects
        if abs(one.row - other.row) + abs(one.column - other.column) != 1:
            continue
        big = [replace(thing, colour=one.colour, hue=one.hue, radius=10.0, size="large") for thing in (one, other)]
        pulled = replace(scene, objects=tuple(big))
        touching += 1
        right += matches(read_scene(draw(pulled)), pulled, ("colour", "shape", "place"))
        if touching == 40:
            break
    assert touching == 40
    assert right >= 39


def test_another_picture_size_is_refused_with_a_sentence() -> None:
    with pytest.raises(UserError, match="uint8 pictures"):
        read_scene(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="float32"):
        read_scene(np.zeros((64, 64, 3), np.float32))


RED_STAR = ("red", "star", "top", "small", "plain")
BLUE_STAR = ("blue", "star", "left", "large", "dotted")


def test_matching_compares_multisets() -> None:
    assert matches([RED_STAR, BLUE_STAR], [BLUE_STAR, RED_STAR])
    assert not matches([RED_STAR], [RED_STAR, RED_STAR])
    assert not matches([RED_STAR, BLUE_STAR], [RED_STAR])
    assert contains([RED_STAR, BLUE_STAR], [RED_STAR])
    assert not contains([RED_STAR], [RED_STAR, RED_STAR])


def test_what_a_prompt_leaves_unsaid_matches_anything() -> None:
    places = ("colour", "shape", "place")
    assert matches([RED_STAR, BLUE_STAR], [("red", "star", None), ("blue", "star", "left")], places)
    assert matches([RED_STAR], [("red", "star")], places)
    assert not matches([RED_STAR], [("red", "star", "left")], places)
    # The open wish must leave the object at the top to the wish that asks for it.
    twice = [RED_STAR, ("red", "star", "left")]
    assert matches(twice, [("red", "star", None), ("red", "star", "top")], places)


def test_agreement_counts_pairs_one_to_one() -> None:
    assert agreement([RED_STAR, RED_STAR], [RED_STAR, BLUE_STAR]) == (1, 2, 2)
    assert agreement([], [RED_STAR]) == (0, 0, 1)
    assert matches([], [])


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'color'; did you mean 'colour'"):
        matches([RED_STAR], [RED_STAR], ("color",))


def test_a_relation_is_seen_from_the_second_object() -> None:
    scene = next(s for s, _ in _read(2) if s.objects[0].column < s.objects[1].column)
    one, other = scene.objects
    assert relation(one, other)[0] == -1
    assert relation(other, one)[0] == 1
