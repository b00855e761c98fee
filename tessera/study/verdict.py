"""From the outcomes of two arms to a difference, its intervals and a verdict.

Legend: S seeds; N test items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from tessera.evaluate.intervals import Estimate, t_interval
from tessera.study.design import Claim, Outcome

Verdict = Literal["holds", "does not hold", "unclear"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SEEDS = "Student t over the seeds' paired differences"
ITEMS = "percentile bootstrap over seeds and test items, both drawn anew"
_RESAMPLES = 4000


def crossed_bootstrap(differences: np.ndarray) -> Estimate:
    """Mean of paired differences [S, N], resampling seeds and items at once."""
    seeds, items = differences.shape
    rng = np.random.default_rng(0)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES)
    by_item = rng.multinomial(items, np.full(items, 1 / items), size=_RESAMPLES)
    means = ((by_seed @ differences) * by_item).sum(axis=1) / (seeds * items)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(differences.mean()), float(low), float(high), differences.size)


def _item_differences(ours: Sequence[Outcome], theirs: Sequence[Outcome], metric: str) -> np.ndarray | None:
    """Paired differences [S, N], or None where an arm gave no items or not the same number everywhere."""
    lengths = {len(one.items.get(metric, ())) for one in (*ours, *theirs)}
    if len(lengths) > 1 or min(lengths) < 2:
        return None
    left, right = (np.array([one.items[metric] for one in side], dtype=np.float64) for side in (ours, theirs))
    return left - right


def judge(claim: Claim, intervals: Sequence[Estimate]) -> Verdict:
    """Holds where every interval lies wholly on the claim's side, fails where every one lies on the other."""
    above, below = [one.low > claim.margin for one in intervals], [one.high < -claim.margin for one in intervals]
    if claim.expect == "within":
        inside = [-claim.margin <= one.low and one.high <= claim.margin for one in intervals]
        outside = [high or low for high, low in zip(above, below, strict=True)]
    elif claim.expect == "not higher":
        inside, outside = [one.high <= claim.margin for one in intervals], above
    else:
        inside, outside = (above, below) if claim.expect == "higher" else (below, above)
    return "holds" if all(inside) else "does not hold" if all(outside) else "unclear"


def _constant(like: Outcome, metric: str, number: float) -> Outcome:
    """An outcome that has `number` wherever `like` has a score."""
    items = {metric: [number] * len(like.items[metric])} if metric in like.items else {}
    return replace(like, metrics={metric: number}, items=items)


def compare(claim: Claim, ours: Sequence[Outcome], theirs: Sequence[Outcome] | float) -> dict[str, Any]:
    """The claim with the difference `arm` - `against` of paired seeds, its intervals and verdict, as JSON.

    The two intervals answer two questions: the seeds' whether another training would show it, the items'
    whether other test items would too. Where there are scores of items, a verdict needs both to agree.
    """
    if isinstance(theirs, int | float):
        theirs = [_constant(one, claim.metric, theirs) for one in ours]
    pairs = [(a.value(claim.metric), b.value(claim.metric)) for a, b in zip(ours, theirs, strict=True)]
    intervals = {SEEDS: t_interval([a - b for a, b in pairs])}
    items = _item_differences(ours, theirs, claim.metric)
    if items is not None:
        intervals[ITEMS] = crossed_bootstrap(items)
    reference = float(np.mean([b for _, b in pairs]))
    difference = intervals[SEEDS].value
    margin = claim.margin * abs(reference) if claim.relative else claim.margin
    return {
        "name": claim.name,
        "metric": claim.metric,
        "arm": claim.arm,
        "against": claim.against,
        "expect": claim.expect,
        "margin": margin,
        "relative_margin": claim.margin if claim.relative else None,
        "published": claim.published,
        "difference": difference,
        "relative": difference / abs(reference) if reference else None,
        "intervals": [{"method": method, **one.to_json()} for method, one in intervals.items()],
        "verdict": judge(replace(claim, margin=margin), list(intervals.values())),
    }
