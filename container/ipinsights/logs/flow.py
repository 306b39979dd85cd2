"""VPC flow logs of AWS: fields between blanks, in the default order or in that of a header line.

The entity is the network interface, the address that of who sent it packets: the source of an accepted flow into the
interface. Where the log has the field flow-direction, that is one with ``ingress``. Where it has not, the interface's
own address must be told from the other. If just one of the two is private, that is its own, since AWS logs an
interface's private address. Otherwise it is the one that all flows of the interface so far have in common; while that
is true of both, nobody can tell, and the flow is dropped.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from functools import lru_cache

from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import OTHER, Dropped, LogIn, Malformed, Outcome, Row, judged
from ipinsights.logs.text import Text
from ipinsights.logs.times import number

_DEFAULT = (
    *("version", "account-id", "interface-id", "srcaddr", "dstaddr", "srcport", "dstport", "protocol", "packets"),
    *("bytes", "start", "end", "action", "log-status"),
)
_NEEDED = {"interface-id", "srcaddr", "dstaddr", "action", "start"}

_REJECTED = Dropped("rejected flows", "No flow was accepted.")
_OUTWARD = Dropped("flows out of the interface", "No flow came in.")
_UNDECIDED = Dropped(
    "flows of which the log does not tell the direction yet", "Add the field flow-direction to the flow log."
)


def _knows(text: Text, _: Options) -> bool:
    lines = [line.split() for line in text.head_lines()[:2]]
    return bool(lines) and (_is_header(lines[0]) or any(_is_default(fields) for fields in lines))


def _is_header(fields: Sequence[str]) -> bool:
    return set(fields) >= _NEEDED


def _is_default(fields: list[str]) -> bool:
    return len(fields) == len(_DEFAULT) and fields[0] == "2" and fields[2].startswith("eni-")


def _rows(text: Text, options: Options) -> Iterator[Row]:
    del options
    names: Sequence[str] = _DEFAULT
    own: dict[str, set[str]] = {}

    def judge(line: str) -> Outcome:
        nonlocal names
        fields = line.split()
        if _is_header(fields):
            names = fields
        if not fields or _is_header(fields):
            return OTHER
        if len(fields) != len(names):
            return Malformed(f"another number of fields: {len(fields)} where {len(names)} are expected")
        flow = dict(zip(names, fields, strict=True))
        if flow.get("log-status", "OK") != "OK" or flow["srcaddr"] == "-":  # nothing happened, or was not recorded
            return OTHER
        if flow["action"] != "ACCEPT":
            return _REJECTED
        interface, source, target = flow["interface-id"], flow["srcaddr"], flow["dstaddr"]
        direction = flow.get("flow-direction", "-")
        mine = {source: "egress", target: "ingress"}
        if direction == "-":
            known = own[interface] = (own.get(interface, set(mine)) & set(mine)) or set(mine)
            private = {address for address in mine if _is_private(address)}
            decided = private if len(private) == 1 else known
            if len(decided) > 1:
                return _UNDECIDED
            direction = mine[next(iter(decided))]
        if direction != "ingress":
            return _OUTWARD
        origin = flow.get("pkt-srcaddr", "-")
        if not flow["start"].isdecimal():
            return Malformed(f"the start is no number of seconds: {flow['start']!r}")
        return LogIn(interface, source if origin == "-" else origin, number(int(flow["start"])))

    return judged(text.lines(), judge)


@lru_cache(1 << 14)
def _is_private(address: str) -> bool:
    try:
        return not ipaddress.ip_address(address).is_global
    except ValueError:
        return False


FORMAT = Format("flow", "VPC flow logs of AWS", _knows, _rows)
