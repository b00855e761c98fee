"""Numbers with their 95 % intervals: exact binomial, bootstrap, paired, t over seeds; permutation test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tessera.errors import UserError

CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its 95 % interval and how many items it was taken from."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """{"value", "low", "high", "n"}."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Estimate:
        """What `to_json` gave."""
        return cls(**fields)

    def text(self, percent: bool = True, digits: int = 1) -> str:
        """As "85.2 % [82.1, 88.0]", or without the percent sign and factor "0.85 [0.82, 0.88]"."""
        scale, unit = (100, " %") if percent else (1, "")
        value, low, high = (f"{scale * number:.{digits}f}" for number in (self.value, self.low, self.high))
        return f"{value}{unit} [{low}, {high}]"

    def __str__(self) -> str:
        return self.text(percent=False, digits=3)


def _sample(values: ArrayLike) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise UserError(f"an interval needs a list of at least one number, not an array {list(sample.shape)}")
    return sample


def exact_binomial(successes: int, trials: int) -> Estimate:
    """The share of successes with its exact (Clopper-Pearson) interval.

    Raises:
        UserError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise UserError(f"{successes} successes in {trials} trials are no share; at least one trial is needed")
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(successes / trials, float(interval.low), float(interval.high), int(trials))


proportion = exact_binomial


def bootstrap(
    items: Sequence[ArrayLike], statistic: Callable[..., np.ndarray], *, seed: int = 0, paired: bool = True
) -> Estimate:
    """A statistic of one or several samples with its percentile bootstrap interval.

    Args:
        items: samples, float [n] each.
        statistic: takes the samples with items along the last axis and an `axis` keyword.
        paired: the samples' items belong together and are drawn together; else each sample is drawn alone.
    """
    samples = tuple(_sample(one) for one in items)
    value = float(statistic(*samples, axis=-1))
    smallest = min(map(len, samples))
    if smallest < 2:
        return Estimate(value, value, value, smallest)
    interval = stats.bootstrap(
        samples,
        statistic,
        paired=paired and len(samples) > 1,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=200,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), smallest)


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """The mean of float [n] with its bootstrap interval."""
    return bootstrap((values,), np.mean, seed=seed)


def paired_difference(ours: ArrayLike, theirs: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of `ours - theirs`, scores float [n] of the same items in order, with its bootstrap interval.

    Raises:
        UserError: the two have different lengths.
    """
    return bootstrap_mean(_paired(ours, theirs), seed)


def t_interval(values: ArrayLike) -> Estimate:
    """The mean of float [n], n >= 2, with its Student t interval: for few, roughly normal values, as seeds.

    Raises:
        UserError: fewer than two values.
    """
    sample = _sample(values)
    if len(sample) < 2:
        raise UserError("a t interval needs at least two values; run more seeds")
    mean, error = float(sample.mean()), float(stats.sem(sample))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(sample) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach, len(sample))


def permutation_p(ours: ArrayLike, theirs: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference this large or larger where the two arms are exchangeable.

    Exact (all sign flips) up to 10 pairs, else from 9,999 random ones.
    """
    test = stats.permutation_test(
        (_paired(ours, theirs),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _paired(ours: ArrayLike, theirs: ArrayLike) -> np.ndarray:
    left, right = _sample(ours), _sample(theirs)
    if len(left) != len(right):
        raise UserError(f"paired scores must be of the same items, not {len(left)} and {len(right)} of them")
    return left - right
