"""The scenes world: determinism, shared pictures, held-out discipline, and worlds by name."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from tessera.data.sample import Dense, Image, Text
from tessera.data.source import Source, World
from tessera.data.worlds import open_world, world_names
from tessera.data.worlds.scenes import ScenesWorld
from tessera.data.worlds.scenes.captions import canonical_caption
from tessera.data.worlds.scenes.draw import draw
from tessera.data.worlds.scenes.graph import is_heldout, random_scene, redrawn
from tessera.data.worlds.scenes.mentions import mentioned_objects
from tessera.data.worlds.scenes.words import GROUNDS
from tessera.errors import UserError

SMALL = {"train_pictures": 200, "heldout_pictures": 60}
SPLITS = ("train", "heldout")


def _pixels(image):
    return np.asarray(image.pil())


def _digest(world):
    """Everything that a few samples of every task hold."""
    digest = hashlib.sha256()
    for task in world.tasks:
        for split in SPLITS:
            source = world.source(task, split)
            for index in (5, 0, len(source) - 1):
                for segment in source[index].segments:
                    data = _pixels(segment) if isinstance(segment, Image) else getattr(segment, "values", None)
                    digest.update(segment.text.encode() if isinstance(segment, Text) else data.tobytes())
    return digest.hexdigest()


def test_the_world_and_its_sources_keep_to_the_protocols():
    world = ScenesWorld(**SMALL)
    assert isinstance(world, World)
    for task in world.tasks:
        assert isinstance(world.source(task), Source)
    assert len(world.source("pairs", "heldout")) == 60 and len(world.source("questions")) == 800


def test_a_conversation_asks_different_questions_about_one_picture_and_learns_the_answers():
    source = ScenesWorld(**SMALL).source("conversations")
    for sample in islice((source[index] for index in range(len(source))), 50):
        image, *turns = sample.segments
        assert isinstance(image, Image) and len(sample.meta["types"]) == len(turns) // 2 >= 2
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert [turn.learned for turn in turns] == [False, True] * (len(turns) // 2)
        asked = [turn.text for turn in turns[::2]]
        assert len(set(asked)) == len(asked)


def test_samples_are_a_pure_function_of_seed_task_split_and_index():
    assert _digest(ScenesWorld(**SMALL)) == _digest(ScenesWorld(**SMALL))
    assert _digest(ScenesWorld(**SMALL)) != _digest(ScenesWorld(seed=1, **SMALL))


def test_samples_are_the_same_in_another_process():
    code = f"from tessera.data.worlds.scenes import ScenesWorld; print(ScenesWorld(**{SMALL}).fingerprint())"
    settings = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    assert done.stdout.strip() == ScenesWorld(**SMALL).fingerprint()


def test_tasks_share_the_pictures_and_their_keys():
    world = ScenesWorld(**SMALL)
    for split in SPLITS:
        source = world.source("questions", split)
        number = world.pictures[split]
        for index in (3, 3 + number):
            image = source[index].images[0]
            assert image.key == f"scenes/{split}/3"
            assert np.array_equal(_pixels(image), _pixels(world.image(split, 3)))
        assert world.source("pairs", split)[3].images[0].key == f"scenes/{split}/3"
        assert source[3].text != source[3 + number].text
    assert not np.array_equal(_pixels(world.image("train", 3)), _pixels(world.image("heldout", 3)))


def test_a_drawing_shows_what_its_sentence_tells_before_a_plain_light_background_where_it_tells_none():
    source, told = ScenesWorld(**SMALL).source("drawings"), []
    for index in range(200):
        sample = source[index]
        scene = sample.meta["scene"]
        assert sorted(mentioned_objects(sample.text)) == sorted(mentioned_objects(canonical_caption(scene)))
        told.append("background" in sample.text)
        named = f"{scene.tone} {GROUNDS[scene.background]}" in sample.text
        assert named if told[-1] else (scene.background, scene.tone) == ("plain", "light")
        assert np.array_equal(_pixels(sample.images[0]), draw(scene))
    assert 0.15 < np.mean(told) < 0.35


def test_a_key_names_one_picture_only_even_across_worlds_of_other_settings():
    seen = {}
    for world in (ScenesWorld(**SMALL), ScenesWorld(seed=1, **SMALL), ScenesWorld(counts=(1.0,), **SMALL)):
        for task in world.tasks:
            for split in SPLITS:
                for sample in islice(world.source(task, split), 12):
                    for image in sample.images:
                        pixels = _pixels(image).tobytes()
                        assert seen.setdefault(image.key, pixels) == pixels


@pytest.mark.parametrize("task", ScenesWorld.tasks)
def test_no_training_sample_of_any_task_holds_a_heldout_combination(task):
    """In the pictures, by their scene graphs; in the words, by the reader of mentions."""
    world = ScenesWorld(train_pictures=250)
    source = world.source(task)
    for index in range(250):
        sample = source[index]
        scenes = sample.meta.get("scenes") or [sample.meta["scene"], sample.meta.get("after")]
        assert not any(is_heldout(*thing.triple) for scene in scenes if scene for thing in scene.objects)
        assert len(sample.images) == len([scene for scene in scenes if scene])
        for image, scene in zip(sample.images, (s for s in scenes if s), strict=True) if index < 20 else ():
            assert np.array_equal(_pixels(image), draw(scene))
        for segment in sample.segments:
            if isinstance(segment, Text):
                for colour, shape, place, *_ in mentioned_objects(segment.text):
                    assert place is None or not is_heldout(colour, shape, place), sample.text


def test_every_object_of_a_heldout_picture_is_a_heldout_combination():
    world = ScenesWorld(heldout_pictures=300)
    for index in range(300):
        assert all(is_heldout(*thing.triple) for thing in world.scene("heldout", index).objects)


def test_referring_and_depth_carry_dense_targets_of_the_right_shape():
    world = ScenesWorld(**SMALL)
    for index in range(40):
        image, phrase, boxes, masks = world.source("referring")[index].segments
        assert not image.learned and not phrase.learned and boxes.labels == (phrase.text,)
        x0, y0, x1, y1 = boxes.values[0]
        rows, columns = np.nonzero(masks.values[0])
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
        depth = world.source("depth")[index].segments[1]
        assert isinstance(depth, Dense) and depth.values.shape == (64, 64) and 0 < depth.values.min() < 1


def test_roles_and_learned_marks_follow_the_tasks():
    world = ScenesWorld(**SMALL)
    shown, told, answer = world.source("questions")[0].segments
    assert (shown.learned, told.learned, answer.learned) == (False, False, True)
    for index in range(30):
        sample = world.source("edits")[index]
        before, told, after = sample.segments
        assert (before.learned, told.learned, after.learned) == (False, False, True)
        assert (before.role, told.role, after.role) == ("user", "user", "assistant")
        assert isinstance(after, Image) == sample.meta["possible"]
    assert all(segment.learned for segment in world.source("pages")[0].segments)


def test_counts_weigh_the_number_of_objects_and_styles_the_captions():
    world = ScenesWorld(counts=(0.0, 0.5, 0.0, 0.5), captions={"canonical": 1.0}, captions_each=3, **SMALL)
    assert {len(world.scene("train", i).objects) for i in range(100)} == {2, 4}
    source = world.source("pairs")
    assert len(source) == 600
    assert all(source[i].segments[1].text == source[i].meta["canonical"] for i in range(0, 600, 50))


def test_fingerprints_tell_settings_tasks_and_splits_apart():
    worlds = (
        ScenesWorld(**SMALL),
        ScenesWorld(seed=1, **SMALL),
        ScenesWorld(train_pictures=201, heldout_pictures=60),
    )
    prints = [w.source(task, split).fingerprint() for w in worlds[:2] for task in w.tasks for split in SPLITS]
    assert len(set(prints)) == len(prints)
    assert len({world.fingerprint() for world in worlds}) == 3
    assert worlds[0].fingerprint() == ScenesWorld(**SMALL).fingerprint()


def test_an_index_out_of_range_is_an_index_error():
    source = ScenesWorld(**SMALL).source("pairs")
    for index in (-1, 200):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize("settings", [
    {"train_pictures": 0}, {"counts": (0.5, 0.4)}, {"counts": (0.2,) * 5}, {"counts": (1.5, -0.5)},
    {"captions": {"shrot": 1.0}}, {"captions": {"short": 0.5}}, {"questions_each": 0},
])  # fmt: skip
def test_settings_without_sense_are_refused_in_one_sentence(settings):
    with pytest.raises(UserError, match=r"\.$"):
        ScenesWorld(**settings)


def test_worlds_open_by_name_and_unknown_names_suggest_the_nearest():
    assert set(world_names()) >= {"scenes", "emoji"}
    assert open_world("scenes").name == "scenes"
    with pytest.raises(UserError, match="did you mean 'scenes'"):
        open_world("scene")
    with pytest.raises(UserError, match="did you mean 'pages'"):
        open_world("scenes").source("page")
    with pytest.raises(UserError, match="did you mean 'heldout'"):
        open_world("scenes").source("pairs", "held-out")


def test_what_looks_like_a_path_goes_to_the_readers(monkeypatch, tmp_path):
    import tessera.data.readers

    opened = []
    monkeypatch.setattr(tessera.data.readers, "open_reader", lambda path: opened.append(path), raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    paths = ("pictures", "a/b", "shards-{000..004}.tar", tmp_path)
    for path in paths:
        open_world(path)
    assert opened == list(paths)


def test_a_redrawn_scene_keeps_what_its_caption_names_and_nothing_else():
    rng = np.random.default_rng(0)
    scene = random_scene(rng)
    others = [redrawn(scene, rng) for _ in range(4)]
    assert {canonical_caption(other) for other in others} == {canonical_caption(scene)}
    assert len({(other.objects[0].x, other.background, other.seed) for other in others}) == 4
    freer = [redrawn(scene, rng, keep=()) for _ in range(20)]
    assert {tuple(thing.triple for thing in other.objects) for other in freer} == {
        tuple(thing.triple for thing in scene.objects)
    }
    assert len({other.objects[0].size for other in freer}) == 2
