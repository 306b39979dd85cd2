"""How well a model tells real log-ins from made-up ones: against random addresses, and against other entities'.

Random addresses are what a bot net on rented machines might use, and what the built-in validates against. Addresses of
other entities are the harder, more telling case: all of them are in use, only not by this entity.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ipinsights import metrics
from ipinsights.data.addresses import mapped_share, random_addresses
from ipinsights.data.records import Records
from ipinsights.metrics import Detection
from ipinsights.model.scoring import Scorer


@dataclass(frozen=True)
class Comparison:
    """Real log-ins against as many made-up ones of a kind."""

    negatives: str
    auc: float
    detection: Detection


def evaluate(scorer: Scorer, log_ins: Records, threshold: float, seed: int = 0) -> list[Comparison]:
    """Score log-ins, give their entities made-up addresses of either kind, and compare.

    An address of another entity is one that this entity does not use anywhere in ``log_ins``; a log-in for which none
    is found in twenty draws has no such counterpart, and where none has, that comparison is left out. ``threshold`` is
    on the score: below it a log-in is flagged.
    """
    rng = np.random.default_rng(seed)
    random = random_addresses(len(log_ins), scorer.family, mapped_share(log_ins.addresses), rng)
    kinds = {
        "random addresses": Records(log_ins.entities, random),
        "other entities' addresses": _others(log_ins, rng),
    }
    real = scorer.score(log_ins)
    scores = {kind: scorer.score(made_up) for kind, made_up in kinds.items() if len(made_up)}
    return [Comparison(kind, metrics.auc(real, s), Detection.at(threshold, real, s)) for kind, s in scores.items()]


def _others(log_ins: Records, rng: np.random.Generator) -> Records:
    """Entities with addresses of others; log-ins for which none is found are left out."""
    # A pair as one number: the places of its entity and its address among the distinct ones, 32 bits each.
    entity = log_ins.entities.dictionary_encode().indices.to_numpy().astype(np.int64) << 32
    distinct, address = np.unique(log_ins.addresses, return_inverse=True)
    used = np.unique(entity | address)
    drawn = rng.permutation(address)
    own = np.isin(entity | drawn, used)
    for _ in range(20):
        drawn[own] = rng.choice(address, size=int(own.sum()))
        own = np.isin(entity | drawn, used)
    return Records(log_ins.entities.filter(pa.array(~own)), distinct[drawn[~own]])
