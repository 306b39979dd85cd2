"""Access logs of Apache and nginx, in the common or the combined format.

The entity is the user whom the server authenticated (``%u``, ``$remote_user``), the address is the client's. The log
may have the virtual host and its port before the address, as Debian's ``other_vhosts_access.log``. Quoted fields may
follow the user agent: the last is taken for X-Forwarded-For if the caller says so.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import Dropped, LogIn, Malformed, Outcome, Row
from ipinsights.logs.text import Text

_TEXT = r'[^"\\]*(?:\\.[^"\\]*)*'
_LINE = re.compile(
    r"(?:\S+:\d+ (?=[0-9a-fA-F.:]+ ))?"  # host:port
    r"(\S+) \S+ (.+?) \[(\d\d/[A-Za-z]{3}/\d{4}:\d\d:\d\d):(\d\d) ([+-]\d{4})\] "
    rf'"({_TEXT})" (\d{{3}}|-) (?:\d+|-)((?: "{_TEXT}")*)'
)
_FIELD = re.compile(rf'"({_TEXT})"')
_BEHIND_AGENT = 3
"""The least number of quoted fields if one follows those of the combined format."""
_ESCAPED = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))")

_MALFORMED = Malformed("not a line of an access log")
_NOT_FORWARDED = Malformed("no quoted field for X-Forwarded-For behind the user agent")
_NO_USER = Dropped(
    "requests without a user",
    "An access log names users only where the server itself authenticates them (HTTP authentication: %u in Apache, "
    "$remote_user in nginx). Where the application does, use its own log: one with a column of users and one of "
    "addresses (see --entity and --address).",
)
_OTHER_RESOURCE = Dropped(
    "requests for other resources", 'Give the method and the path, such as --resource "GET /login_success".'
)
_OTHER_STATUS = Dropped("requests with another status", "See --status.")
_REFUSED = Dropped("requests with a status of 400 or above", "Name the statuses of a log-in with --status.")


def _knows(text: Text, _: Options) -> bool:
    lines = text.head_lines()
    return 2 * sum(_LINE.match(line) is not None for line in lines) > len(lines)


def _rows(text: Text, options: Options) -> Iterator[Row]:
    wanted = _resource(options.resource) if options.resource else None
    statuses, forwarded, minute = options.status, options.forwarded, options.clock.minute

    def judge(line: str) -> Outcome:
        found = _LINE.match(line)
        if not found:
            return _MALFORMED
        client, user, time, second, offset, request, status, quoted = found.groups()
        if wanted and not wanted(request):
            return _OTHER_RESOURCE
        if statuses is not None:
            if status not in statuses:
                return _OTHER_STATUS
        elif status >= "400":
            return _REFUSED
        if user in ("-", '""'):
            return _NO_USER
        if forwarded:
            fields = _FIELD.findall(quoted)
            if len(fields) < _BEHIND_AGENT:
                return _NOT_FORWARDED
            client = _forwarded_for(fields[-1]) or client
        try:
            return LogIn(_plain(user) if "\\" in user else user, client, minute(time, offset) + int(second))
        except ValueError as error:
            return Malformed(str(error))

    for number, line in text.lines():  # not `judged`: this is the format of which logs are largest
        if line:
            yield number, line, judge(line)


def _resource(wanted: str) -> Callable[[str], bool]:
    """Whether a request line is for a resource: a path or a method and a path, with or without the query."""
    try:
        pattern = re.compile(wanted)
    except re.error:
        pattern = re.compile(re.escape(wanted))

    @lru_cache(1 << 12)
    def matches(request: str) -> bool:
        method, _, rest = request.partition(" ")
        target = rest.rpartition(" HTTP/")[0] or rest
        targets = {target, target.partition("?")[0]}
        forms = [form for target in targets for form in (target, f"{method} {target}")]
        return any(form == wanted or pattern.fullmatch(form) for form in forms)

    return matches


@lru_cache(1 << 14)
def _forwarded_for(field: str) -> str | None:
    """The left-most public address of X-Forwarded-For: that of the client, unless the client made it up."""
    for part in field.split(","):
        try:
            if ipaddress.ip_address(part.strip()).is_global:
                return part.strip()
        except ValueError:
            continue  # proxies write "unknown", and clients what they like
    return None


def _plain(user: str) -> str:
    r"""A name without the escapes of the servers: ``\xc3\xa9`` is a byte each, ``\"`` a quote."""
    octets = _ESCAPED.sub(lambda e: bytes([int(e[1], 16)]) if e[1] else e[2], user.encode("utf-8", "surrogateescape"))
    return octets.decode("utf-8", "surrogateescape")


FORMAT = Format(
    *("access", "access logs of Apache and nginx (common or combined)", _knows, _rows),
    uses=("resource", "status", "forwarded"),
)
