"""The files of a channel to compact arrays: 8 bytes an event (12 with IPv6), whatever the files' size.

Files are read block by block, so the text never lies in memory as a whole; the arrays grow in place. Threads parse
blocks side by side, of one file or of several; entities claim their rows in the order of the files, so the result does
not depend on the threads.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ipinsights.addresses import IPV4, Addresses, Family
from ipinsights.entities import EntityIndex
from ipinsights.kernel.reader import Digests
from ipinsights.records import Block, line_blocks

Scalar = TypeVar("Scalar", bound=np.integer[Any])


@dataclass(frozen=True)
class Events:
    """n observed pairs, in the order read. A repeated pair is kept: how often is part of what is learnt."""

    entity: npt.NDArray[np.int32]
    """Row of the entity table, [n]."""
    address: Addresses
    """All of one family: uint32 or uint64 [n]."""
    index: EntityIndex
    """Which row is whose."""

    def __len__(self) -> int:
        return len(self.entity)


def usable_cores() -> int:
    """The cores that this process may run on; all there are, where the system does not tell (as macOS does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_files(folder: Path) -> list[Path]:
    """The data files below a folder, nested ones too, in order of their paths.

    Names that begin with ``.`` or ``_`` (``_SUCCESS``, ``_temporary/``) and those that end in ``.crc`` or ``.metadata``
    are the marks of other programs, not data; empty files hold none.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.stat().st_size
        and path.suffix not in (".crc", ".metadata")
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )


def read(
    files: Sequence[Path],
    index: EntityIndex,
    family: Family = IPV4,
    claim: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Events:
    """Read CSV files with addresses of a family.

    With ``claim`` an entity new to the ``index`` is given a row there; without, it has the row of the unknown.
    ``progress`` is told the bytes of each block read.
    Raises UserError, with file, line and content, at the first block that holds a row that cannot be read.
    """
    entity, address = _Growing(np.dtype(np.int32)), _Growing(family.dtype)
    for size, digests, addresses in _parse(files, family):
        entity.extend((index.claim_hashed if claim else index.find_hashed)(digests))
        address.extend(addresses)
        if progress:
            progress(size)
    return Events(entity.array(), address.array(), index)


def _parse(files: Sequence[Path], family: Family) -> Iterator[tuple[int, Digests, Addresses]]:
    """The bytes of each block, its entities' hashes and its addresses, in order; a few blocks at a time are in work."""
    threads = usable_cores()
    parsing: deque[tuple[int, Future[tuple[Digests, Addresses]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for block in _blocks(files):
            parsing.append((len(block.text), pool.submit(block.parse_hashed, family)))
            if len(parsing) > threads:
                size, parsed = parsing.popleft()
                yield size, *parsed.result()
        for size, parsed in parsing:
            yield size, *parsed.result()


def _blocks(files: Sequence[Path]) -> Iterator[Block]:
    for path in files:
        with path.open("rb") as stream:
            yield from line_blocks(stream, str(path))


class _Growing(Generic[Scalar]):
    """An array that grows at its end, in place (the allocator moves pages, not bytes), with a quarter to spare."""

    def __init__(self, dtype: np.dtype[Scalar]) -> None:
        self._array: npt.NDArray[Scalar] = np.empty(1 << 16, dtype=dtype)
        self._size = 0

    def extend(self, values: npt.NDArray[Scalar]) -> None:
        size = self._size + len(values)
        if size > len(self._array):
            self._array.resize(size + size // 4, refcheck=False)
        self._array[self._size : size] = values
        self._size = size

    def array(self) -> npt.NDArray[Scalar]:
        self._array.resize(self._size, refcheck=False)
        return self._array
