import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from ipinsights import metrics
from ipinsights.metrics import Scores

scores = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]) | st.floats(-5, 5), min_size=1, max_size=30).map(np.array)


@given(scores, scores)
def test_auc_is_sklearns(positive: Scores, negative: Scores) -> None:
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    expected = reference.roc_auc_score(labels, np.concatenate([positive, negative]))
    assert metrics.auc(positive, negative) == pytest.approx(expected)


@given(scores, scores, st.floats(-5, 5))
def test_detection_is_sklearns(log_ins: Scores, attacks: Scores, threshold: float) -> None:
    labels = np.repeat([0, 1], [len(log_ins), len(attacks)])
    flagged = np.concatenate([log_ins, attacks]) < threshold
    detection = metrics.Detection.at(threshold, log_ins, attacks)
    assert detection.flagged == flagged.sum()
    assert detection.recall == pytest.approx(reference.recall_score(labels, flagged))
    assert detection.f1 == pytest.approx(reference.f1_score(labels, flagged, zero_division=0))
    assert detection.false_positive_rate == pytest.approx(flagged[labels == 0].mean())
    if flagged.any():
        assert detection.precision == pytest.approx(reference.precision_score(labels, flagged))
    else:
        assert math.isnan(detection.precision)


def test_without_either_kind_there_is_no_auc() -> None:
    assert math.isnan(metrics.auc(np.array([]), np.array([1.0])))
