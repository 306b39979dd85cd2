"""Reads CSV of training files and requests, two columns (entity, IP address) without a header, into columns.

A third column is accepted if it is a time (`times`). Only what looks at single log-ins uses it: training does not.

RFC 4180 quotes are accepted. One record is one line, so a quoted field cannot hold a line break. (So line numbers in
errors are correct, and a large file can be cut at any line end.) Text behind a closing quote is malformed: what was
meant cannot be known, for example if backslashes escape quotes. CRLF, blank lines and blanks around the address are
accepted, and so is a byte order mark at the start of any line, where joined files have it. An entity is used unchanged:
``NA`` and ``00123`` are names. A line of more than LONGEST_LINE bytes is malformed, so that a file without line ends
takes time in proportion to its size, and little memory.

Arrow reads the text. If only the hash of an entity is needed, as in training, the native kernel reads blocks of plain
lines instead, and Arrow reads all other blocks.
"""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ipinsights.data import addresses, times
from ipinsights.data.addresses import IPV4, Addresses, Family
from ipinsights.data.entities import hash_names
from ipinsights.data.malformed import LONGEST_LINE, SHOWN, Fault, Kind, MalformedRecords, of_address
from ipinsights.data.times import Times
from ipinsights.errors import UserError
from ipinsights.native import reader, scoring
from ipinsights.native.reader import Digests

BLOCK_SIZE = 1 << 22
"""Bytes read at a time. The rows of entities depend on it, because each block's entities claim rows together."""

_PIECE = 1 << 16
"""Bytes of text around a faulty row that the slow, exact reader reads."""
_LONGEST_FIELD = (1 << 31) - 1
_BOM = b"\xef\xbb\xbf"
_MARKS = re.compile(rb"(?<![^\r\n])(?:\xef\xbb\xbf)+")
"""Byte order marks at the start of a line."""
_LINE_FEED, _RETURN, _QUOTE = b'\n\r"'
_MAY_OPEN = np.isin(np.arange(256), list(b",\r\n"))
"""The bytes behind which a quote opens a field."""
_MAY_FOLLOW = np.isin(np.arange(256), list(b',"\r\n'))
"""The bytes that may stand behind a quote that ends a field or is the first of two."""


class Pairs(NamedTuple):
    """n pairs in the form that a model uses."""

    digests: Digests
    """`entities.hash_names` of the entities: uint64 [n]."""
    addresses: Addresses
    """[n]"""


@dataclass(frozen=True)
class Records:
    """n (entity, address) pairs in the order of the input."""

    entities: pa.StringArray
    """The entities' names, [n]."""
    addresses: Addresses
    """The addresses, all of one family: uint32 or uint64 [n]."""
    times: Times | None = None
    """When each was observed, [n]; None if no row has a time."""

    def __len__(self) -> int:
        return len(self.addresses)

    def hashed(self) -> Pairs:
        """The pairs in the form that a model uses."""
        return Pairs(hash_names(self.entities), self.addresses)

    @classmethod
    def concat(cls, parts: Sequence["Records"]) -> "Records":
        """All pairs of the parts, which are of one family, in order. Without parts, no pairs of IPv4."""
        entities = pa.concat_arrays([pa.array([], pa.string()), *(part.entities for part in parts)])
        values: list[Addresses] = [part.addresses for part in parts]
        timed = None
        if any(part.times is not None for part in parts):
            none = [np.full(len(part), "NaT", dtype="datetime64[s]") for part in parts]
            timed = np.concatenate(
                [n if part.times is None else part.times for part, n in zip(parts, none, strict=True)]
            )
        return cls(entities, np.concatenate(values) if values else np.zeros(0, dtype=IPV4.dtype), timed)


@dataclass(frozen=True, slots=True)
class Removed:
    """How much was removed from rows to read them."""

    marks: int = 0
    """Byte order marks at the starts of lines."""
    ports: int = 0
    """Ports behind addresses."""
    mapped: int = 0
    """``::ffff:`` before addresses where IPv4 is asked for."""

    def __add__(self, other: "Removed") -> "Removed":
        return Removed(self.marks + other.marks, self.ports + other.ports, self.mapped + other.mapped)


class Salvaged(NamedTuple):
    """The content of n rows, of which some may be malformed."""

    records: Records
    """The readable rows, in order."""
    readable: npt.NDArray[np.bool_]
    """Which rows are readable: bool [n]."""
    faults: list[Fault]
    """The faults of the other rows, in order."""
    removed: Removed = Removed()

    @classmethod
    def whole(cls, records: Records, removed: Removed = Removed()) -> "Salvaged":
        """For rows that are all readable."""
        return cls(records, np.ones(len(records), dtype=np.bool_), [], removed)

    @classmethod
    def concat(cls, parts: Sequence["Salvaged"]) -> "Salvaged":
        """The content of one or more parts, in order."""
        return cls(
            Records.concat([part.records for part in parts]),
            np.concatenate([part.readable for part in parts]),
            [fault for part in parts for fault in part.faults],
            sum((part.removed for part in parts), Removed()),
        )

    def faults_by_row(self) -> dict[int, Fault]:
        """The faults by the index of their rows."""
        return dict(zip(np.flatnonzero(~self.readable).tolist(), self.faults, strict=True))


class Hashed(NamedTuple):
    """`Salvaged` with the pairs in the form that a model uses."""

    pairs: Pairs
    """Of the readable rows, in order."""
    faults: dict[int, Fault]
    """The faults of the other rows, by their index among all rows, in order."""
    removed: Removed


class Text(Protocol):
    """A source of bytes, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """The next ``size`` bytes; fewer at the end."""


def parse_csv(data: bytes, family: Family = IPV4, first_line: int = 1) -> Records:
    """Read the text of a CSV file, or complete lines of one from ``first_line`` on. Raises MalformedRecords."""
    salvaged = salvage_csv(data, family, first_line)
    if salvaged.faults:
        raise MalformedRecords(salvaged.faults, unit="line")
    return salvaged.records


def salvage_csv(data: bytes, family: Family = IPV4, first_line: int = 1, most: int | None = None) -> Salvaged:
    """The readable rows of such text, and the faults. Blank lines are no rows.

    Reading stops some time after more than ``most`` faults, because each takes time and memory.
    """
    data, marks = _without_marks(data)
    whole = _parse_faultless(data, family)
    if whole is None:
        parts: list[Salvaged] = []
        found = 0
        for piece in line_blocks(io.BytesIO(data), "", _PIECE, first_line):  # a faulty row slows down only its piece
            faultless = _parse_faultless(piece.text, family)
            parts.append(faultless or _parse_lines(piece.text, family, piece.first_line))
            found += len(parts[-1].faults)
            if most is not None and found > most:
                break
        whole = Salvaged.concat(parts)
    return whole._replace(removed=whole.removed + Removed(marks=marks))


def salvage_hashed(data: bytes, family: Family = IPV4, first_line: int = 1, most: int | None = None) -> Hashed:
    """`salvage_csv` if only the entities' hashes are needed.

    The native kernel reads text of clean lines. The exact reader reads all other text.
    """
    pairs = reader.read_lines(data) if family is IPV4 else None
    if pairs is not None:
        return Hashed(Pairs(*pairs), {}, Removed())
    salvaged = salvage_csv(data, family, first_line, most)
    return Hashed(salvaged.records.hashed(), salvaged.faults_by_row(), salvaged.removed)


def parse_stream(
    stream: Text, name: str, family: Family = IPV4, block_size: int = BLOCK_SIZE
) -> Iterator[tuple[bytes, Records]]:
    """Read a CSV stream block by block: complete lines of about ``block_size`` bytes, and their records.

    Raises UserError that begins with the stream's ``name``, at the first block with a malformed row.
    """
    for block in line_blocks(stream, name, block_size):
        yield block.text, block.parse(family)


def demand(family: Family) -> str:
    """The required form of a line, in a sentence."""
    return f"Each line must be an entity and an {family.noun}."


@dataclass(frozen=True)
class Block:
    """Complete lines of a CSV stream."""

    name: str
    """The stream's name."""
    first_line: int
    """The number of the first line, from 1."""
    text: bytes

    def parse(self, family: Family) -> Records:
        """Its records. Raises UserError that begins with the stream's name if a row is malformed."""
        salvaged = salvage_csv(self.text, family, self.first_line)
        if salvaged.faults:
            raise self.error(salvaged.faults, family)
        return salvaged.records

    def salvage(self, family: Family) -> Hashed:
        """The readable pairs in the form that a model uses, and the faults of the other rows."""
        return salvage_hashed(self.text, family, self.first_line)

    def error(self, faults: list[Fault], family: Family) -> UserError:
        """The error that reports the faults and the required form."""
        return UserError(f"{self.name}, {MalformedRecords(faults, unit='line')}. {demand(family)}")


def line_blocks(
    stream: Text, name: str, size: int = BLOCK_SIZE, first_line: int = 1, returns: bool = True
) -> Iterator[Block]:
    """Cut a stream into blocks of complete lines, about ``size`` bytes each.

    What is left of a line that is too long is still too long. ``returns``: whether a carriage return ends a line, too.
    """
    number, rest = first_line, b""
    while chunk := stream.read(size):
        end = chunk.rfind(b"\n") + 1
        if not end and returns:
            end = chunk.rfind(b"\r") + 1
        if not end:  # a very long line continues
            rest += chunk
            if len(rest) > LONGEST_LINE:
                rest = _cut(rest)
            continue
        block = Block(name, number, b"".join((rest, memoryview(chunk)[:end])))
        rest = chunk[end:]
        yield block
        number += int(np.count_nonzero(np.frombuffer(block.text, np.uint8) == _LINE_FEED))  # bytes.count is slow
    if rest:
        yield Block(name, number, rest)


def record_lines(data: bytes, first_line: int = 1) -> Iterator[tuple[int, bytes]]:
    """The lines that hold a record, with their numbers, without blank lines and byte order marks at their starts.

    A carriage return also ends a line, but the numbers count line feeds, as editors do.
    """
    for number, text in enumerate(_without_marks(data)[0].split(b"\n"), start=first_line):
        for line in text.splitlines():
            if line.strip():
                yield number, line


def append_scores(data: bytes, scores: npt.NDArray[np.float32]) -> bytes | memoryview:
    """The n lines that hold a record, each with a comma and its score (of n) appended."""
    scored = scoring.append_scores(data, scores)
    if scored is not None:
        return scored
    lines = (line for _, line in record_lines(data))
    return b"".join(b"%s,%.9g\n" % pair for pair in zip(lines, scores.tolist(), strict=True))


def _without_marks(data: bytes) -> tuple[bytes, int]:
    """Lines without the byte order marks at their starts, and the number of these."""
    if _BOM not in data:
        return data, 0
    without = _MARKS.sub(b"", data)
    return without, (len(data) - len(without)) // len(_BOM)


def _cut(line: bytes) -> bytes:
    """The beginning of a line that is too long, and bytes that keep it so; a blank one stays blank."""
    return line[: 4 * SHOWN] + b"." * LONGEST_LINE if line.strip() else line[: LONGEST_LINE + 1]


def _has_long_line(data: bytes) -> bool:
    """Whether a line has more than LONGEST_LINE bytes; a carriage return ends a line, too.

    From the start of a line, the search goes to the last line end that is near enough, so it sees few bytes.
    """
    start = 0
    while len(data) - start > LONGEST_LINE:
        end = start + LONGEST_LINE + 1
        at = data.rfind(b"\n", start, end)
        start = (at if at >= 0 else data.rfind(b"\r", start, end)) + 1
        if not start:
            return True
    return False


def _is_well_quoted(text: npt.NDArray[np.uint8]) -> bool:
    """Whether each quote in some lines opens a field, ends one or is one of two within; False if that is unsure.

    If all quotes before are such, those of even index open a field or go on with it, and those of odd index end it or
    are the first of two.
    """
    at = np.flatnonzero(text == _QUOTE)
    opening, ending = at[0::2], at[1::2]
    if len(opening) != len(ending):
        return False
    starts = _MAY_OPEN[text[opening - 1]]
    if opening[0] == 0:  # there is no byte before
        starts[0] = True
    starts[1:] |= opening[1:] - ending[:-1] == 1
    if ending[-1] == len(text) - 1:  # there is none behind
        ending = ending[:-1]
    return bool(starts.all() and _MAY_FOLLOW[text[ending + 1]].all())


def _count_lines(text: npt.NDArray[np.uint8]) -> int:
    """The lines that are not empty. A carriage return ends a line, too."""
    ends = (text == _LINE_FEED) | (text == _RETURN)
    return int(np.count_nonzero(ends[1:] & ~ends[:-1])) + int(not ends[-1])


def _parse_faultless(data: bytes, family: Family) -> Salvaged | None:
    """Read all lines at once; None if one may be malformed."""
    if not data.strip():
        return Salvaged.whole(Records(pa.array([], pa.string()), np.zeros(0, dtype=family.dtype)))
    if _has_long_line(data):
        return None
    table = _table(data)
    if table is None:
        return None
    quoted = b'"' in data
    characters = np.frombuffer(data, dtype=np.uint8)
    if quoted and not _is_well_quoted(characters):
        return None
    entities, texts = (single_chunk(table.column(name)) for name in ("entity", "ip"))
    if b" " in data or b"\t" in data:
        texts = pc.utf8_trim(texts, " \t")
    values, valid, ports, mapped = addresses.read(texts, family)
    timed, are_times = times.read(single_chunk(table.column("time"))) if table.num_columns > 2 else (None, np.True_)
    line_break_inside_quotes = quoted and len(entities) != _count_lines(characters)
    faultless = valid.all() and are_times.all() and not pc.any(pc.equal(entities, "")).as_py()
    if line_break_inside_quotes or not faultless:
        return None
    return Salvaged.whole(Records(entities, values, timed), Removed(ports=ports, mapped=mapped))


def _table(data: bytes) -> pa.Table | None:
    """The columns of some lines, all of two fields or all of three; None for other lines."""
    for names in (["entity", "ip"], ["entity", "ip", "time"]):
        with contextlib.suppress(pa.ArrowInvalid):
            return arrow_csv.read_csv(
                pa.BufferReader(data),
                arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
                arrow_csv.ParseOptions(newlines_in_values=False),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=True
                ),
            )
    return None


def _parse_lines(data: bytes, family: Family, first_line: int) -> Salvaged:
    """Read line by line: slower, but it finds each malformed line and its fault."""
    csv.field_size_limit(_LONGEST_FIELD)
    entities: list[str] = []
    texts: list[str] = []
    moments: list[str | None] = []
    wrong: dict[int, tuple[Kind, str]] = {}
    lines = list(record_lines(data, first_line))
    for i, (_, line) in enumerate(lines):
        entity, text, moment = "", "", None
        try:
            entity, text, moment = _split_line(line, family)
        except _Wrong as error:
            wrong[i] = error.kind, str(error)
        entities.append(entity)
        texts.append(text)
        moments.append(moment)
    timed, are_times = times.read(pa.array(moments, pa.string()))
    for i in np.flatnonzero(~are_times).tolist():
        moment = moments[i]
        if moment is not None:
            wrong[i] = _too_many(["", texts[i], moment], family)
            texts[i] = ""
    values, valid, ports, mapped = addresses.read(pa.array(texts, pa.string()), family)
    faults = []
    explained = 0
    for i in np.flatnonzero(~valid).tolist():
        number, line = lines[i]
        if i not in wrong:
            wrong[i] = of_address(texts[i], family, explained)
            explained += 1
        kind, reason = wrong[i]
        faults.append(Fault(number, line[: 4 * SHOWN].decode(errors="replace")[:SHOWN], reason, kind))
    names = pa.array([entity for entity, ok in zip(entities, valid, strict=True) if ok], pa.string())
    when = timed[valid] if are_times.any() else None
    return Salvaged(Records(names, values[valid], when), valid, faults, Removed(ports=ports, mapped=mapped))


class _Wrong(ValueError):
    """A line is no pair. The text is the reason."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _split_line(line: bytes, family: Family) -> tuple[str, str, str | None]:
    """The entity and the texts of the address and of what may be a time, if there is a third. Raises _Wrong."""
    if len(line) > LONGEST_LINE:
        raise _Wrong(Kind.TOO_LONG, f"the line is longer than 1 MB ({LONGEST_LINE:,} bytes)")
    try:
        decoded = line.decode()
    except UnicodeDecodeError as error:
        raise _Wrong(Kind.ENCODING, f"not UTF-8 text (byte {error.start + 1})") from None
    try:
        (fields,) = csv.reader([decoded.rstrip(" \t")], strict=True)
    except csv.Error:
        reason = "text behind a closing quote: a quote within a quoted field must be written twice"
        if decoded.count('"') % 2:
            reason = "a quote is not closed on its line"
        raise _Wrong(Kind.QUOTES, reason) from None
    if len(fields) < 2:
        raise _Wrong(Kind.TOO_FEW, _expected(fields, family))
    if len(fields) > 3:
        raise _Wrong(*_too_many(fields, family))
    if not fields[0]:
        raise _Wrong(Kind.NO_ENTITY, "the entity is empty")
    entity, text, *others = fields
    return entity, text.strip(" \t"), others[0] if others else None


def _too_many(fields: Sequence[str], family: Family) -> tuple[Kind, str]:
    """The fault of a line with more fields than it may have."""
    reason = _expected(fields, family)
    if all(addresses.is_address(text.strip(" \t")) for text in fields[1:]):
        return Kind.SEVERAL, f"{reason}: several addresses"
    return Kind.TOO_MANY, reason


def _expected(fields: Sequence[str], family: Family) -> str:
    return f"expected 2 columns (entity, {family.noun}), found {len(fields)}"


def single_chunk(column: pa.ChunkedArray) -> pa.StringArray:
    """A column in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
