"""`tessera zoo list` as a person reads it."""

from __future__ import annotations

from tessera.cli.stock import ZooList
from tessera.zoo.parts import list_parts


def test_each_part_is_named_once_and_each_score_has_a_row_with_its_interval(capsys):
    ZooList().run()
    lines = capsys.readouterr().out.splitlines()
    cards = list_parts()
    assert len(lines) == 1 + sum(max(1, len(card.get("scores", {}))) for card in cards)
    for card in cards:
        assert sum(line.startswith(f"{card['name']} ") for line in lines) == 1
    colour, _ = (line for line in lines if " probe colour " in line)  # of mini/clip, and of mini/mae
    assert colour.split()[-3:] == ["0.9926", "to", "1"]
