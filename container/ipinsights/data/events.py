"""Reads the files of a channel into compact arrays: 8 bytes an event (12 with IPv6), whatever the files' size.

Files are read block by block, so the whole text is never in memory. The arrays grow in place. Threads parse blocks of
one or several files in parallel. Entities claim their rows in the order of the files, so the result does not depend on
the threads. It does not depend on the source either: plain, compressed, or a pipe.
"""

import os
import reprlib
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import IPV4, Addresses, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.records import Block, Fault, Hashed, demand, line_blocks
from ipinsights.data.sources import Source, stream
from ipinsights.errors import UserError, refusals
from ipinsights.machine import usable_cores

Scalar = TypeVar("Scalar", bound=np.integer[Any])

_LISTED = 3
_brief = reprlib.Repr()
_brief.maxstring = 60
_REASON = 100
_PATH = 80
"""Malformed rows that are described, and the limits in characters for a row, for the fault in it and for its file's
path. So the message of a failed job fits into the 1,000 characters that many platforms show."""


@dataclass
class Malformed:
    """The malformed rows of a channel."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """File, line, fault and content of the first ones."""

    def add(self, file: str, faults: Sequence[Fault]) -> None:
        """Add the faults of one more file or block."""
        self.count += len(faults)
        for fault in faults[: _LISTED - len(self.examples)]:
            path = file if len(file) <= _PATH else f"...{file[3 - _PATH :]}"
            reason = fault.reason if len(fault.reason) <= _REASON else f"{fault.reason[: _REASON - 3]}..."
            self.examples.append(f"{path}, line {fault.position}: {reason}, in {_brief.repr(fault.content)}")

    def __str__(self) -> str:
        """The first ones, and the number of others."""
        more = self.count - len(self.examples)
        return "; ".join(self.examples) + (f"; and {more:,} more" if more else "")


@dataclass(frozen=True)
class Events:
    """n observed pairs, in the order read. Repeated pairs are kept: the model learns their frequency."""

    entity: npt.NDArray[np.int32]
    """Rows of the entity table, [n]."""
    address: Addresses
    """All of one family: uint32 or uint64 [n]."""
    index: EntityIndex
    """The owner of each row."""
    malformed: Malformed = field(default_factory=Malformed)
    """The rows that were skipped."""
    marks: int = 0
    """Byte order marks that were removed from the starts of lines."""

    def __len__(self) -> int:
        return len(self.entity)


def find_files(folder: Path) -> list[Path]:
    """The data files in a folder and its subfolders, in order of their paths.

    Empty files are skipped. So are names that begin with ``.`` or ``_`` (``_SUCCESS``, ``_temporary/``) or end in
    ``.crc`` or ``.metadata``: other programs write them, and they hold no data. Raises UserError if the system refuses
    to read a subfolder or to tell of a file, because the data in it would be missed in silence. Links are followed, but
    no folder is read twice.
    """

    def refuse(error: OSError) -> None:
        if not (isinstance(error, FileNotFoundError) and Path(error.filename) == folder):
            raise error

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    with refusals("read", folder):
        for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            status = Path(where).stat()
            known, seen = seen, seen | {(status.st_dev, status.st_ino)}
            if len(known) == len(seen):
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
            for name in names:
                path = Path(where, name)
                if not name.startswith((".", "_")) and path.suffix not in (".crc", ".metadata"):
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode) and status.st_size:
                        found.append(path)
    return sorted(found)


def read(
    sources: Sequence[Source],
    index: EntityIndex,
    family: Family = IPV4,
    claim: bool = True,
    *,
    channel: str = "train",
    tolerated: float | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Events:
    """Read a channel's CSV with addresses of a family.

    With ``claim`` an entity new to the ``index`` gets a row there; without, it has the row of the unknown. Malformed
    rows are skipped and claim nothing. Raises UserError that reports them if there are any and ``tolerated`` is None,
    or if their share is above ``tolerated``. Raises UserError if a source cannot be read.

    ``progress`` is called in the calling thread with the size of each block on disk, in bytes, and with 0 about once a
    second while a pipe has no data. An exception from it ends the reading.
    """
    entity, address, malformed = _Growing(np.dtype(np.int32)), _Growing(family.dtype), Malformed()
    marks = 0
    for name, ((digests, addresses), faults, removed) in _parse(sources, family, progress):
        entity.extend((index.claim_hashed if claim else index.find_hashed)(digests))
        address.extend(addresses)
        malformed.add(name, [*faults.values()])
        marks += removed
    events = Events(entity.array(), address.array(), index, malformed, marks)
    rows = len(events) + malformed.count
    if malformed.count > rows * (tolerated or 0.0):
        allowed = "" if tolerated is None else f", more than malformed_rows_limit={tolerated:g} allows"
        advice = "Correct them" + (", or set malformed_rows=skip to skip them." if tolerated is None else ".")
        raise UserError(
            f"{malformed.count:,} of {rows:,} rows of channel {channel!r} "
            f"{'is' if malformed.count == 1 else 'are'} malformed{allowed}: {malformed}. {demand(family)} {advice}"
        )
    return events


def _parse(
    sources: Sequence[Source], family: Family, progress: Callable[[int], object]
) -> Iterator[tuple[str, Hashed]]:
    """The source and the content of each block, in order; a few blocks are parsed at a time."""
    threads = usable_cores()
    parsing: deque[tuple[str, Future[Hashed]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for block in _blocks(sources, progress):
            parsing.append((block.name, pool.submit(block.salvage, family)))
            if len(parsing) > threads:
                name, parsed = parsing.popleft()
                yield name, parsed.result()
        for name, parsed in parsing:
            yield name, parsed.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _blocks(sources: Sequence[Source], progress: Callable[[int], object]) -> Iterator[Block]:
    for source in sources:
        with stream(source, idle=lambda: progress(0)) as text:
            told = 0
            for block in line_blocks(text, text.name):
                progress(text.taken - told)
                told = text.taken
                yield block
            progress(text.taken - told)  # the bytes that gzip has after the text


class _Growing(Generic[Scalar]):
    """An array that grows at its end, in place (the allocator moves pages, not bytes), with a quarter spare."""

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
