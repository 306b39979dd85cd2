"""Where entities are at home: on which rank their events, their rows and all that is counted of them are.

Every event goes home once, after reading. From then on nothing that belongs to one entity crosses the network, until
the model is written. The rows of the entity table are hashed to buckets. The fullest bucket gets its home first, each
on the rank that has least. So a home depends on the events alone, and not on who has read them.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.distributed.group import Array, Group, Scalar

BUCKETS = 4096

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4)."""
_BITS = np.uint64(64 - 12)

Loads = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Homes:
    """The home of each bucket."""

    rank: npt.NDArray[np.int64]
    """[BUCKETS]"""
    ranks: int
    """On how many ranks they are, the first ones."""

    @classmethod
    def of(cls, loads: Loads, ranks: int) -> "Homes":
        """Homes on the first so many ranks. ``loads`` are the events of each bucket, of all ranks."""
        load = np.zeros(ranks)
        home = np.empty(BUCKETS, dtype=np.int64)
        for bucket in np.argsort(-loads, kind="stable").tolist():
            home[bucket] = rank = int(load.argmin())
            load[rank] += max(int(loads[bucket]), 0.5)
        return cls(home, ranks)

    def rank_of(self, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """The home of each entity, by its row: [n]."""
        return self.rank[buckets(rows)]

    def bring(self, events: Events, group: Group) -> Events:
        """All ranks' events of the entities that are at home here, by entity and address: whoever has read them.

        An event of an unknown entity goes to the home that its address would have as a row.
        """
        unknown = events.entity == events.index.num_rows
        keys = np.where(unknown, events.address.astype(np.int64), events.entity)
        home = self.rank_of(keys)
        entity, address = send(events.entity, home, group), send(events.address, home, group)
        order = np.lexsort((address, entity))
        return dataclasses.replace(events, entity=entity[order], address=address[order])


@dataclass(frozen=True)
class Home:
    """What of all entities is at home on this rank, where several ranks train."""

    homes: Homes
    rows: npt.NDArray[np.int32]
    """Their rows of the whole table, ascending, [M]. The rank's own table has them from 0."""
    index: EntityIndex
    """The owner of each row of the whole table."""


def loads(events: Events, group: Group) -> Loads:
    """The events of each bucket, of all ranks: int64 [BUCKETS]."""
    return group.sum(np.bincount(buckets(events.entity), minlength=BUCKETS))


def buckets(keys: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """The bucket of each row, or of another number: [n]."""
    return (keys.astype(np.uint64) * _FACTOR >> _BITS).astype(np.intp)


def send(array: Array[Scalar], to: npt.NDArray[np.integer[Any]], group: Group) -> Array[Scalar]:
    """Send each item to a rank, [n], and get what others send to this one, in the order of ranks and of their items."""
    order = np.argsort(to, kind="stable")
    ends = np.cumsum(np.bincount(to, minlength=group.size))
    received = group.exchange(np.split(array[order], ends[:-1]))
    return np.concatenate(received)
