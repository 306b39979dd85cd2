"""What format a text or a file has: those that can be read, and those that only look like something to convert.

Nothing that can be read as declared is judged by its looks. Only where no row of a beginning can be read, `recognise`
says what it looks like, and what to do.
"""

import csv
import re
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from ipinsights.data import addresses
from ipinsights.data.instances import JSON_LINES as JSON_LINES
from ipinsights.data.instances import features

CSV, PARQUET = "text/csv", "application/x-parquet"
"""The content types of log-ins, with JSON_LINES."""


class Look(NamedTuple):
    """What some text looks like."""

    name: str
    remedy: str
    """What to do, in a sentence."""
    binary: bool = False
    """Whether it has no lines, so that it makes no sense to count malformed ones."""

    def __str__(self) -> str:
        return f"looks like {self.name}. {self.remedy}"


_TWO_COLUMNS = "write CSV with two columns, the entity and the address"
_UNPACK = "Unpack it: only gzip is unpacked here."
_MAGIC: Sequence[tuple[bytes, str, str]] = (
    (b"PAR1", "Parquet", f"Declare the content type {PARQUET}, or {_TWO_COLUMNS}."),
    (b"Obj\x01", "Avro", f"Convert it: {_TWO_COLUMNS}."),
    (b"ORC", "ORC", f"Convert it: {_TWO_COLUMNS}."),
    (b"ARROW1", "an Arrow (Feather) file", f"Convert it: {_TWO_COLUMNS}."),
    (b"SQLite format 3\0", "an SQLite database", f"Convert it: {_TWO_COLUMNS}."),
    (b"\x0a\x23\xd7\xce", "RecordIO", f"Convert it: {_TWO_COLUMNS}."),
    (b"PK\x03\x04", "a zip archive or an Excel file", f"Unpack or convert it: {_TWO_COLUMNS}."),
    (b"\x1f\x8b", "gzip within gzip", "Unpack it once."),
    (b"\x28\xb5\x2f\xfd", "Zstandard", _UNPACK),
    (b"BZh", "bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "xz", _UNPACK),
    (b"\x04\x22\x4d\x18", "LZ4", _UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy", _UNPACK),
)
"""How files of a format begin, what it is, and what to do."""
_TAR, _TAR_AT = b"ustar", 257
_UTF_16 = b"\xff\xfe", b"\xfe\xff"
_SEPARATORS = (
    ("\t", "tab-separated text"),
    (";", "text separated by semicolons"),
    ("|", "text separated by |"),
    (None, "text separated by blanks"),
)
_FIRST_PART = re.compile(r"[,;|\s]")
_LINES, _BYTES, _MOST = 50, 1 << 16, 0.8
"""Lines and bytes that are looked at, and the share of the lines that must agree."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d.*|\d{1,2}[/.]\d{1,2}[/.]\d{4}.*|\d\d:\d\d(?::\d\d.*)?|1\d{9}(?:\d{3})?(?:\.\d+)?")


def recognise(text: bytes, declared: str = CSV) -> Look | None:
    """What a text looks like that cannot be read as the ``declared`` format; None if nothing is recognised."""
    return _binary(text) or _lines(text[:_BYTES], declared)


def is_tar(text: bytes) -> bool:
    """Whether a text is a tar archive. Its first header may look like a part of a readable row."""
    return text[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR and b"\0" in text[:_TAR_AT]


def _binary(text: bytes) -> Look | None:
    for magic, name, remedy in _MAGIC:
        if text.startswith(magic):
            return Look(name, remedy, binary=True)
    if is_tar(text):
        return Look("a tar archive", "Unpack it: a channel may hold folders with any number of files.", binary=True)
    halves = [text[first:1000:2].count(0) for first in range(2)]  # the letters of most names have one byte
    if text.startswith(_UTF_16) or max(halves) > 8 * (min(halves) + 1):
        return Look("UTF-16", "Write UTF-8.", binary=True)
    return None


def _lines(text: bytes, declared: str) -> Look | None:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    if len(lines) > 1 and len(text) == _BYTES:
        lines.pop()  # it may be cut
    lines = lines[:_LINES]
    if not lines:
        return None
    if lines[0].lstrip().startswith(("{", "[")):
        return None if declared == JSON_LINES else _json(lines[0])
    if lines[0].lstrip().startswith(("<?xml", "<html", "<!DOCTYPE")):
        return Look("XML or HTML", f"Convert it: {_TWO_COLUMNS}.")
    rows = list(csv.reader(lines))
    columns = len(rows[0])
    if columns > 2 and _most([len(row) == columns for row in rows]) and _holds_addresses(rows):
        return Look(f"CSV with {columns} columns", _about(rows, columns))
    if _holds_addresses([[row[0], _FIRST_PART.split(row[1].strip())[0]] for row in rows if len(row) == 2]):
        return Look("CSV", f"Declare the content type {CSV}.") if declared != CSV else None
    for separator, name in _SEPARATORS:
        if _holds_addresses([line.split(separator) for line in lines]):
            return Look(name, "Write commas between the columns.")
    return None


def _json(line: str) -> Look:
    try:
        instance = orjson.loads(line)
    except orjson.JSONDecodeError:
        return Look("a JSON document", f"Write one instance a line and declare {JSON_LINES}, or {_TWO_COLUMNS}.")
    if isinstance(instance, dict) and "instances" in instance:
        return Look("a JSON document", f"Write one instance a line and declare the content type {JSON_LINES}.")
    found = features(instance)
    if isinstance(found, list) and len(found) == 2:
        return Look("JSON Lines", f"Declare the content type {JSON_LINES}.")
    shape = '{"features": [entity, address]}'
    return Look("JSON Lines", f"Write {shape} a line and declare the content type {JSON_LINES}, or {_TWO_COLUMNS}.")


def _about(rows: list[list[str]], columns: int) -> str:
    """What to do about rows of more than two columns, of which some hold addresses."""
    parts = []
    for what, is_ in (("addresses", addresses.is_address), ("times", _is_time)):
        where = [i + 1 for i in range(columns) if _most([is_(row[i].strip()) for row in rows if len(row) > i])]
        if where:
            plural = "s" if len(where) > 1 else ""
            parts.append(f"column{plural} {' and '.join(map(str, where))} hold{'' if plural else 's'} {what}")
    form = "A row has two columns, the entity and the address. A third may only be a time such as 2026-01-02T03:04:05Z"
    return f"{form} ({', '.join(parts)})."


def _is_time(text: str) -> bool:
    return _TIME.fullmatch(text) is not None


def _holds_addresses(rows: list[list[str]]) -> bool:
    """Whether most rows have two columns or more, of which one is an address."""
    return _most([len(row) > 1 and any(addresses.is_address(cell.strip(' "')) for cell in row) for row in rows])


def _most(facts: Sequence[bool]) -> bool:
    return sum(facts) >= _MOST * len(facts) > 0
