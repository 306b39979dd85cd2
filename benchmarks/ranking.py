"""How well a scorer tells real moves to new addresses from made-up pairs: Tor relays.

Positives are addresses that a known relay had never used before. Each is met by `NEGATIVES` made-up pairs a kind:

- random: the relay with a uniformly random unicast address;
- other: the relay with the address of a training event, which is mostly another's;
- shuffled: the relay with the address of another positive. Only who it belongs to tells it apart: the hardest.

The measure is the area under the ROC curve, for each kind and on average.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks import datasets
from benchmarks.contenders import Contender, Rows, Scorer, Scores
from ipinsights import metrics
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6, Addresses, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events

KINDS = ("random", "other", "shuffled")
NEGATIVES = 5
ENTITY_ROWS = {IPV4.version: 40_000, IPV6.version: 15_000}
"""More than there are relays, so that each has a row of its own."""

_UNICAST = {IPV4.version: (1 << 24, 224 << 24), IPV6.version: (1 << 61, 1 << 62)}
"""Where random addresses come from: 1.0.0.0 to 223.255.255.255, and 2000::/3."""


@dataclass(frozen=True)
class Task:
    """Pairs to learn from, and real pairs of later to tell from made-up ones."""

    family: Family
    train: Events
    entity: Rows
    """Row of each positive, [n]."""
    address: Addresses
    """[n]"""

    @classmethod
    def tor(cls, split: datasets.Split, family: Family) -> "Task":
        """A split of the Tor relays' events."""
        data, index = datasets.tor(split, family), EntityIndex(ENTITY_ROWS[family.version])
        train, test = (
            (pa.array(part.fingerprint, pa.string()), pa.array(part.ip.str.strip(), pa.string()))
            for part in (data.train, data.test)
        )
        rows = index.claim(train[0])
        return cls(family, Events(rows, _parse(train[1], family), index), index.find(test[0]), _parse(test[1], family))

    def scored(self, score: Scorer, seed: int) -> "Scored":
        """The scores of the positives and of made-up pairs, which the seed decides."""
        rng, n = np.random.default_rng(100 + seed), len(self.address)  # not the stream that training draws from
        low, high = _UNICAST[self.family.version]
        made_up = (
            rng.integers(low, high, size=(NEGATIVES, n), dtype=self.family.dtype.type),
            rng.choice(self.train.address, size=(NEGATIVES, n)),
            np.stack([rng.permutation(self.address) for _ in range(NEGATIVES)]),
        )
        negatives = np.stack([[score(self.entity, some) for some in kind] for kind in made_up])
        return Scored(self.entity, score(self.entity, self.address), negatives)

    def aucs(self, score: Scorer, seed: int) -> npt.NDArray[np.float64]:
        """The area under the ROC curve against each kind of made-up pairs: [3]."""
        return self.scored(score, seed).aucs()

    def measure(self, contender: Contender, seed: int) -> npt.NDArray[np.float64]:
        """`aucs` of a contender that learns with a seed: [3]."""
        return self.aucs(contender(self.train, self.family, seed), seed)


@dataclass(frozen=True)
class Scored:
    """What a contender with one seed makes of a task's pairs."""

    entity: Rows
    """Row of each positive, [n]."""
    positive: Scores
    """[n]"""
    negative: Scores
    """Of the pairs that are made up for each, [3, NEGATIVES, n]."""

    def aucs(self, some: Rows | slice = slice(None)) -> npt.NDArray[np.float64]:
        """The area under the ROC curve against each kind of made-up pairs, of ``some`` positives and theirs: [3]."""
        return np.array([metrics.auc(self.positive[some], kind[:, some].ravel()) for kind in self.negative])


def lead(ours: Sequence[Scored], theirs: Sequence[Scored], draws: int = 400) -> tuple[float, float, float]:
    """How far one contender is ahead of another, with the same seeds: the mean difference of their areas.

    Then the bounds of 95 % of such differences if entities are drawn with replacement. The moves of one relay resemble
    each other, and a few relays have many.
    """
    _, who = np.unique(ours[0].entity, return_inverse=True)
    positives = np.split(np.argsort(who, kind="stable"), np.cumsum(np.bincount(who))[:-1])
    rng = np.random.default_rng(0)

    def ahead(some: Rows | slice) -> float:
        return float(np.mean([us.aucs(some) - them.aucs(some) for us, them in zip(ours, theirs, strict=True)]))

    drawn = rng.integers(len(positives), size=(draws, len(positives)))
    leads = [ahead(np.concatenate([positives[entity] for entity in entities])) for entities in drawn]
    low, high = np.quantile(leads, (0.025, 0.975))
    return ahead(slice(None)), float(low), float(high)


def _parse(texts: pa.StringArray, family: Family) -> Addresses:
    values, valid = addresses.parse(texts, family)
    if not valid.all():
        raise ValueError(f"{datasets.TOR_FILES[family.version]}: {texts[int(np.argmin(valid))]} is no address")
    return values
