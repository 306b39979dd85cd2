import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from ipinsights.data.addresses import IPV4, IPV6, Family, mapped_share
from ipinsights.data.records import Records
from ipinsights.evaluation import comparison
from ipinsights.model.scoring import Scorer


class Knows(Scorer):
    """Scores 1 what it has seen and -1 the rest."""

    def __init__(self, log_ins: Records, family: Family = IPV4) -> None:
        self._family = family
        self.scored: list[Records] = []
        self.seen = set(zip(log_ins.entities.to_pylist(), log_ins.addresses.tolist(), strict=True))

    @property
    def family(self) -> Family:
        return self._family

    def score(self, records: Records) -> npt.NDArray[np.float32]:
        self.scored.append(records)
        rows = zip(records.entities.to_pylist(), records.addresses.tolist(), strict=True)
        return np.array([1.0 if row in self.seen else -1.0 for row in rows], np.float32)


def test_negatives_are_pairs_that_nobody_observed() -> None:
    rng = np.random.default_rng(0)
    log_ins = Records(pa.array([f"u{i % 9}" for i in range(500)]), rng.integers(30, size=500).astype(np.uint32))
    random, others = comparison.evaluate(Knows(log_ins), log_ins, threshold=0.0)
    assert random.auc == others.auc == 1.0
    assert others.detection.recall == 1.0
    assert others.detection.false_positive_rate == 0.0


def test_nearly_every_log_in_has_a_counterpart() -> None:
    rng = np.random.default_rng(0)
    log_ins = Records(pa.array([f"u{i % 9}" for i in range(500)]), rng.integers(300, size=500).astype(np.uint32))
    _, others = comparison.evaluate(Knows(log_ins), log_ins, threshold=0.0)
    assert others.detection.attacks == 500


def test_an_entity_that_uses_every_address_has_nobody_to_compare_with() -> None:
    log_ins = Records(pa.array(["a", "a"]), np.array([1, 2], np.uint32))
    (random,) = comparison.evaluate(Knows(log_ins), log_ins, threshold=0.0)
    assert random.negatives == "random addresses"


@pytest.mark.parametrize("shift", [0, 32, 59])
def test_negatives_of_ipv6_are_pairs_that_nobody_observed(shift: int) -> None:
    """Addresses may differ in their first bits alone or in their last, and no bit of them is to spare."""
    rng = np.random.default_rng(0)
    address = rng.integers(30, size=500, dtype=np.uint64) << np.uint64(shift)
    log_ins = Records(pa.array([f"u{i % 9}" for i in range(500)]), address)
    scorer = Knows(log_ins, IPV6)
    random, others = comparison.evaluate(scorer, log_ins, threshold=0.0)
    assert random.auc == others.auc == 1.0
    assert others.detection.attacks > 450
    assert [pairs.addresses.dtype for pairs in scorer.scored] == [np.uint64] * 3
    _, uniform, of_others = scorer.scored
    assert (uniform.addresses >> np.uint64(61) == 1).all()
    assert set(of_others.addresses.tolist()) <= set(log_ins.addresses.tolist())


def test_random_addresses_hold_as_much_ipv4_as_the_log_ins() -> None:
    rng = np.random.default_rng(0)
    quads = np.uint64(0x2002 << 48) | rng.integers(1 << 32, size=2000, dtype=np.uint64) << np.uint64(16)
    native = rng.integers(1 << 61, size=2000, dtype=np.uint64) + np.uint64(1 << 61)
    log_ins = Records(pa.array([f"u{i}" for i in range(2000)]), np.where(rng.random(2000) < 0.7, quads, native))
    scorer = Knows(log_ins, IPV6)
    comparison.evaluate(scorer, log_ins, threshold=0.0)
    assert mapped_share(scorer.scored[1].addresses) == pytest.approx(0.7, abs=0.04)


def test_random_addresses_of_ipv4_are_of_its_type() -> None:
    log_ins = Records(pa.array(["a", "b"] * 50), np.arange(100, dtype=np.uint32))
    scorer = Knows(log_ins)
    comparison.evaluate(scorer, log_ins, threshold=0.0)
    assert {pairs.addresses.dtype.type for pairs in scorer.scored} == {np.uint32}
