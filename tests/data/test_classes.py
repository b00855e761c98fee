"""Pictures sorted by class, as users keep them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

from tessera.data.labelled import EmojiClasses, open_labelled
from tessera.data.readers.classes import TASK, open_classes
from tessera.data.readers.digits import HELD, open_digits
from tessera.data.readers.omniglot import HELD_DRAWERS, open_omniglot
from tessera.errors import DataError, UserError

OMNIGLOT = Path(os.environ.get("OMNIGLOT_DATA", Path(__file__).parents[3] / "shared" / "data" / "omniglot"))


def draw(root: Path, *names: str) -> None:
    for place, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.fromarray(np.full((6, 6, 3), place, np.uint8)).save(root / name)


def samples(world, split):
    source = world.source(TASK, split)
    return {source[place].id: source[place].text for place in range(len(source))}


def test_class_folders_give_their_names_with_all_pictures_below_them(tmp_path):
    draw(tmp_path, "dog/a.png", "dog/more/b.png", "cat/a.png", "cat/b.jpg", ".hidden/x.png", "loose.png")
    (tmp_path / "cat" / "notes.txt").write_text("nothing")
    world = open_classes(tmp_path)
    assert world.classes == ("cat", "dog")
    everything = samples(world, "train") | samples(world, "heldout")
    assert everything == {"dog/a.png": "dog", "dog/more/b.png": "dog", "cat/a.png": "cat", "cat/b.jpg": "cat"}
    assert world.tally.counts == {"in no class folder": 1}
    assert world.source(TASK)[0].images[0].pil().size == (6, 6)


def test_some_of_each_class_are_held_out_and_the_same_ones_each_time(tmp_path):
    draw(tmp_path, *(f"{label}/{place}.png" for label in ("cat", "dog", "cow") for place in range(30)), "one/a.png")
    held, train = samples(open_classes(tmp_path), "heldout"), samples(open_classes(tmp_path), "train")
    assert set(held.values()) == {"cat", "dog", "cow"}
    assert set(train.values()) == {"cat", "dog", "cow", "one"}
    assert not held.keys() & train.keys()
    assert len(held) < 20
    assert held == samples(open_classes(tmp_path), "heldout")


def test_a_labels_file_names_each_picture(tmp_path):
    draw(tmp_path, "a.png", "b.png", "sub/c.png")
    (tmp_path / "labels.csv").write_text("file_name,label\na.png,cat\nb.png, dog \nsub/c.png,cat\n")
    world = open_classes(tmp_path)
    found = samples(world, "train") | samples(world, "heldout")
    assert found == {"a.png": "cat", "b.png": "dog", "sub/c.png": "cat"}


def test_a_labels_file_that_disagrees_with_its_folder_is_refused_with_the_first_disagreements(tmp_path):
    draw(tmp_path, "a.png", "cat/b.png", "cat/c.png", "d.png", "e.png")
    rows = ["a.png,cat", "a.png,dog", "cat/b.png,dog", "cat/c.png,cat", "gone.png,cat", "../out.png,cat", "e.png,"]
    (tmp_path / "labels.csv").write_text("file_name,class\n" + "\n".join(rows))
    with pytest.raises(UserError) as caught:
        open_classes(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'labels.csv'} disagrees with its folder: ")
    for part in (
        "1 with two labels (a.png: cat and dog)",
        "1 in the folder of another class (cat/b.png: dog)",
        "2 named but not there (gone.png, ",
        "1 without a label (e.png)",
        "1 there but not named (d.png)",
    ):
        assert part in said


def test_a_labels_file_without_its_columns_says_which_it_has(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text("name,kind\na.png,cat\n")
    with pytest.raises(DataError, match=r"columns file_name and label \(or class\); it has name, kind"):
        open_classes(tmp_path)


def test_folders_for_training_and_validation_are_the_splits(tmp_path):
    draw(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/dog/c.png", "test/cat/d.png")
    world = open_classes(tmp_path)
    assert samples(world, "train") == {"train/cat/a.png": "cat", "train/dog/b.png": "dog"}
    assert samples(world, "heldout") == {"val/dog/c.png": "dog"}
    assert world.tally.counts == {"left alone beside train": 1}
    draw(tmp_path, "val/cow/e.png")
    with pytest.raises(UserError, match=r"has 1 classes that .*train has not \(cow\)"):
        open_classes(tmp_path)


@pytest.mark.parametrize(
    ("names", "kind", "sentence"),
    [
        ([], DataError, "holds no picture"),
        (["a.png", "b.png"], UserError, "holds 2 pictures and no class folders; give each class a folder"),
        (["cat/a.png", "cat/b.png"], UserError, "2 pictures of one class ('cat'); a classifier needs two"),
    ],
)
def test_what_gives_no_two_classes_is_refused_with_the_way_out(names, kind, sentence, tmp_path):
    draw(tmp_path, *names)
    with pytest.raises(kind) as caught:
        open_labelled(tmp_path)
    assert sentence in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        open_labelled(tmp_path / "nowhere")


def test_the_fingerprint_changes_with_a_label(tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    prints = set()
    for last in ("cat", "dog"):
        (tmp_path / "labels.csv").write_text(f"file_name,label\na.png,cat\nb.png,dog\nc.png,{last}\n")
        prints.add(open_classes(tmp_path).source(TASK).fingerprint())
    assert len(prints) == 2


def test_emoji_come_with_their_groups():
    class World:
        emoji = ()

        def source(self, task, split):
            return self

        name = "emoji/pairs/train"

        def __len__(self):
            return 1

        def __getitem__(self, index):
            from tessera.data.sample import Image, pair

            return pair(Image(np.zeros((2, 2, 3), np.uint8)), "grinning face", id="x", meta={"group": "Smileys"})

        def fingerprint(self):
            return "abc"

    source = EmojiClasses(World()).source(TASK)
    assert (source[0].text, source[0].id, len(source)) == ("Smileys", "x", 1)
    assert source.fingerprint() != World().fingerprint()


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="Omniglot is not on this machine")
def test_omniglot_is_read_from_its_zips_with_drawers_held_out(monkeypatch):
    world = open_omniglot(OMNIGLOT)
    monkeypatch.chdir(OMNIGLOT)  # a world is named after its folder, and not after where that lies
    assert world.name == open_omniglot(".").name == f"{OMNIGLOT.name} by character"
    train, held = world.source(TASK), world.source(TASK, "heldout")
    assert len(train) + len(held) == 20 * len(world.classes)
    assert len(held) == len(HELD_DRAWERS) * len(world.classes)
    assert {record.group for record in held.records} == set(HELD_DRAWERS)
    assert held[0].images[0].pil().size == (105, 105)
    assert open_omniglot(OMNIGLOT, by="alphabet").classes == tuple(sorted({c.split("/")[0] for c in world.classes}))


def test_handwritten_digits_are_read_with_the_last_held_out():
    world = open_digits()
    train, held = world.source("classes"), world.source("classes", "heldout")
    assert (len(train), len(held)) == (1797 - HELD, HELD)
    assert world.classes == tuple("0123456789")
    first = train[0]
    assert first.text == "0" and first.images[0].pil().size == (8, 8)
    assert first.images[0].pil().convert("L").getextrema() == (0, 239)  # 15 of 16 is this one's whitest


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'tessera-vl\[real\]'"):
        open_digits()


def test_a_folder_without_omniglot_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images_background"):
        open_omniglot(tmp_path)
    (tmp_path / "images_background_small1.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="small1.zip cannot be read"):
        open_omniglot(tmp_path)
