"""Which addresses each entity has used, and how often: what counting starts from.

One sorted list behind another, an entity's found by its row. Training counts in it (`counting`). A model keeps it to go
on counting when training continues, and to explain scores. How much of an address is kept is the user's choice: all of
it, a prefix, or nothing (the hyperparameter ``history``).
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import Addresses, Family
from ipinsights.data.events import Events

_MOST = 0xFFFFFFFF
"""A greater count is kept as this one."""


@dataclass(frozen=True)
class History:
    """The P distinct (entity, address) pairs of M entities, with their counts, ascending by entity, then by address."""

    rows: npt.NDArray[np.int32]
    """The entities' rows of the model's table, ascending, [M]."""
    starts: npt.NDArray[np.int64]
    """Where each entity's pairs start; at the end P: [M + 1]."""
    addresses: Addresses
    """Ascending within an entity, of the family's type, [P]. Bits beyond ``length`` are 0."""
    counts: npt.NDArray[np.uint32]
    """Events of each pair, [P]."""
    length: int
    """The leading bits that are kept of an address."""

    @classmethod
    def of(cls, events: Events, family: Family, length: int | None = None) -> "History":
        """The pairs of some events. ``length`` defaults to the whole address."""
        length = family.width if length is None else length
        address = cut(events.address, family, length)
        entity, place, counts = _distinct(events.entity, address)
        return cls._listed(entity, place, counts, length)

    @classmethod
    def none(cls, family: Family) -> "History":
        """Of no entity."""
        nothing = np.zeros(0, dtype=np.int32)
        return cls._listed(nothing, nothing.astype(family.dtype), nothing.astype(np.uint32), family.width)

    @classmethod
    def _listed(
        cls, entity: npt.NDArray[np.int32], addresses: Addresses, counts: npt.NDArray[np.uint32], length: int
    ) -> "History":
        """Of distinct pairs in order."""
        starts = np.flatnonzero(_begins(entity))
        return cls(entity[starts], np.append(starts, len(entity)).astype(np.int64), addresses, counts, length)

    def __len__(self) -> int:
        return len(self.addresses)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(int(array.nbytes) for array in (self.rows, self.starts, self.addresses, self.counts))

    @property
    def entities(self) -> npt.NDArray[np.int32]:
        """The row of each pair's entity, [P]."""
        return np.repeat(self.rows, np.diff(self.starts))

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """The place of each pair's entity in ``rows``, [P]."""
        return np.repeat(np.arange(len(self.rows)), np.diff(self.starts))

    @property
    def events(self) -> int:
        """All events."""
        return int(self.counts.sum(dtype=np.int64))

    @property
    def recurring(self) -> float:
        """The share of the events whose entity had come from the very address before."""
        return 1 - len(self) / max(1, self.events)

    @property
    def distinct_addresses(self) -> int:
        """The number of addresses that anybody used."""
        return int(_begins(np.sort(self.addresses)).sum())

    def place(self, row: int) -> slice:
        """Where the pairs of an entity stand; an empty slice for an entity without any."""
        at = int(np.searchsorted(self.rows, row))
        if at == len(self.rows) or self.rows[at] != row:
            return slice(0, 0)
        return slice(int(self.starts[at]), int(self.starts[at + 1]))

    def users(self, first: int, last: int) -> npt.NDArray[np.int32]:
        """The rows of the entities with an event from an address in a range, both ends included: ascending."""
        if not len(self):
            return self.rows[:0]
        low, high = (self.addresses.dtype.type(end) for end in (first, last))
        inside = (low <= self.addresses) & (self.addresses <= high)
        return self.rows[np.add.reduceat(inside, self.starts[:-1], dtype=np.int64) > 0]

    def of_entities(self, rows: npt.NDArray[np.integer]) -> "History":
        """That of some entities: those of the given rows (ascending) that have one."""
        chosen = np.isin(self.rows, rows, assume_unique=True)
        sizes = np.diff(self.starts)
        pairs = np.repeat(chosen, sizes)
        starts = np.append(0, np.cumsum(sizes[chosen]))
        return dataclasses.replace(
            self,
            rows=self.rows[chosen],
            starts=starts.astype(np.int64),
            addresses=self.addresses[pairs],
            counts=self.counts[pairs],
        )

    def without(self, rows: npt.NDArray[np.integer]) -> "History":
        """That of all other entities."""
        return self.of_entities(self.rows[~np.isin(self.rows, rows)])

    def less(self, counts: npt.NDArray[np.uint32]) -> "History":
        """That of fewer events: without so many of each pair, [P], and with at least one of each entity."""
        left = self.counts - counts
        kept = left > 0
        starts = np.append(0, np.cumsum(np.add.reduceat(kept, self.starts[:-1], dtype=np.int64)))
        return dataclasses.replace(self, starts=starts, addresses=self.addresses[kept], counts=left[kept])

    def cut(self, family: Family, length: int) -> "History":
        """The same with no more than ``length`` bits of an address."""
        if length >= self.length:
            return self
        return _sum([self], family, length)

    def plus(self, other: "History", family: Family) -> "History":
        """Both together, with as many bits of an address as both have."""
        return _sum([self, other], family, min(self.length, other.length))


def cut(addresses: Addresses, family: Family, length: int) -> Addresses:
    """The addresses with all bits beyond the first ``length`` set to 0."""
    if length >= family.width:
        return addresses
    mask = (1 << family.width) - (1 << family.width - length)
    kept: Addresses = addresses & family.dtype.type(mask)
    return kept


def _sum(parts: list[History], family: Family, length: int) -> History:
    """All pairs of some histories."""
    entity = np.concatenate([part.entities for part in parts])
    address = cut(np.concatenate([part.addresses for part in parts]), family, length)
    counts = np.concatenate([part.counts for part in parts])
    return History._listed(*_distinct(entity, address, counts), length)


def _distinct(
    entity: npt.NDArray[np.int32], address: Addresses, counts: npt.NDArray[np.uint32] | None = None
) -> tuple[npt.NDArray[np.int32], Addresses, npt.NDArray[np.uint32]]:
    """The distinct pairs in order, and how often, or with which sum of counts, each stands there."""
    if counts is None and address.dtype == np.uint32:
        # Both fit one number, which sorts in place: the only large array besides the results.
        keys = entity.astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= address
        keys.sort()
        first = np.flatnonzero(_begins(keys))
        found = keys[first]
        ordered, places = (found >> np.uint64(32)).astype(np.int32), found.astype(np.uint32)
        return ordered, places, _bounded(np.diff(np.append(first, len(keys))))
    order = np.lexsort((address, entity))
    entity, address = entity[order], address[order]
    first = np.flatnonzero(_begins(entity) | _begins(address))
    if counts is None:
        number = np.diff(np.append(first, len(entity)))
    else:
        number = np.add.reduceat(counts[order].astype(np.int64), first) if len(first) else first
    return entity[first], address[first], _bounded(number)


def _begins(ordered: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Where a list changes to another value, its start included."""
    begins = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return begins


def _bounded(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return np.minimum(counts, _MOST).astype(np.uint32)
