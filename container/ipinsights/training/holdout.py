"""Keeps some log-ins apart, so that the model can be calibrated by log-ins that it did not learn from.

Which ones is decided by a hash of entity, address and how many times the pair was met before: not by the order of the
files, nor by chance. So every run on the same log-ins keeps the same ones apart.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from ipinsights.data.events import Events
from ipinsights.distributed.group import ALONE, Group
from ipinsights.model.history import History

LEAST, ENOUGH, MOST = 20, 1000, 100_000
"""Log-ins to keep apart. Fewer than `LEAST` would tell nothing. `ENOUGH` tell where 1 % of them lie, give or take
a third. No more than `MOST` are needed."""
DEAR = 0.05
"""A larger share than asked for is kept apart to have `ENOUGH`, up to this one."""
_CHUNK = 1 << 20
"""Pairs that are decided at a time."""

Hashes = npt.NDArray[np.uint64]


def hold_out(train: Events, history: History, share: float, group: Group = ALONE) -> tuple[Events, History, Events]:
    """Part the events, of which ``history`` is the whole, into those to learn from and those kept apart.

    Returns the former with their history, and the latter. About ``share`` of the events are kept apart: at least
    `ENOUGH` (or `DEAR` of them) and at most `MOST`. None are if those are fewer than `LEAST`, or if the share is 0.
    Every entity keeps an event to learn from. In a ``group`` these are numbers of all ranks' events.
    """
    every = group.total(len(train))
    if share:
        share = min(max(share, min(DEAR, ENOUGH / every)), MOST / every)
    none = dataclasses.replace(train, entity=train.entity[:0], address=train.address[:0])
    if share * every < LEAST or not len(train):
        return train, history, none
    apart = _decide(history, train.index.tags, share)
    held = _first_of_each(train, history, apart)
    rest, kept = (
        dataclasses.replace(train, entity=train.entity[some], address=train.address[some]) for some in (~held, held)
    )
    return rest, history.less(apart), kept


def _decide(history: History, tags: npt.NDArray[np.uint32], share: float) -> npt.NDArray[np.uint32]:
    """How many events of each pair are kept apart: [P]."""
    apart = np.zeros(len(history), dtype=np.uint32)
    limit = np.uint64(share * 2.0**64) if share < 1 else np.uint64(2**64 - 1)
    names = mixed(tags[history.rows].astype(np.uint64))
    names = np.repeat(names, np.diff(history.starts))
    pairs = mixed(names ^ history.addresses.astype(np.uint64))
    bounds = np.append(0, np.cumsum(history.counts, dtype=np.int64))
    begin = 0
    while begin < len(pairs):
        end = max(begin + 1, int(np.searchsorted(bounds, bounds[begin] + _CHUNK, side="right")) - 1)
        number = history.counts[begin:end]
        first = bounds[begin:end] - bounds[begin]
        times = np.arange(bounds[end] - bounds[begin]) - np.repeat(first, number)
        hashed = mixed(np.repeat(pairs[begin:end], number) + times.astype(np.uint64))
        apart[begin:end] = np.add.reduceat(hashed < limit, first, dtype=np.uint32)
        begin = end
    whole = np.add.reduceat(apart, history.starts[:-1]) == np.add.reduceat(history.counts, history.starts[:-1])
    apart[np.repeat(whole, np.diff(history.starts))] = 0
    return apart


def _first_of_each(train: Events, history: History, wanted: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """The first events of each pair, as many as are wanted of it: [n]."""
    pairs = np.flatnonzero(wanted)
    entities, addresses = history.entities[pairs], np.unique(history.addresses[pairs])
    asked = np.zeros(train.index.num_rows + 1, dtype=np.bool_)
    asked[entities] = True
    events = np.flatnonzero(asked[train.entity])
    place = np.minimum(np.searchsorted(addresses, train.address[events]), len(addresses) - 1)
    same = addresses[place] == train.address[events]
    events, place = events[same], place[same]

    keys = entities.astype(np.int64) << 32 | np.searchsorted(addresses, history.addresses[pairs])  # they ascend
    looked_up = train.entity[events].astype(np.int64) << 32 | place
    pair = np.minimum(np.searchsorted(keys, looked_up), len(keys) - 1)
    found = keys[pair] == looked_up
    events, pair = events[found], pair[found]
    order = np.argsort(pair, kind="stable")
    events, pair = events[order], pair[order]
    rank = np.arange(len(pair)) - np.searchsorted(pair, pair)
    held = np.zeros(len(train), dtype=np.bool_)
    held[events[rank < wanted[pairs][pair]]] = True
    return held


def mixed(values: Hashes) -> Hashes:
    """Hash each number: the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    hashed: Hashes = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashed = (hashed ^ (hashed >> np.uint64(shift))) * np.uint64(factor)
    return hashed ^ (hashed >> np.uint64(31))
