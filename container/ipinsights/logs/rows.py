"""What a row of a log is: a log-in, or one that is dropped, malformed, or about something else."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from ipinsights.data.addresses import IPV6, without_port
from ipinsights.data.malformed import Kind, of_address


class LogIn(NamedTuple):
    """An event of an entity at an address, as the log names them."""

    entity: str
    address: str
    time: int | None
    """Seconds since 1970 began, in UTC; None if the log tells no time."""


class Dropped(NamedTuple):
    """A row that the reader understood and that is no log-in to learn from."""

    reason: str
    """What such rows are."""
    advice: str = ""
    """What to do if there is nothing else in a log, in one or more sentences."""


class Malformed(NamedTuple):
    """A row that should be a log-in, or tell that it is none, and cannot be read."""

    reason: str


class Other(NamedTuple):
    """A row about something else."""


OTHER = Other()
Outcome: TypeAlias = LogIn | Dropped | Malformed | Other


Row: TypeAlias = tuple[int, Any, Outcome]
"""The number of a row, which is its line or its place in a table, from 1; its content, to show it; and what it is."""

FAILED = Dropped("failed log-ins", "Nobody logged in successfully: give a log that covers more time.")
NO_ENTITY = Dropped("rows without an entity")
LOOPBACK = Dropped(
    "log-ins from the machine itself (127.0.0.1 or ::1)",
    "If the log-ins came through a proxy on the same machine, log the addresses of the clients: for access logs, see "
    "--forwarded.",
)
_HERE = ("127.0.0.1", "::1")
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PLAIN = re.compile(rf"(?!127\.0\.0\.1$|0\.0\.0\.0$){_OCTET}(?:\.{_OCTET}){{3}}")
"""Nearly all addresses: there is nothing to change in them, and ``ipaddress`` takes ten times as long."""
_UNKNOWN = {
    Kind.EMPTY: "",
    Kind.PLACEHOLDER: "",
    Kind.SERVICE: "",
    Kind.ZONE: "",
    Kind.HOST_NAME: "Let the server log addresses: UseDNS no for sshd, HostnameLookups Off for Apache.",
}
"""What other programs write on purpose where they know no address that another host could use, and what to do."""


@lru_cache(1 << 16)
def canonical(address: str) -> str | Dropped | Malformed:
    """An address in the form in which it is written, or what else it is.

    A port is removed, ``::ffff:a.b.c.d`` becomes a.b.c.d, and IPv6 has the short form of RFC 5952.
    """
    if _PLAIN.fullmatch(address):
        return address
    try:
        read = ipaddress.ip_address(without_port(address) or address)
    except ValueError:
        kind, reason = of_address(address, IPV6, 0)
        return Dropped(f"rows {kind.rows}", _UNKNOWN[kind]) if kind in _UNKNOWN else Malformed(reason)
    if isinstance(read, ipaddress.IPv6Address):
        if read.scope_id is not None:
            return Dropped(f"rows {Kind.ZONE.rows}")
        read = read.ipv4_mapped or read
    short = str(read)
    if short in _HERE:
        return LOOPBACK
    return Dropped(f"rows {Kind.PLACEHOLDER.rows}") if read.is_unspecified else short


_QUOTED = re.compile('[",]|^\ufeff')
_BREAK = re.compile(r"[\r\n]")


def field(entity: str) -> str | Dropped | Malformed:
    """An entity as a field of CSV, in quotes where RFC 4180 wants them. A line of CSV is a log-in: it cannot break."""
    if not entity:
        return NO_ENTITY
    if _BREAK.search(entity):
        return Malformed("the entity has a line break in it")
    try:
        entity.encode()
    except UnicodeEncodeError:
        return Malformed("the entity is not in UTF-8")
    return '"' + entity.replace('"', '""') + '"' if _QUOTED.search(entity) else entity


def at(record: dict[str, Any], path: str) -> Any:
    """What a record holds at names with dots between them, such as ``client.ip``; None if there is nothing."""
    if path in record:
        return record[path]
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def judged(rows: Iterator[tuple[int, Any]], judge: Callable[[Any], Outcome]) -> Iterator[Row]:
    """Rows with what ``judge`` says of each. It may raise ValueError for a malformed one."""
    for number, content in rows:
        try:
            outcome = judge(content)
        except ValueError as error:
            outcome = Malformed(str(error))
        yield number, content, outcome
