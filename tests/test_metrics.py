"""Figures from merged counts: those of the pooled rows, and those that other programs compute from the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from headwater.evaluation import score_record
from headwater.metrics import ScoreCounts


def drawn(seed, rows=200, classes=2, skill=1.0):
    """Return probabilities that know something of the labels, and the labels; each class has a row."""
    rng = np.random.default_rng(seed)
    targets_N = np.append(np.arange(classes), rng.integers(classes, size=rows - classes))
    logits_NK = rng.normal(size=(rows, classes)) + skill * np.eye(classes)[targets_N]
    p_NK = np.exp(2 * logits_NK)
    return (p_NK / p_NK.sum(1, keepdims=True)).astype(np.float32), targets_N


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), classes=st.integers(2, 5), clients=st.integers(1, 6))
def test_merged_scores_are_those_of_the_pooled_rows_in_any_order(seed, classes, clients):
    p_NK, y_N = drawn(seed, 60, classes)
    owners = np.random.default_rng(seed).integers(clients, size=60)
    parts = [ScoreCounts.of(p_NK[owners == client], y_N[owners == client]) for client in range(clients)]
    whole = ScoreCounts.of(p_NK, y_N)
    for ordered in (parts, parts[::-1]):
        merged = ordered[0]
        for part in ordered[1:]:
            merged += part
        np.testing.assert_array_equal(merged.scores_K2S, whole.scores_K2S)
        assert merged.figures() == pytest.approx(whole.figures())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), classes=st.integers(2, 4), skill=st.sampled_from([0.0, 1.0, 4.0, 12.0]))
def test_the_area_under_the_curve_is_within_its_error_of_the_exact_one(seed, classes, skill):
    p_NK, y_N = drawn(seed, 150, classes, skill)
    p_NK = p_NK.astype(np.float64) / p_NK.sum(1, keepdims=True, dtype=np.float64)
    exact = roc_auc_score(y_N, p_NK[:, 1] if classes == 2 else p_NK, multi_class="ovr", labels=np.arange(classes))
    area, error = ScoreCounts.of(p_NK, y_N).auc()
    assert area == pytest.approx(exact, abs=error + 1e-9)
    assert error < 0.01


def test_rows_that_cannot_be_told_apart_are_ranked_by_chance():
    p_NK, y_N = np.full((40, 2), 0.5), np.arange(40) % 2
    assert ScoreCounts.of(p_NK, y_N).auc() == (0.5, 0.5)
    right = np.eye(2)[y_N]
    assert ScoreCounts.of(right, y_N).figures() == pytest.approx({"auc": 1.0, "ece": 0.0})


def test_without_two_classes_or_rows_there_is_no_area():
    scores = ScoreCounts.of(np.full((4, 2), 0.5), np.zeros(4, np.int64))
    assert scores.auc() is None
    assert scores.figures().keys() == {"ece"}
    assert score_record(scores, ("no", "yes")) is None
    assert ScoreCounts.of(np.empty((0, 2)), np.empty(0, np.int64)).figures() == {}


@pytest.mark.parametrize("classes", [2, 5])
def test_the_calibration_error_is_that_of_its_definition(classes):
    p_NK, y_N = drawn(3, 400, classes)
    sure, right = p_NK.max(1).astype(np.float64), p_NK.argmax(1) == y_N
    error = 0.0
    for low in np.arange(15) / 15:
        found = (sure >= low) & (sure < low + 1 / 15)
        if found.any():
            error += found.mean() * abs(right[found].mean() - sure[found].mean())
    assert ScoreCounts.of(p_NK, y_N).figures()["ece"] == pytest.approx(error)


@pytest.mark.parametrize("classes", [2, 9])
def test_a_record_holds_thin_curves_from_corner_to_corner(classes):
    p_NK, y_N = drawn(1, 3000, classes)
    scores = ScoreCounts.of(p_NK, y_N)
    record = score_record(scores, [str(label) for label in range(classes)])
    names = [curve.name for curve in record.roc]
    assert names == (["1"] if classes == 2 else sorted(set(names)))
    assert len(names) == (1 if classes == 2 else 6)
    for curve in record.roc:
        assert len(curve.x) <= 101
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
        assert curve.x == sorted(curve.x)
        assert curve.y == sorted(curve.y)
    area = np.trapezoid(record.roc[0].y, record.roc[0].x)
    if classes == 2:
        assert area == pytest.approx(scores.auc()[0], abs=0.005)
    assert sum(record.rows) == 3000
    assert len(record.rows) == len(record.reliability.x)
