"""Why a pair has its score: the parts that add up to it, and the events behind them.

The score of an entity that training saw is the sum of three parts, that of any other entity is one part (`refit`). All
of them are products of coordinates that the model has in its tables, so nothing is estimated here. The events are those
of the model's history and of its vocabulary. What the model does not keep is None, never 0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.data import addresses
from ipinsights.errors import UserError
from ipinsights.model.history import History
from ipinsights.model.model import RESERVED, Model
from ipinsights.model.refit import CONSTANT, POPULARITY, PRIOR

PARTS = ("popularity", "habit", "affinity", "prior")
"""What a score may consist of."""


@dataclass(frozen=True)
class KnownNetwork:
    """A network that training knows, with an address in it."""

    network: str
    """Such as "10.0.0.0/8"."""
    entities: int | None
    """Distinct entities that were counted there. None: it was not counted."""
    events: int | None
    """Events there of the entity that is asked about. None: the model has no history of it, or of shorter prefixes."""


@dataclass(frozen=True)
class Explanation:
    """The score of one pair and what it consists of.

    A part that the score does not have is None. The other parts sum to the score, but for the rounding of float32. A
    model without counting (of format 3, or one that was stopped too early for it) has affinity alone.

    Events are those in the history that the model keeps. If training continued from a model without history, they begin
    with the later training. If entities share rows, they are those of all entities with the row.
    """

    score: float
    popularity: float | None
    """How many use the address's networks, against how often they are in fabricated pairs. It depends on the address
    alone, and has the threshold in it: what makes 0 the threshold is subtracted here."""
    habit: float | None
    """What the entity's own networks say: the more of its events were near the address, the higher. It is negative for
    regular entities far from all their networks."""
    affinity: float | None
    """What training learnt from all events: which entities and which networks go together."""
    prior: float | None
    """The score of an entity that training never saw: how many entities use the address's networks."""

    seen: bool
    """Whether training saw the entity (and it was not forgotten since)."""
    events: int | None
    """All events of the entity."""
    addresses: int | None
    """Its distinct addresses. Of IPv6, an address is its first 64 bits. None where no whole addresses are kept."""
    uses: int | None
    """Events of the entity from the very address; 0 if it never used it. None where no whole addresses are kept."""
    networks: tuple[KnownNetwork, ...]
    """The known networks of the address, the longest first; none if training knows none."""
    provider: int | None
    """The number of the autonomous system that runs the address. None: the model had no table, or does not know it."""
    country: str | None
    """Its two letters; None as above."""

    @property
    def parts(self) -> dict[str, float]:
        """The parts that the score has, by name; they sum to it."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}

    @classmethod
    def of(cls, model: Model, row: int, address: int) -> "Explanation":
        """Explain the pair of an entity's row, in [0, E], and an address, an integer of the model's family."""
        queries = np.array([address], dtype=model.family.dtype)
        seen = bool((model.entity[row] != model.entity[-1]).any())
        parts = _parts(model, row, seen, model.encode(queries)[0])
        own = _Own.of(model, row, seen)
        provider, country = _labels(model, queries)
        return cls(
            score=float(model.score_rows(np.array([row]), queries)[0]),
            popularity=parts.get("popularity"),
            habit=parts.get("habit"),
            affinity=parts.get("affinity"),
            prior=parts.get("prior"),
            seen=seen,
            events=own.inside(0, 0, (1 << model.family.width) - 1),
            addresses=own.addresses,
            uses=own.inside(model.family.width, address, address),
            networks=_networks(model, own, queries),
            provider=provider,
            country=country,
        )


def explain(model: Model, entity: str, address: str) -> Explanation:
    """Explain the score of an entity, given by its name, and an address, given as text.

    Raises UserError if the text is not an address of the model's family.
    """
    values, valid = addresses.parse(pa.array([address], pa.string()), model.family)
    if not valid[0]:
        raise UserError(addresses.explain(address, model.family))
    return Explanation.of(model, int(model.index.find(pa.array([entity], pa.string()))[0]), int(values[0]))


@dataclass(frozen=True)
class _Own:
    """What the model's history has of one entity."""

    history: History | None
    """None if its events are not kept."""
    place: slice
    """Where its pairs are in the history."""
    width: int

    @classmethod
    def of(cls, model: Model, row: int, seen: bool) -> "_Own":
        width, none = model.family.width, slice(0, 0)
        if not seen:
            return cls(History.none(model.family), none, width)
        place = model.counted.history.place(row) if model.counted else none
        # A seen entity has events, so no pairs means that they are not kept.
        return cls(model.counted.history if model.counted and place != none else None, place, width)

    @property
    def addresses(self) -> int | None:
        if self.history is None or self.history.length < self.width:
            return None
        return len(self.history.addresses[self.place])

    def inside(self, bits: int, first: int, last: int) -> int | None:
        """Events from the first to the last address, which differ in none of their leading ``bits``."""
        if self.history is None or self.history.length < bits:
            return None
        own, counts = self.history.addresses[self.place], self.history.counts[self.place]
        begin = np.searchsorted(own, own.dtype.type(first))
        end = np.searchsorted(own, own.dtype.type(last), side="right")
        return int(counts[begin:end].sum(dtype=np.int64))


def _parts(model: Model, row: int, seen: bool, encoded: npt.NDArray[np.float32]) -> dict[str, float]:
    products = model.entity[row].astype(np.float64) * encoded
    counted = model.counted
    if counted is None:
        return {"affinity": float(products.sum())}
    if not seen:
        return {"prior": float(products[PRIOR])}
    learnt = counted.learnt[np.searchsorted(counted.rows, row)].astype(np.float64) * encoded
    affinity = float(learnt[:-RESERVED].sum())
    return {
        "popularity": float(products[POPULARITY]),
        "habit": float(products[:-RESERVED].sum() - affinity + products[CONSTANT]),
        "affinity": affinity,
    }


def _networks(model: Model, own: _Own, queries: npt.NDArray[np.unsignedinteger]) -> tuple[KnownNetwork, ...]:
    vocabulary = model.vocabulary
    rows = vocabulary.chains[vocabulary.leaves(queries)[0], : len(vocabulary.levels)]
    rows = rows[rows >= vocabulary.depth]
    first, last = vocabulary.bounds(rows)
    texts = addresses.render(first, vocabulary.family)
    found = []
    for number, row in enumerate(rows.tolist()):
        length = vocabulary.levels[number]  # the known networks of an address are those of the coarsest levels
        entities = int(model.counted.entities[row - vocabulary.depth]) if model.counted else 0
        events = own.inside(length, int(first[number]), int(last[number]))
        # Every known network has events, so it has entities, unless its history was not kept when they were counted.
        found.append(KnownNetwork(f"{texts[number]}/{length}", entities or None, events))
    return tuple(reversed(found))


def _labels(model: Model, queries: npt.NDArray[np.unsignedinteger]) -> tuple[int | None, str | None]:
    networks = model.vocabulary.networks
    if networks is None:
        return None, None
    provider, country = networks.labels_of(queries)[:, 0].tolist()
    return provider or None, country_name(country) if country else None


def country_name(label: int) -> str:
    """The two letters of a country's label."""
    return label.to_bytes(2, "big").decode()
