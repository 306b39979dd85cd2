"""A log's text, plain or gzip, in UTF-8 or UTF-16, as lines, as JSON records, or as rows of CSV.

A few megabytes of it are in memory at a time. A JSON document may be a record, a list of records, or an object that
holds such a list ({"Records": [...]} of CloudTrail, {"value": [...]} of Microsoft Graph), and any number of documents
may follow one another, as in JSON Lines. So records are read one by one wherever they are.
"""

import codecs
import csv
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ipinsights.data.malformed import LONGEST_LINE
from ipinsights.data.sources import Stream, stream
from ipinsights.errors import refusals

STANDARD_INPUT = "-"
"""How standard input is named in place of a path."""
_BLOCK = 1 << 22
_LONGEST_FIELD = 1 << 17
"""Bytes of a field of CSV: what an unclosed quote can take with it."""
_HEAD, _LINES, _RECORDS = 1 << 16, 50, 5
"""Characters, lines and records of a beginning by which a format is found."""

_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_SCALAR = rf'(?:{_STRING}|[^\s"{{}}\[\],:]+)'
_ENVELOPE = re.compile(rf'\{{(?:\s*{_STRING}\s*:\s*{_SCALAR}\s*,)*\s*"(?:Records|records|value)"\s*:\s*\[', re.DOTALL)
_BETWEEN = re.compile(rf"(?:[\s,\[\]}}\ufeff]|{_STRING}\s*:\s*{_SCALAR}(?=[\s,}}]))*", re.DOTALL)
"""What stands between records: the ends of a document, what an object says behind its list, and the next beginning."""
_decode = json.JSONDecoder().raw_decode


class Unreadable(NamedTuple):
    """In place of a record: text that is not JSON or not CSV."""

    text: str
    reason: str


class Text:
    """The text of a file or of standard input, to be read once. A context manager."""

    def __init__(self, path: Path | None, progress: Callable[[int], object] = lambda _: None) -> None:
        """Open a file; None is standard input. ``progress`` is called with bytes read. Raises UserError."""
        self.path = path
        self._stream = stream(path) if path else Stream(FileIO(0, closefd=False), "standard input")
        self.name = self._stream.name
        with refusals("read", self.name):
            status = path.stat() if path else os.fstat(0)
        self.modified = status.st_mtime if stat.S_ISREG(status.st_mode) else time.time()
        """When it was last changed, in seconds since 1970."""
        self._progress, self._told = progress, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, traceback)

    @cached_property
    def first(self) -> bytes:
        """The first bytes."""
        return self._read()

    @cached_property
    def head(self) -> str:
        """The beginning, without a last line that is cut, unless that is all."""
        text = next(self._decoded([self.first[: 4 * _HEAD]]), "")[:_HEAD]
        return text.rpartition("\n")[0] or text if len(self.first) > len(text) else text

    def head_lines(self) -> list[str]:
        """The first lines that are not blank."""
        return [line for line in self.head.splitlines() if line.strip()][:_LINES]

    @cached_property
    def head_records(self) -> list[dict[str, Any]]:
        """The first JSON objects."""
        if not self.head.lstrip("\ufeff \r\n\t").startswith(("{", "[")):
            return []
        found: list[dict[str, Any]] = []
        for _, record in _records(self._decoded([self.first])):
            if isinstance(record, dict):
                found.append(record)
            if isinstance(record, Unreadable) or len(found) == _RECORDS:
                break
        return found

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines and their numbers. Of one that is longer than LONGEST_LINE, the beginning."""
        number, rest = 1, ""
        for text in self._decoded(self._blocks()):
            joined = rest + text
            parts = (joined.replace("\r\n", "\n") if "\r" in joined else joined).split("\n")
            rest = parts.pop()[:LONGEST_LINE]
            yield from enumerate(parts, number)
            number += len(parts)
        if rest:
            yield number, rest

    def records(self) -> Iterator[tuple[int, Any]]:
        """The JSON values and the lines in which they begin; `Unreadable` for what is not JSON."""
        return _records(self._decoded(self._blocks()))

    def rows(self, delimiter: str) -> Iterator[tuple[int, list[str] | Unreadable]]:
        """The rows of CSV and the lines in which they begin. Blank lines are no rows."""
        csv.field_size_limit(_LONGEST_FIELD)  # it is the process's, and others set it, too
        reader = csv.reader((f"{line}\n" for _, line in self.lines()), delimiter=delimiter)
        number = 1
        while True:
            try:
                for row in reader:
                    if row:
                        yield number, row
                    number = reader.line_num + 1
            except csv.Error as error:
                yield number, Unreadable("", f"not CSV: {error}")
                number = reader.line_num + 1
            else:
                return

    def _read(self) -> bytes:
        block = self._stream.read(_BLOCK)
        self._progress(self._stream.taken - self._told)
        self._told = self._stream.taken
        return block

    def _blocks(self) -> Iterator[bytes]:
        yield self.first
        self.__dict__.pop("first")  # it is read once, so it need not stay
        while block := self._read():
            yield block

    def _decoded(self, blocks: Iterable[bytes]) -> Iterator[str]:
        decoder: codecs.IncrementalDecoder | None = None
        for block in blocks:
            if decoder is None:
                wide = block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows PowerShell writes
                decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")(
                    "replace" if wide else "surrogateescape"
                )
            yield decoder.decode(block)


def _records(blocks: Iterator[str]) -> Iterator[tuple[int, Any]]:
    text, at, line, begun = "", 0, 1, False
    more = True
    while True:
        while more and len(text) - at < LONGEST_LINE:  # so a record that cannot be read is not one that is cut
            block = next(blocks, None)
            more = block is not None
            text, at = text[at:] + (block or ""), 0
        between = _BETWEEN.match(text, at)
        start = between.end() if between else at
        line += text.count("\n", at, start)
        if start >= len(text):
            at = start
            if not more:
                return
            continue
        if not begun or "}" in text[at:start]:
            begun = True
            if envelope := _ENVELOPE.match(text, start):
                line += text.count("\n", start, envelope.end())
                at = envelope.end()
                continue
        try:
            record, at = _decode(text, start)
        except (ValueError, RecursionError) as error:
            at = text.find("\n", start) + 1 or len(text)
            reason = "too deep" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
            record = Unreadable(text[start:at].strip(), f"not JSON: {reason}")
        yield line, record
        line += text.count("\n", start, at)
