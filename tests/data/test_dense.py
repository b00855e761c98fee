"""Pictures with a target for every pixel: drawn ones, one's own, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.data.dense import DenseReader, DenseScenes, open_dense
from tessera.data.images import Augment, Pixels, open_values
from tessera.data.sample import Dense, Sample
from tessera.data.worlds.scenes import ScenesWorld
from tessera.errors import BadSample, DataError, UserError

PIXELS = Pixels(64, (0.5,) * 3, (0.5,) * 3)
SMALL = {"train_pictures": 20, "heldout_pictures": 5}


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(path: Path, width: int = 12, height: int = 10) -> None:
    save(path, np.full((height, width, 3), 90, np.uint8))


def test_every_pixel_of_a_scene_has_one_class_and_the_names_are_those_of_its_things() -> None:
    world = DenseScenes("segmentation", ScenesWorld(**SMALL))
    assert len(world.classes) == 7 and world.classes[0] == "background"
    read = DenseReader("segmentation", world.classes, PIXELS)
    for place in range(8):
        sample = world.source("segmentation")[place]
        masks = next(one for one in sample.segments if isinstance(one, Dense))
        assert (masks.values.sum(axis=0) == 1).all()
        found = read(sample)
        assert found["pixel_values"].shape == (3, 64, 64) and found["labels"].shape == (64, 64)
        things = sample.meta["scene"].objects
        named = {world.classes[number] for number in np.unique(found["labels"])}
        assert named == {"background", *(thing.shape for thing in things)}
        assert found["pixel_values"].min() >= -1 and found["pixel_values"].max() <= 1


def test_target_and_picture_are_cut_out_and_mirrored_together() -> None:
    ramp = np.arange(40, dtype=np.uint8)[None].repeat(40, axis=0)
    shown = np.stack([5 * ramp] * 3, axis=-1)
    masks = np.stack([ramp == value for value in range(40)])
    names = tuple(map(str, range(40)))
    sample = Sample((_image(shown), Dense("masks", masks, names)))
    read = DenseReader("segmentation", names, Pixels(20, (0.0,) * 3, (1.0,) * 3, Augment(crop=0.5, flip=0.5)))
    for seed in range(6):
        found = read(sample, np.random.default_rng(seed))
        seen = found["pixel_values"][0] * 255 / 5
        assert np.abs(seen - found["labels"]).max() < 2.0  # of 40; bicubic beside nearest
    plain = read(sample)
    assert plain["labels"].shape == (20, 20) and np.array_equal(plain["labels"], read(sample)["labels"])


def _image(pixels: np.ndarray):
    from tessera.data.sample import Image as Shown

    return Shown(pixels)


def test_phrases_and_depth_of_scenes_become_masks_and_metres() -> None:
    world = DenseScenes("referring", ScenesWorld(**SMALL))
    read = DenseReader("referring", (), PIXELS, phrase=lambda text: np.array([len(text)]))
    sample = world.source("referring")[3]
    found = read(sample)
    mask = next(one for one in sample.segments if isinstance(one, Dense) and one.kind == "masks").values[0]
    assert np.array_equal(found["labels"], mask) and found["input_ids"].tolist() == [len(sample.text)]
    deep = DenseReader("depth", ("scene",), PIXELS, max_depth=7.0)(DenseScenes("depth").source("depth")[0])
    assert deep["labels"].dtype == np.float32 and deep["labels"].max() == 7.0 and deep["class_ids"] == 0


def test_one_s_own_masks_are_read_by_class_and_255_is_not_known(tmp_path: Path) -> None:
    values = np.zeros((10, 12), np.uint8)
    values[:3], values[8:] = 2, 255
    for name in ("a", "b", "c"):
        picture(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.png", values)
    picture(tmp_path / "images/alone.png")
    (tmp_path / "classes.txt").write_text("sky\nsea\nland\n")
    world = open_dense(tmp_path, "segmentation")
    assert world.classes == ("sky", "sea", "land") and len(world.source("segmentation")) == 2
    assert "without a file in masks/ (alone.png)" in str(world.tally)  # type: ignore[attr-defined]
    (masks,) = world.source("segmentation")[0].segments[1:]
    assert masks.labels == ("sky", "land") and masks.values.sum((1, 2)).tolist() == [60, 36]
    labels = DenseReader("segmentation", world.classes, Pixels(10))(world.source("segmentation")[0])["labels"]
    assert labels.shape == (10, 10) and set(np.unique(labels)) == {0, 2, 255}


def test_one_s_own_phrases_and_depth_are_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"images/kitchen/{name}.png")
        save(tmp_path / f"depth/kitchen/{name}.png", np.full((10, 12), 2500, np.uint16))
        save(tmp_path / f"m/{name}.png", np.eye(10, 12, dtype=np.uint8) * 9)
    lines = [{"image": f"images/kitchen/{name}.png", "phrase": f"thing {name}", "mask": f"m/{name}.png"}
             for name in ("a", "b", "lost")]  # fmt: skip
    (tmp_path / "referring.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"image": "x"}])))
    deep = open_dense(tmp_path, "depth")
    found = DenseReader("depth", deep.classes, Pixels(10), deep.max_depth)(deep.source("depth")[0])
    assert deep.classes == ("kitchen",) and found["labels"] == pytest.approx(2.5)
    told = open_dense(tmp_path, "referring")
    assert len(told.source("referring")) + len(told.source("referring", "heldout")) == 2
    assert told.source("referring")[0].segments[2].values.sum() == 10
    assert "whose picture or mask is missing" in str(told.tally)  # type: ignore[attr-defined]


def test_a_mask_of_another_size_than_its_picture_is_a_bad_sample_that_names_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.png", np.zeros((5, 6), np.uint8))
    (tmp_path / "classes.txt").write_text("sky\nsea")
    world = open_dense(tmp_path, "segmentation")
    read = DenseReader("segmentation", world.classes, Pixels(8))
    with pytest.raises(BadSample, match="the target is of 6 x 5 pixels and its picture of 12 x 10"):
        read(world.source("segmentation")[0])


def test_what_cannot_be_a_target_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dense task 'segment'; did you mean 'segmentation'"):
        open_dense("scenes", "segment")
    with pytest.raises(DataError, match="no such folder"):
        open_dense(tmp_path / "absent", "depth")
    with pytest.raises(DataError, match="classes.txt cannot be read; write the names"):
        open_dense(tmp_path, "segmentation")
    (tmp_path / "classes.txt").write_text("sky\nsky")
    with pytest.raises(DataError, match="has 2 names; 2 to 255 different ones"):
        open_dense(tmp_path, "segmentation")
    with pytest.raises(DataError, match="holds no picture; put pictures there and their targets into depth/"):
        open_dense(tmp_path, "depth")
    (tmp_path / "classes.txt").write_text("sky\nsea")
    for name, value in (("a", 7), ("b", 7)):
        picture(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.png", np.full((10, 12), value, np.uint8))
    with pytest.raises(BadSample, match=r"class 7 is not one of the 2 of classes.txt"):
        open_dense(tmp_path, "segmentation").source("segmentation")[0]
    save(tmp_path / "rgb.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:30])
    for name, said in (("rgb.png", "this one has 3"), ("cut.png", "cut short"), ("no.png", "no such file")):
        with pytest.raises(BadSample, match=said):
            open_values(tmp_path / name)
    sample = DenseScenes("segmentation", ScenesWorld(**SMALL)).source("segmentation")[0]
    with pytest.raises(BadSample, match="is not one of the model's"):
        DenseReader("segmentation", ("sky",), PIXELS)(sample)
    with pytest.raises(BadSample, match="there are no depth"):
        DenseReader("depth", ("scene",), PIXELS)(sample)
