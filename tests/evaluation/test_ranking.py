import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ipinsights import metrics
from ipinsights.evaluation.ranking import Ranking, threshold_for

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)


def ranking(log_ins: list[float], attacks: list[float], entities: int = 3) -> Ranking:
    rng = np.random.default_rng(len(log_ins))
    ours, theirs = (rng.integers(entities, size=len(scores)) for scores in (log_ins, attacks))
    return Ranking.of(np.array(log_ins), np.array(attacks), ours, theirs, entities)


def labels(log_ins: list[float], attacks: list[float]) -> tuple[list[int], npt.NDArray[np.float64]]:
    """As scikit-learn has them: what is to be found scores high."""
    return [0] * len(log_ins) + [1] * len(attacks), -np.array(log_ins + attacks)


@given(SCORES, SCORES)
def test_areas_are_those_of_scikit_learn(log_ins: list[float], attacks: list[float]) -> None:
    areas = ranking(log_ins, attacks).areas()
    truth, scores = labels(log_ins, attacks)
    assert areas.roc_auc == pytest.approx(roc_auc_score(truth, scores))
    assert areas.roc_auc == pytest.approx(metrics.auc(np.array(log_ins), np.array(attacks)))
    assert areas.average_precision == pytest.approx(average_precision_score(truth, scores))


@given(SCORES, SCORES, st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_an_entity_counts_as_often_as_it_was_drawn(
    log_ins: list[float], attacks: list[float], drawn: list[int]
) -> None:
    found = ranking(log_ins, attacks)
    weights = np.array(drawn, dtype=float)
    truth, scores = labels(log_ins, attacks)
    order = np.argsort(-scores, kind="stable")
    weight = np.empty(len(scores))
    weight[order] = weights[found.entity]
    areas = found.areas(weights)
    if weight[: len(log_ins)].sum() and weight[len(log_ins) :].sum():
        assert areas.roc_auc == pytest.approx(roc_auc_score(truth, scores, sample_weight=weight))
        assert areas.average_precision == pytest.approx(average_precision_score(truth, scores, sample_weight=weight))
    else:
        assert math.isnan(areas.roc_auc)


@given(SCORES, SCORES, st.floats(-5, 5))
def test_a_threshold_catches_what_is_below_it(log_ins: list[float], attacks: list[float], threshold: float) -> None:
    expected = metrics.Detection.at(threshold, np.array(log_ins), np.array(attacks))
    assert ranking(log_ins, attacks).at(threshold) == expected


@given(SCORES, st.integers(0, 40))
def test_the_threshold_for_false_alarms_is_the_highest_one(log_ins: list[float], most: int) -> None:
    ordered = np.sort(log_ins)
    threshold = threshold_for(ordered, most)
    assert (ordered < threshold).sum() <= most
    above = ordered[ordered >= threshold]
    assert not len(above) or (ordered < np.nextafter(above[0], np.inf)).sum() > most


@given(SCORES, SCORES)
def test_curves_tell_what_some_threshold_reaches(log_ins: list[float], attacks: list[float]) -> None:
    found = ranking(log_ins, attacks)
    reached = [found.at(score) for score in [*log_ins, *attacks, 9.0]]
    shares = np.array([0.0, 0.1, 0.5, 1.0])
    for share, caught in zip(shares, found.roc(shares), strict=True):
        best = max((one.recall for one in reached if one.false_positive_rate <= share + 1e-9), default=0.0)
        assert caught == pytest.approx(best)
    recalls = np.array([0.01, 0.5, 1.0])
    for recall, precision in zip(recalls, found.precision(recalls), strict=True):
        first = min((one for one in reached if one.recall >= recall - 1e-9), key=lambda one: one.flagged)
        assert precision == pytest.approx(first.precision)


def test_intervals_hold_the_area_and_repeat_with_the_seed() -> None:
    rng = np.random.default_rng(0)
    owners = rng.integers(40, size=(2, 2000))
    shift = rng.normal(size=40)[owners]
    real, attacks = rng.normal(1.5, 1, 2000) + shift[0], rng.normal(0, 1, 2000) + shift[1]
    found = Ranking.of(real, attacks, owners[0], owners[1], 40)
    intervals = found.intervals(200, seed=1)
    assert intervals is not None
    for (low, high), area in zip(intervals, found.areas(), strict=True):
        assert low < area < high
        assert high - low < 0.2
    assert found.intervals(200, seed=1) == intervals
    assert found.intervals(200, seed=2) != intervals
    # The pairs of an entity resemble one another: as if each were an entity of its own, the interval is too narrow.
    alone = Ranking.of(real, attacks, np.arange(2000), np.arange(2000), 2000).intervals(200, seed=1)
    assert alone is not None
    assert intervals[0][1] - intervals[0][0] > 1.5 * (alone[0][1] - alone[0][0])


def test_there_is_no_interval_of_one_entity_or_of_no_samples() -> None:
    assert ranking([1.0, 2.0], [0.0], entities=1).intervals(50, 0) is None
    assert ranking([1.0, 2.0], [0.0]).intervals(0, 0) is None


def test_nothing_has_no_area() -> None:
    for empty in (ranking([], [1.0]), ranking([1.0], []), ranking([], [])):
        assert all(map(math.isnan, empty.areas()))
        assert empty.intervals(20, 0) is None
    assert threshold_for(np.zeros(0), 3) == math.inf
