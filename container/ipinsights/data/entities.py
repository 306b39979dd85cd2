"""Entities (accounts, devices, keys: any string) to rows of the entity table.

An entity's home is xxHash64 of its UTF-8 bytes, modulo the number of rows: a published, fixed function, the same on
every platform and in every release. Where another entity has that row already, others are tried (open addressing with
double hashing, Knuth, The Art of Computer Programming 3, 6.4), and a tag of 32 bits on each row says whose it is. So
entities share rows only where there are more of them than rows, and one that training never saw is told from those it
did. Half the rows free keeps the search short.
Source of the hash: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ipinsights.native import reader
from ipinsights.native.reader import Digests

HASH = "xxh64"
HASH_SEED = 0

PROBES = 256
"""Rows tried for an entity before it shares its home."""
_FREE, _TAKEN = -1, -2
"""Of an entity without a row: a free one ended the search, or all those it may have are others'."""


class EntityIndex:
    """Which row is whose. Row ``num_rows``, one behind the table's own, is that of every unknown entity."""

    def __init__(self, num_rows: int, tags: npt.NDArray[np.uint32] | None = None, sharing: int = 0) -> None:
        """An index without entities, or the one that another's ``tags`` and ``sharing`` describe."""
        self.tags = np.zeros(num_rows, dtype=np.uint32) if tags is None else tags
        """Whose each row is, uint32 [num_rows]; 0 where it is nobody's."""
        self._known_sharing = sharing
        self._homeless = np.zeros(0, dtype=np.uint64)

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.tags)

    @property
    def owned(self) -> int:
        """Rows that are an entity's."""
        return int(np.count_nonzero(self.tags))

    @property
    def sharing(self) -> int:
        """Entities that found no row of their own and share that of another.

        At least so many, in an index that goes on from another's: who shared there is not known by name.
        """
        return max(self._known_sharing, len(self._homeless))

    def find(self, entities: pa.StringArray) -> npt.NDArray[np.int32]:
        """The row of each entity: int32 [n], in [0, num_rows].

        An unknown one has row ``num_rows``; but if any entities share rows, an unknown one may be one of them, and has
        its home.
        """
        return self.find_hashed(hash_names(entities))

    def claim(self, entities: pa.StringArray) -> npt.NDArray[np.int32]:
        """The row of each entity, a new one for each unknown entity: int32 [n], in [0, num_rows)."""
        return self.claim_hashed(hash_names(entities))

    def find_hashed(self, digests: Digests) -> npt.NDArray[np.int32]:
        """`find`, given what `hash_names` says of the entities: uint64 [n]."""
        return self._settle(digests, self._search(digests))

    def claim_hashed(self, digests: Digests) -> npt.NDArray[np.int32]:
        """`claim`, given what `hash_names` says of the entities: uint64 [n]."""
        rows = self._search(digests)
        new = np.flatnonzero(rows == _FREE)
        distinct, place = np.unique(digests[new], return_inverse=True)
        rows[new] = self._probe(distinct, claim=True)[place]
        homeless = np.concatenate([self._homeless, digests[rows == _TAKEN]])
        self._homeless, _ = np.unique(homeless, return_counts=True)  # asked for counts it sorts, faster than it hashes
        return self._settle(digests, rows)

    def _search(self, digests: Digests) -> npt.NDArray[np.int32]:
        """The row of each entity; _FREE if it has none but may have one, _TAKEN if all it may have are others'."""
        rows = reader.find_rows(self.tags, PROBES, digests)
        if rows is None:
            distinct, place = np.unique(digests, return_inverse=True)
            rows = self._probe(distinct, claim=False)[place]
        return rows

    def _settle(self, digests: Digests, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Give those without a row the one that stands for them."""
        homeless = np.flatnonzero(rows < 0)
        rows[homeless] = digests[homeless] % np.uint64(self.num_rows) if self.sharing else self.num_rows
        return rows

    def _probe(self, digests: Digests, claim: bool) -> npt.NDArray[np.int32]:
        """`_search` for distinct entities; with ``claim`` each takes the first free row that it finds.

        All try their first row before any tries its second, and of several that want a row the lowest digest has it:
        so what is claimed depends on which entities there are, not on their order, as the digests must ascend.
        """
        home = (digests % np.uint64(self.num_rows)).astype(np.int64)
        tags = np.maximum(digests >> np.uint64(32), 1).astype(np.uint32)
        # Who meets at one row parts at the next, and growing steps keep nobody in a circle of few rows. In a small
        # table, which every entity can try all of, one step after another does that.
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
            free = self.tags[at] == 0  # ends the search: whoever came before would have it
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
