"""The loops of ``scoring.cpp`` on numpy arrays.

The functions that return something return None if there is no kernel. Then the caller uses another path.
"""

import numpy as np
import numpy.typing as npt

from ipinsights import native
from ipinsights.errors import AlgorithmError
from ipinsights.native.interface import F32, I32, U32, U64, Tables
from ipinsights.native.reader import Digests

_UNEQUAL = -1
PADDING = 64
"""Bytes behind the last of the texts of `join`."""
_LONGEST_ENDING = 17
"""Bytes added to a line: a comma, a score such as -1.23456789e-38, and a line end, which the last may lack."""


def score_pairs(
    entity: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    ip: npt.NDArray[np.float32],
    leaves: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32] | None:
    """The inner products of n pairs of rows, one of each of two tables with D columns: float32 [n]."""
    kernel = native.library()
    if kernel is None:
        return None
    scores = np.empty(len(rows), dtype=np.float32)
    kernel.ipinsights_score(entity, rows, ip, leaves, entity.shape[1], len(rows), scores)
    return scores


def sum_rows(table: npt.NDArray[np.float32], rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32] | None:
    """The sums of rows of a table [., D], as each of n lists has them, int32 [n, L]: [n, D]. All must be in range.

    Also None if the arrays are of another type, or have gaps.
    """
    kernel = native.library()
    laid_out = table.flags.c_contiguous and rows.flags.c_contiguous
    if kernel is None or not laid_out or table.dtype != np.float32 or rows.dtype != np.int32:
        return None
    sums = np.empty((len(rows), table.shape[1]), dtype=np.float32)
    kernel.ipinsights_sum_rows(table, rows, *rows.shape, table.shape[1], sums)
    return sums


def add_rows(sums: npt.NDArray[np.float32], rows: npt.NDArray[np.int32], values: npt.NDArray[np.float32]) -> None:
    """Add n vectors, [n, D], to rows of a table [., D], int32 [n], in place. All must be in range."""
    kernel = native.library()
    if kernel is None:
        np.add.at(sums, rows, values)
    else:
        kernel.ipinsights_add_rows(values, rows, *values.shape, sums)


class PairScorer:
    """Finds rows, finds intervals and multiplies in one call, because calls dominate the time of a small request."""

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

        An entity without a row uses a shared row if ``sharing``, else the last row. Raises AlgorithmError without a
        kernel.
        """
        starts, values = intervals
        wide = starts.dtype == np.uint64
        self._address = U64 if wide else U32
        self._arrays = {"tags": tags, "starts": starts, "values": values, "entity": entity, "ip": ip}
        kinds = {"tags": U32, "starts": self._address, "values": I32, "entity": F32, "ip": F32}
        self._tables = Tables(
            **{name: kinds[name].from_param(array) for name, array in self._arrays.items()},
            num_rows=len(tags),
            probes=probes,
            sharing=sharing,
            wide=wide,
            intervals=len(starts),
            dim=entity.shape[1],
        )
        kernel = native.library()
        if kernel is None:
            raise AlgorithmError("there is no kernel to score with")
        self._kernel = kernel

    def __call__(
        self, digests: Digests, addresses: npt.NDArray[np.unsignedinteger]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The score of each of n pairs, with entities as `hash_texts` returns them: [n].

        Then the rows of ``entity`` and of ``ip`` whose products the scores are: [n] each.
        """
        scores = np.empty(len(digests), dtype=np.float32)
        rows, leaves = np.empty((2, len(digests)), dtype=np.int32)
        where = self._address.from_param(addresses)
        self._kernel.ipinsights_score_hashed(self._tables, digests, where, len(digests), scores, rows, leaves)
        return scores, rows, leaves


def append_scores(text: bytes, scores: npt.NDArray[np.float32]) -> memoryview | None:
    """The lines of text that are not blank, each with a comma, its score (of n) as %.9g and a line feed appended.

    Also None if the number of such lines is not n.
    """
    kernel = native.library()
    if kernel is None:
        return None
    out = np.empty(len(text) + _LONGEST_ENDING * len(scores), dtype=np.uint8)
    size = kernel.ipinsights_append_scores(text, len(text), scores, len(scores), out)
    return None if size == _UNEQUAL else out[:size].data


def number_texts(
    codes: npt.NDArray[np.int32],
    places: npt.NDArray[np.int32],
    first: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int32], int] | None:
    """The numbers of the texts that n rows with ``codes`` have, [n, m], and how many bytes these have together.

    The text of column c is ``codes[:, places[c]] + first[c]``, and text t is ``starts[t + 1] - starts[t]`` bytes long.
    All must be in range.
    """
    kernel = native.library()
    if kernel is None:
        return None
    numbers = np.empty((len(codes), len(places)), dtype=np.int32)
    size = kernel.ipinsights_number_texts(codes, *codes.shape, places, first, len(places), starts, numbers)
    return numbers, size


def join(
    numbers: bytes,
    codes: npt.NDArray[np.int32],
    texts: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    longest: int,
) -> memoryview | None:
    """Rows of a number each, of n with commas between them, and of the texts whose numbers are in its codes, [n, m].

    Text t is ``texts[starts[t] : starts[t + 1]]``; `PADDING` bytes are behind the last. The codes must be in range, and
    the texts of a row no longer than ``longest`` bytes together. Also None if there are not n numbers.
    """
    kernel = native.library()
    if kernel is None:
        return None
    out = np.empty(len(numbers) + longest * len(codes) + PADDING, dtype=np.uint8)
    size = kernel.ipinsights_join(numbers, len(numbers), codes, *codes.shape, texts, starts, out)
    return None if size == _UNEQUAL else out[:size].data
