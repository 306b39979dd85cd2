"""Counts what the rows of logs are, and puts the log-ins into the form in which they are written."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ipinsights.data.malformed import brief_path, shown
from ipinsights.errors import UserError
from ipinsights.logs.options import Format
from ipinsights.logs.rows import OTHER, Dropped, LogIn, Other, Row, canonical
from ipinsights.logs.rows import field as csv_field
from ipinsights.logs.splitting import MINUTE
from ipinsights.logs.times import render

Key = TypeVar("Key")

_MOST_MALFORMED = 0.5
"""The share of a file's rows above which it is taken for one of another format."""


class Distinct:
    """Counts distinct texts by their hashes of 64 bits, so that one takes 8 bytes, and 24 for a moment."""

    _ROOM = 1 << 16

    def __init__(self) -> None:
        self._known = np.zeros(0, np.int64)
        self._new = array("q")

    def add(self, text: str) -> None:
        """Count a text, unless it was counted before."""
        self._new.append(hash(text))
        if len(self._new) >= max(self._ROOM, len(self._known)):
            self._merge()

    def __len__(self) -> int:
        self._merge()
        return len(self._known)

    def _merge(self) -> None:
        hashes = np.concatenate([self._known, np.frombuffer(self._new, np.int64)])
        self._known, self._new = hashes[:0], array("q")
        hashes.sort()  # in place: np.unique would take a copy
        first = np.ones(len(hashes), np.bool_)
        np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
        self._known = hashes[first]


@dataclass
class File:
    """What the rows of a file are."""

    name: str
    format: Format | None
    """None if the file is empty."""
    kept: int = 0
    dropped: int = 0
    malformed: int = 0
    other: int = 0
    first_malformed: str = ""


@dataclass
class Reason:
    """How many rows there are of a kind, and where the first is."""

    count: int = 0
    first: str = ""


@dataclass
class Count:
    """What the rows of all files are. It grows with the entities, the addresses and the minutes, not with the rows."""

    files: list[File] = field(default_factory=list)
    dropped: dict[Dropped, Reason] = field(default_factory=dict)
    malformed: dict[str, Reason] = field(default_factory=dict)
    entities: dict[str, str] = field(default_factory=dict)
    """The entities of the log-ins, and each as a field of CSV."""
    ipv4: Distinct = field(default_factory=Distinct)
    ipv6: Distinct = field(default_factory=Distinct)
    minutes: Counter[int] = field(default_factory=Counter)
    """The number of log-ins in each minute since 1970."""
    first: int | None = None
    """The earliest time of a log-in; None if they have no times."""
    last: int | None = None

    @property
    def kept(self) -> int:
        """The number of log-ins."""
        return sum(file.kept for file in self.files)

    def begin(self, name: str, format_: Format | None) -> File:
        """Begin with a file."""
        self.files.append(File(name, format_))
        return self.files[-1]

    def line(self, file: File, row: Row, prefix: str) -> str | None:
        """A line of CSV if a row is a log-in, else None. The entity has the ``prefix``. Raises UserError."""
        number, content, outcome = row
        if isinstance(outcome, LogIn):
            entity, text, time = outcome
            entity = prefix + entity if entity.strip() else ""
            csv = self.entities.get(entity) or csv_field(entity)
            address = canonical(text)
            if isinstance(csv, str) and isinstance(address, str):
                self.entities[entity] = csv
                (self.ipv6 if ":" in address else self.ipv4).add(address)
                if (time is None) != (self.first is None) and self.kept:
                    before, here = ("have none", "times") if self.first is None else ("have some", "no times")
                    raise UserError(f"{file.name} has {here}, and the files before {before}: prepare them apart")
                file.kept += 1
                if time is None:
                    return f"{csv},{address}\n"
                self.minutes[time // MINUTE] += 1
                if self.first is None or self.last is None:
                    self.first = self.last = time
                elif time < self.first:
                    self.first = time
                elif time > self.last:
                    self.last = time
                return f"{csv},{address},{render(time)}\n"
            outcome = csv if not isinstance(csv, str) else address if not isinstance(address, str) else OTHER
        if isinstance(outcome, Other):
            file.other += 1
        elif isinstance(outcome, Dropped):
            file.dropped += 1
            self._add(self.dropped, outcome, file, f"line {number}")
        else:
            file.malformed += 1
            described = f"line {number}: {outcome.reason}, in {shown(getattr(content, 'text', content))}"
            if file.malformed == 1:
                file.first_malformed = described
            self._add(self.malformed, outcome.reason.partition(":")[0], file, described)
        return None

    def end(self, file: File) -> None:
        """End with a file. Raises UserError if most of its rows are malformed."""
        rows = file.kept + file.dropped + file.malformed
        if file.format and file.malformed > _MOST_MALFORMED * rows:
            raise UserError(
                f"{file.name}: {file.malformed:,} of {rows:,} rows are malformed. The first is {file.first_malformed}. "
                f"It was read as {file.format.name} ({file.format.about}): name another format with --format, or "
                "correct the file"
            )

    @staticmethod
    def _add(reasons: dict[Key, Reason], key: Key, file: File, described: str) -> None:
        reason = reasons.get(key)
        if reason is None:
            reasons[key] = reason = Reason(first=f"{brief_path(file.name)}, {described}")
        reason.count += 1
