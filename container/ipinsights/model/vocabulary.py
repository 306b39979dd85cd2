"""The networks that training has seen, in which the IP encoder looks up an address.

Providers allocate addresses by prefix, so the longest known prefix of an unseen address still says much about it. For
each level (prefix length) the vocabulary keeps every prefix with at least ``min_count`` training events: all while
there is room, else the most frequent ones. They are found by search, hence without collisions. A prefix has at least
the count of any longer one inside it. So the known prefixes of an address always form a chain from the coarsest level
down: a tree, cut at some depth. With a table of networks, the known provider and country of the address are two more
levels.

Rows of the prefix table: row l, for l < L, is the *unknown* row of level l. The known prefixes follow, coarse levels
first, ascending within a level, then the known providers and countries. So an address has exactly one row on every
level.

A look-up is one binary search. The known prefixes cut the address space into intervals, each with one deepest known
prefix, like the flattened table of a router. The networks cut it too. A *leaf* is a kind of interval, and ``chains``
gives its row on every level.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import IPV4, MAPPED_BITS, MAPPED_FIRST, MAPPED_SHIFT, Addresses, Family, render
from ipinsights.data.homes import buckets, send
from ipinsights.data.networks import LABELS, Networks
from ipinsights.distributed.group import ALONE, Group
from ipinsights.native import reader

MAX_ROWS = 40_000
"""The most known prefixes with up to 8 million events: 20 MB of vectors of 128. Memory has room for more, but more do
not improve the model, and a table larger than the processor's cache slows down training and scoring."""
EVENTS_PER_ROW = 200
"""With more events, one row for so many of them: half a million prefixes for a hundred million events."""
MOST_ROWS = 1_000_000
"""The most known prefixes, however many events there are: every host has all of them, with the optimiser's means."""

RECURRING = 0.25
"""The share of events at an address that their entity had used before, from which on whole addresses are levels too."""

_CHUNK = 1 << 20
_COUNTRY = LABELS.index("country")  # the last one


def levels_for(family: Family, recurring: float, distinct: int) -> tuple[int, ...]:
    """The prefix lengths for some events, of which a share is ``recurring`` and so many addresses are ``distinct``.

    Hosts, offices and address translation come from the same address again and again, and neighbours in its /24 are
    somebody else. Where addresses rarely recur, longer prefixes tell nothing: they only cost time and room, unless all
    have room.
    """
    every = family.levels + family.finest
    return every if recurring >= RECURRING or distinct * len(every) <= MAX_ROWS else family.levels


@dataclass(frozen=True)
class Labels:
    """The known values of a label that networks carry, such as the provider, with their counts."""

    values: npt.NDArray[np.uint32]
    """Ascending, [K]."""
    counts: npt.NDArray[np.int64]
    """Training events, [K]."""

    def most_frequent(self, number: int) -> tuple[int, ...]:
        """So many values with most events, or all: those with most first."""
        return tuple(self.values[np.argsort(-self.counts, kind="stable")[:number]].tolist())


@dataclass(frozen=True)
class Vocabulary:
    """Known prefixes with their counts, level by level, and known networks; all else is computed from them."""

    family: Family
    levels: tuple[int, ...]
    """Prefix lengths in bits, ascending."""
    sizes: tuple[int, ...]
    """The number of known prefixes on each level."""
    prefixes: Addresses
    """The first ``level`` bits of each known prefix, right-aligned, level after level, ascending in each, [K]."""
    counts: npt.NDArray[np.int64]
    """Training events under each known prefix, [K]."""
    events: int
    """Training events."""
    networks: Networks | None = None
    """The ranges with a known label; None if training had no table."""
    labels: tuple[Labels, ...] = ()
    """One for each of ``networks.LABELS``, or none."""
    countries: tuple[int, ...] = ()
    """The labels of the countries that embeddings have a coordinate for (`countries`), in their order."""

    @classmethod
    def build(
        cls,
        training: Addresses,
        family: Family = IPV4,
        networks: Networks | None = None,
        levels: Sequence[int] | None = None,
        max_rows: int | None = None,
        earlier: "Vocabulary | None" = None,
        group: Group = ALONE,
        countries: int = 0,
    ) -> "Vocabulary":
        """Count the prefixes of the training addresses (of the family's type, [n]) and keep the frequent ones.

        ``min_count`` is the smallest number from 1 on that keeps no more than ``max_rows`` of them. The default of
        ``max_rows`` depends on the number of events: see ``MAX_ROWS``. The counts of an ``earlier`` vocabulary of the
        same family and levels are added, and its networks are used if no others are given.

        With networks, at most so many ``countries`` get a coordinate, the most frequent ones; after an earlier
        vocabulary those that have one there.

        In a ``group`` the training addresses are those of all ranks, and all get the same vocabulary. Every prefix is
        counted on one rank, together with all that it is part of or that are part of it.
        """
        levels = tuple(levels or family.levels)
        events = group.total(len(training)) + (earlier.events if earlier else 0)
        max_rows = min(max(MAX_ROWS, events // EVENTS_PER_ROW), MOST_ROWS) if max_rows is None else max_rows
        networks = networks or (earlier.networks if earlier else None)
        at = levels[-1]
        prefixes, counts = np.unique(training >> _bits(family.width - at, training), return_counts=True)
        if group.size > 1:
            home = _home(prefixes, at - levels[0], group)
            prefixes, counts = _add(send(prefixes, home, group), send(counts, home, group))
        found: list[tuple[Addresses, npt.NDArray[np.int64]]] = []
        for level in reversed(levels):  # each computed from the finer one
            prefixes = prefixes >> _bits(at - level, prefixes)
            first = np.flatnonzero(np.concatenate([[True], prefixes[1:] != prefixes[:-1]])[: len(prefixes)])
            prefixes, counts, at = prefixes[first], np.add.reduceat(counts, first), level
            found.insert(0, (prefixes, counts))
        if earlier:
            for level, own in enumerate(found):
                known, before = earlier.counted(level)
                here = _home(known, levels[level] - levels[0], group) == group.rank
                found[level] = _add(np.concatenate([own[0], known[here]]), np.concatenate([own[1], before[here]]))
        min_count = _min_count(np.concatenate([count for _, count in found]), max_rows, group)
        kept = [_kept(prefixes, count, min_count, group) for prefixes, count in found]
        labels: tuple[Labels, ...] = ()
        chosen: tuple[int, ...] = earlier.countries if earlier else ()
        if networks is not None:
            labels = _count_labels(training, networks, earlier.labels if earlier else (), group)
            if not earlier:
                chosen = labels[_COUNTRY].most_frequent(countries)
        return cls(
            family,
            levels,
            tuple(len(prefixes) for prefixes, _ in kept),
            np.concatenate([prefixes for prefixes, _ in kept]),
            np.concatenate([count for _, count in kept]),
            events,
            networks.restrict([label.values for label in labels]) if networks is not None else None,
            labels,
            chosen,
        )

    @classmethod
    def blank(cls, family: Family) -> "Vocabulary":
        """A vocabulary without known prefixes."""
        none = np.zeros(0, dtype=family.dtype)
        return cls(family, family.levels, (0,) * len(family.levels), none, np.zeros(0, dtype=np.int64), 0)

    @property
    def depth(self) -> int:
        """L: the number of prefix lengths, plus two with a table of networks."""
        return len(self.levels) + len(self.labels)

    @property
    def num_rows(self) -> int:
        """Rows of the prefix table: one unknown row a level, then the known prefixes, providers and countries."""
        return len(self.row_counts)

    @property
    def nbytes(self) -> int:
        """Bytes that look-ups of addresses need."""
        return sum(int(array.nbytes) for array in (self.prefixes, self.counts, *self._index))

    @cached_property
    def row_counts(self) -> npt.NDArray[np.int64]:
        """Training events under the prefix, or in the networks, of each row; 0 for an unknown row: [num_rows]."""
        unknown = np.zeros(self.depth, dtype=np.int64)
        return np.concatenate([unknown, self.counts, *(label.counts for label in self.labels)])

    @cached_property
    def level_of_row(self) -> npt.NDArray[np.int32]:
        """The level of each row, which is also the row of an unknown prefix there: [num_rows]."""
        every = np.arange(self.depth, dtype=np.int32)
        sizes = (*self.sizes, *(len(label.values) for label in self.labels))
        return np.concatenate([every, np.repeat(every, sizes)])

    @cached_property
    def country_rows(self) -> npt.NDArray[np.intp]:
        """The row of each of the ``countries``, [C]."""
        if not self.countries:
            return np.zeros(0, dtype=np.intp)
        known = self.labels[_COUNTRY].values
        return self.num_rows - len(known) + np.searchsorted(known, self.countries)

    def leaves(self, queries: Addresses) -> npt.NDArray[np.int32]:
        """The leaf of each address: int32 [n], an index into ``chains``."""
        starts, leaves = self.intervals
        at_once = reader.find_intervals(starts, leaves, queries)
        if at_once is not None:
            return at_once
        found = np.empty(len(queries), dtype=np.int32)
        for begin in range(0, len(queries), _CHUNK):  # the search returns 8 bytes a query, too much for all at once
            part = slice(begin, begin + _CHUNK)
            found[part] = leaves[np.searchsorted(starts, queries[part], side="right") - 1]
        return found

    @property
    def chains(self) -> npt.NDArray[np.int32]:
        """The row on every level of each leaf, int32 [leaves, L]."""
        return self._index[2]

    def names(self, leaves: npt.NDArray[np.int32]) -> list[str | None]:
        """The longest known network of each leaf, as an address with its length; None where none is known: [n]."""
        chains = self.chains[leaves, : len(self.levels)]
        lengths = (chains >= self.depth).sum(axis=1)
        some = np.flatnonzero(lengths)
        first, _ = self.bounds(chains[some, lengths[some] - 1])
        names: list[str | None] = [None] * len(leaves)
        for place, text in zip(some.tolist(), render(first, self.family), strict=True):
            names[place] = f"{text}/{self.levels[lengths[place] - 1]}"
        return names

    @property
    def intervals(self) -> tuple[Addresses, npt.NDArray[np.int32]]:
        """First address and leaf of each interval of the address space, ascending from address 0."""
        return self._index[0], self._index[1]

    @cached_property
    def chain_counts(self) -> npt.NDArray[np.int64]:
        """Training events of the row in each cell of ``chains``, int64 [leaves, L]."""
        return self.row_counts[self.chains]

    def leaf_shares(self, mapped_share: float) -> npt.NDArray[np.float64]:
        """The probability of each leaf for a random address from `addresses.random_addresses`, [leaves]."""
        starts, leaves = self.intervals
        starts = starts.astype(np.uint64)

        def counts(first: int, step: int, number: int) -> npt.NDArray[np.float64]:
            """How many of the ``number`` addresses first, first + step, ... are in each interval."""
            before = (np.maximum(starts, np.uint64(first)) - np.uint64(first) + np.uint64(step - 1)) // np.uint64(step)
            before = np.minimum(before, np.uint64(number))
            found: npt.NDArray[np.float64] = np.diff(before, append=np.uint64(number)).astype(np.float64)
            return found

        family = self.family
        share: npt.NDArray[np.float64] = counts(family.first, 1, 1 << family.random_bits) / 2.0**family.random_bits
        share *= 1 - mapped_share
        if mapped_share:
            share += mapped_share * counts(MAPPED_FIRST, 1 << MAPPED_SHIFT, 1 << MAPPED_BITS) / 2.0**MAPPED_BITS
        shares: npt.NDArray[np.float64] = np.bincount(leaves, share, minlength=len(self.chains)).astype(np.float64)
        return shares

    @property
    def known_shares(self) -> list[float]:
        """The share of the training events whose prefix is known, level by level."""
        ends = np.cumsum((0, *self.sizes))
        return [float(self.counts[a:b].sum() / self.events) for a, b in itertools.pairwise(ends)]

    @cached_property
    def _index(self) -> tuple[Addresses, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Starts and leaves of the intervals, and the chains."""
        starts, leaf = self._prefix_intervals()
        chains = self._prefix_chains()
        if self.networks is None:
            return starts, leaf, chains
        # Cut the intervals at the networks' ends too: a leaf is then a prefix leaf with a pair of labels.
        networks = self.networks
        ends = networks.last[networks.last < _last(self.family)] + _bits(1, networks.last)
        cut = _distinct(np.concatenate([starts, networks.first, ends]))
        leaf = leaf[np.searchsorted(starts, cut, side="right") - 1]
        rows = np.stack([leaf, *self._label_rows(networks, cut)], axis=1)
        distinct, leaves = np.unique(rows, axis=0, return_inverse=True)
        chains = np.concatenate([chains[distinct[:, 0]], distinct[:, 1:]], axis=1)
        return cut, leaves.astype(np.int32), chains

    def origins(self, earlier: "Vocabulary") -> npt.NDArray[np.int32]:
        """The row of an earlier vocabulary of the same levels from which each row continues: int32 [num_rows].

        This is the row of the same prefix, or the unknown row of its level for a newly known prefix; -1 if neither
        exists.
        """
        levels = len(self.levels)
        unknown = [level if level < earlier.depth else -1 for level in range(self.depth)]
        found = [np.array(unknown, dtype=np.int32)]
        for level in range(levels):
            at = earlier._find(level, self._level(level))
            found.append(np.where(at >= 0, earlier.depth + at, unknown[level]))
        first = earlier.depth + len(earlier.prefixes)
        for level, label in enumerate(self.labels):
            known = earlier.labels[level].values if earlier.labels else label.values[:0]
            place = _find(known, label.values)
            found.append(np.where(place >= 0, first + place, unknown[levels + level]))
            first += len(known)
        return np.concatenate(found).astype(np.int32)

    def bounds(self, rows: npt.NDArray[np.integer[Any]]) -> tuple[Addresses, Addresses]:
        """The first and the last address of known prefixes, given by their rows of the prefix table: [n] each."""
        size = self.family.width - np.repeat(self.levels, self.sizes)[rows - self.depth]
        first = self.prefixes[rows - self.depth].astype(np.uint64) << size.astype(np.uint64)
        last = first + ((np.uint64(1) << size.astype(np.uint64)) - np.uint64(1))
        return first.astype(self.family.dtype), last.astype(self.family.dtype)

    def counted(self, level: int) -> tuple[Addresses, npt.NDArray[np.int64]]:
        """The known prefixes of a level, ascending, and their counts."""
        start = sum(self.sizes[:level])
        part = slice(start, start + self.sizes[level])
        return self.prefixes[part], self.counts[part]

    def _prefix_chains(self) -> npt.NDArray[np.int32]:
        """The row on every prefix level for no known prefix, then for each known one: int32 [1 + K, levels]."""
        chains = np.empty((1 + len(self.prefixes), len(self.levels)), dtype=np.int32)
        chains[:] = np.arange(len(self.levels))
        start = 0
        for level, size in enumerate(self.sizes):
            own = slice(1 + start, 1 + start + size)
            if level:
                known = self._level(level)
                parents = self._find(level - 1, known >> _bits(self.levels[level] - self.levels[level - 1], known))
                chains[own] = chains[1 + parents]
            chains[own, level] = self.depth + start + np.arange(size)
            start += size
        return chains

    def _prefix_intervals(self) -> tuple[Addresses, npt.NDArray[np.int32]]:
        """First address of each interval, and its deepest known prefix: 1 + k, or 0 for none."""
        edges = [np.zeros(1, dtype=np.uint64)]
        for level, length in enumerate(self.levels):
            size = np.uint64(self.family.width - length)
            known = self._level(level).astype(np.uint64)
            edges += [known << size, (known + np.uint64(1)) << size]
        # An edge after the last address wraps around to the first, which is always an edge.
        wrapped = np.concatenate(edges) & np.uint64(_last(self.family))
        starts = _distinct(wrapped.astype(self.family.dtype))
        leaves = np.zeros(len(starts), dtype=np.int32)
        for level, length in enumerate(self.levels):
            found = self._find(level, starts >> _bits(self.family.width - length, starts))
            leaves[found >= 0] = 1 + found[found >= 0]
        return starts, leaves

    def _label_rows(self, networks: Networks, queries: Addresses) -> list[npt.NDArray[np.int32]]:
        """The row of each address on each label's level."""
        rows = []
        ranges = networks.find(queries)
        first = self.depth + len(self.prefixes)
        for level, (label, own) in enumerate(zip(self.labels, networks.labels, strict=True)):
            value = np.where(ranges >= 0, np.append(own, 0)[ranges], 0)
            at = _find(label.values, value)
            rows.append(np.where(at >= 0, first + at, len(self.levels) + level).astype(np.int32))
            first += len(label.values)
        return rows

    def _level(self, level: int) -> Addresses:
        return self.counted(level)[0]

    def _find(self, level: int, prefixes: Addresses) -> npt.NDArray[np.int32]:
        """The index in ``self.prefixes`` of each given prefix of a level, int32 [n]; -1 for an unknown one."""
        at = _find(self._level(level), prefixes)
        return np.where(at >= 0, sum(self.sizes[:level]) + at, -1).astype(np.int32)


def _home(prefixes: Addresses, beyond: int, group: Group) -> npt.NDArray[np.intp]:
    """The rank that counts each prefix, [n]: that of its coarsest prefix, which it is ``beyond`` so many bits of."""
    return buckets(prefixes >> _bits(beyond, prefixes)) % group.size


def _min_count(counts: npt.NDArray[np.int64], max_rows: int, group: Group) -> int:
    """The smallest number from 1 on that no more than ``max_rows`` of all ranks' counts reach."""
    if group.total(len(counts)) <= max_rows:
        return 1
    if group.size == 1:
        return int(np.partition(counts, len(counts) - max_rows - 1)[len(counts) - max_rows - 1]) + 1
    too_few = 1
    enough = 1 + max(int(ranks[0]) for ranks in group.gather(np.array([counts.max(initial=1)], dtype=np.int64)))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if group.total(int(np.count_nonzero(counts >= middle))) > max_rows:
            too_few = middle
        else:
            enough = middle
    return enough


def _kept(
    prefixes: Addresses, counts: npt.NDArray[np.int64], min_count: int, group: Group
) -> tuple[Addresses, npt.NDArray[np.int64]]:
    """All ranks' prefixes with such a count, ascending, and their counts."""
    frequent = counts >= min_count
    prefixes, counts = prefixes[frequent], counts[frequent]
    if group.size > 1:
        prefixes, counts = np.concatenate(group.gather(prefixes)), np.concatenate(group.gather(counts))
        order = np.argsort(prefixes)
        prefixes, counts = prefixes[order], counts[order]
    return prefixes, counts


def _count_labels(
    training: Addresses, networks: Networks, earlier: tuple[Labels, ...], group: Group
) -> tuple[Labels, ...]:
    """The labels of at least two training events of any rank, including events counted earlier."""
    events = group.sum(np.bincount(networks.find(training) + 1, minlength=len(networks) + 1)[1:])
    found = []
    for kind, own in enumerate(networks.labels):
        values, place = np.unique(own, return_inverse=True)
        counts = np.bincount(place, weights=events, minlength=len(values)).astype(np.int64)
        if earlier:
            before = earlier[kind]
            values, counts = _add(np.concatenate([values, before.values]), np.concatenate([counts, before.counts]))
        known = (values > 0) & (counts >= 2)
        found.append(Labels(values[known], counts[known]))
    return tuple(found)


def _add(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The distinct values, ascending, with the sums of their counts."""
    distinct, place = np.unique(values, return_inverse=True)
    total = np.bincount(place, counts, minlength=len(distinct))
    return distinct, total.astype(np.int64)


def _find(known: npt.NDArray[np.unsignedinteger], wanted: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.intp]:
    """The place of each wanted value among ascending known ones; -1 if it is missing."""
    if not len(known):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, at, -1)


def _distinct(values: Addresses) -> Addresses:
    """The distinct values, ascending. With counts numpy sorts; without, it hashes, which is far slower here."""
    return np.unique(values, return_counts=True)[0]


def _bits(number: int, like: Addresses) -> np.unsignedinteger:
    """A number in an array's type, so that arithmetic with it keeps this type."""
    scalar: np.unsignedinteger = like.dtype.type(number)
    return scalar


def _last(family: Family) -> int:
    return (1 << family.width) - 1
