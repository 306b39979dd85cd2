"""How well a model tells real log-ins from made-up ones: against random addresses, and against other entities'.

Random addresses are what a bot net on rented machines might use, and what the built-in validates against. Addresses of
other entities are the harder, more telling case: all of them are in use, only not by this entity.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ipinsights import addresses, metrics
from ipinsights.errors import UserError
from ipinsights.metrics import Detection
from ipinsights.records import Records
from ipinsights.scoring import Scorer


@dataclass(frozen=True)
class Comparison:
    """Real log-ins against as many made-up ones of a kind."""

    negatives: str
    auc: float
    detection: Detection


def evaluate(scorer: Scorer, log_ins: Records, threshold: float, seed: int = 0) -> list[Comparison]:
    """Score log-ins, give each entity a made-up address of either kind, and compare.

    An address of another entity is one that this entity does not use anywhere in ``log_ins``. ``threshold`` is on the
    score: below it a log-in is flagged. Raises UserError where there are no addresses of others.
    """
    rng = np.random.default_rng(seed)
    random = rng.integers(1 << addresses.WIDTH, size=len(log_ins), dtype=np.uint32)
    real = scorer.score(log_ins)
    comparisons = []
    for kind, made_up in (
        ("random addresses", Records(log_ins.entities, random)),
        ("other entities' addresses", _others(log_ins, rng)),
    ):
        scores = scorer.score(made_up)
        comparisons.append(Comparison(kind, metrics.auc(real, scores), Detection.at(threshold, real, scores)))
    return comparisons


def _others(log_ins: Records, rng: np.random.Generator) -> Records:
    """Every entity with an address drawn from those of the others; entities that use them all are left out."""
    encoded = log_ins.entities.dictionary_encode()
    entity = encoded.indices.to_numpy().astype(np.uint64)
    used = np.unique(entity << np.uint64(addresses.WIDTH) | log_ins.addresses)
    drawn = rng.permutation(log_ins.addresses)
    for _ in range(20):
        own = np.isin(entity << np.uint64(addresses.WIDTH) | drawn, used)
        if not own.any():
            break
        drawn[own] = rng.choice(log_ins.addresses, size=int(own.sum()))
    own = np.isin(entity << np.uint64(addresses.WIDTH) | drawn, used)
    if own.all():
        raise UserError("the log-ins hold no entity that does not use every address: there is nothing to compare with")
    return Records(log_ins.entities.filter(pa.array(~own)), drawn[~own])
