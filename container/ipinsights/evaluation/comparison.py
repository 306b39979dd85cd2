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
