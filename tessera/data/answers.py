"""Tables of answers: question answering as the choice of one out of many, as VQA models have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tessera.errors import UserError

_ARTICLES = ("a ", "an ", "the ")
_SAME = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "grey": "gray",
}  # fmt: skip


def normal_answer(answer: str) -> str:
    """An answer as the official LXMERT table spells it: lower case, without a final stop and a leading article, small
    numbers as digits."""
    answer = answer.lower()
    if answer.endswith("."):
        answer = answer[:-1].strip()
    for article in _ARTICLES:
        if answer.startswith(article):
            answer = answer[len(article) :].strip()
    return _SAME.get(answer, answer)


class AnswerTable:
    """Answers by place. Places are those of the given order, names are normalised.

    Args:
        answers: each once; the official table of all data sets has 9,500, VQA's 3,129, GQA's 1,842.

    Raises:
        UserError: fewer than two, or one twice.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = tuple(answers)
        self._places = {normal_answer(answer): place for place, answer in reversed(list(enumerate(self.answers)))}
        if len(self.answers) < 2 or len(set(self.answers)) != len(self.answers):
            twice = [answer for answer, number in Counter(self.answers).items() if number > 1]
            what = f"{twice[0]!r} twice" if twice else f"nothing to choose from: {list(self.answers)}"
            raise UserError(f"the table of answers has {what}")

    def __len__(self) -> int:
        return len(self.answers)

    def place(self, answer: str) -> int | None:
        """Where an answer stands; None where the table does not have it."""
        return self._places.get(normal_answer(answer))

    def places_in(self, other: AnswerTable) -> list[int | None]:
        """For each answer here its place in `other`."""
        return [other.place(answer) for answer in self.answers]


def count_answers(answers: Iterable[str], most: int) -> AnswerTable:
    """The table of the `most` commonest answers, the commonest first, and in alphabetical order among equals.

    Raises:
        UserError: fewer than two different ones.
    """
    counts = Counter(normal_answer(answer) for answer in answers)
    ordered = sorted(counts.items(), key=lambda found: (-found[1], found[0]))
    return AnswerTable([answer for answer, _ in ordered[:most]])
