"""The loops of ``reader.cpp`` on numpy arrays. Each function returns None if there is no kernel.

Then the caller uses another path.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights import native

Digests = npt.NDArray[np.uint64]
"""xxHash64 of entities."""

_NOT_CLEAN = -1
_SHORTEST_LINE = 10
"""Bytes of the shortest record with its line end, which the last line may lack."""
_SHORTEST_INSTANCE = 16
"""Bytes of the shortest instance, ["a","1.1.1.1"], with its separator, which the last one lacks."""


def read_lines(text: bytes) -> tuple[Digests, npt.NDArray[np.uint32]] | None:
    """The entity's digest and the IPv4 address of each record in whole lines of CSV: uint64 [n] and uint32 [n].

    Also None if a line is not clean in the sense of ``reader.cpp``: malformed lines are not clean, and some others.
    """
    kernel = native.library()
    if kernel is None:
        return None
    most = (len(text) + 1) // _SHORTEST_LINE
    digests, addresses = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint32)
    count = kernel.ipinsights_read_lines(text, len(text), digests, addresses)
    return None if count == _NOT_CLEAN else (digests[:count], addresses[:count])


def read_instances(text: bytes, lines: bool) -> tuple[Digests, npt.NDArray[np.uint32]] | None:
    """The same for each instance of a request in JSON, or in JSON ``lines``."""
    kernel = native.library()
    if kernel is None:
        return None
    most = len(text) // _SHORTEST_INSTANCE + 1
    digests, addresses = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint32)
    count = kernel.ipinsights_read_instances(text, len(text), lines, digests, addresses)
    return None if count == _NOT_CLEAN else (digests[:count], addresses[:count])


def parse_quads(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]] | None:
    """The IPv4 address in each text, uint32 [n], or 0 for none, and whether there is one, bool [n]."""
    kernel = native.library()
    if kernel is None:
        return None
    offsets, data = text_buffers(texts)
    addresses, valid = np.empty(len(texts), dtype=np.uint32), np.empty(len(texts), dtype=np.bool_)
    kernel.ipinsights_parse_quads(data, offsets, len(texts), addresses, valid)
    return addresses, valid


def hash_texts(texts: pa.StringArray) -> Digests | None:
    """The digest of each text: uint64 [n]."""
    kernel = native.library()
    if kernel is None:
        return None
    offsets, data = text_buffers(texts)
    digests = np.empty(len(texts), dtype=np.uint64)
    kernel.ipinsights_hash(data, offsets, len(texts), digests)
    return digests


def find_rows(tags: npt.NDArray[np.uint32], probes: int, digests: Digests) -> npt.NDArray[np.int32] | None:
    """The row of each entity: int32 [n]; -1 if it has none but can get one, -2 if others own all its rows."""
    kernel = native.library()
    if kernel is None:
        return None
    digests = np.ascontiguousarray(digests)
    rows = np.empty(len(digests), dtype=np.int32)
    kernel.ipinsights_find_rows(tags, len(tags), probes, digests, len(digests), rows)
    return rows


def find_intervals(
    starts: npt.NDArray[np.unsignedinteger], values: npt.NDArray[np.int32], queries: npt.NDArray[np.unsignedinteger]
) -> npt.NDArray[np.int32] | None:
    """The value of the interval that contains each address: int32 [n]. The starts ascend from address 0."""
    kernel = native.library()
    if kernel is None:
        return None
    find = kernel.ipinsights_find_intervals_32 if starts.dtype == np.uint32 else kernel.ipinsights_find_intervals_64
    queries = np.ascontiguousarray(queries)
    found = np.empty(len(queries), dtype=np.int32)
    find(starts, len(starts), values, queries, len(queries), found)
    return found


def text_buffers(texts: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The offsets (int32 [n + 1]) and the bytes behind an Arrow string column, without a copy."""
    _, offset_buffer, data_buffer = texts.buffers()
    if offset_buffer is None or len(texts) == 0:
        return np.zeros(len(texts) + 1, dtype=np.int32), np.zeros(0, dtype=np.uint8)
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    return offsets, data
