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

HASH = "xxh64"
HASH_SEED = 0

_PROBES = 256
"""Rows tried for an entity before it shares its home."""


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
        """Entities that found no row of their own and share that of another."""
        return self._known_sharing + len(self._homeless)

    def find(self, entities: pa.StringArray) -> npt.NDArray[np.int32]:
        """The row of each entity: int32 [n], in [0, num_rows].

        An unknown one has row ``num_rows``; but if any entities share rows, an unknown one may be one of them, and has
        its home.
        """
        return self._rows(entities, claim=False)

    def claim(self, entities: pa.StringArray) -> npt.NDArray[np.int32]:
        """The row of each entity, a new one for each unknown entity: int32 [n], in [0, num_rows)."""
        return self._rows(entities, claim=True)

    def _rows(self, entities: pa.StringArray, claim: bool) -> npt.NDArray[np.int32]:
        encoded = entities.dictionary_encode()  # log-ins repeat their entities: search for each distinct one once
        digests = hash_names(encoded.dictionary)
        home = (digests % np.uint64(self.num_rows)).astype(np.int64)
        tags = np.maximum(digests >> np.uint64(32), 1).astype(np.uint32)
        # Who meets at one row parts at the next, and growing steps keep nobody in a circle of few rows. In a small
        # table, which every entity can try all of, one step after another does that.
        small = self.num_rows <= _PROBES
        stride = np.ones_like(home) if small else tags.astype(np.int64)
        rows = np.full(len(digests), -1, dtype=np.int64)
        open_ = np.argsort(digests)  # what is claimed depends on the entities, not on their order
        for probe in range(min(_PROBES, self.num_rows)):
            grown = 0 if small else probe * (probe - 1) // 2
            at = (home[open_] + probe * stride[open_] + grown) % self.num_rows
            if claim:
                free = np.flatnonzero(self.tags[at] == 0)
                _, first = np.unique(at[free], return_index=True)  # of several that want a row, the first has it
                self.tags[at[free[first]]] = tags[open_[free[first]]]
            theirs = self.tags[at] == tags[open_]
            rows[open_[theirs]] = at[theirs]
            # A free row ends the search: whoever came before would have it.
            open_ = open_[~theirs & (self.tags[at] != 0)]
            if not len(open_):
                break
        if claim:
            self._homeless = np.union1d(self._homeless, digests[open_])
        homeless = rows < 0
        rows[homeless] = home[homeless] if self.sharing else self.num_rows
        found: npt.NDArray[np.int32] = rows.astype(np.int32)[encoded.indices.to_numpy()]
        return found


def hash_names(names: pa.StringArray) -> npt.NDArray[np.uint64]:
    """xxHash64 of each name: uint64 [n]."""
    return np.array([xxhash.xxh64_intdigest(name.encode(), HASH_SEED) for name in names.to_pylist()], dtype=np.uint64)
