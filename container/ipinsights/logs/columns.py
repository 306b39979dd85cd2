"""Tables with named columns: CSV (separated by commas, semicolons or tabs), JSON Lines and Parquet.

Columns that are not named are found by common names. CSV without a header, as this package
writes log-ins, is understood by what its first line holds. A field within an object of JSON is named with dots:
``client.ip``. A row's time may be missing only if there is no column of times.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ipinsights.data.addresses import is_address, without_port
from ipinsights.errors import UserError, brief, refusals
from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import NO_ENTITY, LogIn, Malformed, Outcome, Row, judged
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
_SQUEEZED = re.compile(r"[^a-z0-9]")


def _knows(text: Text, options: Options) -> bool:
    named = any(name is not None for name in (options.entity, options.address, options.time))
    if text.first.startswith(_PARQUET):
        return True
    if text.head_records:
        return named or any(_found(_names(record), options) for record in text.head_records)
    rows = _head(text)
    if not rows or len(rows[0]) < 2:
        return False
    return (
        named
        or _found(rows[0], options) is not None
        or 2 * sum(any(_holds_address(cell) for cell in row) for row in rows) > len(rows)
    )


def _rows(text: Text, options: Options) -> Iterator[Row]:
    if text.first.startswith(_PARQUET):
        return _parquet(text, options)
    return _json(text, options) if text.head_records else _csv(text, options)


def _csv(text: Text, options: Options) -> Iterator[Row]:
    rows, head = text.rows(_separator(text)), _head(text)
    headless = bool(head) and any(_holds_address(cell) for cell in head[0])
    if headless:
        columns = _numbered(head[0], options, text.name)
    else:
        _, header = next(rows, (1, []))
        names = [name.strip().lstrip("\ufeff") for name in header] if isinstance(header, list) else []
        columns = [None if name is None else names.index(name) for name in _columns(names, options, text.name)]
    entity, address, time = columns
    last = max(place for place in columns if place is not None)

    def judge(row: list[str] | Unreadable) -> Outcome:
        if isinstance(row, Unreadable):
            return Malformed(row.reason)
        if len(row) <= last:
            return Malformed(f"{len(row)} columns, and column {last + 1} is needed")
        return _log_in(row[entity or 0], row[address or 0], None if time is None else row[time], options.clock)

    return judged(rows, judge)


def _json(text: Text, options: Options) -> Iterator[Row]:
    names = [*dict.fromkeys(name for record in text.head_records for name in _names(record))]
    columns = _columns(names, options, text.name)

    def judge(record: Any) -> Outcome:
        if not isinstance(record, dict):
            return Malformed(getattr(record, "reason", "not a JSON object"))
        entity, address, time = (None if name is None else _field(record, name) for name in columns)
        return _log_in(entity, address, time if columns[2] is None or time is not None else "", options.clock)

    return judged(text.records(), judge)


def _parquet(text: Text, options: Options) -> Iterator[Row]:
    if text.path is None:
        raise UserError("Parquet cannot be read from standard input: use a file")

    def judge(row: Sequence[Any]) -> Outcome:
        time = row[2] if len(row) > 2 else None
        return _log_in(row[0], row[1], "" if len(row) > 2 and time is None else time, options.clock)

    return judged(_table(text.path, options), judge)


def _table(path: Path, options: Options) -> Iterator[tuple[int, Sequence[Any]]]:
    """The rows of a Parquet file: entity, address and, if there is a column of it, time; with their numbers."""
    import pyarrow as pa  # slow to import, and only this format needs it
    from pyarrow import parquet

    number = 1
    with refusals("read", path):
        try:
            with parquet.ParquetFile(path) as file:
                names = [name for name in _columns(file.schema_arrow.names, options, str(path)) if name is not None]
                for batch in file.iter_batches(_BATCH, columns=names):
                    values = [_python_values(batch.column(name)) for name in names]
                    for row in zip(*values, strict=True):
                        yield number, row
                        number += 1
        except pa.ArrowException as error:
            raise UserError(f"{path} is not Parquet, or damaged: {error}") from error


def _python_values(column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):  # of nanoseconds, Python has no times
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return list(column.to_pylist())


def _log_in(entity: Any, address: Any, time: Any, clock: Clock) -> Outcome:
    """A log-in of the values of a row. A time of None says that the table has none."""
    if entity is None or entity == "":
        return NO_ENTITY
    if not isinstance(entity, (str, int)) or not isinstance(address, (str, type(None))):
        return Malformed("its entity is no text, or its address is none")
    if isinstance(time, datetime):
        seconds: int | None = clock.moment(time)
    else:
        seconds = None if time is None else clock.cell(str(time))
    return LogIn(str(entity), (address or "").strip(), seconds)


def _columns(names: Sequence[str], options: Options, where: str) -> list[str | None]:
    """The columns of entities, of addresses and of times, None if there is none of these. Raises UserError."""
    found = _found(names, options)
    if found is None:
        listed = ", ".join(brief(name) for name in names[:30])
        raise UserError(
            f"{where}: the columns of entities and of IP addresses are not known. It has {listed}. Name them: --entity "
            "COLUMN --address COLUMN, and --time COLUMN if there is one of times"
        )
    return found


def _found(names: Sequence[str], options: Options) -> list[str | None] | None:
    squeezed: dict[str, str] = {}
    for name in names:
        squeezed.setdefault(_SQUEEZED.sub("", name.lower()), name)
    found: list[str | None] = []
    for given, known in ((options.entity, _ENTITY), (options.address, _ADDRESS), (options.time, _TIME)):
        if given is not None:
            found.append(given if given in names else None)
        else:
            found.append(next((squeezed[name] for name in known if name in squeezed), None))
    missing = None in found[:2] or (options.time is not None and found[2] is None)
    return None if missing else found


def _numbered(row: list[str], options: Options, where: str) -> list[int | None]:
    """The columns of CSV without a header, which are named by their numbers, if at all."""
    given = (options.entity, options.address, options.time)
    wrong = [name for name in given if name is not None and not (name.isdecimal() and 0 < int(name) <= len(row))]
    if wrong:
        raise UserError(
            f"{where} has no column {brief(wrong[0])}: its first line holds an IP address, so it has no header. "
            f"Give the numbers of columns, from 1 to {len(row)}"
        )
    taken = {int(name) - 1 for name in given if name}
    free = [place for place in range(len(row)) if place not in taken]
    address = next((place for place in free if _holds_address(row[place])), None)
    others = [place for place in free if place != address]
    time = next((place for place in others[options.entity is None :] if _is_time(row[place], options.clock)), None)
    found = [others[0] if others else None, address, time]
    places = [int(name) - 1 if name else place for name, place in zip(given, found, strict=True)]
    if None in places[:2]:
        raise UserError(f"{where} has no column of entities beside that of addresses: its first line is {brief(row)}")
    return places


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


def _field(record: dict[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


FORMAT = Format("columns", "CSV, JSON Lines or Parquet with named columns", _knows, _rows)
