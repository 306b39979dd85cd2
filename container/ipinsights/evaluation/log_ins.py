"""Log-ins to judge a model by: CSV of an entity, an address and, if the file has it, a time. And names to look up.

A time is ISO 8601, such as 2026-01-02T03:04:05Z. One without a zone is taken for UTC. Files without times are read by
`data.records`. Those with times are read here, by the same rules: an entity is used unchanged, an address is strict,
and the first line that cannot be read is reported with what is wrong.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ipinsights.data import addresses
from ipinsights.data.addresses import Addresses, Family
from ipinsights.data.events import find_files
from ipinsights.data.malformed import shown
from ipinsights.data.records import Block, Pairs, Records, line_blocks
from ipinsights.data.sources import stream
from ipinsights.errors import UserError

Times = npt.NDArray[np.datetime64]

_DAY = np.timedelta64(1, "D")
_COLUMNS = ("entity", "address", "time")


@dataclass(frozen=True)
class LogIns:
    """n log-ins in the order of the input."""

    pairs: Records
    times: Times | None
    """UTC, datetime64[us] [n]; None where the input has none."""

    def __len__(self) -> int:
        return len(self.pairs)

    def where(self, chosen: npt.NDArray[np.bool_]) -> "LogIns":
        """Some of the log-ins; bool [n]."""
        pairs = Records(self.pairs.entities.filter(pa.array(chosen)), self.pairs.addresses[chosen])
        return LogIns(pairs, None if self.times is None else self.times[chosen])

    @property
    def days(self) -> float | None:
        """From the first log-in to the last, in days, and at least one; None without times."""
        if self.times is None or not len(self.times):
            return None
        return max(1.0, float((self.times.max() - self.times.min()) / _DAY))


def read(path: Path, family: Family) -> LogIns:
    """Read a file, or all files of a folder, with addresses of a family. Raises UserError."""
    pairs: list[Records] = []
    times: list[Times] = []
    first = ""
    for block in _blocks(path):
        with_times = _fields(block) == len(_COLUMNS)
        if first and with_times != bool(times):
            raise UserError(
                f"{first} {'has' if times else 'lacks'} a column of times, and {block.name}, line {block.first_line} "
                f"{'has' if with_times else 'lacks'} it: give all log-ins a time, or none"
            )
        first = first or block.name
        if with_times:
            some, moments = _read_timed(block, family)
            pairs.append(some)
            times.append(moments)
        else:
            pairs.append(block.parse(family))
    if not any(map(len, pairs)):
        raise UserError(f"{path} holds no log-ins")
    return LogIns(Records.concat(pairs), np.concatenate(times) if times else None)


def read_training(path: Path, family: Family) -> Pairs:
    """The pairs of the log-ins that a model learnt from, as `read` finds them, without names or times."""
    parts: list[Pairs] = []
    for block in _blocks(path):
        if _fields(block) == len(_COLUMNS):
            parts.append(_read_timed(block, family)[0].hashed())
            continue
        found = block.salvage(family)
        if found.faults:
            raise block.error([*found.faults.values()], family)
        parts.append(found.pairs)
    if not any(len(part.digests) for part in parts):
        raise UserError(f"{path} holds no log-ins")
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def read_names(path: Path) -> pa.StringArray:
    """The distinct entities of a CSV file: of its first column. Raises UserError."""
    names = _column(path, 0).unique()
    if pc.any(pc.equal(names, "")).as_py():
        raise UserError(f"{path}: an entity is empty")
    return names


def read_addresses(path: Path, family: Family) -> Addresses:
    """The distinct addresses of a CSV file, ascending: of its second column, or of its only one. Raises UserError."""
    texts = pc.utf8_trim_whitespace(_column(path, 1)).unique()
    values, valid = addresses.parse(texts, family)
    if not valid.all():
        raise UserError(f"{path}: {addresses.explain(texts[int(np.argmin(valid))].as_py(), family)}")
    found: Addresses = np.unique(values)
    return found


def _column(path: Path, place: int) -> pa.StringArray:
    """A column of a CSV file that need not be one of log-ins, or the last one that it has."""
    with stream(path) as text:
        content = text.read(-1).removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise UserError(f"{path} is empty")
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            read_options=arrow_csv.ReadOptions(autogenerate_column_names=True, block_size=len(content) + 1),
            convert_options=arrow_csv.ConvertOptions(
                column_types={f"f{number}": pa.string() for number in range(len(_COLUMNS))}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not CSV with as many columns in each line: {error}") from error
    return table.column(min(place, table.num_columns - 1)).combine_chunks()


def _blocks(path: Path) -> Iterator[Block]:
    """The text of a file, or of all files of a folder, but for blocks of blank lines."""
    for file in find_files(path) if path.is_dir() else [path]:
        with stream(file) as text:
            yield from (block for block in line_blocks(text, text.name) if block.text.strip())


def _fields(block: Block) -> int:
    """The number of fields of a block's first line that is not blank."""
    return next(len(_split(line)) for line in block.text.splitlines() if line.strip())


def _split(line: bytes) -> list[str]:
    text = line.decode(errors="replace").removeprefix("\ufeff")
    return next(csv.reader([text]), [])


def _read_timed(block: Block, family: Family) -> tuple[Records, Times]:
    """The pairs and times of a block. Raises UserError that tells the first line that cannot be read."""
    columns = _columns(block.text)
    if columns is not None:
        entities, texts, times = columns
        values, valid = addresses.parse(pc.utf8_trim_whitespace(texts), family)
        moments = _moments(times)
        if valid.all() and moments is not None and not pc.any(pc.equal(entities, "")).as_py():
            return Records(entities, values), moments
    for number, line in enumerate(block.text.splitlines(), block.first_line):
        reason = _fault(line, family) if line.strip() else None
        if reason:
            raise UserError(
                f"{block.name}, line {number}: {reason}: {shown(line.decode(errors='replace'))}. Each line must be an "
                f"entity, an {family.noun} and a time such as 2026-01-02T03:04:05Z"
            )
    raise UserError(
        f"{block.name}, from line {block.first_line} on: some times have a zone, such as Z or +01:00, and others have "
        "none: give all of them a zone"
    )


def _columns(text: bytes) -> list[pa.StringArray] | None:
    """The three columns of a text, or None if a line has fewer or more."""
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text.removeprefix(b"\xef\xbb\xbf")),
            read_options=arrow_csv.ReadOptions(column_names=_COLUMNS, block_size=len(text) + 1),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(_COLUMNS, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    return [table.column(name).combine_chunks() for name in _COLUMNS]


def _moments(texts: pa.StringArray) -> Times | None:
    """The times of a column in UTC, or None if one cannot be read."""
    texts = pc.utf8_trim_whitespace(texts)
    for zone in ("UTC", None):
        try:
            moments: Times = pc.cast(texts, pa.timestamp("us", zone)).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            continue
        return moments.astype("datetime64[us]")
    return None


def _fault(line: bytes, family: Family) -> str | None:
    """What is wrong with a line; None if nothing is."""
    fields = _split(line)
    if len(fields) != len(_COLUMNS):
        return f"it has {len(fields)} fields, and the first line has {len(_COLUMNS)}"
    entity, address, time = fields
    if not entity:
        return "the entity is empty"
    if not addresses.parse(pa.array([address.strip()], pa.string()), family)[1][0]:
        return addresses.explain(address.strip(), family)
    if _moments(pa.array([time], pa.string())) is None:
        return f"{time!r} is not a time"
    return None
