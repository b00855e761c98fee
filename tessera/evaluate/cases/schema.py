"""A case: a question with pictures, a few options of which one is right, and how human readers voted.

Legend: K options.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tessera.files import short_hash

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Case:
    """One multiple-choice case.

    Attributes:
        question: "" where there is none, as in a case of a picture alone.
        answer: the place of the right option.
        votes: the share of readers' votes for each option, in [0, 1]; they are as they were recorded, often in whole
            per cents, and need not sum to 1. None where nobody voted.
        voters: how many votes there were. Readers may vote twice, so that this is no number of independent trials.
        strata: what the case belongs to by the name of each division: {"image type": "skin"}.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    images: tuple[Path, ...] = ()
    votes: tuple[float, ...] | None = None
    voters: int | None = None
    strata: Mapping[str, str] = field(default_factory=dict)

    @property
    def human(self) -> float | None:
        """The share of votes for the right option."""
        return None if self.votes is None else self.votes[self.answer]

    @property
    def plurality(self) -> bool | None:
        """Whether no other option has more votes than the right one."""
        return None if self.votes is None else self.votes[self.answer] == max(self.votes)

    @property
    def brier(self) -> float | None:
        """Mean over the options of the squared distance of the votes from all on the right one, as the public vote file
        of the image challenge has it."""
        if self.votes is None:
            return None
        wanted = [float(place == self.answer) for place in range(len(self.options))]
        return sum((share - right) ** 2 for share, right in zip(self.votes, wanted, strict=True)) / len(self.votes)

    @property
    def disagreement(self) -> float | None:
        """Entropy of the votes, made to sum to 1, in bits: 0 where all agree, log2 K where all options are alike."""
        if self.votes is None or not sum(self.votes):
            return None
        shares = [share / sum(self.votes) for share in self.votes]
        return -sum(share * math.log2(share) for share in shares if share)

    @property
    def words(self) -> int:
        """The length of the question."""
        return len(self.question.split())


@dataclass(frozen=True, slots=True)
class CaseSet:
    """Cases in order, and what was left out of them.

    Attributes:
        skipped: reasons by the name of a case that cannot be used.
        unread: reasons by the name of a case that is used, whose votes, or their total, cannot be read.
    """

    name: str
    cases: tuple[Case, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Changes when a case, an option or a picture's file changes."""
        return short_hash([_plain(case) for case in self.cases])


def _plain(case: Case) -> list[object]:
    pictures = [[path.name, path.stat().st_size if path.is_file() else 0] for path in case.images]
    return [case.id, case.question, list(case.options), case.answer, pictures]


def letters(options: Sequence[str]) -> str:
    """One letter an option: "ABCDE"."""
    return LETTERS[: len(options)]
