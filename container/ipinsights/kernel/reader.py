"""The loops of ``reader.cpp`` and ``scoring.cpp`` on numpy arrays. Each gives None where there is no kernel.

The caller then has another way.
"""

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights import kernel
from ipinsights.errors import AlgorithmError

Digests = npt.NDArray[np.uint64]
"""xxHash64 of entities."""

_NOT_CLEAN = _UNEQUAL = -1
_SHORTEST_LINE = 10
"""Bytes of a record with its line end, which the last line may lack."""
_SHORTEST_INSTANCE = 16
"""Bytes of an instance, ["a","1.1.1.1"], and of a separator, which the last lacks."""
_LONGEST_ENDING = 17
"""Bytes that a line grows by: a comma, a score such as -1.23456789e-38, and a line end, which the last may lack."""


def read_lines(text: bytes) -> tuple[Digests, npt.NDArray[np.uint32]] | None:
    """The entity's digest and the IPv4 address of each record in whole lines of CSV: uint64 [n] and uint32 [n].

    Also None where a line is not clean, as ``reader.cpp`` has it: faults are among these, but not only faults.
    """
    native = _library()
    if native is None:
        return None
    most = (len(text) + 1) // _SHORTEST_LINE
    digests, addresses = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint32)
    count = native.ipinsights_read_lines(text, len(text), digests, addresses)
    return None if count == _NOT_CLEAN else (digests[:count], addresses[:count])


def read_instances(text: bytes, lines: bool) -> tuple[Digests, npt.NDArray[np.uint32]] | None:
    """The same of each instance of a request in JSON, or in JSON ``lines``."""
    native = _library()
    if native is None:
        return None
    most = len(text) // _SHORTEST_INSTANCE + 1
    digests, addresses = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint32)
    count = native.ipinsights_read_instances(text, len(text), lines, digests, addresses)
    return None if count == _NOT_CLEAN else (digests[:count], addresses[:count])


def parse_quads(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]] | None:
    """The IPv4 address in each text, uint32 [n], and whether there is one, bool [n]; 0 where there is none."""
    native = _library()
    if native is None:
        return None
    offsets, data = text_buffers(texts)
    addresses, valid = np.empty(len(texts), dtype=np.uint32), np.empty(len(texts), dtype=np.bool_)
    native.ipinsights_parse_quads(data, offsets, len(texts), addresses, valid)
    return addresses, valid


def hash_texts(texts: pa.StringArray) -> Digests | None:
    """The digest of each text: uint64 [n]."""
    native = _library()
    if native is None:
        return None
    offsets, data = text_buffers(texts)
    digests = np.empty(len(texts), dtype=np.uint64)
    native.ipinsights_hash(data, offsets, len(texts), digests)
    return digests


def find_rows(tags: npt.NDArray[np.uint32], probes: int, digests: Digests) -> npt.NDArray[np.int32] | None:
    """The row of each entity: int32 [n]; -1 if it has none and may have one, -2 if all its probes are others'."""
    native = _library()
    if native is None:
        return None
    digests = np.ascontiguousarray(digests)
    rows = np.empty(len(digests), dtype=np.int32)
    native.ipinsights_find_rows(tags, len(tags), probes, digests, len(digests), rows)
    return rows


def find_intervals(
    starts: npt.NDArray[np.unsignedinteger], values: npt.NDArray[np.int32], queries: npt.NDArray[np.unsignedinteger]
) -> npt.NDArray[np.int32] | None:
    """The value of the interval that each address is in: int32 [n]. The starts ascend from address 0."""
    native = _library()
    if native is None:
        return None
    find = native.ipinsights_find_intervals_32 if starts.dtype == np.uint32 else native.ipinsights_find_intervals_64
    queries = np.ascontiguousarray(queries)
    found = np.empty(len(queries), dtype=np.int32)
    find(starts, len(starts), values, queries, len(queries), found)
    return found


def score_pairs(
    entity: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    ip: npt.NDArray[np.float32],
    leaves: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32] | None:
    """The inner products of rows of two tables of D columns, one of either for each of n pairs: float32 [n]."""
    native = _library()
    if native is None:
        return None
    scores = np.empty(len(rows), dtype=np.float32)
    native.ipinsights_score(entity, rows, ip, leaves, entity.shape[1], len(rows), scores)
    return scores


class _Tables(ctypes.Structure):
    """``Tables`` of ``scoring.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tags", "starts", "values", "entity", "ip")),
        *((name, ctypes.c_int64) for name in ("num_rows", "probes", "sharing", "wide", "intervals", "dim")),
    )


class PairScorer:
    """`find_rows`, `find_intervals` and `score_pairs` in one call, which is most of a small request's time."""

    def __init__(
        self,
        tags: npt.NDArray[np.uint32],
        probes: int,
        sharing: bool,
        intervals: tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int32]],
        entity: npt.NDArray[np.float32],
        ip: npt.NDArray[np.float32],
    ) -> None:
        """With an index of E rows, ``tags`` [E] and ``entity`` [E + 1, D]; the intervals' values are rows of ``ip``.

        An entity without a row has one that it shares, if ``sharing``, or the last. There must be a kernel.
        """
        starts, values = intervals
        wide = starts.dtype == np.uint64
        self._address = _array_of(np.uint64 if wide else np.uint32)
        self._arrays = {"tags": tags, "starts": starts, "values": values, "entity": entity, "ip": ip}
        u32, i32, f32 = map(_array_of, (np.uint32, np.int32, np.float32))
        kinds = {"tags": u32, "starts": self._address, "values": i32, "entity": f32, "ip": f32}
        self._tables = _Tables(
            **{name: kinds[name].from_param(array) for name, array in self._arrays.items()},
            num_rows=len(tags),
            probes=probes,
            sharing=sharing,
            wide=wide,
            intervals=len(starts),
            dim=entity.shape[1],
        )
        native = _library()
        if native is None:
            raise AlgorithmError("there is no kernel to score with")
        self._native = native

    def __call__(self, digests: Digests, addresses: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.float32]:
        """The score of each of n pairs, entities as `hash_texts` has them: float32 [n]."""
        scores = np.empty(len(digests), dtype=np.float32)
        where = self._address.from_param(addresses)
        self._native.ipinsights_score_hashed(self._tables, digests, where, len(digests), scores)
        return scores


def append_scores(text: bytes, scores: npt.NDArray[np.float32]) -> memoryview | None:
    """The lines of text that are not blank, with a comma, a score each (of n) as %.9g and a line feed behind them.

    Also None where there are not n such lines.
    """
    native = _library()
    if native is None:
        return None
    out = np.empty(len(text) + _LONGEST_ENDING * len(scores), dtype=np.uint8)
    size = native.ipinsights_append_scores(text, len(text), scores, len(scores), out)
    return None if size == _UNEQUAL else out[:size].data


def text_buffers(texts: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The offsets (int32 [n + 1]) and the bytes behind an Arrow string column, without a copy."""
    _, offset_buffer, data_buffer = texts.buffers()
    if offset_buffer is None or len(texts) == 0:
        return np.zeros(len(texts) + 1, dtype=np.int32), np.zeros(0, dtype=np.uint8)
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    return offsets, data


def _library() -> ctypes.CDLL | None:
    native = kernel.library()
    return None if native is None else _declared(native)


@functools.cache
def _declared(native: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the parameters, so that an array of another type, or with gaps, is an error."""
    number = ctypes.c_int64
    flag, u8, i32, u32, u64, f32 = map(_array_of, (np.bool_, np.uint8, np.int32, np.uint32, np.uint64, np.float32))
    native.ipinsights_read_lines.argtypes = [ctypes.c_char_p, number, u64, u32]
    native.ipinsights_read_lines.restype = number
    native.ipinsights_read_instances.argtypes = [ctypes.c_char_p, number, ctypes.c_bool, u64, u32]
    native.ipinsights_read_instances.restype = number
    native.ipinsights_score.argtypes = [f32, i32, f32, i32, number, number, f32]
    native.ipinsights_score_hashed.argtypes = [ctypes.POINTER(_Tables), u64, ctypes.c_void_p, number, f32]
    native.ipinsights_append_scores.argtypes = [ctypes.c_char_p, number, f32, number, u8]
    native.ipinsights_append_scores.restype = number
    native.ipinsights_parse_quads.argtypes = [u8, i32, number, u32, flag]
    native.ipinsights_hash.argtypes = [u8, i32, number, u64]
    native.ipinsights_find_rows.argtypes = [u32, number, number, u64, number, i32]
    native.ipinsights_find_intervals_32.argtypes = [u32, number, i32, u32, number, i32]
    native.ipinsights_find_intervals_64.argtypes = [u64, number, i32, u64, number, i32]
    for name in ("score", "score_hashed", "parse_quads", "hash", "find_rows", "find_intervals_32", "find_intervals_64"):
        getattr(native, f"ipinsights_{name}").restype = None
    return native


def _array_of(kind: type[np.generic]) -> type[ctypes.c_void_p]:
    """A parameter that is the address of an array of a type, without gaps.

    As numpy's ndpointer, in less than half its time; a request of one row has a dozen of them.
    """
    dtype = np.dtype(kind)

    class Array(ctypes.c_void_p):
        @classmethod
        def from_param(cls, array: Any) -> Any:
            if array.dtype != dtype or not array.flags.c_contiguous:
                raise TypeError(f"an array of {dtype} without gaps is needed, not of {array.dtype}")
            return ctypes.c_void_p(array.ctypes.data)

    return Array
