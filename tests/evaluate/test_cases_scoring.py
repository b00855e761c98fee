"""Scores from counts: published intervals, human readers, both ways to count no response, tests hand-computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tessera.errors import UserError
from tessera.evaluate.cases import CaseSet, readers, score
from tessera.evaluate.cases.human import mean_share, normal_interval, quartered
from tessera.evaluate.cases.running import Answered
from tessera.evaluate.cases.scoring import anova, holm, mcnemar
from tessera.evaluate.intervals import exact_binomial
from tests.evaluate.cases_made import OPTIONS, case, cases

RIGHT, WRONG, NONE = "right", "wrong", "I cannot say."


def replied(made: CaseSet, mode: str, said: list[str], repeat: int = 0) -> list[Answered]:
    """Replies to the cases in order: right, wrong, or as they are."""
    found = []
    for one, what in zip(made.cases, said, strict=True):
        place = {RIGHT: one.answer, WRONG: (one.answer + 1) % len(one.options)}.get(what)
        text = what if place is None else f"[['{one.options[place]}']]"
        found.append(Answered(one.id, mode, repeat, tuple(range(len(one.options))), text))  # type: ignore[arg-type]
    return found


@pytest.mark.light("medical-cases", "exact")
@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(570, 934, 0.578, 0.642), (55, 69, 0.683, 0.884), (40, 69, 0.455, 0.698)]
)
def test_the_three_published_intervals_follow_from_counts(right: int, total: int, low: float, high: float) -> None:
    found = exact_binomial(right, total)
    assert (round(found.low, 3), round(found.high, 3)) == (low, high)


@pytest.mark.light("medical-cases", "exact")
def test_none_and_all_right_give_intervals_closed_on_one_side() -> None:
    none, every = exact_binomial(0, 69), exact_binomial(69, 69)
    assert none.low == 0 < none.high < 0.06
    assert 0.94 < every.low < every.high == 1


@pytest.mark.light("medical-cases", "exact")
def test_the_exact_interval_covers_at_least_as_often_as_it_says() -> None:
    """Summed over every outcome at p = 0.6, n = 69, in place of a simulation."""
    held = [exact_binomial(k, 69) for k in range(70)]
    chances = stats.binom.pmf(np.arange(70), 69, 0.6)
    assert sum(p for p, one in zip(chances, held, strict=True) if one.low <= 0.6 <= one.high) >= 0.95


@pytest.mark.light("medical-cases", "exact")
def test_human_interval_is_the_normal_one_over_cases() -> None:
    found = mean_share([0.4, 0.5, 0.6])
    reach = 1.96 * 0.1 / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach))
    public = normal_interval(0.494572, 0.135921, 947)
    assert (round(public.value, 2), round(public.low, 2), round(public.high, 2)) == (0.49, 0.49, 0.50)


@pytest.mark.light("medical-cases", "exact")
def test_readers_are_summed_up_by_share_plurality_and_brier_score() -> None:
    votes = [(0.12, 0.62, 0.1, 0.11, 0.06), (0.3, 0.3, 0.2, 0.1, 0.1), (0.1, 0.2, 0.5, 0.1, 0.1)]
    made = [case(1, votes=votes[0], voters=100), case(1, votes=votes[1], voters=300), case(1, votes=votes[2])]
    found = readers([*made, case(2)])
    assert found is not None and found["cases"] == 3
    assert found["mean share"]["value"] == pytest.approx((0.62 + 0.3 + 0.2) / 3)
    assert (found["plurality"]["value"], found["plurality"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (found["votes"], found["weighted mean"]) == (400, pytest.approx(0.62 / 4 + 0.3 * 3 / 4))
    assert made[0].brier == pytest.approx((0.12**2 + 0.38**2 + 0.1**2 + 0.11**2 + 0.06**2) / 5)
    assert round(made[0].brier or 0, 3) == 0.037
    assert found["quartiles"][1] == pytest.approx(0.3)
    assert readers([case(2)]) is None


def test_no_response_is_counted_as_wrong_and_dropped() -> None:
    made = cases(10)
    found = score(made, replied(made, "text", [RIGHT] * 5 + [WRONG] * 2 + [NONE] * 2 + [""]))["modes"]["text"]
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (0.5, 10)
    assert (found["answered alone"]["value"], found["answered alone"]["n"]) == (pytest.approx(5 / 7), 7)
    assert found["no response"]["value"] == pytest.approx(0.3)
    assert found["reasons"] == {"a reply that chooses no option": 2, "an empty reply": 1}
    silent = [
        replace(one, reply="[['Measles']]", problem="no reply within 1 s") for one in replied(made, "text", [""] * 10)
    ]
    none = score(made, silent)["modes"]["text"]
    assert (none["accuracy"]["value"], none["answered alone"]) == (0, None)
    assert none["reasons"] == {"no reply within 1 s": 10}


def test_a_letter_follows_the_order_that_was_shown() -> None:
    made = cases(1)
    one = Answered("0", "text", 0, (4, 3, 2, 1, 0), "E")
    assert score(made, [one])["modes"]["text"]["accuracy"]["value"] == 1


def test_the_same_cases_in_two_modes_are_compared_case_by_case() -> None:
    made = cases(12)
    said = [
        *replied(made, "text", [RIGHT] * 2 + [WRONG] * 10),
        *replied(made, "both", [WRONG] + [RIGHT] * 10 + [WRONG]),
    ]
    (found,) = score(made, said)["between"]
    assert [found[name] for name in ("both", "first alone", "second alone", "neither")] == [1, 1, 9, 1]
    assert found["difference"]["value"] == pytest.approx((2 - 10) / 12)
    assert found["p"] == pytest.approx(2 * (1 + 10) / 2**10)


@pytest.mark.parametrize(("left", "right", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 6, 2 / 2**6)])
def test_mcnemar_is_the_exact_sign_test(left: int, right: int, p: float) -> None:
    assert mcnemar(left, right) == pytest.approx(p)


def test_anova_is_that_of_the_textbook_and_has_no_p_without_variance() -> None:
    groups = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    between, within = 6 * (1 / 6) ** 2, 2 * (2 / 9 * 3)
    assert anova(groups) == pytest.approx(stats.f.sf(between / (within / 4), 1, 4))
    assert anova([[1.0, 1.0], [0.0, 0.0]]) is None
    assert anova([[1.0, 0.0]]) is None
    assert anova([[1.0], [0.0]]) is None


def test_holm_corrects_the_smallest_p_most_and_keeps_their_order() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_strata_hold_each_case_once_with_its_readers() -> None:
    shares = [0.1 + 0.02 * number for number in range(40)]
    made = CaseSet(
        "made",
        tuple(
            case(number, votes=tuple(share if place == number % 5 else (1 - share) / 4 for place in range(5)),
                 strata={"image type": "skin" if number % 2 else "eye"})
            for number, share in enumerate(shares)
        ),
    )  # fmt: skip
    tables = score(made, replied(made, "text", [WRONG] * 20 + [RIGHT] * 20))["strata"]
    by_name = {one["division"]: one for one in tables}
    assert {one["mode"] for one in tables} == {"text"}
    difficulty = by_name["difficulty, by votes"]
    assert [line["level"] for line in difficulty["levels"]] == ["hardest", "hard", "easy", "easiest"]
    assert [line["accuracy"]["n"] for line in difficulty["levels"]] == [10] * 4
    assert [line["accuracy"]["value"] for line in difficulty["levels"]] == [0, 0, 1, 1]
    assert difficulty["levels"][0]["readers"]["value"] == pytest.approx(np.mean(shares[:10]))
    assert difficulty["p"] is None and difficulty["differs"] is False
    kinds = by_name["image type"]
    assert [(line["level"], line["accuracy"]["n"]) for line in kinds["levels"]] == [("eye", 20), ("skin", 20)]
    assert kinds["p"] <= kinds["p, corrected"] <= 1


def test_a_mode_in_which_no_case_was_answered_has_no_strata() -> None:
    made = CaseSet(
        "made", tuple(case(number, strata={"image type": "eye" if number < 4 else "skin"}) for number in range(8))
    )
    found = score(made, [*replied(made, "text", [""] * 8), *replied(made, "image", [RIGHT] * 3 + [""] * 5)])
    assert {one["mode"] for one in found["strata"]} == {"image"}
    assert found["modes"]["text"]["no response"]["value"] == 1


def test_quarters_need_four_different_groups() -> None:
    made = [case(number, votes=(0.5, 0.5, 0, 0, 0)) for number in (0, 1, 5, 6)]
    assert quartered(made, lambda one: one.human, ("a", "b", "c", "d")) == {}
    assert quartered(made[:2], lambda one: float(one.id), ("a", "b", "c", "d")) == {}
    assert quartered(made, lambda one: float(one.id), ("a", "b", "c", "d")) == {"0": "a", "1": "b", "5": "c", "6": "d"}


def test_wrong_hints_count_on_the_cases_that_the_image_alone_has_right() -> None:
    made = cases(6)
    said = [
        *replied(made, "image", [RIGHT] * 4 + [WRONG] * 2),
        *replied(made, "note", [RIGHT, WRONG, WRONG, NONE, RIGHT, RIGHT]),
    ]
    (found,) = score(made, said)["hints"]
    assert (found["kept"]["value"], found["kept"]["n"]) == (0.25, 4)


def test_repeats_show_how_replies_split_and_count_a_case_once() -> None:
    made = cases(2)
    said = [one for repeat in range(4) for one in replied(made, "text", [RIGHT, RIGHT if repeat % 2 else NONE], repeat)]
    found = score(made, said)
    table = found["repeats"]["text"]
    assert [(line["case"], line["right"], line["agreeing"]) for line in table] == [("1", 2, 0.5), ("0", 4, 1.0)]
    assert table[0]["split"] == {"no response": 2, OPTIONS[1]: 2}
    assert found["modes"]["text"]["accuracy"]["n"] == found["modes"]["text"]["over repeats"]["n"] == 2
    assert found["modes"]["text"]["over repeats"]["value"] == 0.75


def test_nothing_said_is_no_score() -> None:
    with pytest.raises(UserError, match="there is no reply"):
        score(cases(1), [])
