"""Where tokens are reduced, and to how many."""

from __future__ import annotations

import pytest

from tessera.errors import UserError
from tessera.reduce import Schedule


def test_a_share_is_rounded_up_and_by_default_taken_at_each_quarter_of_the_depth() -> None:
    assert Schedule().counts(196, 12) == {3: 128, 6: 84, 9: 55}
    assert Schedule(keep=0.7).counts(196, 12) == {3: 138, 6: 97, 9: 68}
    assert Schedule(keep=0.6).counts(5, 4) == {1: 3, 2: 2, 3: 2}
    assert Schedule(keep=0.5).counts(8, 2) == {1: 4}


def test_numbers_and_removals_are_taken_as_they_are_each_block_its_own() -> None:
    assert Schedule(blocks=(0, 2), number=(50, 9)).counts(64, 3) == {0: 50, 2: 9}
    assert Schedule(blocks=range(3), remove=12).counts(64, 3) == {0: 52, 1: 40, 2: 28}
    assert Schedule(blocks=(1, 2), keep=(1.0, 0.5)).counts(64, 3) == {1: 64, 2: 32}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"blocks": (3, 12)}, "in block 12; this encoder has blocks 0 to 11"),
        ({"blocks": (-1,)}, "in block -1; this encoder has blocks 0 to 11"),
        ({"blocks": (3, 3)}, r"\[3, 3\]; name each once, in order"),
        ({"keep": 0.0}, "keep is 0.0; it is above 0 and at most 1"),
        ({"keep": 1.5}, "keep is 1.5; it is above 0 and at most 1"),
        ({"remove": -3}, "remove is -3; it is above 0"),
        ({"keep": 0.5, "remove": 3}, "keep and remove both say how many tokens are left; give one"),
        ({"keep": (0.5, 0.6)}, "keep has 2 entries for 3 blocks"),
        ({"number": 300}, "block 3 has 196 tokens and cannot leave 300; leave 1 to 196"),
        ({"remove": 100}, "block 6 has 96 tokens and cannot leave -4; leave 1 to 96"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_a_sentence(fields: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Schedule(**fields).counts(196, 12)
