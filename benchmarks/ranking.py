"""How well a scorer tells real moves to new addresses from made-up pairs: Tor relays.

Positives are addresses that a known relay had never used before. Each is met by `NEGATIVES` made-up pairs a kind:

- random: the relay with a uniformly random unicast address;
- other: the relay with the address of a training event, which is mostly another's;
- shuffled: the relay with the address of another positive. Only who it belongs to tells it apart: the hardest.

The measure is the area under the ROC curve, for each kind and on average.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks import datasets
from benchmarks.contenders import Contender, Rows, Scorer
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

    def aucs(self, score: Scorer, seed: int) -> npt.NDArray[np.float64]:
        """The area under the ROC curve against each kind of made-up pairs, which the seed decides: [3]."""
        rng, n = np.random.default_rng(100 + seed), len(self.address)  # not the stream that training draws from
        low, high = _UNICAST[self.family.version]
        made_up = (
            rng.integers(low, high, size=(NEGATIVES, n), dtype=self.family.dtype.type),
            rng.choice(self.train.address, size=(NEGATIVES, n)),
            np.stack([rng.permutation(self.address) for _ in range(NEGATIVES)]),
        )
        real = score(self.entity, self.address)
        return np.array(
            [
                metrics.auc(real, np.concatenate([score(self.entity, some) for some in negatives]))
                for negatives in made_up
            ]
        )

    def measure(self, contender: Contender, seed: int) -> npt.NDArray[np.float64]:
        """`aucs` of a contender that learns with a seed: [3]."""
        return self.aucs(contender(self.train, self.family, seed), seed)


def _parse(texts: pa.StringArray, family: Family) -> Addresses:
    values, valid = addresses.parse(texts, family)
    if not valid.all():
        raise ValueError(f"{datasets.TOR_FILES[family.version]}: {texts[int(np.argmin(valid))]} is no address")
    return values
