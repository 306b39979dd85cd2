"""Entities (accounts, devices, keys: any string) to rows of the entity table.

An entity's row is xxHash64 of its UTF-8 bytes, modulo the number of rows: a published, fixed function, the same on
every platform and in every release, so that a model scores tomorrow as it does today. Two entities may share a row;
with twice as many rows as entities, as is advised, four in ten share theirs with another, and training bears that.
Source of the hash: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

HASH = "xxh64"
HASH_SEED = 0


def rows(entities: pa.StringArray, num_entity_vectors: int) -> npt.NDArray[np.int32]:
    """The row of each entity: int32 [n], each in [0, num_entity_vectors)."""
    encoded = entities.dictionary_encode()  # log-ins repeat their entities: hash each distinct one once
    digests = np.array(
        [xxhash.xxh64_intdigest(name.encode(), HASH_SEED) for name in encoded.dictionary.to_pylist()], dtype=np.uint64
    )
    distinct = (digests % np.uint64(num_entity_vectors)).astype(np.int32)
    rows: npt.NDArray[np.int32] = distinct[encoded.indices.to_numpy()]
    return rows
