"""Tables with named columns: CSV (separated by commas, semicolons or tabs), JSON Lines and Parquet.

Columns that are not named are found by common names. CSV without a header has the entity, the address and perhaps the
time in this order, as the log-ins that this package writes; otherwise its columns are named by their numbers. A field
within an object of JSON is named with dots: ``client.ip``. A row's time may be missing only if there is no column of
times.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ipinsights.data.addresses import is_address, without_port
from ipinsights.errors import UserError, brief, refusals
from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import NO_ENTITY, Dropped, LogIn, Malformed, Outcome, Row, at, judged
from ipinsights.logs.text import Text, Unreadable
from ipinsights.logs.times import Clock

_ENTITY = (
    *("entity", "user", "username", "userid", "userprincipalname", "upn", "account", "accountname", "login"),
    *("loginname", "principal", "principalid", "actor", "identity", "email", "useremail", "targetusername", "subject"),
    *("member", "customer", "customerid"),
)
_ADDRESS = (
    *("address", "ip", "ipaddress", "ipaddr", "ipv4", "clientip", "sourceip", "srcip", "remoteip", "userip"),
    *("callerip", "clientipaddress", "sourceipaddress", "remoteaddr", "remoteaddress", "clientaddress"),
    *("sourceaddress", "srcaddr", "cip"),
)
_TIME = (
    *("time", "timestamp", "datetime", "date", "eventtime", "logintime", "createdat", "created", "createddatetime"),
    *("creationtime", "published", "timecreated", "timegenerated", "loggedat", "occurredat", "ts", "dateutc", "when"),
)
"""Common names, in lower case and without what is no letter and no digit."""
_SEPARATORS = ",;\t"
_PARQUET, _BATCH = b"PAR1", 1 << 16
_LISTED = 30
"""Columns that an error lists."""
_SQUEEZED = re.compile(r"[^a-z0-9]")


class _Chosen(NamedTuple):
    """The columns that are read."""

    names: list[str]
    """Those of entity, address, time if there is one, and of conditions."""
    timed: bool


_Found: TypeAlias = tuple[str | None, str | None, str | None]
"""The columns of entities, of addresses and of times, as far as they are found."""


def _knows(text: Text, options: Options) -> bool:
    if text.first.startswith(_PARQUET):
        return True
    named = any((options.entity, options.address, options.time, options.where))
    if text.head_records:
        return named or any(None not in by_name(_names(record))[:2] for record in text.head_records)
    rows = _head(text)
    if not rows or len(rows[0]) < 2:
        return False
    addresses = sum(any(_holds_address(cell) for cell in row) for row in rows)
    return named or None not in by_name(rows[0])[:2] or 2 * addresses > len(rows)


def _rows(text: Text, options: Options) -> Iterator[Row]:
    if text.first.startswith(_PARQUET):
        return _parquet(text, options)
    return _json(text, options) if text.head_records else _csv(text, options)


def _csv(text: Text, options: Options) -> Iterator[Row]:
    rows, head = text.rows(_separator(text)), next(iter(_head(text)), [])
    if any(_holds_address(cell) for cell in head):
        names = [str(number) for number in range(1, len(head) + 1)]
        found = _by_place(head, options.clock)
        described = f"no header, since its first line holds an IP address, so they have the numbers 1 to {len(head)}"
    else:
        next(rows, None)
        names = [name.strip() for name in head]
        found, described = by_name(names), _listed(names)
    chosen = _choose(names, found, options, text.name, described)
    places = [names.index(name) for name in chosen.names]

    def judge(row: list[str] | Unreadable) -> Outcome:
        if isinstance(row, Unreadable):
            return Malformed(row.reason)
        if len(row) <= max(places):
            return Malformed(f"too few columns: {len(row)}, and column {max(places) + 1} is needed")
        return _outcome([row[place] for place in places], chosen, options)

    return judged(rows, judge)


def _json(text: Text, options: Options) -> Iterator[Row]:
    names = [*dict.fromkeys(name for record in text.head_records for name in _names(record))]
    chosen = _choose(names, by_name(names), options, text.name, _listed(names))

    def judge(record: Any) -> Outcome:
        if not isinstance(record, dict):
            return Malformed(getattr(record, "reason", "not a JSON object"))
        return _outcome([at(record, name) for name in chosen.names], chosen, options)

    return judged(text.records(), judge)


def _parquet(text: Text, options: Options) -> Iterator[Row]:
    try:
        from pyarrow import parquet  # slow to import, and only this format needs it
    except ImportError as error:
        raise UserError(f"cannot read {text.name}: this installation of pyarrow has no Parquet. Write CSV") from error
    if text.path is None:
        raise UserError("Parquet cannot be read from standard input: use a file")
    with _readable(text.path), parquet.ParquetFile(text.path) as file:
        names = file.schema_arrow.names
        chosen = _choose(names, by_name(names), options, text.name, _listed(names))
        rows = _table(file, chosen.names)
        yield from judged(enumerate(rows, 1), lambda row: _outcome(row, chosen, options))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    with refusals("read", path):
        try:
            yield
        except (pa.ArrowException, KeyError) as error:  # KeyError: two columns of a name, or an unknown time zone
            raise UserError(f"{path} is not Parquet, or damaged: {error}") from error


def _table(file: Any, names: list[str]) -> Iterator[Sequence[Any]]:
    """The rows of a Parquet file, of the named columns."""
    import pyarrow as pa

    for batch in file.iter_batches(_BATCH, columns=names):
        columns = []
        for name in names:
            column = batch.column(name)
            if pa.types.is_timestamp(column.type):  # of nanoseconds, Python has no times
                column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
            columns.append(column.to_pylist())
        yield from zip(*columns, strict=True)


def _outcome(values: Sequence[Any], chosen: _Chosen, options: Options) -> Outcome:
    """What a row is, by its values in the chosen columns."""
    entity, address, *rest = values
    for (column, wanted), value in zip(options.where, rest[chosen.timed :], strict=True):
        if str(value).casefold() != wanted.casefold():
            return Dropped(f"rows in which {column} is not {wanted}", "See --where.")
    if entity is None or entity == "":
        return NO_ENTITY
    if not isinstance(entity, (str, int)) or not isinstance(address, (str, type(None))):
        return Malformed("its entity is no text, or its address is none")
    time = None
    if chosen.timed:
        moment = rest[0]
        is_moment = isinstance(moment, datetime)
        time = options.clock.moment(moment) if is_moment else options.clock.cell("" if moment is None else str(moment))
    return LogIn(str(entity), (address or "").strip(), time)


def _choose(names: Sequence[str], found: _Found, options: Options, where: str, described: str) -> _Chosen:
    """The columns that are read: those that are named, and otherwise those that are found. Raises UserError."""
    given = (options.entity, options.address, options.time)
    entity, address, time = (name or default for name, default in zip(given, found, strict=True))
    conditions = [column for column, _ in options.where]
    wrong = [name for name in (*given, *conditions) if name is not None and name not in names]
    if wrong:
        raise UserError(f"{where} has no column {brief(wrong[0])}. Its columns have {described}")
    if entity is None or address is None:
        raise UserError(
            f"{where}: which of its columns hold entities and IP addresses is not known. They have {described}. Name "
            "them: --entity COLUMN --address COLUMN, and --time COLUMN if there is one of times"
        )
    return _Chosen([entity, address, *([] if time is None else [time]), *conditions], time is not None)


def _listed(names: Sequence[str]) -> str:
    return f"the names {', '.join(brief(name) for name in names[:_LISTED])}{', ...' * (len(names) > _LISTED)}"


def by_name(names: Sequence[str]) -> _Found:
    """The columns of entities, addresses and times, by the names that such columns usually have; None for none."""
    squeezed: dict[str, str] = {}
    for name in names:
        squeezed.setdefault(_SQUEEZED.sub("", name.lower()), name)
    entity, address, time = (
        next((squeezed[name] for name in known if name in squeezed), None) for known in (_ENTITY, _ADDRESS, _TIME)
    )
    return entity, address, time


def _by_place(row: list[str], clock: Clock) -> _Found:
    """The columns of CSV without a header, if they are those that this package writes."""
    timed = len(row) == 3 and _is_time(row[2], clock)
    known = (len(row) == 2 or timed) and not _holds_address(row[0]) and _holds_address(row[1])
    return ("1", "2", "3" if timed else None) if known else (None, None, None)


def _is_time(cell: str, clock: Clock) -> bool:
    try:
        clock.cell(cell)
    except ValueError:
        return False
    return True


def _head(text: Text) -> list[list[str]]:
    separator = _separator(text)
    try:
        return [row for row in csv.reader(text.head_lines(), delimiter=separator) if row]
    except csv.Error:
        return []


def _separator(text: Text) -> str:
    first = next(iter(text.head_lines()), "")
    return max(_SEPARATORS, key=first.count)


def _holds_address(cell: str) -> bool:
    cell = cell.strip()
    return is_address(without_port(cell) or cell)


def _names(record: dict[str, Any], before: str = "") -> list[str]:
    """The names of a record's fields and, with dots, of those in it."""
    names = []
    for name, value in record.items():
        names += _names(value, f"{before}{name}.") if isinstance(value, dict) and value else [f"{before}{name}"]
    return names


FORMAT = Format(
    *("columns", "CSV, JSON Lines or Parquet with named columns", _knows, _rows),
    uses=("entity", "address", "time", "where"),
)
