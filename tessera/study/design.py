"""Study: arms x seeds at equal budget, and what is claimed of their difference.

A paper writes one `Study`; `tessera.study.engine.run` runs it and writes its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tessera.errors import UserError, nearest
from tessera.files import short_hash

Expect = Literal["higher", "lower", "not higher", "within"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one arm reached with one seed, and what it was given to reach it.

    Attributes:
        metrics: scores by name.
        items: scores of single test items by metric, the same items in the same order in every arm and
            seed. A metric that has only items is their mean.
        steps: optimiser steps of all stages that the arms do not share.
        samples: training samples seen in those steps.

    Raises:
        UserError: a score that is not a finite number.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, Sequence[float]] = field(default_factory=dict)
    steps: int
    samples: int

    def __post_init__(self) -> None:
        for name in self.names:
            for value in (*self.items.get(name, ()), self.metrics.get(name, 0.0)):
                if not math.isfinite(value):
                    raise UserError(f"metric {name!r} is {value}; an arm that diverged cannot be compared")

    def value(self, metric: str) -> float:
        """The score of that name.

        Raises:
            UserError: there is none.
        """
        if metric in self.metrics:
            return float(self.metrics[metric])
        if len(self.items.get(metric, ())):
            return float(sum(self.items[metric]) / len(self.items[metric]))
        raise UserError(f"no metric {metric!r} was measured{nearest(metric, self.names)}")

    @property
    def names(self) -> list[str]:
        """Every metric there is, in alphabetical order."""
        return sorted({*self.metrics, *self.items})


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of doing it. `run` trains and evaluates with a seed; `config` says what sets it apart."""

    name: str
    run: Callable[[int], Outcome]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is said of `metric` of `arm` less that of `against`, and the figure that the paper prints.

    `against` is another arm, or a number such as what chance reaches. `expect` "higher" or "lower" says that the
    difference is beyond `margin` that way, "not higher" that it is at most `margin`, "within" that it is so either
    way. With `relative` the margin is a share of the mean score of `against`.
    """

    name: str
    metric: str
    arm: str
    against: str | float
    expect: Expect
    published: str
    margin: float = 0.0
    relative: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it speaks of: two, or one that is held against a number."""
        return (self.arm, self.against) if isinstance(self.against, str) else (self.arm,)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms, the claims about them, and what they share (`config`: data, sizes, budget; as JSON).

    `tuning` says in a sentence how much each arm was tuned: equal budget means equal tuning too. `notes` are
    sentences that go with the result: what the metrics are, and what they do not show. `further` makes more fields of
    the result from its "arms".

    Raises:
        UserError: two arms of one name, fewer than two arms, or a claim about an arm that is not there.
    """

    slug: str
    title: str
    arms: Sequence[Arm]
    claims: Sequence[Claim]
    config: Mapping[str, Any] = field(default_factory=dict)
    tuning: str = "no arm was tuned"
    notes: Sequence[str] = ()
    further: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or len(names) < 2:
            raise UserError(f"study {self.slug!r} needs two arms or more of different names, not {names}")
        for claim in self.claims:
            for name in claim.arms:
                if name not in names:
                    raise UserError(f"claim {claim.name!r} speaks of an arm {name!r}{nearest(name, names)}")
            if claim.expect in ("not higher", "within") and not claim.margin > 0:
                raise UserError(f"claim {claim.name!r} expects {claim.expect!r} by a margin; give it one above 0")

    def arm_hash(self, arm: Arm) -> str:
        """Changes when anything that the arm's outcome depends on, and that the study knows of, changes."""
        return short_hash({"arm": arm.name, "config": arm.config, "shared": self.config})

    def design_hash(self, seeds: Sequence[int]) -> str:
        """Changes with the arms, the claims, what is shared, and the seeds."""
        arms = {arm.name: arm.config for arm in self.arms}
        claims = [asdict(claim) for claim in self.claims]
        return short_hash({"arms": arms, "claims": claims, "shared": self.config, "seeds": list(seeds)})
