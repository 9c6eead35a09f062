"""Intervals against known answers, and how often they hold the truth."""

import numpy as np
import pytest

from headwater.errors import DataError
from headwater.statistics import Interval, mean_and_spread, paired_bootstrap, verdict, worst_decile


def test_equal_models_differ_by_nothing():
    rows = np.array([0, 1, 1, 0, 1])
    assert paired_bootstrap(rows, rows) == Interval(0.0, 0.0, 0.0)
    assert verdict(paired_bootstrap(rows, rows)) == "no gain shown"


def test_a_model_right_everywhere_beats_one_wrong_everywhere():
    assert paired_bootstrap(np.ones(30), np.zeros(30)) == Interval(1.0, 1.0, 1.0)


def test_interval_is_that_of_the_binomial():
    # a is right where b is wrong on 40 of 100 rows and equal elsewhere: draws are Binomial(100, 0.4) / 100.
    a, b = np.ones(100), np.concatenate([np.zeros(40), np.ones(60)])
    found = paired_bootstrap(a, b, samples=100_000)
    assert found.mean == pytest.approx(0.40)
    assert found.low == pytest.approx(0.31, abs=0.0101)  # its 2.5 % and 97.5 % quantiles are 31 and 50 rows
    assert found.high == pytest.approx(0.50, abs=0.0101)


def test_drawing_counts_is_drawing_rows():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, 80) / 3, rng.integers(0, 4, 80) / 3
    difference = a - b
    draws = difference[rng.integers(0, 80, (40_000, 80))].mean(axis=1)
    found = paired_bootstrap(a, b, samples=40_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.006)


def test_seeds_that_agree_leave_the_interval_of_the_rows():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 2, (2, 90))
    assert vars(paired_bootstrap([a, a, a], [b, b, b])) == pytest.approx(vars(paired_bootstrap(a, b)))


def test_seeds_that_differ_by_more_than_the_rows_noise_widen_the_interval():
    # Three seeds whose differences are the same on every row, 0.1, 0.2 and 0.3: nothing but the seeds is uncertain.
    found = paired_bootstrap(np.array([[0.1], [0.2], [0.3]]) * np.ones((3, 40)), np.zeros((3, 40)), samples=200_000)
    reach = 4.3027 * 0.1 / np.sqrt(3)  # Student's t with two degrees of freedom, as a t-test of the three has it
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - reach, 0.2 + reach), abs=0.005)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("between_seeds", [0.0, 0.06, 0.12])
def test_the_interval_over_seeds_holds_the_truth_about_as_often_as_it_says(between_seeds, seeds):
    # Rows' own differences, noise by row and seed, and seeds' own, from none to twice what that noise makes of them.
    rng = np.random.default_rng(13)
    held, trials, rows = 0, 500, 100
    for _ in range(trials):
        difference_SN = rng.normal(0, 0.1, rows) + rng.normal(0, 0.6, (seeds, rows))
        difference_SN += rng.normal(0, between_seeds, (seeds, 1))
        found = paired_bootstrap(difference_SN, np.zeros((seeds, rows)), samples=400)
        held += found.low <= 0.0 <= found.high
    assert 0.925 <= held / trials <= 0.985


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    b = rng.integers(0, 2, 400)
    a = np.where(rng.uniform(size=400) < 0.05, 1, b)
    paired, shuffled = paired_bootstrap(a, b), paired_bootstrap(rng.permutation(a), b)
    assert paired.mean == pytest.approx(shuffled.mean)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    truth, held, trials = 0.10, 0, 400
    for _ in range(trials):
        difference = rng.choice([1, 0, -1], p=[0.2, 0.7, 0.1], size=120)
        found = paired_bootstrap(difference, np.zeros(120), samples=800)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / trials <= 0.98


def test_no_difference_is_rarely_called_one():
    rng = np.random.default_rng(12)
    called = 0
    for _ in range(400):
        difference = rng.choice([1, 0, -1], p=[0.15, 0.7, 0.15], size=120)
        called += verdict(paired_bootstrap(difference, np.zeros(120), samples=800)) != "no gain shown"
    assert called / 400 <= 0.09


def test_same_seed_same_interval():
    a, b = np.random.default_rng(0).integers(0, 2, (2, 200))
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1, samples=300) != paired_bootstrap(a, b, seed=2, samples=300)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.2, "gain"), (-0.2, -0.01, "loss"), (-0.1, 0.1, "no gain shown"), (0.0, 0.1, "no gain shown")],
)
def test_verdict(low, high, said):
    assert verdict(Interval((low + high) / 2, low, high)) == said


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1, 0, 1], "1 x 2 and 1 x 3 scores"),
        ([], [], "scores of shape"),
        (np.zeros((2, 2, 2)), np.zeros(2), "scores of shape"),
    ],
)
def test_what_cannot_be_paired_says_so(a, b, message):
    with pytest.raises(DataError, match=message):
        paired_bootstrap(a, b)


def test_no_draws_is_an_error():
    with pytest.raises(DataError, match="samples = 0"):
        paired_bootstrap([1], [0], samples=0)


def test_spread_and_worst_decile():
    assert mean_and_spread([0.5]) == (0.5, None)
    assert mean_and_spread([0.4, 0.6]) == pytest.approx((0.5, 0.1414213562))
    assert worst_decile([0.9, 0.1, 0.5]) == pytest.approx(0.1)
    assert worst_decile([index / 20 for index in range(20)]) == pytest.approx(0.025)
