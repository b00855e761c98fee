"""Parts of sources: which samples they hold, and that their fingerprints tell them apart."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tessera.data.few import Few, First
from tessera.data.readers.classes import TASK, open_classes
from tests.data.tiny import Numbered


def test_the_first_samples_are_those_of_the_source_or_all_where_it_has_no_more() -> None:
    source = Numbered(9)
    first, every = First(source, 4), First(source, 99)
    assert [first[place].id for place in range(len(first))] == ["0", "1", "2", "3"]
    assert [every[place].id for place in range(len(every))] == [str(number) for number in range(9)]
    assert First(source, 9).fingerprint() == every.fingerprint()
    assert len({one.fingerprint() for one in (source, first, every, First(Numbered(8), 4))}) == 4


def test_few_labels_are_so_many_of_each_class_by_the_seed(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / str(number % 2) / f"{number}.png")
    world = open_classes(tmp_path)
    few = [Few(world.source(TASK), world.classes, 2, seed) for seed in (0, 0, 1)]
    assert sorted(few[0][place].text for place in range(len(few[0]))) == ["0", "0", "1", "1"]
    assert few[0].places == few[1].places
    assert len({one.fingerprint() for one in few}) == 2
    many = Few(world.source(TASK), world.classes, 99, 0)
    assert len(many) == len(world.source(TASK)), "all, where there are fewer"
