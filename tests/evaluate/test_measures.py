from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from tessera.data.sample import Sample
from tessera.errors import BadSample, UserError
from tessera.evaluate.frechet import frechet_distance, frechet_score
from tessera.evaluate.intervals import (
    Estimate,
    bootstrap_mean,
    exact_binomial,
    paired_difference,
    permutation_p,
    t_interval,
)
from tessera.evaluate.probes import linear_probe
from tessera.evaluate.retrieval import ranks, recall, recall_both_ways
from tessera.evaluate.vqa import TOGETHER, accuracy_by_type, likeliest, scored


def test_exact_binomial_intervals_agree_with_the_closed_form() -> None:
    none = exact_binomial(0, 10)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 10))
    every = exact_binomial(10, 10)
    assert (every.value, every.high) == (1, 1)
    assert every.low == pytest.approx(0.025 ** (1 / 10))
    half = exact_binomial(5, 10)
    assert (half.low, half.high) == (pytest.approx(0.18709, abs=1e-4), pytest.approx(0.81291, abs=1e-4))


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (2, 1), (-1, 3), (0, 0)])
def test_an_impossible_share_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(UserError, match="no share"):
        exact_binomial(successes, trials)


def test_an_estimate_survives_json_and_reads_well() -> None:
    estimate = Estimate(0.852, 0.821, 0.88, 500)
    assert Estimate.from_json(estimate.to_json()) == estimate
    assert estimate.text() == "85.2 % [82.1, 88.0]"
    assert estimate.text(percent=False, digits=2) == "0.85 [0.82, 0.88]"


def test_the_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.03)
    assert found.high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.03)
    assert bootstrap_mean(values) == found  # the seed is fixed
    assert bootstrap_mean([2.0]) == Estimate(2.0, 2.0, 2.0, 1)


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    rng = np.random.default_rng(1)
    items = rng.normal(0, 5, 200)
    found = paired_difference(items + 0.2 + rng.normal(0, 0.1, 200), items)
    assert 0.15 < found.low < 0.2 < found.high < 0.25


def test_the_t_interval_of_three_values_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2, 3)
    assert found.high - found.value == pytest.approx(4.30265 / np.sqrt(3), abs=1e-4)
    with pytest.raises(UserError, match="at least two"):
        t_interval([1.0])


def test_permutation_counts_sign_flips() -> None:
    # Five differences of one sign: 2 of the 32 sign patterns are as extreme.
    assert permutation_p([2, 3, 4, 5, 6], [1, 1, 1, 1, 1]) == pytest.approx(2 / 32)
    assert permutation_p([1, 2, 3, 4], [2, 1, 4, 3]) == 1
    rng = np.random.default_rng(2)
    assert permutation_p(rng.normal(1, 1, 50), rng.normal(0, 1, 50)) < 0.01


def test_scores_of_other_items_are_not_paired() -> None:
    with pytest.raises(UserError, match="not 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(UserError, match="at least one number"):
        bootstrap_mean([])


def test_the_frechet_distance_of_a_set_to_itself_is_nothing() -> None:
    features = np.random.default_rng(0).normal(0, 1, (300, 16))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    few = features[:5].repeat(3, axis=1)  # fewer rows than numbers, and dependent numbers
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


def test_a_shift_counts_squared_and_a_scale_by_standard_deviations() -> None:
    features = np.random.default_rng(1).normal(0, 1, (500, 8))
    assert frechet_distance(features, features + 0.5) == pytest.approx(8 * 0.25)
    spread = np.trace(np.cov(features.T))
    assert frechet_distance(features, 3 * features - 2 * features.mean(axis=0)) == pytest.approx(4 * spread)


def test_the_frechet_distance_equals_the_textbook_formula() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.normal(0, 1, (400, 6)) @ rng.normal(0, 1, (6, 6)), rng.normal(1, 2, (300, 6))
    c1, c2 = np.cov(left.T), np.cov(right.T)
    gap = left.mean(axis=0) - right.mean(axis=0)
    wanted = gap @ gap + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    assert frechet_distance(left, right) == pytest.approx(wanted)
    assert frechet_distance(right, left) == pytest.approx(wanted)


def test_the_frechet_floor_is_reached_by_the_same_and_not_by_other_features() -> None:
    rng = np.random.default_rng(3)
    real = rng.normal(0, 1, (400, 8))
    same = frechet_score(real, rng.normal(0, 1, (200, 8)))
    other = frechet_score(real, rng.normal(0.5, 1, (200, 8)))
    assert same.size == same.distance.n == 200
    assert same.distance.value == pytest.approx(same.floor.value, rel=0.6)
    assert same.distance.low < same.floor.high
    assert other.distance.value > 5 * other.floor.value > 0
    assert 0 < other.floor.high < other.distance.low < other.distance.high
    with pytest.raises(UserError, match="too few to be halved"):
        frechet_score(real[:39], real)
    with pytest.raises(UserError, match="or 19 generated ones too few"):
        frechet_score(real, real[:19])
    with pytest.raises(UserError, match="cannot be compared"):
        frechet_distance(real, real[:, :4])


def test_the_frechet_interval_is_as_wide_as_the_scatter_over_samples() -> None:
    rng = np.random.default_rng(4)
    found = [frechet_score(rng.normal(0, 1, (120, 10)), rng.normal(0.3, 1, (60, 10))) for _ in range(30)]
    scatter = np.std([one.distance.value for one in found])
    said = np.mean([one.distance.high - one.distance.value for one in found]) / 2.26  # Student's t, 9 degrees
    assert 0.7 * scatter < said < 1.8 * scatter


def test_retrieval_ranks_by_cosine_and_a_tie_counts_against() -> None:
    queries = np.eye(4) * [[1], [5], [2], [0.1]]
    assert ranks(queries, np.eye(4)).tolist() == [0, 0, 0, 0]
    assert ranks(queries, np.roll(np.eye(4), 1, axis=0)).tolist() == [3, 3, 3, 3]
    assert recall(np.ones((10, 3)), np.ones((10, 3)), 5).value == 0
    assert recall(np.ones((10, 3)), np.ones((10, 3)), 10).value == 1


def test_retrieval_both_ways_stands_beside_chance() -> None:
    rng = np.random.default_rng(4)
    images = rng.normal(0, 1, (1100, 32))
    found = recall_both_ways(images, images + rng.normal(0, 0.1, images.shape), ks=(1, 11))
    assert found["image to text recall@1"].value == found["text to image recall@1"].value == 1
    assert found["chance recall@11"].value == pytest.approx(0.01)
    assert recall(images, rng.normal(0, 1, images.shape), 11).value < 0.03
    with pytest.raises(UserError, match="two equal arrays"):
        recall(images, images[:5], 1)


def test_a_linear_probe_finds_what_is_linear_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    classes = rng.integers(0, 4, 900)
    features = rng.normal(0, 1, (900, 20)) * 100 + 7
    features[:, :4] += 600 * np.eye(4)[classes]
    features[:, 19] = 3  # a number that never changes must not divide by zero
    found = linear_probe(features[:600], classes[:600], features[600:], classes[600:])
    assert found.value > 0.97
    assert found.n == 300
    blind = linear_probe(features[:600, 4:], classes[:600], features[600:, 4:], classes[600:])
    assert blind.low < 0.25 < blind.high + 0.05


def test_probe_classes_may_have_any_numbers() -> None:
    features = np.array([[0.0], [0.1], [1.0], [1.1]])
    assert linear_probe(features, np.array([7, 7, 90, 90]), features, np.array([7, 7, 90, 90])).value == 1
    with pytest.raises(UserError, match="two classes"):
        linear_probe(features, np.zeros(4), features, np.zeros(4))
    with pytest.raises(UserError, match="a probe of"):
        linear_probe(features, np.zeros(3), features, np.zeros(4))


def test_accuracy_stands_beside_the_majority_answer_of_each_type() -> None:
    kinds = ["count"] * 4 + ["colour"] * 2
    truths = ["2", "2", "2", "1", "red", "blue"]
    found = accuracy_by_type(["2", "2.", "1", "1", " Red", "green"], truths, kinds)
    assert list(found) == ["colour", "count", "all types"]
    assert found["count"].accuracy.value == 0.75
    assert (found["count"].majority.value, found["count"].majority_answer) == (0.75, "2")
    assert found["colour"].accuracy.value == 0.5
    assert found["all types"].accuracy == exact_binomial(4, 6)
    assert found["all types"].majority.value == pytest.approx(4 / 6)
    assert "majority answer '2' 75.0 %" in found["count"].text()
    with pytest.raises(UserError, match="do not belong together"):
        accuracy_by_type(["a"], [], ["b"])


def test_an_answer_scores_what_its_question_gives_it_or_whether_it_is_the_right_one() -> None:
    logits = torch.tensor([[0.1, 2.0, 0.3], [5.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    scores = torch.tensor([[1.0, 0.25, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert likeliest(logits, scores).tolist() == [0.25, 0.0, 1.0]
    assert likeliest(logits, torch.tensor([1, 2, 2])).tolist() == [1.0, 0.0, 1.0]


def test_every_sample_has_its_own_score_and_a_bad_one_none() -> None:
    met: list[int] = []

    def read(sample: Sample) -> int:
        if sample.id == "3":
            raise BadSample("spoilt")
        return int(sample.id)

    def judge(items: list[int]) -> torch.Tensor:
        met.append(len(items))
        assert not torch.is_grad_enabled()
        return torch.tensor(items) / 100

    found = scored([Sample((), id=str(number)) for number in range(TOGETHER + 3)], read, judge)
    assert found == pytest.approx([0.0 if number == 3 else number / 100 for number in range(TOGETHER + 3)])
    assert met == [TOGETHER, 2]
    assert scored([], read, judge) == []
