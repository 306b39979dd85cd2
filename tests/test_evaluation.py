import numpy as np
import pyarrow as pa

from ipinsights import evaluation
from ipinsights.records import Records


class Knows:
    """Scores 1 what it has seen and -1 the rest."""

    def __init__(self, log_ins: Records) -> None:
        self.seen = set(zip(log_ins.entities.to_pylist(), log_ins.addresses.tolist(), strict=True))

    def score(self, pairs: Records) -> np.ndarray:
        rows = zip(pairs.entities.to_pylist(), pairs.addresses.tolist(), strict=True)
        return np.array([1.0 if row in self.seen else -1.0 for row in rows], np.float32)


def test_negatives_are_pairs_that_nobody_observed() -> None:
    rng = np.random.default_rng(0)
    log_ins = Records(pa.array([f"u{i % 9}" for i in range(500)]), rng.integers(30, size=500).astype(np.uint32))
    random, others = evaluation.evaluate(Knows(log_ins), log_ins, threshold=0.0)
    assert random.auc == others.auc == 1.0
    assert others.detection.recall == 1.0
    assert others.detection.false_positive_rate == 0.0


def test_nearly_every_log_in_has_a_counterpart() -> None:
    rng = np.random.default_rng(0)
    log_ins = Records(pa.array([f"u{i % 9}" for i in range(500)]), rng.integers(300, size=500).astype(np.uint32))
    _, others = evaluation.evaluate(Knows(log_ins), log_ins, threshold=0.0)
    assert others.detection.attacks == 500


def test_an_entity_that_uses_every_address_has_nobody_to_compare_with() -> None:
    log_ins = Records(pa.array(["a", "a"]), np.array([1, 2], np.uint32))
    (random,) = evaluation.evaluate(Knows(log_ins), log_ins, threshold=0.0)
    assert random.negatives == "random addresses"
