"""Published figures beside ours: a paper names them, and what `size` counts is put next to each.

    Figure("parameters", "21.5M", at="parameters / total", variant="t2t-vit-14")

A figure follows from the published configuration where ours, counted from that configuration, agrees with it in all
the digits that the paper prints. Where it does not, the paper's file says why, and `tessera show` tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_PRINTED = re.compile(r"([\d,]+(?:\.(\d+))?) ?([kKMBGT]?)")


@dataclass(frozen=True)
class Figure:
    """A figure that follows, or should follow, from the published configuration.

    Args:
        published: as it is printed: "21.5M", "7.5 B", "4.8", "3,136".
        at: where `size` has ours, in the words of `tessera size`: "parameters / total".
        variant: the variant whose size is meant.
        within: relative difference that still counts as the same, for what can be counted in more than one way
            (multiply-adds); figures that are only counted in one way leave it at 0.
        note: why ours is another; only for a figure that does not follow.
    """

    name: str
    published: str
    at: str
    variant: str | None = None
    within: float = 0.0
    note: str = ""

    def agrees(self, ours: Any) -> bool:
        """Whether `ours`, rounded or cut to the printed digits, is what is printed.

        Raises:
            ValueError: `published` is no number that can be read.
        """
        if not isinstance(ours, int | float):
            return str(ours) == self.published
        found = _PRINTED.fullmatch(self.published)
        if found is None:
            raise ValueError(f"figure {self.name!r}: {self.published!r} is no number")
        unit = _UNITS[found[3]]
        printed, last = float(found[1].replace(",", "")) * unit, unit * 10.0 ** -len(found[2] or "")
        tiny = 1e-9 * max(last, printed)  # decimal fractions are not exact in binary
        return printed - last / 2 - tiny <= ours < printed + last - tiny or abs(ours - printed) <= self.within * printed


@dataclass(frozen=True)
class Beside:
    """A published figure and ours."""

    figure: Figure
    ours: Any
    follows: bool

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self.figure), "ours": self.ours, "follows": self.follows}


def beside(figures: Sequence[Figure], size: Callable[[str | None], Mapping[str, Any]]) -> list[Beside]:
    """Each figure with ours; `size` is asked once for each variant.

    Raises:
        KeyError: a figure is `at` a place that its size does not have.
    """

    @cache
    def counted(variant: str | None) -> dict[str, Any]:
        return dict(flat(size(variant)))

    found = [(one, counted(one.variant)[one.at]) for one in figures]
    return [Beside(one, ours, one.agrees(ours)) for one, ours in found]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values one by one, inner names after outer ones: "parameters / total"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name} / ")
        else:
            yield prefix + name, value
