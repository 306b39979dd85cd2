"""How well a model tells real log-ins from fabricated ones: with random addresses, and with other entities' addresses.

A botnet on rented machines might use random addresses, and the built-in validates with them. Addresses of other
entities are the harder, more informative case: all of them are in use, but not by this entity.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ipinsights import metrics
from ipinsights.data.addresses import mapped_share, random_addresses
from ipinsights.data.records import Records
from ipinsights.metrics import Detection
from ipinsights.model.calibration import RATES, SUPPORT
from ipinsights.model.scoring import Scorer

RANDOM, OTHERS = "random addresses", "other entities' addresses"
"""The kinds of addresses of fabricated pairs."""


@dataclass(frozen=True)
class Comparison:
    """Real log-ins compared with as many fabricated ones of a kind."""

    negatives: str
    auc: float
    detection: Detection


def evaluate(scorer: Scorer, log_ins: Records, threshold: float, seed: int = 0) -> list[Comparison]:
    """Score log-ins, fabricate pairs of either kind with their entities, and compare.

    An address of another entity is one that this entity does not use anywhere in ``log_ins``. If twenty draws find none
    for a log-in, this log-in is skipped. If all are skipped, this comparison is skipped. Log-ins with a score below
    ``threshold`` are flagged.
    """
    rng = np.random.default_rng(seed)
    random = random_addresses(len(log_ins), scorer.family, mapped_share(log_ins.addresses), rng)
    kinds = {
        RANDOM: Records(log_ins.entities, random),
        OTHERS: _others(log_ins, rng),
    }
    real = scorer.score(log_ins)
    scores = {kind: scorer.score(made_up) for kind, made_up in kinds.items() if len(made_up)}
    return [Comparison(kind, metrics.auc(real, s), Detection.at(threshold, real, s)) for kind, s in scores.items()]


@dataclass(frozen=True)
class Promise:
    """How many log-ins of one kind of entity are below a threshold, compared with what calibration promised."""

    entities: str
    """``known`` or ``new``."""
    rate: float
    """The share that was promised."""
    score: float
    """The threshold."""
    log_ins: int
    below: float
    """The share of the log-ins that was found."""

    @property
    def broken(self) -> bool:
        """Whether more than twice or less than half as many are below, and more than chance would make it."""
        chance = 3 * (self.rate / self.log_ins) ** 0.5  # three standard deviations, about
        return not self.rate / 2 <= self.below <= 2 * self.rate and abs(self.below - self.rate) > chance


def promises(scorer: Scorer, log_ins: Records) -> list[Promise]:
    """Look whether log-ins score as low as calibration promised, where there are enough. Empty without calibration."""
    calibration, found = scorer.calibration, []
    if calibration is None:
        return []
    calibrated = scorer.calibrate_hashed(*log_ins.hashed())
    known = np.array([value is not False for value in calibrated.column("entity_known")], dtype=np.bool_)
    for name, sketch, those in (("known", calibration.known, known), ("new", calibration.new, ~known)):
        scores = calibrated.scores[those]
        for threshold in map(sketch.threshold, RATES):
            if threshold.score is not None and threshold.rate * len(scores) >= SUPPORT:
                below = float((scores < threshold.score).mean())
                found.append(Promise(name, threshold.rate, threshold.score, len(scores), below))
    return found


def _others(log_ins: Records, rng: np.random.Generator) -> Records:
    """Entities with addresses of others; log-ins without such an address are skipped."""
    # A pair is one number: the places of its entity and its address among the distinct ones, 32 bits each.
    entity = log_ins.entities.dictionary_encode().indices.to_numpy().astype(np.int64) << 32
    distinct, address = np.unique(log_ins.addresses, return_inverse=True)
    used = np.unique(entity | address)
    drawn = rng.permutation(address)
    own = np.isin(entity | drawn, used)
    for _ in range(20):
        drawn[own] = rng.choice(address, size=int(own.sum()))
        own = np.isin(entity | drawn, used)
    return Records(log_ins.entities.filter(pa.array(~own)), distinct[drawn[~own]])
