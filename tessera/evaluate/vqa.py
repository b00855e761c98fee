"""Whether answers are right: by type of question, beside the answer that a model blind to pictures would give, and
where several answers have a score each.

Legend: B questions, A answers.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tessera.data.sample import Sample
from tessera.errors import BadSample, UserError
from tessera.evaluate.intervals import Estimate, exact_binomial

ALL = "all types"
TOGETHER = 64  # samples that are judged at once
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TypeAccuracy:
    """`accuracy` of the answers, and the `majority` answer's share of the truths, with exact intervals."""

    accuracy: Estimate
    majority: Estimate
    majority_answer: str

    def text(self) -> str:
        """As "85.2 % [82.1, 88.0] (majority answer 'no' 50.0 %)"."""
        majority = f"majority answer {self.majority_answer!r} {100 * self.majority.value:.1f} %"
        return f"{self.accuracy.text()} ({majority})"


def normal(answer: str) -> str:
    """An answer as it is compared: lower case, single spaces, no full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".")


def accuracy_by_type(answers: Sequence[str], truths: Sequence[str], types: Sequence[str]) -> dict[str, TypeAccuracy]:
    """Exact-match accuracy of each type of question, in alphabetical order, and last of "all types".

    The majority of "all types" is that of a guesser who knows the type: each type's own majority answer.

    Raises:
        UserError: the three lists differ in length, or are empty.
    """
    if not len(answers) == len(truths) == len(types) or not len(answers):
        raise UserError(f"{len(answers)} answers, {len(truths)} truths and {len(types)} types do not belong together")
    right = [normal(answer) == normal(truth) for answer, truth in zip(answers, truths, strict=True)]
    found, guessed = {}, 0
    for kind in sorted(set(types)):
        here = [index for index, other in enumerate(types) if other == kind]
        answer, times = Counter(normal(truths[index]) for index in here).most_common(1)[0]
        guessed += times
        accuracy = exact_binomial(sum(right[index] for index in here), len(here))
        found[kind] = TypeAccuracy(accuracy, exact_binomial(times, len(here)), answer)
    overall = exact_binomial(sum(right), len(right))
    return {**found, ALL: TypeAccuracy(overall, exact_binomial(guessed, len(right)), "of each type")}


def likeliest(logits: Tensor, truths: Tensor) -> Tensor:
    """The score of the likeliest answer to each question, float [B] in [0, 1].

    Args:
        logits: [B, A].
        truths: float [B, A], the scores of all answers; or int64 [B], the one that is right.
    """
    said = logits.argmax(dim=1)
    right = said == truths if truths.ndim == 1 else truths.gather(1, said[:, None])[:, 0]
    return right.float()


@torch.no_grad()
def scored(
    samples: Sequence[Sample], read: Callable[[Sample], Item], judge: Callable[[list[Item]], Tensor]
) -> list[float]:
    """The score of each sample; 0 where it is bad.

    Args:
        read: what `judge` takes of a sample. Raises BadSample where it cannot be used.
        judge: the scores [B] of up to TOGETHER samples, as `likeliest` gives them.
    """
    scores, items = [0.0] * len(samples), []
    for place, sample in enumerate(samples):
        with contextlib.suppress(BadSample):
            items.append((place, read(sample)))
    for start in range(0, len(items), TOGETHER):
        part = items[start : start + TOGETHER]
        for (place, _), score in zip(part, judge([item for _, item in part]).tolist(), strict=True):
            scores[place] = score
    return scores
