"""Maps entities (accounts, devices, keys: any string) to rows of the entity table.

An entity's home row is xxHash64 of its UTF-8 bytes, modulo the number of rows. This published function is the same on
every platform and in every release. If another entity owns that row, other rows are tried (open addressing with double
hashing, Knuth, The Art of Computer Programming 3, 6.4). A 32-bit tag on each row identifies its owner. So entities
share rows only if there are more entities than rows, and an entity that training never saw is recognised as unknown.
With half the rows free, the search stays short.

An entity can be forgotten. Its row then gets a tag that no entity has, so a search that went past this row still does,
and no other entity is lost. Nobody gets this row again. So it does not matter whether an entity claims its row before
another is forgotten or after. The price is one row of the table for each forgotten entity.

Source of the hash: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ipinsights.native import reader
from ipinsights.native.reader import Digests

HASH = "xxh64"
HASH_SEED = 0

PROBES = 256
"""Rows tried for an entity before it shares its home row."""
FORGOTTEN = 0xFFFFFFFF
"""The tag of a row whose entity was forgotten.

A tag is the upper half of the digest, from 1 to ``FORGOTTEN - 1``: an entity beyond either end has the tag at that end.
Before entities could be forgotten, one in 4 billion had the tag ``FORGOTTEN``. In a model from then it is unknown.
"""
UNKNOWN, SHARING = -1, -2
"""The results of `EntityIndex.own_rows` for an entity without a row of its own."""
_FREE, _TAKEN = -1, -2
"""The result for an entity without a row: a free row ended the search, or others own all the rows it tried."""


class EntityIndex:
    """The owner of each row. All unknown entities have row ``num_rows``, the one after the table's own."""

    def __init__(self, num_rows: int, tags: npt.NDArray[np.uint32] | None = None, sharing: int = 0) -> None:
        """An empty index, or a copy of the one with these ``tags`` and this ``sharing``."""
        self.tags = np.zeros(num_rows, dtype=np.uint32) if tags is None else tags
        """The owner's tag of each row, uint32 [num_rows]; 0 for a free row, or `FORGOTTEN`."""
        self._known_sharing = sharing
        self._homeless = np.zeros(0, dtype=np.uint64)

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.tags)

    @property
    def owned(self) -> int:
        """Rows that an entity owns."""
        return int(np.count_nonzero(self.tags)) - self.forgotten

    @property
    def forgotten(self) -> int:
        """Rows of forgotten entities: as many as were ever forgotten."""
        return int(np.count_nonzero(self.tags == FORGOTTEN))

    @property
    def sharing(self) -> int:
        """Entities that found no row of their own and share another's.

        In an index that continues an earlier one this is a lower bound: the index does not know who shared before.
        """
        return max(self._known_sharing, len(self._homeless))

    def find(self, entities: pa.StringArray) -> npt.NDArray[np.int32]:
        """The row of each entity: int32 [n], in [0, num_rows].

        An unknown entity has row ``num_rows``. But if any entities share rows, it may be one of them, so it has its
        home row.
        """
        return self.find_hashed(hash_names(entities))

    def claim(self, entities: pa.StringArray) -> npt.NDArray[np.int32]:
        """The row of each entity; an unknown entity gets a new one: int32 [n], in [0, num_rows)."""
        return self.claim_hashed(hash_names(entities))

    def own_rows(self, entities: pa.StringArray) -> npt.NDArray[np.int32]:
        """The row that each entity owns: int32 [n], in [0, num_rows).

        Without one, it is `SHARING` if the entity may share another's row, and `UNKNOWN` if it certainly does not.
        """
        rows = self._search(hash_names(entities))
        rows[rows == _FREE] = UNKNOWN
        rows[rows == _TAKEN] = SHARING if self.sharing else UNKNOWN
        return rows

    def copy(self) -> "EntityIndex":
        """One that may claim rows while this one stays as it is."""
        return EntityIndex(self.num_rows, self.tags.copy(), self.sharing)

    def without(self, rows: npt.NDArray[np.integer[Any]]) -> "EntityIndex":
        """The index in which the owners of these rows, int [n], are forgotten. All other entities keep their rows."""
        tags = self.tags.copy()
        tags[rows] = FORGOTTEN
        return EntityIndex(self.num_rows, tags, self.sharing)

    def adopt(self, tags: npt.NDArray[np.uint32], sharing: int) -> None:
        """Take over the owners that another index has found for the same table."""
        self.tags[:] = tags
        self._known_sharing = sharing

    def find_hashed(self, digests: Digests) -> npt.NDArray[np.int32]:
        """`find` for entities given by their `hash_names`: uint64 [n]."""
        return self._settle(digests, self._search(digests))

    def claim_hashed(self, digests: Digests) -> npt.NDArray[np.int32]:
        """`claim` for entities given by their `hash_names`: uint64 [n]."""
        rows = self._search(digests)
        new = np.flatnonzero(rows == _FREE)
        distinct, place = np.unique(digests[new], return_inverse=True)
        rows[new] = self._probe(distinct, claim=True)[place]
        homeless = np.concatenate([self._homeless, digests[rows == _TAKEN]])
        self._homeless, _ = np.unique(homeless, return_counts=True)  # with counts it sorts, faster than it hashes
        return self._settle(digests, rows)

    def _search(self, digests: Digests) -> npt.NDArray[np.int32]:
        """The row of each entity; _FREE if it has none but can get one, _TAKEN if others own all its rows."""
        rows = reader.find_rows(self.tags, PROBES, digests)
        if rows is None:
            distinct, place = np.unique(digests, return_inverse=True)
            rows = self._probe(distinct, claim=False)[place]
        return rows

    def _settle(self, digests: Digests, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Give entities without a row their home row if any share, else that of the unknown."""
        homeless = np.flatnonzero(rows < 0)
        rows[homeless] = digests[homeless] % np.uint64(self.num_rows) if self.sharing else self.num_rows
        return rows

    def _probe(self, digests: Digests, claim: bool) -> npt.NDArray[np.int32]:
        """`_search` for distinct entities; with ``claim`` each takes the first free row that it finds.

        All entities try their first row before any tries its second. If several want the same row, the lowest digest
        gets it. So the claimed rows depend on the set of entities, not on their order. The digests must ascend.
        """
        home = (digests % np.uint64(self.num_rows)).astype(np.int64)
        tags = np.clip(digests >> np.uint64(32), 1, FORGOTTEN - 1).astype(np.uint32)
        # Entities that collide at one row separate at the next, and growing steps avoid cycles of few rows. In a small
        # table every entity can try all rows, so steps of one are enough.
        small = self.num_rows <= PROBES
        stride = np.ones_like(home) if small else tags.astype(np.int64)
        rows = np.full(len(digests), _TAKEN, dtype=np.int32)
        open_ = np.arange(len(digests))
        for probe in range(min(PROBES, self.num_rows)):
            grown = 0 if small else probe * (probe - 1) // 2
            at = (home[open_] + probe * stride[open_] + grown) % self.num_rows
            if claim:
                free = np.flatnonzero(self.tags[at] == 0)
                _, first = np.unique(at[free], return_index=True)
                self.tags[at[free[first]]] = tags[open_[free[first]]]
            theirs = self.tags[at] == tags[open_]
            rows[open_[theirs]] = at[theirs]
            free = self.tags[at] == 0  # ends the search: a known entity would own this row
            rows[open_[free]] = _FREE
            open_ = open_[~theirs & ~free]
            if not len(open_):
                break
        return rows


def hash_names(names: pa.StringArray) -> Digests:
    """xxHash64 of each name: uint64 [n]."""
    digests = reader.hash_texts(names)
    if digests is None:
        encoded = names.dictionary_encode()  # log-ins repeat their entities: hash each distinct one once
        hashed = [xxhash.xxh64_intdigest(name.encode(), HASH_SEED) for name in encoded.dictionary.to_pylist()]
        digests = np.array(hashed, dtype=np.uint64)[encoded.indices.to_numpy()]
    return digests
