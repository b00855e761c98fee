"""A world written as shards reads back as the same samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tessera.data.readers import open_reader
from tessera.data.sample import Dense, Image, Sample, Text, interleaved, pair, question
from tessera.data.worlds.export import members, write_shards
from tessera.errors import BadSample, UserError


def _picture(number: int) -> Image:
    return Image(np.full((8, 8, 3), number, np.uint8))


@dataclass
class Few:
    """Samples from a list; None stands for one that cannot be used."""

    samples: list[Sample | None]
    name: str = "few"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        found = self.samples[index]
        if found is None:
            raise BadSample("broken")
        return found

    def fingerprint(self) -> str:
        return "few"


def _read_back(folder: Path, task: str) -> list[Sample]:
    world = open_reader(str(folder / "{00000..00001}.tar"))
    assert task in world.tasks
    both = [world.source(task, "train"), world.source(task, "heldout")]
    return sorted((source[i] for source in both for i in range(len(source))), key=lambda sample: sample.id)


def _content(sample: Sample) -> list[object]:
    return [
        one.text if isinstance(one, Text) else int(np.asarray(one.pil())[0, 0, 0])  # type: ignore[union-attr]
        for one in sample.segments
    ]


def test_pairs_come_back_and_bad_ones_are_counted(tmp_path: Path) -> None:
    samples: list[Sample | None] = [pair(_picture(n), f"picture {n}") for n in range(5)]
    samples[2] = None
    assert write_shards(Few(samples), tmp_path / "s", size=3) == (2, 4, 1)
    back = _read_back(tmp_path / "s", "pairs")
    assert [_content(one) for one in back] == [[n, f"picture {n}"] for n in (0, 1, 3, 4)]


def test_questions_come_back_with_the_answer_learned(tmp_path: Path) -> None:
    samples: list[Sample | None] = [question(_picture(n), f"what is {n}?", f"it is {n}") for n in range(4)]
    write_shards(Few(samples), tmp_path / "s", size=2)
    back = _read_back(tmp_path / "s", "questions")
    assert [_content(one) for one in back] == [[n, f"what is {n}?", f"it is {n}"] for n in range(4)]
    assert [segment.learned for segment in back[0].segments] == [False, False, True]


def test_pages_and_edits_come_back_as_conversations(tmp_path: Path) -> None:
    edit = Sample(
        (
            Image(_picture(1).source, learned=False, role="user"),
            Text("make it 9", learned=False, role="user"),
            Image(_picture(9).source, role="assistant"),
        )
    )
    page = interleaved(["one", _picture(1), "two", _picture(2), "end"])
    write_shards(Few([edit, page, edit, page]), tmp_path / "s", size=2)
    back = _read_back(tmp_path / "s", "conversations")
    assert [_content(one) for one in back[:2]] == [[1, "make it 9", 9], ["one", 1, "two", 2, "end"]]
    assert [segment.learned for segment in back[0].segments] == [False, False, True]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    few = Few([pair(_picture(n), f"picture {n}") for n in range(3)])
    digests = set()
    for name in ("a", "b"):
        write_shards(few, tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name / "00000.tar").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_what_shards_cannot_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    deep = Sample((_picture(0), Dense("depth", np.zeros((8, 8)))), id="d/0")
    with pytest.raises(UserError, match="'d/0' has a segment of kind Dense"):
        members(deep)
    with pytest.raises(UserError):
        write_shards(Few([deep]), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already"):
        write_shards(Few([pair(_picture(0), "x")]), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
