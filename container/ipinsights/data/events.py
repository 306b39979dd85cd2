"""Reads the files of a channel into compact arrays: 8 bytes an event (12 with IPv6), whatever the files' size.

Files of CSV, JSON Lines or Parquet are read block by block, so the whole text is never in memory. The arrays grow in
place. Threads parse blocks of one or several files in parallel. Entities claim their rows in the order of the files, so
the result does not depend on the threads. It does not depend on the source either: plain, compressed, or a pipe.
"""

import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import IPV4, Addresses, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.formats import CSV, JSON_LINES, PARQUET, Look, is_tar, recognise
from ipinsights.data.instances import salvage_lines
from ipinsights.data.malformed import ABSENT, Kind, Malformed, brief_path, remedies, shown
from ipinsights.data.records import Block, Hashed, Removed, demand, line_blocks
from ipinsights.data.shares import Blocks, Share, claim_together
from ipinsights.data.sources import Pipe, Source, stream
from ipinsights.data.tables import Batch, batches
from ipinsights.distributed.group import ALONE, Group
from ipinsights.errors import UserError, quoted, refusals
from ipinsights.machine import usable_cores
from ipinsights.native.reader import Digests

Scalar = TypeVar("Scalar", bound=np.integer[Any])
_Place = tuple[int, int]
"""The number of a block's source, and its own among the blocks of all sources that were passed."""

_ROOM = 1000
"""The most characters of an error about malformed rows: many platforms show no more of the message of a failed job."""


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
    removed: Removed = field(default_factory=Removed)
    """What was removed from rows to read them."""

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
    content_type: str = CSV,
    tolerated: float | None = None,
    spared: Collection[Kind] = (),
    progress: Callable[[int], object] = lambda _: None,
    group: Group = ALONE,
    divided: bool = True,
) -> Events:
    """Read a channel's log-ins with addresses of a family, from CSV, JSON Lines or Parquet.

    With ``claim`` an entity new to the ``index`` gets a row there; without, it has the row of the unknown. Malformed
    rows are skipped and claim nothing. Raises UserError that reports them if there are any and ``tolerated`` is None,
    or if their share is above ``tolerated``; those of a ``spared`` kind are then no rows. Raises UserError if a source
    cannot be read, or has another format.

    ``progress`` is called in the calling thread with the size of each block on disk, in bytes, and with 0 about once a
    second while a pipe has no data. An exception from it ends the reading.

    In a ``group`` of several ranks, each reads its share of the sources, or with ``divided=False`` of its own host's,
    and returns those events. All get the same index. If reading fails on one rank, it raises there, and elsewhere it
    raises `OtherHostFailed`.
    """
    found = _Found(family)
    error: Exception | None = None
    rows_of = None if group.size > 1 else index.claim_hashed if claim else index.find_hashed
    try:
        found.read(sources, family, channel, content_type, tolerated, progress, group, divided, rows_of)
    except Exception as fault:
        error = fault
    group.agree(error)
    malformed = found.malformed
    counted = malformed.without(spared)
    bad, readable = group.sum(np.array([counted.count, len(found.address)])).tolist()
    error = None
    if bad > (readable + bad) * (tolerated or 0.0) and counted.count:
        error = _refusal(counted, len(found.address), family, channel, tolerated, malformed)
    group.agree(error)
    entity = found.rows(index, claim, group)
    return Events(entity, found.address.array(), index, malformed, found.removed)


class _Found:
    """What a rank has found in a channel so far."""

    def __init__(self, family: Family) -> None:
        self.row = _Growing(np.dtype(np.int32))
        self.digest = _Growing(np.dtype(np.uint64))
        """Of several ranks, in place of the row, on which they have yet to agree."""
        self.address = _Growing(family.dtype)
        self.malformed = Malformed()
        self.removed = Removed()
        self._blocks: list[tuple[int, int, int]] = []
        self._starts: list[int] = []

    def read(
        self,
        sources: Sequence[Source],
        family: Family,
        channel: str,
        content_type: str,
        tolerated: float | None,
        progress: Callable[[int], object],
        group: Group,
        divided: bool,
        rows_of: Callable[[Digests], npt.NDArray[np.int32]] | None,
    ) -> None:
        """Read this rank's share."""
        unit = "row" if content_type == PARQUET else "line"
        share = Share.of_channel(group, sources, divided)
        for place, name, (pairs, faults, removed), look in _parse(sources, family, content_type, progress, share):
            if look and (look.binary or tolerated is None):
                begins = "" if look.binary else quoted(f" It begins with {shown(faults[0].content)}.", "")
                raise UserError(f"{brief_path(name)} of channel {channel!r} {look}{begins}")
            if rows_of:
                self.row.extend(rows_of(pairs.digests))
            else:
                self._blocks.append((0 if divided else group.host, *place))
                self._starts.append(len(self.address))
                self.digest.extend(pairs.digests)
            self.address.extend(pairs.addresses)
            self.malformed.add(name, [*faults.values()], unit)
            self.removed += removed

    def rows(self, index: EntityIndex, claim: bool, group: Group) -> npt.NDArray[np.int32]:
        """The row of each event's entity; with ``claim`` all ranks' new entities get one."""
        if group.size == 1:
            return self.row.array()
        digests = self.digest.array()
        if claim:
            order = np.array(self._blocks, dtype=np.int64).reshape(-1, 3)
            claim_together(group, index, digests, Blocks(order, np.array(self._starts, dtype=np.int64)))
        return index.find_hashed(digests)


def survey(
    sources: Sequence[Source],
    family: Family = IPV4,
    content_type: str = CSV,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[int, Counter[Kind]]:
    """How many entities the readable rows have, and how many malformed rows there are of each kind.

    It takes 8 bytes an entity (twice that for a moment).
    """
    kinds: Counter[Kind] = Counter()
    distinct = np.zeros(0, dtype=np.uint64)
    waiting: list[npt.NDArray[np.uint64]] = []
    for _, _, (pairs, faults, _), _ in _parse(sources, family, content_type, progress, Share()):
        kinds.update(fault.kind for fault in faults.values())
        waiting.append(np.unique(pairs.digests))
        if sum(map(len, waiting)) > len(distinct):
            distinct = np.unique(np.concatenate([distinct, *waiting]))
            waiting = []
    return len(np.unique(np.concatenate([distinct, *waiting]))), kinds


def _refusal(
    counted: Malformed, readable: int, family: Family, channel: str, tolerated: float | None, malformed: Malformed
) -> UserError:
    """The error that says how many rows of which kinds are malformed, what the first ones are, and what to do."""
    kinds = f" ({counted.told})" if counted.count > 1 else ""
    allowed = "" if tolerated is None else f", more than malformed_rows_limit={tolerated:g} allows"
    if tolerated is not None and counted.count <= (readable + counted.count) * tolerated:
        allowed = f", with those that other hosts have read{allowed[1:]}"
    others = f", besides {malformed.count - counted.count:,} rows without an address" * (
        malformed.count > counted.count
    )
    head = (
        f"{counted.count:,} of {readable + counted.count:,} rows of channel {channel!r} "
        f"{'is' if counted.count == 1 else 'are'} malformed{kinds}{allowed}{others}: "
    )
    special = remedies(counted.kinds)
    # Where no row can be read, skipping them cannot help.
    skip = ", or set malformed_rows=skip to skip them" * (tolerated is None and readable > 0)
    advice = [demand(family), *special, f"{'Or correct' if special else 'Correct'} them{skip}."]
    if readable and ABSENT & counted.kinds.keys():
        advice.append("malformed_rows=skip_placeholders skips rows without an address, whatever their share.")
    tail = f". {' '.join(advice)}"
    return UserError(head + counted.described(_ROOM - len(head) - len(tail)) + tail)


def _parse(
    sources: Sequence[Source], family: Family, content_type: str, progress: Callable[[int], object], share: Share
) -> Iterator[tuple[_Place, str, Hashed, Look | None]]:
    """The place, the source and the content of each block, in order, and what it looks like if that is another format.

    A few blocks are parsed at a time.
    """
    threads = max(1, usable_cores() // share.beside)
    parsing: deque[tuple[_Place, str, Future[tuple[Hashed, Look | None]]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for place, block in _blocks(sources, content_type, progress, share):
            parsing.append((place, block.name, pool.submit(_salvage, block, family, content_type)))
            if len(parsing) > threads:
                place, name, parsed = parsing.popleft()
                yield place, name, *parsed.result()
        for place, name, parsed in parsing:
            yield place, name, *parsed.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _salvage(block: Block | Batch, family: Family, content_type: str) -> tuple[Hashed, Look | None]:
    """The content of a block. If it is the first of a source and begins with a malformed row, also what it looks like.

    Text that has readable rows looks like what it was declared as.
    """
    if isinstance(block, Batch):
        return block.salvage(family), None
    if content_type == JSON_LINES:
        found = salvage_lines(block.text, family, first_line=block.first_line)
    else:
        found = block.salvage(family)
    begins_wrong = block.first_line == 1 and (0 in found.faults or is_tar(block.text))
    look = recognise(block.text, content_type) if begins_wrong else None
    return found, look if look and (look.binary or not len(found.pairs.digests)) else None


def _blocks(
    sources: Sequence[Source], content_type: str, progress: Callable[[int], object], share: Share
) -> Iterator[tuple[_Place, Block | Batch]]:
    """The blocks of this rank's share."""
    for number, source in enumerate(sources):
        if not share.has(number):
            continue
        told = 0
        if content_type == PARQUET:
            if isinstance(source, Pipe):
                raise UserError(f"{source} is a pipe, through which Parquet cannot be read: use a file")
            size = source.stat().st_size
            for batch in batches(source):
                progress(int(batch.read * size) - told)
                told = int(batch.read * size)
                if (at := share.block()) is not None:
                    yield (number, at), batch
            progress(size - told)
            continue
        with stream(source, idle=lambda: progress(0)) as text:
            for block in line_blocks(text, text.name, returns=content_type == CSV):
                progress(text.taken - told)
                told = text.taken
                if (at := share.block()) is not None:
                    yield (number, at), block
            progress(text.taken - told)  # the bytes that gzip has after the text


class _Growing(Generic[Scalar]):
    """An array that grows at its end, in place (the allocator moves pages, not bytes), with a quarter spare."""

    def __init__(self, dtype: np.dtype[Scalar]) -> None:
        self._array: npt.NDArray[Scalar] = np.empty(1 << 16, dtype=dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def extend(self, values: npt.NDArray[Scalar]) -> None:
        size = self._size + len(values)
        if size > len(self._array):
            self._array.resize(size + size // 4, refcheck=False)
        self._array[self._size : size] = values
        self._size = size

    def array(self) -> npt.NDArray[Scalar]:
        self._array.resize(self._size, refcheck=False)
        return self._array
