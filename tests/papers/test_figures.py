"""Published figures beside ours: what agrees in the printed digits, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.papers.figures import Figure, beside


@pytest.mark.parametrize(
    ("published", "ours", "agrees"),
    [
        ("21.5M", 21_465_806, True),
        ("21.5M", 21_599_999, True),  # cut instead of rounded, as papers do
        ("21.5M", 21_600_000, False),
        ("21.5M", 21_449_999, False),
        ("7.5 B", 7_551_546_880, True),
        ("4.5", 4.566, True),
        ("13.8", 13.662, False),
        ("3,136", 3136, True),
        ("3,136", 3137, False),
        ("6,738,415,616", 6_738_415_616, True),
        ("6,738,415,616", 6_738_415_617, False),
        ("0.3", 0.3, True),
        ("4x16x16", "4x16x16", True),
        ("4x16x16", "4x16x8", False),
    ],
)
def test_a_figure_agrees_in_the_digits_that_are_printed(published: str, ours: Any, agrees: bool) -> None:
    assert Figure("f", published, at="f").agrees(ours) is agrees


def test_a_figure_that_can_be_counted_in_two_ways_agrees_within_a_share() -> None:
    assert Figure("multiply-adds", "24.9", at="gmacs", within=0.005).agrees(24.849)
    assert not Figure("multiply-adds", "24.9", at="gmacs", within=0.005).agrees(24.7)


def test_a_figure_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="about half"):
        Figure("f", "about half", at="f").agrees(3)


def test_each_figure_stands_beside_its_variant_s_count_and_a_variant_is_counted_once() -> None:
    asked = []

    def size(variant: str | None) -> dict[str, Any]:
        asked.append(variant)
        return {"parameters": {"total": 7 if variant == "small" else 70}}

    figures = [
        Figure("small", "7", at="parameters / total", variant="small"),
        Figure("small again", "8", at="parameters / total", variant="small", note="a slip"),
        Figure("large", "70", at="parameters / total"),
    ]
    found = beside(figures, size)
    assert [(row.ours, row.follows) for row in found] == [(7, True), (7, False), (70, True)]
    assert asked == ["small", None]
    assert found[1].as_json()["note"] == "a slip"
