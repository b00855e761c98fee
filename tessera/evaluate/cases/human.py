"""How human readers did, from their votes: the mean share of votes for the right option, as the study reports it, and
how often the option with most votes is right, which is the stronger baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tessera.evaluate.cases.schema import Case
from tessera.evaluate.intervals import Estimate, exact_binomial

REACH = 1.96  # standard errors, as the study prints its interval


def normal_interval(mean: float, deviation: float, n: int) -> Estimate:
    """A mean with `mean +- 1.96 deviation / sqrt(n)`."""
    reach = REACH * deviation / n**0.5
    return Estimate(mean, mean - reach, mean + reach, n)


def mean_share(shares: ArrayLike) -> Estimate:
    """The mean of each case's share of right votes, with that interval over cases. A case has one share however many
    voted: readers vote more than once, so that votes are no independent trials."""
    values = np.asarray(shares, dtype=np.float64)
    return normal_interval(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0, len(values))


def readers(cases: Sequence[Case]) -> dict[str, Any] | None:
    """What the votes of some cases say, as JSON; None where none of them has votes.

    "quartiles" are those of the share of right votes; "weighted mean" counts each vote alike.
    """
    voted = [case for case in cases if case.votes is not None]
    if not voted:
        return None
    shares = np.array([case.human for case in voted], dtype=np.float64)
    counted = [(case.human, case.voters) for case in voted if case.voters]
    total = sum(number for _, number in counted if number)
    return {
        "mean share": mean_share(shares).to_json(),
        "plurality": exact_binomial(sum(bool(case.plurality) for case in voted), len(voted)).to_json(),
        "deviation": float(shares.std(ddof=1)) if len(shares) > 1 else 0.0,
        "quartiles": [float(cut) for cut in np.quantile(shares, (0.25, 0.5, 0.75))],
        "least": float(shares.min()),
        "most": float(shares.max()),
        "votes": total,
        "weighted mean": sum((share or 0) * (number or 0) for share, number in counted) / total if total else None,
        "brier": float(np.mean([case.brier or 0.0 for case in voted])),
        "cases": len(voted),
    }


def quartered(cases: Sequence[Case], value: Callable[[Case], float | None], names: Sequence[str]) -> dict[str, str]:
    """Which quarter of a value's range each case lies in, by id: `names` from the lowest to the highest. Empty where
    the value is the same for most cases, so that no four groups can be made."""
    found = {case.id: number for case in cases if (number := value(case)) is not None}
    if len(found) < len(names):
        return {}
    cuts = np.quantile(list(found.values()), np.linspace(0, 1, len(names) + 1)[1:-1])
    if any(low == high for low, high in pairwise(cuts)):
        return {}
    return {id: names[int(np.searchsorted(cuts, number, side="right"))] for id, number in found.items()}
