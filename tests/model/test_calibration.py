"""How unusual a score is: percentiles keep what they promise, and what cannot be told is not told."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.model.calibration import RATES, SUPPORT, Calibration, Sketch
from ipinsights.model.counting import Counts
from ipinsights.model.history import History
from ipinsights.model.vocabulary import Vocabulary

Scores = npt.NDArray[np.float32]

scores = arrays(np.float32, st.integers(0, 300), elements=st.floats(-50, 50, width=32))


def in_bins(values: Scores) -> npt.NDArray[np.float64]:
    """The lower end of each score's bin."""
    return np.clip(np.floor(values.astype(np.float64) * 32) / 32, -32, 32 - 1 / 32)


@given(scores, scores)
def test_a_percentile_is_the_share_that_scores_no_higher(ordinary: Scores, asked: Scores) -> None:
    sketch = Sketch.of(ordinary)
    assert len(sketch) == len(ordinary)
    found = Calibration(sketch, sketch, sketch).percentile(asked, np.ones(len(asked), np.bool_))
    no_higher = (in_bins(ordinary)[None, :] <= in_bins(asked)[:, None]).sum(axis=1)
    assert found == pytest.approx((1 + no_higher) / (1 + len(ordinary)))


def test_a_percentile_has_few_digits_which_tell_it_from_others_and_from_rates() -> None:
    most = 1 << 17
    counts = np.zeros(2048, dtype=np.uint32)
    counts[:1000], counts[-1] = 1, most - 1000
    found = Sketch(counts).percentiles
    assert found.tolist() == [float(f"{value:.6e}") for value in found.tolist()]
    assert len(set(found[:1000].tolist())) == 1000
    exact = (1 + np.cumsum(counts, dtype=np.int64)) / (1 + most)
    for rate in RATES:
        assert ((found <= rate) == (exact <= rate)).all()


@given(scores, scores)
def test_sketches_add_up(some: Scores, others: Scores) -> None:
    together = Sketch.of(np.concatenate([some, others]))
    assert (Sketch.of(some).plus(Sketch.of(others)).counts == together.counts).all()


@given(scores, st.floats(0.001, 0.5))
def test_below_a_threshold_a_percentile_is_no_more_than_the_rate(ordinary: Scores, rate: float) -> None:
    sketch = Sketch.of(ordinary)
    threshold = sketch.threshold(rate)
    assert (threshold.score is not None) == sketch.supports(rate) == (rate * (1 + len(ordinary)) >= SUPPORT)
    if threshold.score is None:
        return
    edges = (np.arange(2048) - 1024) / 32
    percentile = Calibration(sketch, sketch, sketch).percentile(edges.astype(np.float32), np.ones(2048, np.bool_))
    assert ((percentile <= rate) == (edges < threshold.score)).all()
    low, high = threshold.interval
    assert 0 <= low <= sketch.below(threshold.score) <= high <= 1


def test_of_other_ordinary_log_ins_no_more_than_the_rate_is_below_the_threshold() -> None:
    rng = np.random.default_rng(0)
    shares: dict[float, list[float]] = {rate: [] for rate in (0.1, 0.01)}
    for _ in range(200):
        known, later = rng.normal(3, 4, (2, 2000)).astype(np.float32)
        sketch = Sketch.of(known)
        for rate, found in shares.items():
            threshold = sketch.threshold(rate)
            assert threshold.score is not None
            found.append(float((later < threshold.score).mean()))
    for rate, found in shares.items():
        assert 0.85 * rate < np.mean(found) < 1.05 * rate


def test_the_interval_has_the_true_rate_19_times_in_20() -> None:
    rng, inside = np.random.default_rng(1), 0
    for _ in range(400):
        threshold = Sketch.of(rng.random(1000) * 10).threshold(0.05)
        assert threshold.score is not None
        low, high = threshold.interval
        inside += low <= threshold.score / 10 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_what_too_few_log_ins_cannot_tell_is_said() -> None:
    few = Sketch.of(np.arange(100) / 10)
    described = Calibration(few, Sketch.of(np.zeros(0)), few).described
    assert [row["score"] is not None for row in described["known"]["thresholds"]] == [True, False, False, False]
    assert described["known"]["thresholds"][1] == {"rate": 0.01, "score": None, "log_ins_needed": 499}
    assert described["new"]["log_ins"] == 0
    assert [row["rate"] for row in described["new"]["thresholds"]] == list(RATES)


@pytest.mark.parametrize("count", [1, 40])
def test_new_entities_are_those_of_the_history_each_without_itself(count: int) -> None:
    """One event of each entity, the frequent ones more often, scored by what all others have used."""
    rng = np.random.default_rng(2)
    address = (rng.integers(1, 6, 300) << 24 | rng.integers(0, 3, 300) << 8).astype(np.uint32)
    events = Events(rng.integers(0, count, 300).astype(np.int32), address, EntityIndex(64))
    history, vocabulary = History.of(events, IPV4), Vocabulary.build(address)
    counts = Counts(vocabulary, history)
    own = events.entity[:20], events.address[:20]
    calibration = Calibration.of(lambda rows, addresses: np.ones(len(rows), np.float32), counts, *own, seed=0)
    assert len(calibration.known) == 20
    assert len(calibration.fabricated) == 40
    assert len(calibration.new) == count
    possible = set(in_bins(counts.prior_without(history).astype(np.float32)).tolist())
    assert set(((np.flatnonzero(calibration.new.counts) - 1024) / 32).tolist()) <= possible
