"""The prefixes of addresses that training has seen: what the IP encoder looks an address up in.

Providers hand out addresses by prefix, so an address never seen still says much through the longest prefix that was.
For each level (prefix length) the vocabulary keeps every prefix with at least ``min_count`` training events, found by
search and hence without collisions. Since a prefix has at least the count of any longer one inside it, the known
prefixes of an address are always a chain from the coarsest level down: a tree, cut at some depth.

Rows of the prefix table: row l, for l < L, is the *unknown* row of level l; the known prefixes follow, coarse levels
first, ascending within a level. An address thus has exactly one row on every level.

Looking up is one binary search: the known prefixes cut the address space into intervals, each with one deepest known
prefix (its *leaf*), like the flattened table of a router; ``chains`` gives a leaf's row on every level.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ipinsights import addresses

LEVELS = (8, 10, 12, 14, 16, 18, 20, 22, 24)
"""Prefix lengths for IPv4. Longer ones cost rows and add nothing on real address changes."""

MAX_ROWS = 160_000
"""Known prefixes kept at most: the smallest ``min_count`` from 2 on that stays below is taken."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Known prefixes with their counts, level by level; everything else is derived."""

    levels: tuple[int, ...]
    """Prefix lengths in bits, ascending, [L]."""
    sizes: tuple[int, ...]
    """Known prefixes on each level, [L]."""
    prefixes: npt.NDArray[np.uint32]
    """The first ``level`` bits of each known prefix, right-aligned; levels one after another, ascending within, [K]."""
    counts: npt.NDArray[np.int64]
    """Training events under each known prefix, [K]."""
    width: int = field(default=addresses.WIDTH)
    """Bits of an address."""

    @classmethod
    def build(
        cls,
        training: npt.NDArray[np.uint32],
        levels: tuple[int, ...] = LEVELS,
        max_rows: int = MAX_ROWS,
        width: int = addresses.WIDTH,
    ) -> "Vocabulary":
        """Count the prefixes of the training addresses (uint32 [n]) and keep the frequent ones."""
        finest, counts = np.unique(training >> np.uint32(width - levels[-1]), return_counts=True)
        found = []
        for level in levels:
            prefixes = finest >> np.uint32(levels[-1] - level)
            first = np.flatnonzero(np.concatenate([[True], prefixes[1:] != prefixes[:-1]]))
            found.append((prefixes[first], np.add.reduceat(counts, first)))
        frequent = np.concatenate([count[count >= 2] for _, count in found])
        min_count = 2
        if len(frequent) > max_rows:  # beyond the most frequent one that there is no room for
            min_count = int(np.partition(frequent, -max_rows - 1)[-max_rows - 1]) + 1
        kept = [(prefixes[count >= min_count], count[count >= min_count]) for prefixes, count in found]
        return cls(
            levels,
            tuple(len(prefixes) for prefixes, _ in kept),
            np.concatenate([prefixes for prefixes, _ in kept]),
            np.concatenate([count for _, count in kept]),
            width,
        )

    @property
    def num_rows(self) -> int:
        """Rows of the prefix table: one unknown row a level, then the known prefixes."""
        return len(self.levels) + len(self.prefixes)

    def leaves(self, queries: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        """The leaf of each address: int32 [n], an index into ``chains``; 0 where no prefix is known."""
        starts, leaves = self.intervals
        found = np.empty(len(queries), dtype=np.int32)
        for begin in range(0, len(queries), _CHUNK):  # the search gives 8 bytes a query, which for all would be much
            part = slice(begin, begin + _CHUNK)
            found[part] = leaves[np.searchsorted(starts, queries[part], side="right") - 1]
        return found

    @cached_property
    def chains(self) -> npt.NDArray[np.int32]:
        """The row on every level of each leaf, int32 [1 + K, L]; leaf 1 + k is the known prefix k."""
        depth = len(self.levels)
        chains = np.empty((1 + len(self.prefixes), depth), dtype=np.int32)
        chains[:] = np.arange(depth)
        start = 0
        for level, size in enumerate(self.sizes):
            own = slice(1 + start, 1 + start + size)
            if level:
                parents = self._find(
                    level - 1, self._level(level) >> np.uint32(self.levels[level] - self.levels[level - 1])
                )
                chains[own] = chains[1 + parents]
            chains[own, level] = depth + start + np.arange(size)
            start += size
        return chains

    @cached_property
    def chain_counts(self) -> npt.NDArray[np.int64]:
        """Training events under the prefix in each cell of ``chains``, int64 [1 + K, L]; 0 for an unknown row."""
        return np.concatenate([np.zeros(len(self.levels), dtype=np.int64), self.counts])[self.chains]

    @cached_property
    def intervals(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
        """First address and leaf of each interval of the address space, ascending from address 0."""
        edges = [np.zeros(1, dtype=np.uint64)]
        for level, length in enumerate(self.levels):
            size = np.uint64(self.width - length)
            known = self._level(level).astype(np.uint64)
            edges += [known << size, (known + np.uint64(1)) << size]
        starts = np.unique(np.concatenate(edges))
        inside: npt.NDArray[np.uint32] = starts[starts < np.uint64(1 << self.width)].astype(np.uint32)
        leaves = np.zeros(len(inside), dtype=np.int32)
        for level, length in enumerate(self.levels):
            found = self._find(level, inside >> np.uint32(self.width - length))
            leaves[found >= 0] = 1 + found[found >= 0]
        return inside, leaves

    def _level(self, level: int) -> npt.NDArray[np.uint32]:
        start = sum(self.sizes[:level])
        return self.prefixes[start : start + self.sizes[level]]

    def _find(self, level: int, prefixes: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        """The index in ``prefixes`` (the attribute) of each given prefix of a level, int32 [n]; -1 where unknown."""
        known = self._level(level)
        if not len(known):
            return np.full(len(prefixes), -1, dtype=np.int32)
        at = np.minimum(np.searchsorted(known, prefixes), len(known) - 1)
        return np.where(known[at] == prefixes, sum(self.sizes[:level]) + at, -1).astype(np.int32)
