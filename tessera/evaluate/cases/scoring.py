"""What replies are worth: accuracy with exact and bootstrap intervals, by stratum, beside human readers; no response
counted both ways; the same cases in two modes; wrong hints; repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from tessera.errors import UserError
from tessera.evaluate.cases.human import mean_share, quartered, readers
from tessera.evaluate.cases.parsing import parse
from tessera.evaluate.cases.prompting import HINTED, MODES
from tessera.evaluate.cases.running import Answered
from tessera.evaluate.cases.schema import Case, CaseSet
from tessera.evaluate.intervals import bootstrap_mean, exact_binomial, paired_difference

LOOKS = 0.05  # of p, below which a division is called out, after Holm's correction for the number of looks
QUARTERS: dict[str, tuple[Callable[[Case], float | None], tuple[str, ...]]] = {
    "difficulty, by votes": (lambda case: case.human, ("hardest", "hard", "easy", "easiest")),
    "disagreement, by votes": (lambda case: case.disagreement, ("least", "less", "more", "most")),
    "length of the text": (
        lambda case: case.words if case.question else None,
        ("shortest", "short", "long", "longest"),
    ),
}


@dataclass(frozen=True, slots=True)
class Judged:
    """What a reply chose: the place of an option, or None for no response."""

    answered: Answered
    case: Case
    choice: int | None

    @property
    def right(self) -> bool:
        """No response is not right."""
        return self.choice == self.case.answer


def judge(cases: CaseSet, answered: Sequence[Answered]) -> list[Judged]:
    """Each reply as the option that it chooses."""
    by_id = {case.id: case for case in cases.cases}
    found = []
    for one in answered:
        case = by_id[one.case]
        place = None if one.problem else parse(one.reply, [case.options[index] for index in one.order])
        found.append(Judged(one, case, None if place is None else one.order[place]))
    return found


def score(cases: CaseSet, answered: Sequence[Answered]) -> dict[str, Any]:
    """All tables, as JSON.

    Raises:
        UserError: there is no reply.
    """
    if not answered:
        raise UserError(f"there is no reply to the cases of {cases.name}")
    judged = judge(cases, answered)
    modes = [mode for mode in MODES if any(one.answered.mode == mode for one in judged)]
    by_mode: dict[str, list[Judged]] = {mode: [one for one in judged if one.answered.mode == mode] for mode in modes}
    first = {mode: [one for one in rows if one.answered.repeat == 0] for mode, rows in by_mode.items()}
    asked = {one.case.id for one in judged}
    return {
        "cases": len(asked),
        "options": dict(sorted(Counter(len(case.options) for case in cases.cases if case.id in asked).items())),
        "chance": float(np.mean([1 / len(case.options) for case in cases.cases if case.id in asked])),
        "readers": readers([case for case in cases.cases if case.id in asked]),
        "modes": {mode: accuracy(first[mode], by_mode[mode]) for mode in modes},
        "strata": strata(cases.cases, first),
        "between": [between(one, other, first) for one, other in combinations(modes, 2)],
        "hints": [hinted(mode, first) for mode in HINTED if mode in modes and "image" in modes],
        "repeats": {mode: found for mode in modes if (found := repeated(by_mode[mode]))},
        "skipped": dict(cases.skipped),
        "unread votes": dict(cases.unread),
    }


def accuracy(first: Sequence[Judged], every: Sequence[Judged]) -> dict[str, Any]:
    """One mode: the first reply to each case, refusals counted as wrong and dropped, and beside the readers."""
    right = [one.right for one in first]
    answered = [one for one in first if one.choice is not None]
    dropped = exact_binomial(sum(one.right for one in answered), len(answered)).to_json() if answered else None
    found = {
        "accuracy": exact_binomial(sum(right), len(right)).to_json(),
        "bootstrap": bootstrap_mean(np.array(right, float)).to_json(),
        "answered alone": dropped,
        "no response": exact_binomial(len(first) - len(answered), len(first)).to_json(),
        "reasons": dict(Counter(_reason(one) for one in first if one.choice is None).most_common()),
        "over repeats": None,
        "less readers": None,
        "less plurality": None,
    }
    if len(every) > len(first):
        found["over repeats"] = bootstrap_mean([float(np.mean(row)) for row in _rows(every).values()]).to_json()
    voted = [one for one in first if one.case.votes is not None]
    if voted:
        ours = [float(one.right) for one in voted]
        found["less readers"] = paired_difference(ours, [one.case.human or 0.0 for one in voted]).to_json()
        found["less plurality"] = paired_difference(ours, [float(bool(one.case.plurality)) for one in voted]).to_json()
    return found


def _reason(one: Judged) -> str:
    if one.answered.problem:
        return one.answered.problem
    return "a reply that chooses no option" if one.answered.reply.strip() else "an empty reply"


def _rows(every: Sequence[Judged]) -> dict[str, list[bool]]:
    rows: dict[str, list[bool]] = {}
    for one in every:
        rows.setdefault(one.case.id, []).append(one.right)
    return rows


def divisions(cases: Sequence[Case]) -> dict[str, dict[str, str]]:
    """Level by case id of each division: the user's own, and quarters by difficulty, disagreement and length."""
    found = {name: quartered(cases, value, levels) for name, (value, levels) in QUARTERS.items()}
    for case in cases:
        for name, level in case.strata.items():
            found.setdefault(name, {})[case.id] = level
    return {name: levels for name, levels in found.items() if len(set(levels.values())) > 1}


def strata(cases: Sequence[Case], first: Mapping[str, Sequence[Judged]]) -> list[dict[str, Any]]:
    """Accuracy by level of each division in each mode, with a one-way ANOVA of correctness over the levels, its p also
    after Holm's correction for all of these looks. A mode in which no case was answered has no tables."""
    tables: list[dict[str, Any]] = []
    told = {mode: rows for mode, rows in first.items() if any(one.choice is not None for one in rows)}
    for name, levels in divisions(cases).items():
        known = list(QUARTERS[name][1]) if name in QUARTERS else sorted(set(levels.values()))
        for mode, rows in told.items():
            groups = {level: [one for one in rows if levels.get(one.case.id) == level] for level in known}
            lines = [_level(level, group) for level, group in groups.items() if group]
            if len(lines) > 1:
                values = [[float(one.right) for one in group] for group in groups.values() if group]
                tables.append({"division": name, "mode": mode, "levels": lines, "p": anova(values)})
    for table, p in zip(tables, holm([table["p"] for table in tables]), strict=True):
        table["p, corrected"] = p
        table["differs"] = p is not None and p < LOOKS
    return tables


def _level(level: str, group: Sequence[Judged]) -> dict[str, Any]:
    voted = [one for one in group if one.case.votes is not None]
    return {
        "level": level,
        "accuracy": exact_binomial(sum(one.right for one in group), len(group)).to_json(),
        "readers": mean_share([one.case.human or 0.0 for one in voted]).to_json() if voted else None,
        "less readers": float(np.mean([one.right - (one.case.human or 0.0) for one in voted])) if voted else None,
    }


def anova(groups: Sequence[Sequence[float]]) -> float | None:
    """p of a one-way analysis of variance; None where it has none: a single group, no case to spare, or no variance
    within any group."""
    if len(groups) < 2 or sum(map(len, groups)) <= len(groups) or all(np.ptp(group) == 0 for group in groups):
        return None
    return float(stats.f_oneway(*groups).pvalue)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for how many there are (Holm 1979), in their order; None stays None."""
    found: list[float | None] = [None] * len(values)
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        found[place] = least
    return found


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that the cases which one of two answers alone has right fall either way alike (McNemar); 1
    where there are none."""
    total = only_first + only_second
    return float(stats.binomtest(only_first, total, 0.5).pvalue) if total else 1.0


def between(one: str, other: str, first: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """The same cases in two modes: who has which right, the difference with its bootstrap interval, McNemar's p."""
    left = {row.case.id: row.right for row in first[one]}
    right = {row.case.id: row.right for row in first[other]}
    shared = [id for id in left if id in right]
    pairs = Counter((left[id], right[id]) for id in shared)
    difference = paired_difference([float(left[id]) for id in shared], [float(right[id]) for id in shared])
    return {
        "modes": [one, other], "both": pairs[True, True], "first alone": pairs[True, False],
        "second alone": pairs[False, True], "neither": pairs[False, False], "difference": difference.to_json(),
        "p": mcnemar(pairs[True, False], pairs[False, True]),
    } if shared else {"modes": [one, other], "difference": None}  # fmt: skip


def hinted(mode: str, first: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """Of the cases that are right from the image alone: how many stay right with a wrong hint."""
    had = {one.case.id for one in first["image"] if one.right}
    kept = [one.right for one in first[mode] if one.case.id in had]
    return {"mode": mode, "kept": exact_binomial(sum(kept), len(kept)).to_json() if kept else None}


def repeated(every: Sequence[Judged]) -> list[dict[str, Any]]:
    """How the repeats of each case split over its options, the most split first; empty without repeats."""
    rows: dict[str, list[Judged]] = {}
    for one in every:
        rows.setdefault(one.case.id, []).append(one)
    table = []
    for id, row in rows.items():
        if len(row) < 2:
            continue
        split = Counter("no response" if one.choice is None else one.case.options[one.choice] for one in row)
        table.append(
            {"case": id, "asked": len(row), "right": sum(one.right for one in row),
             "agreeing": split.most_common(1)[0][1] / len(row), "split": dict(split.most_common())}
        )  # fmt: skip
    return sorted(table, key=lambda line: line["agreeing"])
