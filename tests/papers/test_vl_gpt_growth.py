"""How a step's time grows: what is timed, and the powers that are read from it."""

from __future__ import annotations

import pytest
import torch

from tessera.papers import vl_gpt_growth
from tessera.papers.vl_gpt_growth import by_length, exponent, fitted, growth
from tessera.study.bench import read

CPU = torch.device("cpu")


def test_the_power_of_a_power_law_is_found() -> None:
    assert exponent([(x, 7 * x**1.5) for x in (1.0, 3.0, 10.0)]) == pytest.approx(1.5)
    found = fitted([(x, x, 2 * x**2) for x in (1.0, 2.0, 4.0, 8.0)], "x")
    assert (found["value"], found["over all"], found["plain, at the end"]) == pytest.approx((1.0, 1.0, 2.0))


def test_one_sequence_is_timed_at_every_length_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vl_gpt_growth, "LENGTHS", (32, 64, 96))
    monkeypatch.setattr(vl_gpt_growth, "ROUNDS", 1)
    found = by_length(CPU)
    assert [point[0] for point in found["points"]] == [32, 64, 96]
    assert all(len(point) == 3 and min(point) > 0 for point in found["points"])


def test_growth_worse_than_that_of_attention_is_short_of_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    for power, verdict in ((1.5, "reaches the aim"), (2.0, "reaches the floor"), (3.0, "short of the floor")):
        points = [(x, x**power, x) for x in (1.0, 2.0, 4.0)]
        monkeypatch.setattr(vl_gpt_growth, "by_length", lambda device, points=points: fitted(points, "x"))
        assert read(next(growth(CPU)), CPU)["verdict"] == verdict
