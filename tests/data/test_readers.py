"""Files in the field's own formats become worlds, and what cannot be used is named and counted."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

from tessera.data.readers import open_reader
from tessera.data.readers.coco import open_coco
from tessera.data.readers.files import FileWorld, held_out_groups
from tessera.data.readers.llava import open_llava
from tessera.data.readers.shards import open_shards, without_last_number
from tessera.data.sample import Image, Text
from tessera.data.source import World
from tessera.errors import BadSample, DataError, UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def _png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    PIL.fromarray(np.full((6, 8, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _pictures(folder: Path, names: Iterable[str]) -> Path:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_png(shade))
    return folder


def _tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _captioned(numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    return [(f"{n:05d}.{end}", data) for n in numbers for end, data in (("png", _png(n)), ("txt", f"no {n}".encode()))]


def _all(world: FileWorld[Any], split: str | None = None) -> dict[str, str]:
    """Id and text of every sample, of one split or of both."""
    splits = [split] if split else ["train", "heldout"]
    sources = [world.source(world.tasks[0], name) for name in splits]
    return {sample.id: sample.text for source in sources for sample in (source[i] for i in range(len(source)))}


# ---- folders


def test_a_folder_with_sidecars(tmp_path: Path) -> None:
    _pictures(tmp_path, ["a.png", "deep/b.PNG", "c.png"])
    (tmp_path / "a.txt").write_text("\ufeffa red circle\n", encoding="utf-8")
    (tmp_path / "deep/b.txt").write_text("a blue square")
    world = open_reader(tmp_path)
    assert isinstance(world, World)
    assert world.tasks == ("pairs",)
    assert _all(world) == {"a.png": "a red circle", "deep/b.PNG": "a blue square"}
    assert str(world.tally) == "1 without a caption (c.png)"
    assert world.source("pairs", "heldout")[0].images[0].pil().size == (8, 6)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_folder_with_metadata(tmp_path: Path, kind: str) -> None:
    _pictures(tmp_path, ["images/a.png", "images/b.png", "images/unnamed.png"])
    rows = [("images/a.png", 'a "red", round circle'), ("./images/b.png", "b"), ("gone.png", "c")]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": name, "text": words, "other": 1}) for name, words in rows)
        (tmp_path / "metadata.jsonl").write_text(text + "\n\n")
    else:
        lines = ["file_name,caption"]
        lines += [f'{name},"{words.replace(chr(34), chr(34) * 2)}"' for name, words in rows]
        (tmp_path / "captions.csv").write_text("\n".join(lines))
    world = open_reader(tmp_path)
    assert _all(world) == {"images/a.png": 'a "red", round circle', "images/b.png": "b"}
    assert world.tally.counts == {"named in metadata but missing": 1, "without a caption": 1}


def test_class_folders_give_their_names(tmp_path: Path) -> None:
    _pictures(tmp_path, ["grey_cat/1.png", "grey_cat/2.png", "dog/1.png"])
    texts = _all(open_reader(tmp_path))
    assert texts == {"grey_cat/1.png": "grey cat", "grey_cat/2.png": "grey cat", "dog/1.png": "dog"}


def test_captions_that_are_empty_or_huge_are_left_out_and_counted(tmp_path: Path) -> None:
    _pictures(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    for name, text in (("a", "good"), ("b", "  "), ("c", "x" * 1_000_000), ("d", "good too")):
        (tmp_path / f"{name}.txt").write_text(text)
    world = open_reader(tmp_path)
    assert world.tally.counts == {"the text is empty": 1, "a caption over 100 kB": 1}


def test_a_folder_without_pictures_says_what_it_saw(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match="holds no picture: 1 text files and 0 tables"):
        open_reader(tmp_path)


def test_a_folder_where_all_is_left_out_gives_the_counts(tmp_path: Path) -> None:
    _pictures(tmp_path, ["a.png", "b.png"])
    with pytest.raises(DataError, match=r"no usable sample: 2 without a caption \(a.png, b.png\)"):
        open_reader(tmp_path)


def test_metadata_without_the_columns_names_those_it_has(tmp_path: Path) -> None:
    _pictures(tmp_path, ["a.png"])
    (tmp_path / "x.csv").write_text("image,words\na.png,hello")
    with pytest.raises(DataError, match=r"needs the columns file_name and text \(or caption\); it has image, words"):
        open_reader(tmp_path)


def test_a_broken_picture_is_bad_only_when_it_is_decoded(tmp_path: Path) -> None:
    _pictures(tmp_path, ["cat/a.png", "cat/b.png"])
    (tmp_path / "cat/a.png").write_bytes(b"")
    world = open_reader(tmp_path)
    sources = [world.source("pairs", split) for split in ("train", "heldout")]
    broken = next(source[0] for source in sources if source[0].id == "cat/a.png")
    with pytest.raises(BadSample, match="a.png: the file is empty"):
        broken.images[0].pil()


# ---- splits


def test_a_split_holds_out_a_twentieth_and_keeps_groups_whole(tmp_path: Path) -> None:
    groups = {f"group {number}" for number in range(4000)}
    held = held_out_groups(groups)
    assert 150 < len(held) < 250
    assert held == held_out_groups(groups | {"another"}) - {"another"}
    assert len(held_out_groups({"one", "two"})) == 1


def test_train_and_heldout_share_nothing_and_lose_nothing(tmp_path: Path) -> None:
    world = open_reader(_pictures(tmp_path, [f"cat/{number}.png" for number in range(60)]))
    train, held = _all(world, "train"), _all(world, "heldout")
    assert not train.keys() & held.keys()
    assert len(train) + len(held) == 60
    assert 1 <= len(held) < 12
    assert world.source("pairs").fingerprint() != world.source("pairs", "heldout").fingerprint()


def test_the_fingerprint_changes_with_the_data_alone(tmp_path: Path) -> None:
    _pictures(tmp_path, ["cat/a.png", "cat/b.png"])
    before = open_reader(tmp_path).source("pairs").fingerprint()
    assert open_reader(tmp_path).source("pairs").fingerprint() == before
    _pictures(tmp_path, ["dog/c.png"])
    assert open_reader(tmp_path).fingerprint() != before.split("-")[0]


def test_a_task_that_the_files_do_not_give_is_refused(tmp_path: Path) -> None:
    world = open_reader(_pictures(tmp_path, ["cat/a.png", "cat/b.png"]))
    with pytest.raises(UserError, match="no task 'pair'; did you mean 'pairs'"):
        world.source("pair")


def test_one_picture_alone_cannot_be_split(tmp_path: Path) -> None:
    world = open_reader(_pictures(tmp_path, ["cat/a.png"]))
    with pytest.raises(DataError, match="one group of samples and cannot be split"):
        world.source("pairs")


# ---- shards


def test_shards_by_path_brace_pattern_and_folder(tmp_path: Path) -> None:
    for number in range(3):
        _tar(tmp_path / f"s-{number}.tar", _captioned(range(number * 4, number * 4 + 4)))
    by_braces = open_reader(f"{tmp_path}/s-{{0..2}}.tar")
    assert len(by_braces.tally) == 0
    assert by_braces.tasks == ("pairs",)
    assert _all(by_braces) == {f"s-{n // 4}/{n:05d}": f"no {n}" for n in range(12)}
    assert _all(open_reader(tmp_path)) == _all(by_braces)
    assert open_reader(tmp_path).fingerprint() == by_braces.fingerprint()
    assert _all(open_reader(tmp_path / "s-1.tar")) == {f"{n:05d}": f"no {n}" for n in range(4, 8)}


def test_samples_of_a_shard_come_by_number_in_any_order(tmp_path: Path) -> None:
    source = open_reader(_tar(tmp_path / "a.tar", _captioned(range(30)))).source("pairs")
    for index in (len(source) - 1, 0, 7):
        sample = source[index]
        assert sample.text == f"no {int(sample.id)}"
        assert sample.images[0].pil().getpixel((0, 0))[0] == int(sample.id)


def test_a_member_is_read_whole_where_a_file_system_gives_less_or_cannot_read_at_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pread = _tar(tmp_path / "a.tar", _captioned(range(4))), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: pread(file, min(size, 3), start))
    captions = {f"{number:05d}": f"no {number}" for number in range(4)}
    assert _all(open_reader(path)) == captions
    assert open_reader(path).source("pairs")[0].images[0].pil().size
    monkeypatch.delattr(os, "pread")
    assert _all(open_reader(path)) == captions


def test_a_spoiled_picture_in_a_shard_is_named_by_shard_and_member(tmp_path: Path) -> None:
    members = [(name, b"" if name.endswith("png") else data) for name, data in _captioned(range(3))]
    source = open_reader(_tar(tmp_path / "a.tar", members)).source("pairs")
    with pytest.raises(BadSample, match=r"a.tar:0000\d.png: the file is empty"):
        source[0].images[0].pil()


def test_the_index_is_kept_until_the_file_changes(tmp_path: Path, own_cache: Path) -> None:
    path = _tar(tmp_path / "a.tar", _captioned(range(4)))
    before = _all(open_reader(path))
    kept = list(own_cache.rglob("*.json"))
    assert len(kept) == 1
    assert _all(open_reader(path)) == before
    kept[0].write_text("{ damaged")
    assert _all(open_reader(path)) == before
    _tar(path, _captioned(range(9)))
    assert len(_all(open_reader(path))) == 9


@pytest.mark.parametrize("blocks", [20.0, 20.3, 21.1, 22.0, 22.9, 23.05, 40.0])
def test_a_shard_cut_short_gives_the_samples_before_the_cut(tmp_path: Path, blocks: float) -> None:
    """A sample here is four blocks of 512 bytes: header and data of the picture, header and data of the
    text."""
    path = _tar(tmp_path / "cut.tar", _captioned(range(20)))
    path.write_bytes(path.read_bytes()[: int(blocks * 512)])
    world = open_reader(path)
    kept = _all(world)
    assert len(kept) == int(blocks / 4)
    assert all(text == f"no {int(name)}" for name, text in kept.items())
    assert "cut short" in str(world.tally) and "cut.tar" in str(world.tally)


def test_a_member_met_twice_is_named_and_the_first_is_used(tmp_path: Path) -> None:
    members = _captioned(range(5))
    world = open_reader(_tar(tmp_path / "a.tar", [*members, ("00002.txt", b"second")]))
    assert _all(world)["00002"] == "no 2"
    assert "member met twice" in str(world.tally) and "00002.txt" in str(world.tally)


def test_too_many_double_members_are_refused(tmp_path: Path) -> None:
    members = _captioned(range(12))
    with pytest.raises(DataError, match="more is spoiled than the 10 allowed of 12 samples: 24 member met twice"):
        open_reader(_tar(tmp_path / "a.tar", members * 2))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is not an uncompressed tar"), (b"\x1f\x8b" + b"x" * 900, "is not an uncompressed tar file")],
)
def test_a_file_that_is_no_tar_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=f"a.tar {reason}"):
        open_reader(tmp_path / "a.tar")


def test_a_missing_shard_of_a_pattern_is_named(tmp_path: Path) -> None:
    _tar(tmp_path / "s-0.tar", _captioned(range(3)))
    with pytest.raises(DataError, match="s-1.tar: no such shard"):
        open_reader(f"{tmp_path}/s-{{0..1}}.tar")


@pytest.mark.parametrize("address", ["https://example.com/{0..3}.tar", "pipe:cat a.tar"])
def test_remote_shards_are_refused(address: str) -> None:
    with pytest.raises(DataError, match="local files only"):
        open_shards(address)


def test_members_of_no_known_layout_are_listed(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", [("1.png", _png()), ("1.cls", b"7")])
    with pytest.raises(DataError, match="1 has the members png, cls, which fit no known layout"):
        open_reader(path)


@pytest.mark.parametrize(
    ("value", "task", "text"),
    [
        ({"caption": "a cat"}, "pairs", "a cat"),
        ({"text": "a cat"}, "pairs", "a cat"),
        ({"question": "What?", "answer": "a cat"}, "questions", "What? a cat"),
        ({"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]},
         "conversations", "What? a cat"),
    ],
)  # fmt: skip
def test_layouts_are_found_from_the_first_sample(tmp_path: Path, value: Any, task: str, text: str) -> None:
    members = [(f"{n}.{end}", data) for n in range(3)
               for end, data in (("jpg", _png()), ("json", json.dumps(value).encode()))]  # fmt: skip
    world = open_reader(_tar(tmp_path / "a.tar", members))
    assert world.tasks == (task,)
    assert set(_all(world).values()) == {text}


def _statements(examples: int = 30, **changes: Any) -> list[tuple[str, bytes]]:
    members = []
    for example in range(examples):
        for arrangement in range(6):
            value = {
                "sentence": "There is a box",
                "label": example % 2 == 0,
                "identifier": f"{example}-1",
                **changes,
            }
            key = f"{example}-1-{arrangement}"
            members += [(f"{key}.png", _png()), (f"{key}.json", json.dumps(value).encode())]
    return members


def test_statements_become_true_or_false_questions_with_examples_kept_whole(tmp_path: Path) -> None:
    world = open_reader(_tar(tmp_path / "nlvr.tar", _statements()))
    assert world.tasks == ("questions",)
    sample = world.source("questions")[0]
    assert [type(segment) for segment in sample.segments] == [Image, Text, Text]
    assert [segment.learned for segment in sample.segments] == [False, False, True]
    assert sample.segments[1].text == "Is this statement true or false? There is a box"
    assert sample.segments[2].text == str(sample.meta["label"]).lower()
    sides = [{without_last_number(name) for name in _all(world, split)} for split in ("train", "heldout")]
    assert not sides[0] & sides[1]
    assert len(_all(world, "heldout")) % 6 == 0


def test_any_other_group_keeps_its_samples_on_one_side(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", _captioned(range(60)))
    world = open_shards(path, group=lambda key: key[-1])
    ends = [{name[-1] for name in _all(world, split)} for split in ("train", "heldout")]
    assert not ends[0] & ends[1]
    assert len(ends[0] | ends[1]) == 10


def test_a_label_that_is_neither_true_nor_false_is_a_bad_sample(tmp_path: Path) -> None:
    source = open_reader(_tar(tmp_path / "a.tar", _statements(3, label="maybe"))).source("questions")
    with pytest.raises(BadSample, match="label is 'maybe', not true or false"):
        source[0]


# ---- LLaVA


def _llava(tmp_path: Path, rows: list[Any], name: str = "data/chat.json") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    return path


def _turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


@pytest.mark.parametrize("name", ["data/chat.json", "data/chat.jsonl"])
def test_conversations_resolve_pictures_against_their_own_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _pictures(tmp_path / "data", ["pics/a.png", "pics/b.png"])
    rows = [
        {"id": "one", "image": "pics/a.png",
         "conversations": _turns("<image>\nWhat is it?", "A cat.", "Sure?", "Yes.")},
        {"id": 2, "image": ["pics/a.png", "pics/b.png"],
         "conversations": _turns("<image> and <image>", "Two.")},
        {"id": "words", "conversations": _turns("Hello", "Hello to you")},
    ]  # fmt: skip
    world = open_reader(_llava(tmp_path, rows, name))
    assert world.tasks == ("conversations",)
    texts = _all(world)
    assert texts == {"one": "What is it? A cat. Sure? Yes.", "2": "and Two.", "words": "Hello Hello to you"}
    sources = [world.source("conversations", split) for split in ("train", "heldout")]
    for sample in (source[i] for source in sources for i in range(len(source))):
        assert all(image.pil().size == (8, 6) and not image.learned for image in sample.images)
        roles = [(segment.role, segment.learned) for segment in sample.segments]
        assert all(learned == (role == "assistant") for role, learned in roles)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.png", "conversations": _turns("What?", "A.")}, "0 <image> tags but 1 pictures"),
        ({"conversations": _turns("<image> What?", "A.")}, "1 <image> tags but 0 pictures"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "unknown role 'robot'; known are human"),
        ({"conversations": _turns("What?", "")}, "an empty turn of the assistant"),
        ({"conversations": [{"from": "human"}]}, "no text under 'value'"),
    ],
)
def test_a_conversation_that_does_not_fit_is_a_bad_sample(tmp_path: Path, row: Any, reason: str) -> None:
    other = {**row, "id": "other", "image": "b.png" if "image" in row else None}
    source = open_reader(_llava(tmp_path, [row, other]))
    with pytest.raises(BadSample, match=reason):
        source.source("conversations")[0]


def test_a_picture_that_is_missing_shows_the_path_tried(tmp_path: Path) -> None:
    rows = [{"id": n, "image": f"no/{n}.png", "conversations": _turns("<image> a", "b")} for n in range(2)]
    world = open_llava(_llava(tmp_path, rows), images=tmp_path / "pictures")
    with pytest.raises(BadSample, match=r"pictures/no/\d.png: no such file"):
        world.source("conversations")[0].images[0].pil()


# ---- COCO


def _coco(tmp_path: Path) -> Path:
    value = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(4)],
        "annotations": [{"id": 10 * n + k, "image_id": n, "caption": f"{n} {k}"} for n in range(4) for k in range(3)]
        + [{"id": 99, "image_id": 77, "caption": "lost"}, {"id": 98, "image_id": 1, "caption": " "}],
    }
    path = tmp_path / "annotations" / "captions_train2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("folder", ["annotations", "train2017", "images/train2017", "annotations/images"])
def test_coco_pictures_are_found_where_its_archives_put_them(tmp_path: Path, folder: str) -> None:
    path = _coco(tmp_path)
    _pictures(tmp_path / folder, [f"{n}.png" for n in range(4)])
    world = open_reader(path)
    assert _all(world) == {str(10 * n + k): f"{n} {k}" for n in range(4) for k in range(3)}
    assert world.tally.counts == {"of a picture that is not listed": 1, "without a caption": 1}
    held = world.source("pairs", "heldout")
    assert len(held) == 3
    assert len({held[i].meta["captions"] for i in range(3)}) == 1
    assert held[0].images[0].pil().size == (8, 6)


def test_coco_pictures_not_found_lists_the_folders_tried(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="were not found: 0.png is in none of .*train2017"):
        open_reader(_coco(tmp_path))


def test_other_coco_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}))
    with pytest.raises(DataError, match="holds no caption .*; take the captions_"):
        open_coco(path)


# ---- what is no known format


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "[]", "an empty list: 0 samples"),
        ("a.json", "[{]", "not valid JSON: line 1, column 3"),
        ("a.jsonl", '{"a": 1}\n{', "not valid JSON: line 2"),
        ("a.json", '{"a": 1}', "neither a list of LLaVA conversations nor a COCO"),
        ("a.parquet", "PAR1", "unknown format '.parquet'; known are a folder of pictures"),
    ],
)
def test_an_unknown_or_broken_file_is_named(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        open_reader(tmp_path / name)


def test_a_path_with_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_reader(tmp_path / "nowhere")
