"""Accuracy of a Vision-Language Model on Challenging Medical Cases (2311.05591; later titled "Multimodal Foundation
Models Exploit Text to Make Medical Image Predictions").

An evaluation study: what is built is its harness, for multiple-choice cases of any field (`tessera.evaluate.cases`,
`tessera cases run`). Its cases are the journal's and belong to no package; a user supplies the file. What can be
checked without them follows from counts: the intervals, and what the public votes sum up to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tessera.evaluate.cases.human import normal_interval
from tessera.evaluate.cases.prompting import STYLES
from tessera.evaluate.intervals import exact_binomial
from tessera.papers.figures import Figure
from tessera.papers.medical_cases_study import headline
from tessera.papers.registry import Paper, paper
from tessera.study.design import Study

# Cases that the model has right, of how many, and the interval that is printed for them, in per cent.
COUNTS: dict[str, tuple[int, int, str, str]] = {
    "text and image, 934 cases": (570, 934, "58", "64"),
    "long cases, text alone": (55, 69, "68", "88"),
    "long cases, text and image": (40, 69, "45", "70"),
}
SHARES = {"text and image, 934 cases": "61", "long cases, text alone": "80", "long cases, text and image": "58"}
# The public votes to the end of 2023 (cx0/nejm-image-challenge), as `tessera cases votes` sums them up.
MEAN, DEVIATION, VOTED = 0.494572, 0.135921, 947
OPTIONS = 5


@paper("medical-cases")
class MedicalCases(Paper):
    """Multiple-choice cases answered from text, image or both, beside human votes, with exact intervals."""

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        return {
            "parts": [
                "cases of a folder, JSON lines, JSON or CSV: question, options, pictures, votes, strata; the public"
                " vote file of the image challenge is read as it is",
                "prompts for text alone, image alone, both, and both with a wrong note or a wrong vignette of five"
                f" sentences; styles {', '.join(STYLES)}; every case in a dialogue of its own, options shuffled",
                "asked: any model of this library that answers questions, or any OpenAI-compatible endpoint; a reply"
                " that does not come in time, or is none, is asked for again and then recorded as no response",
                "replies read as [['OPTION TEXT']], else an option's text, else its letter, else no response; two"
                " options outside brackets are no response",
                "exact (Clopper-Pearson) and bootstrap intervals; no response counted as wrong, and dropped",
                "by difficulty, disagreement, length of the text, year, skin tone and any stratum of the file, with n,"
                " one-way ANOVA and Holm's correction",
                "human readers: mean share of right votes +- 1.96 sd / sqrt(n), and how often the plurality is right",
                "McNemar's exact test between modes; the fall by wrong hints; how repeats split",
                "one page, replies kept line by line, runs that go on where they were stopped",
            ],
            "stages": ["none: nothing is trained"],
            "claims": [
                "61 % of 934 cases right against 49 % of human votes (abstract); accuracy rises with the share of"
                " informative text; wrong hints in the text lower it below that of the image alone; images beside"
                " text that tells all do not help (80 % to 58 %)",
            ],
            "other than in the paper": [
                "options are shuffled for each case; --keep-order leaves them as they are",
                "the words of the prompts are ours, by the paper's rules; they name no field",
                "McNemar's test, Holm's correction and the plurality of readers are added",
                "difficulty and disagreement are quarters of the share of right votes and of the entropy of all; how"
                " the paper cuts them was not found",
            ],
            "not built": [
                "the second language model that reads the choice out of replies without form",
                "the physicians' judgement of differential diagnoses of long cases; their counts are checked above",
            ],
        }

    def figures(self) -> Sequence[Figure]:
        """What the paper prints and counts reproduce, in per cent."""
        found = []
        for name, (_, _, low, high) in COUNTS.items():
            found += [
                Figure(f"{name}, right", SHARES[name], at=f"{name} / per cent"),
                Figure(f"{name}, low", low, at=f"{name} / low"),
                Figure(f"{name}, high", high, at=f"{name} / high"),
            ]
        return [
            *found,
            Figure("human readers, mean share", "49", at="human readers / per cent"),
            Figure("human readers, low", "49", at="human readers / low"),
            Figure("human readers, high", "50", at="human readers / high"),
            Figure("guessing", "20", at="guessing / per cent"),
        ]

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Shares and intervals, in per cent, from counts alone; there are no parameters to count."""
        rows: dict[str, Any] = {
            name: {"right": right, "of": total, **_percent(exact_binomial(right, total).to_json())}
            for name, (right, total, _, _) in COUNTS.items()
        }
        rows["human readers"] = {"of": VOTED, **_percent(normal_interval(MEAN, DEVIATION, VOTED).to_json())}
        return {**rows, "guessing": {"options": OPTIONS, "per cent": 100 / OPTIONS}}

    def study(self) -> Study:
        """The study of a model that reads more or less of the class in its text."""
        return headline()


def _percent(one: Mapping[str, float]) -> dict[str, float]:
    return {"per cent": 100 * one["value"], "low": 100 * one["low"], "high": 100 * one["high"]}
