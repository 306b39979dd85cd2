"""Headerless two-column CSV (entity, IP address), as training files and requests hold it, to columns.

RFC 4180 quotes are understood; one record is one line, so a quoted field cannot hold a line break (line numbers in
errors stay true, and a large file can be cut at any line end). A byte order mark, CRLF, blank lines and blanks around
the address are accepted; an entity is taken as it stands: ``NA`` and ``00123`` are names.

The reader is Arrow's. Where an entity's hash is all that is wanted, as in training, the native kernel reads blocks of
plain lines in its place, and leaves to it every block that holds anything else.
"""

import csv
import io
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, Addresses, Family
from ipinsights.data.entities import hash_names
from ipinsights.errors import UserError
from ipinsights.native import reader, scoring
from ipinsights.native.reader import Digests

BLOCK_SIZE = 1 << 22
"""Bytes read at a time. Which row an entity has depends on it, since each block's entities claim theirs together."""

_PIECE = 1 << 16
"""Bytes of text that a faulty row makes the slow, exact reader read."""
_EXPLAINED = 20
"""Addresses of such a piece whose faults are explained: more than are ever listed, and that takes a while."""
_LONGEST_FIELD = (1 << 31) - 1
_BOM = b"\xef\xbb\xbf"
_LINE_FEED = ord("\n")
_SHOWN = 120
"""Characters of a faulty line that an error quotes."""
_LISTED = 3
"""Faulty lines that an error lists."""

_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 4, _SHOWN, _SHOWN


class Pairs(NamedTuple):
    """n pairs as a model knows them."""

    digests: Digests
    """Of the entities, as `entities.hash_names` has them: uint64 [n]."""
    addresses: Addresses
    """[n]"""


@dataclass(frozen=True)
class Records:
    """n (entity, address) pairs in the order of the input."""

    entities: pa.StringArray
    """The entities' names, [n]."""
    addresses: Addresses
    """The addresses, all of one family: uint32 or uint64 [n]."""

    def __len__(self) -> int:
        return len(self.addresses)

    def hashed(self) -> Pairs:
        """The same as a model knows them."""
        return Pairs(hash_names(self.entities), self.addresses)

    @classmethod
    def concat(cls, parts: Sequence["Records"]) -> "Records":
        """All pairs of the parts, which are of one family, in order; no parts have none, of IPv4."""
        entities = pa.concat_arrays([pa.array([], pa.string()), *(part.entities for part in parts)])
        values: list[Addresses] = [part.addresses for part in parts]
        return cls(entities, np.concatenate(values) if values else np.zeros(0, dtype=IPV4.dtype))


@dataclass(frozen=True, slots=True)
class Fault:
    """One row that cannot be read."""

    position: int
    """Its line in the text, or its index in a request; counted from 1 for lines, from 0 for instances."""
    content: str
    reason: str


class MalformedRecords(UserError):
    """Some rows cannot be read; ``faults`` holds each, in order."""

    def __init__(self, faults: list[Fault], unit: str, cut: bool = False) -> None:
        """With whether there may be more, which nobody has looked for."""
        self.faults = faults
        self.unit = unit
        shown = [f"{unit} {f.position}: {f.reason}, in {f.content!r}" for f in faults[:_LISTED]]
        more = f"; and {'at least ' * cut}{len(faults) - _LISTED:,} more" if len(faults) > _LISTED else ""
        super().__init__("; ".join(shown) + more)


class Salvaged(NamedTuple):
    """What n rows hold, some of which cannot be read."""

    records: Records
    """Of the rows that can be, in order."""
    readable: npt.NDArray[np.bool_]
    """Which these are: bool [n]."""
    faults: list[Fault]
    """Of the others, in order."""

    @classmethod
    def whole(cls, records: Records) -> "Salvaged":
        """Of rows that can all be read."""
        return cls(records, np.ones(len(records), dtype=np.bool_), [])

    @classmethod
    def concat(cls, parts: Sequence["Salvaged"]) -> "Salvaged":
        """All of one or more parts, in order."""
        return cls(
            Records.concat([part.records for part in parts]),
            np.concatenate([part.readable for part in parts]),
            [fault for part in parts for fault in part.faults],
        )

    def faults_by_row(self) -> dict[int, Fault]:
        """The faults by the index of their rows."""
        return dict(zip(np.flatnonzero(~self.readable).tolist(), self.faults, strict=True))


class Text(Protocol):
    """Bytes in order, as an open file gives them."""

    def read(self, size: int, /) -> bytes:
        """The next ``size`` bytes; fewer at the end."""


def parse_csv(data: bytes, family: Family = IPV4, first_line: int = 1) -> Records:
    """Read the text of a CSV file, or whole lines of one from ``first_line`` on. Raises MalformedRecords."""
    records, _, faults = salvage_csv(data, family, first_line)
    if faults:
        raise MalformedRecords(faults, unit="line")
    return records


def salvage_csv(data: bytes, family: Family = IPV4, first_line: int = 1, most: int | None = None) -> Salvaged:
    """What can be read of such text. Blank lines are no rows.

    It ends, somewhere, once there are more than ``most`` faults, each of which takes time and memory.
    """
    records = _parse_faultless(data, family)
    if records is not None:
        return Salvaged.whole(records)
    parts: list[Salvaged] = []
    found = 0
    for piece in line_blocks(io.BytesIO(data), "", _PIECE, first_line):  # a faulty row makes its piece slow, not all
        records = _parse_faultless(piece.text, family)
        if records is None:
            parts.append(_parse_lines(piece.text, family, piece.first_line))
        else:
            parts.append(Salvaged.whole(records))
        found += len(parts[-1].faults)
        if most is not None and found > most:
            break
    return Salvaged.concat(parts)


def salvage_hashed(
    data: bytes, family: Family = IPV4, first_line: int = 1, most: int | None = None
) -> tuple[Pairs, dict[int, Fault]]:
    """`salvage_csv` where the entities' hashes are all that is wanted: the pairs, and the faults by their rows.

    The native kernel reads text of clean lines. All other text is for the exact reader.
    """
    pairs = reader.read_lines(data) if family is IPV4 else None
    if pairs is not None:
        return Pairs(*pairs), {}
    salvaged = salvage_csv(data, family, first_line, most)
    return salvaged.records.hashed(), salvaged.faults_by_row()


def parse_stream(
    stream: Text, name: str, family: Family = IPV4, block_size: int = BLOCK_SIZE
) -> Iterator[tuple[bytes, Records]]:
    """Read a CSV stream block by block: whole lines, about ``block_size`` bytes of them, and their records.

    Raises UserError that begins with the stream's ``name``, at the first block that holds a row that cannot be read.
    """
    for block in line_blocks(stream, name, block_size):
        yield block.text, block.parse(family)


def hash_stream(
    stream: Text, name: str, family: Family = IPV4, block_size: int = BLOCK_SIZE
) -> Iterator[tuple[bytes, Pairs]]:
    """`parse_stream` with the pairs as a model knows them."""
    for block in line_blocks(stream, name, block_size):
        pairs, faults = block.salvage(family)
        if faults:
            raise block.error(faults, family)
        yield block.text, pairs


def demand(family: Family) -> str:
    """What is asked of a line, in a sentence."""
    return f"Each line must be an entity and an {family.noun}."


@dataclass(frozen=True)
class Block:
    """Whole lines of a CSV stream."""

    name: str
    """The stream's."""
    first_line: int
    """The number of the first line, from 1."""
    text: bytes

    def parse(self, family: Family) -> Records:
        """Its records. Raises UserError that begins with the stream's name where a row cannot be read."""
        records, _, faults = salvage_csv(self.text, family, self.first_line)
        if faults:
            raise self.error(faults, family)
        return records

    def salvage(self, family: Family) -> tuple[Pairs, list[Fault]]:
        """The pairs that can be read, as a model knows them; and what is wrong with the other rows."""
        pairs, faults = salvage_hashed(self.text, family, self.first_line)
        return pairs, list(faults.values())

    def error(self, faults: list[Fault], family: Family) -> UserError:
        """What is wrong with its rows, and what is asked of them."""
        return UserError(f"{self.name}, {MalformedRecords(faults, unit='line')}. {demand(family)}")


def line_blocks(stream: Text, name: str, size: int = BLOCK_SIZE, first_line: int = 1) -> Iterator[Block]:
    """Cut a stream into blocks of whole lines, about ``size`` bytes each."""
    number, rest = first_line, b""
    while chunk := stream.read(size):
        end = chunk.rfind(b"\n") + 1
        if not end:  # not a single line end: one very long line goes on
            rest += chunk
            continue
        block = Block(name, number, b"".join((rest, memoryview(chunk)[:end])))
        rest = chunk[end:]
        yield block
        number += int(np.count_nonzero(np.frombuffer(block.text, np.uint8) == _LINE_FEED))  # bytes.count takes long
    if rest:
        yield Block(name, number, rest)


def record_lines(data: bytes, first_line: int = 1) -> Iterator[tuple[int, bytes]]:
    """The lines that hold a record, with their numbers: blank ones and a byte order mark are left out.

    A carriage return ends a line, too, but editors count line feeds.
    """
    for number, text in enumerate(data.removeprefix(_BOM).split(b"\n"), start=first_line):
        for line in text.splitlines():
            if line.strip():
                yield number, line


def append_scores(data: bytes, scores: npt.NDArray[np.float32]) -> bytes | memoryview:
    """The lines that hold a record, each with a comma and its score behind it: of n lines n scores."""
    scored = scoring.append_scores(data, scores)
    if scored is not None:
        return scored
    lines = (line for _, line in record_lines(data))
    return b"".join(b"%s,%.9g\n" % pair for pair in zip(lines, scores.tolist(), strict=True))


def explain(text: str, family: Family, before: int) -> str:
    """What is wrong with an address; in general terms if more were explained ``before`` than are ever listed."""
    if before >= _EXPLAINED:
        return f"not an {family.noun}"
    return addresses.explain(text[:_SHOWN], family)  # what is longer than an address stays so


def shown(value: object) -> str:
    """A value as an error quotes it: brief, however long or deeply nested it is."""
    return _brief.repr(value)[:_SHOWN]


def _parse_faultless(data: bytes, family: Family) -> Records | None:
    """Read whole lines at once; None where there may be a fault among them."""
    if not data.strip():
        return Records(pa.array([], pa.string()), np.zeros(0, dtype=family.dtype))
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            arrow_csv.ReadOptions(column_names=["entity", "ip"], use_threads=False, block_size=len(data) + 1),
            arrow_csv.ParseOptions(newlines_in_values=False),
            arrow_csv.ConvertOptions(
                column_types={"entity": pa.string(), "ip": pa.string()}, strings_can_be_null=False, check_utf8=True
            ),
        )
    except pa.ArrowInvalid:
        return None
    entities, texts = (single_chunk(table.column(name)) for name in ("entity", "ip"))
    if b" " in data or b"\t" in data:
        texts = pc.utf8_trim(texts, " \t")
    values, valid = addresses.parse(texts, family)
    line_break_inside_quotes = b'"' in data and len(entities) != sum(1 for line in data.splitlines() if line)
    if line_break_inside_quotes or not valid.all() or pc.any(pc.equal(entities, "")).as_py():
        return None
    return Records(entities, values)


def _parse_lines(data: bytes, family: Family, first_line: int) -> Salvaged:
    """Read line by line: slower, and able to say what is wrong with which line."""
    csv.field_size_limit(_LONGEST_FIELD)
    entities: list[str] = []
    texts: list[str] = []
    reasons: dict[int, str] = {}
    lines = list(record_lines(data, first_line))
    for i, (_, line) in enumerate(lines):
        entity, text = "", ""
        try:
            entity, text = _split_line(line, family)
        except ValueError as error:
            reasons[i] = str(error)
        entities.append(entity)
        texts.append(text)
    values, valid = addresses.parse(pa.array(texts, pa.string()), family)
    faults = []
    explained = 0
    for i in np.flatnonzero(~valid).tolist():
        number, line = lines[i]
        if i not in reasons:
            reasons[i] = explain(texts[i], family, explained)
            explained += 1
        faults.append(Fault(number, line.decode(errors="replace")[:_SHOWN], reasons[i]))
    names = pa.array([entity for entity, ok in zip(entities, valid, strict=True) if ok], pa.string())
    return Salvaged(Records(names, values[valid]), valid, faults)


def _split_line(line: bytes, family: Family) -> tuple[str, str]:
    """The entity and the text of the address. Raises ValueError with the reason."""
    try:
        decoded = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None
    (fields,) = csv.reader([decoded])
    if len(fields) != 2:
        if decoded.count('"') % 2:
            raise ValueError("a quote is not closed on its line")
        raise ValueError(f"expected 2 columns (entity, {family.noun}), found {len(fields)}")
    if not fields[0]:
        raise ValueError("the entity is empty")
    return fields[0], fields[1].strip(" \t")


def single_chunk(column: pa.ChunkedArray) -> pa.StringArray:
    """A column in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
