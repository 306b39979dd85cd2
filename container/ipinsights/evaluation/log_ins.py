"""Log-ins to judge a model by, and names to look up in it, from CSV."""

from collections.abc import Iterator, Sequence
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
from ipinsights.data.records import Block, Pairs, Records, line_blocks, salvage_csv
from ipinsights.data.sources import stream
from ipinsights.errors import UserError

_DAY = np.timedelta64(1, "D")
_COLUMNS = 3
"""An entity, an address and a time."""


@dataclass(frozen=True)
class LogIns:
    """n log-ins in the order of the input."""

    pairs: Records

    def __len__(self) -> int:
        return len(self.pairs)

    def where(self, chosen: npt.NDArray[np.bool_]) -> "LogIns":
        """Some of the log-ins; bool [n]."""
        times = None if self.pairs.times is None else self.pairs.times[chosen]
        return LogIns(Records(self.pairs.entities.filter(pa.array(chosen)), self.pairs.addresses[chosen], times))

    @property
    def span(self) -> tuple[np.datetime64, np.datetime64] | None:
        """The first and the last time, in UTC; None without times."""
        times = self.pairs.times
        times = None if times is None else times[~np.isnat(times)]
        return (times.min(), times.max()) if times is not None and len(times) else None

    @property
    def days(self) -> float | None:
        """From the first log-in to the last, in days, and at least one; None without times."""
        return None if self.span is None else max(1.0, float((self.span[1] - self.span[0]) / _DAY))


def read(paths: Path | Sequence[Path], family: Family, skip: bool = False) -> LogIns:
    """Read files, or all files of a folder, with addresses of a family.

    Malformed rows are an error unless they are to be skipped. Raises UserError.
    """
    parts = [salvage_csv(block.text, family).records if skip else block.parse(family) for block in _blocks(paths)]
    if not any(map(len, parts)):
        raise UserError(f"{paths} holds no log-ins")
    return LogIns(Records.concat(parts))


def read_training(paths: Path | Sequence[Path], family: Family, skip: bool = False) -> Pairs:
    """The pairs of the log-ins that a model learnt from, as `read` finds them, without names or times."""
    parts: list[Pairs] = []
    for block in _blocks(paths):
        found = block.salvage(family)
        if found.faults and not skip:
            raise block.error([*found.faults.values()], family)
        parts.append(found.pairs)
    if not any(len(part.digests) for part in parts):
        raise UserError(f"{paths} holds no log-ins")
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _blocks(paths: Path | Sequence[Path]) -> Iterator[Block]:
    files = paths if not isinstance(paths, Path) else find_files(paths) if paths.is_dir() else [paths]
    for file in files:
        with stream(file) as text:
            yield from line_blocks(text, text.name)


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
                column_types={f"f{number}": pa.string() for number in range(_COLUMNS)}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not CSV with as many columns in each line: {error}") from error
    return table.column(min(place, table.num_columns - 1)).combine_chunks()
