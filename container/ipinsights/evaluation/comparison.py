"""How well a model tells real log-ins from fabricated ones, and whether they score as calibration promised.

This is the short comparison, of a model alone with the fabricated pairs that need nothing but the log-ins. `judgement`
is the long one.
"""

from dataclasses import dataclass

import numpy as np

from ipinsights import metrics
from ipinsights.data.records import Records
from ipinsights.evaluation import negatives
from ipinsights.evaluation.negatives import OTHERS, RANDOM
from ipinsights.metrics import Detection
from ipinsights.model.calibration import RATES, SUPPORT
from ipinsights.model.scoring import Scorer


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
    kinds = {
        RANDOM: negatives.of_random(log_ins, scorer.family, rng),
        OTHERS: negatives.of_others(log_ins, rng),
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
