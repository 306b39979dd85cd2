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
from ipinsights.data.addresses import Addresses
from ipinsights.errors import UserError
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
    """Distinct entities that were counted there, by the log-ins that were not kept apart. None: it was not counted."""
    events: int | None
    """Events there of the entity that is asked about. None: the model has no history of it, or of shorter prefixes."""


@dataclass(frozen=True)
class Explanation:
    """The score of one pair and what it consists of.

    A part that the score does not have is None. The other parts sum to the score, but for the rounding of float32. A
    model without counting (of format 3, or one that was stopped too early for it) has affinity alone.

    Events are those of the training data, as far as the model keeps them; those that were kept apart to calibrate by
    are among them, those of a validation channel are not. If training continued from a model without history, they
    begin with the later training. If entities share rows, they are those of all entities with the row.
    """

    score: float
    popularity: float | None
    """How many use the address's networks, against how often they are in fabricated pairs. It depends on the address
    alone, and has the threshold in it: what makes 0 the threshold is subtracted here."""
    habit: float | None
    """What the entity's own networks and countries say: the more of its events were near the address, the higher. It is
    negative for regular entities far from all their networks."""
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
        return cls.each(model, np.array([row]), np.array([address], dtype=model.family.dtype))[0]

    @classmethod
    def each(cls, model: Model, rows: npt.NDArray[np.integer], addresses: Addresses) -> "list[Explanation]":
        """Explain n pairs of an entity's row and an address: [n]."""
        seen = (model.entity[rows] != model.entity[-1]).any(axis=1)
        encoded = model.encode(addresses)
        parts = _parts(model, rows, seen, encoded)
        scores = np.einsum("nd,nd->n", model.entity[rows], encoded).tolist()
        labels = _labels(model, addresses)
        networks = _KnownNetworks(model, addresses)
        found = []
        for n, (row, address) in enumerate(zip(rows.tolist(), addresses, strict=True)):
            own = _Own.of(model, row, bool(seen[n]))
            found.append(
                cls(
                    score=scores[n],
                    **{name: None if np.isnan(values[n]) else float(values[n]) for name, values in parts.items()},
                    seen=bool(seen[n]),
                    events=own.events,
                    addresses=own.addresses,
                    uses=own.uses(address),
                    networks=networks.of(n, own),
                    provider=labels[0][n],
                    country=labels[1][n],
                )
            )
        return found


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
    """What the model keeps of one entity."""

    used: Addresses
    """Ascending."""
    counts: npt.NDArray[np.int64] | None
    """Events from each; None if they are not kept."""
    length: int
    """The leading bits that are kept of an address."""
    width: int

    @classmethod
    def of(cls, model: Model, row: int, seen: bool) -> "_Own":
        width, nothing = model.family.width, np.zeros(0, dtype=np.int64)
        addresses, counts, length = nothing.astype(model.family.dtype), nothing, width
        if seen and model.counted:
            (addresses, counts), length = model.counted.own(row), model.counted.history.length
        # A seen entity has events, so no pairs means that they are not kept.
        return cls(addresses, None if seen and not len(addresses) else counts, length, width)

    @property
    def events(self) -> int | None:
        return None if self.counts is None else int(self.counts.sum())

    @property
    def addresses(self) -> int | None:
        if self.counts is None or self.length < self.width:
            return None
        return len(self.used)

    def uses(self, address: np.unsignedinteger) -> int | None:
        """Its events from an address."""
        return self.inside(np.array([self.width]), np.array([address]), np.array([address]))[0]

    def inside(self, lengths: npt.NDArray[np.int64], first: Addresses, last: Addresses) -> list[int | None]:
        """Its events in each of n networks of so many bits, given by their first and last addresses: [n]."""
        if self.counts is None:
            return [None] * len(lengths)
        events = np.append(0, np.cumsum(self.counts))
        within = events[np.searchsorted(self.used, last, side="right")] - events[np.searchsorted(self.used, first)]
        kept = (lengths <= self.length).tolist()
        return [number if known else None for number, known in zip(within.tolist(), kept, strict=True)]


def _parts(
    model: Model, rows: npt.NDArray[np.integer], seen: npt.NDArray[np.bool_], encoded: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float64]]:
    """Each of the parts of the n scores, [n]; NaN where a score does not have it. The addresses are ``encoded``."""
    products = model.entity[rows].astype(np.float64) * encoded
    counted = model.counted
    parts = {name: np.full(len(rows), np.nan) for name in PARTS}
    if counted is None:
        parts["affinity"] = products.sum(axis=1)
        return parts
    parts["prior"][~seen] = products[~seen, PRIOR]
    products, encoded = products[seen], encoded[seen]
    place = np.searchsorted(counted.rows, rows[seen])
    learnt = counted.learnt[place].astype(np.float64) * encoded
    affinity = counted.weights[place] * learnt[:, :-RESERVED].sum(axis=1)
    parts["popularity"][seen] = products[:, POPULARITY]
    parts["habit"][seen] = products[:, :-RESERVED].sum(axis=1) - affinity + products[:, CONSTANT]
    parts["affinity"][seen] = affinity
    return parts


class _KnownNetworks:
    """The known networks of some addresses. Addresses of the same leaf have the same."""

    def __init__(self, model: Model, queries: Addresses) -> None:
        vocabulary = model.vocabulary
        leaves, self._leaf = np.unique(vocabulary.leaves(queries), return_inverse=True)
        rows = vocabulary.chains[leaves, : len(vocabulary.levels)]
        known = rows >= vocabulary.depth
        self._ends = np.append(0, np.cumsum(known.sum(axis=1)))
        """Where each leaf's networks start. Those of a leaf are on the coarsest levels, so the shortest comes first."""
        self._first, self._last = vocabulary.bounds(rows[known])
        self._lengths = np.broadcast_to(vocabulary.levels, rows.shape)[known]
        texts = addresses.render(self._first, vocabulary.family)
        self._names = [f"{text}/{length}" for text, length in zip(texts, self._lengths.tolist(), strict=True)]
        # Every known network has events, so it has entities, unless its history was not kept when they were counted.
        entities = model.counted.entities[rows[known] - vocabulary.depth].tolist() if model.counted else None
        self._entities = [number or None for number in entities] if entities else [None] * len(texts)

    def of(self, n: int, own: _Own) -> tuple[KnownNetwork, ...]:
        """Those of address n, the longest first, with an entity's events there."""
        part = slice(*self._ends[self._leaf[n] :][:2])
        events = own.inside(self._lengths[part], self._first[part], self._last[part])
        found = zip(self._names[part], self._entities[part], events, strict=True)
        return tuple(KnownNetwork(*each) for each in found)[::-1]


def _labels(model: Model, queries: Addresses) -> tuple[list[int | None], list[str | None]]:
    """The provider and the country of each address."""
    networks = model.vocabulary.networks
    if networks is None:
        return [None] * len(queries), [None] * len(queries)
    providers, countries = networks.labels_of(queries).tolist()
    return [label or None for label in providers], [country_name(label) if label else None for label in countries]


def country_name(label: int) -> str:
    """The two letters of a country's label."""
    return label.to_bytes(2, "big").decode()
