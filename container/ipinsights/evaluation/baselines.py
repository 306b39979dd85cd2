"""The length of the longest prefix that an address shares with any earlier address of its entity.

This is the simplest score that uses networks, and a rule of thumb of log-in monitoring. An address in a network that
the user has come from before is normal, and the smaller the network, the more normal it is. The score ignores how often
the user came from there, and how many others do.

Among addresses in ascending order, the one that shares the longest prefix with a query is one of the query's two
neighbours. So fitting is one sort of the training pairs, by entity and then by address, and scoring is one binary
search and two comparisons.

Two settings were chosen on the validation split of the Tor relays, for the mean AUC over random, other and shuffled
negatives. Every bit of IPv4 and the first 36 of IPv6 count (coarser steps are worse, and so are longer IPv6 prefixes).
Ties stay ties (breaking them by the number of events under the shared prefix is worse).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import IPV4

LEVELS = {32: range(1, 33), 64: range(1, 37)}
"""Prefix lengths by the width of an address."""


@dataclass(frozen=True)
class LongestPrefix:
    """The distinct training pairs in order, P of them, of E entities and A addresses."""

    width: int
    """Bits of an address."""
    levels: tuple[int, ...]
    """The prefix lengths that the score distinguishes, ascending; others are rounded down."""
    entities: npt.NDArray[np.integer]
    """The distinct entities, ascending, [E]."""
    addresses: npt.NDArray[np.uint64]
    """The distinct addresses, ascending, [A]."""
    pairs: npt.NDArray[np.int64]
    """Each pair as (place in ``entities``) x (A + 1) + (place in ``addresses``), ascending, [P]."""

    @classmethod
    def fit(
        cls,
        entity: npt.NDArray[np.integer],
        address: npt.NDArray[np.unsignedinteger],
        *,
        width: int = IPV4.width,
        levels: Sequence[int] | None = None,
    ) -> "LongestPrefix":
        """Sort the training pairs (int [n] and uint32 or uint64 [n]). ``levels`` defaults to the width's ``LEVELS``."""
        if len(entity) == 0:
            raise ValueError("there are no training pairs")
        entities, row = np.unique(entity, return_inverse=True)
        known, rank = np.unique(address.astype(np.uint64), return_inverse=True)
        levels = LEVELS[width] if levels is None else sorted(set(levels))
        return cls(width, tuple(levels), entities, known, np.unique(row * (len(known) + 1) + rank))

    def score(
        self, entity: npt.NDArray[np.integer], address: npt.NDArray[np.unsignedinteger]
    ) -> npt.NDArray[np.float64]:
        """The shared length of each pair, float64 [m], in bits; 0 for an entity never seen."""
        address = address.astype(np.uint64)
        row = np.searchsorted(self.entities, entity)
        seen = self.entities[np.minimum(row, len(self.entities) - 1)] == entity
        places = len(self.addresses) + 1  # one more than addresses: a query may be above all of them
        behind = np.searchsorted(self.pairs, row * places + np.searchsorted(self.addresses, address))
        longest = np.zeros(len(address), dtype=np.int64)
        for neighbour in (behind - 1, behind):
            pair = self.pairs[np.clip(neighbour, 0, len(self.pairs) - 1)]
            shared = self.width - _bit_length(self.addresses[pair % places] ^ address)
            longest = np.maximum(longest, np.where(seen & (pair // places == row), shared, 0))
        rounded = np.array((0, *self.levels), dtype=np.float64)
        return rounded[np.searchsorted(self.levels, longest, side="right")]


def _bit_length(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The bit length of each value, 0 for 0: it gives the first difference of two addresses."""
    high, low = values >> np.uint64(32), values & np.uint64(0xFFFFFFFF)
    # A float64 holds 32 bits exactly, and its binary exponent is their length. It might round up 64 bits.
    length: npt.NDArray[np.int64] = np.where(high > 0, 32 + np.frexp(high)[1], np.frexp(low)[1]).astype(np.int64)
    return length
