"""Reads pairs in JSON, the shapes of a request: a document with "instances", or one instance a line.

An instance is ``{"features": [entity, address]}``, ``{"data": {"features": {"values": [entity, address]}}}`` or
``[entity, address]``. Other keys are ignored. The native kernel reads usual text. Here all other text is read, and
each fault is found.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ipinsights.data import columns
from ipinsights.data.addresses import IPV4, Family
from ipinsights.data.malformed import LONGEST_LINE, SHOWN, Fault, Kind, shown
from ipinsights.data.records import Hashed, Pairs, Records, Removed
from ipinsights.errors import UserError
from ipinsights.native import reader

JSON_LINES = "application/jsonlines"
"""The content type of an instance a line."""
_AT_ONCE = 4096
"""Instances that are parsed together."""
_TAIL = 8
"""Characters that may follow an instance on its line."""
_NO_MEMORY = "memory"
"""What orjson's error of a document says if there was no memory to parse it."""


def _nested(depth: int) -> bytes:
    """An expression for an object or a list, by its brackets and strings alone."""
    inner = rb'[^"\[\]{}]++|' + _STRING + (b"|" + _nested(depth - 1) if depth else b"")
    return rb"[\[{](?:" + inner + rb")*+[\]}]"


_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_INSTANCE = rb'(?:[^"\[\]{},]++|' + _STRING + b"|" + _nested(6) + b")++"
_BEGIN = re.compile(rb"\s*\{(?:\s*" + _STRING + rb"\s*:" + _INSTANCE + rb',)*?\s*"instances"\s*:\s*\[', re.DOTALL)
_ELEMENT = re.compile(_INSTANCE, re.DOTALL)
_SOME = re.compile(b"(?:%s,){1,%d}+" % (_INSTANCE, _AT_ONCE), re.DOTALL)
"""The beginning of a document of instances, one of them, and many with the comma behind each."""
_MOST_OTHERS = 1 << 20
"""Bytes of what such a document says before its instances, and behind them, at most."""
_COST = 32
"""Bytes that a document takes, as orjson's and then as Python's objects, for each byte of text: 88 for `{},`."""


def salvage_document(text: bytes, family: Family, most: int | None = None, memory: float = float("inf")) -> Hashed:
    """The pairs of ``{"instances": [...]}`` and the faults of the other instances, whose positions count from 0.

    Reading stops some time after more than ``most`` faults. Raises UserError if the text is no such document, and
    MemoryError if there is no memory to parse it, or if it must be parsed as a whole and may take more than ``memory``
    bytes.
    """
    if clean := _clean(text, family, lines=False):
        return clean
    if parts := _parts(text):
        with contextlib.suppress(orjson.JSONDecodeError):  # then it is not JSON as a whole, and told with the place
            return _salvage(_each(text, parts), family, most)
    if len(text) * _COST > memory:
        raise MemoryError
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if _NO_MEMORY in error.msg:
            raise MemoryError(error.msg) from error
        first, _, rest = text.strip().partition(b"\n")
        raise UserError(f"the body is not JSON: {error}{_hint(_instance(first)) if rest else ''}") from error
    instances = document.get("instances") if isinstance(document, dict) else None
    if not isinstance(instances, list):
        raise UserError(f'the body must be a JSON object with a list of "instances"{_hint(document)}')
    return _salvage(iter(instances), family, most)


def salvage_lines(text: bytes, family: Family, most: int | None = None, first_line: int | None = None) -> Hashed:
    """The same of JSON Lines. With ``first_line`` the positions of faults are numbers of lines, counted from there."""
    if clean := _clean(text, family, lines=True):
        return clean
    # One line at a time: as Python's objects, all of them may take twenty times the memory of the text.
    found = _salvage((_instance(line.removesuffix(b"\n")) for line in io.BytesIO(text) if line.strip()), family, most)
    if first_line is None or not found.faults:
        return found
    numbers = [number for number, line in enumerate(io.BytesIO(text), first_line) if line.strip()]
    return found._replace(faults={row: fault.at(numbers[row]) for row, fault in found.faults.items()})


def features(instance: Any) -> Any:
    """The value under an instance's keys, which should be a list of two. Other keys are ignored."""
    for _ in range(3):
        if isinstance(instance, dict):
            instance = next((instance[key] for key in ("features", "data", "values") if key in instance), None)
    return instance


def _hint(instance: Any) -> str:
    """What to say of a body that is, or begins with, an instance alone."""
    pair = features(instance)
    lines = isinstance(pair, list) and len(pair) == 2
    return f". For an instance a line, without such an object, the Content-Type is {JSON_LINES}" if lines else ""


def _parts(text: bytes) -> list[slice]:
    """Where the instances of a document lie, some thousands in each part; empty if it has an unusual form.

    As Python's objects, a whole document takes fifteen times the memory that it takes as text. (orjson even crashes the
    process if there is not enough.) The parts are found without a look at what they say.
    """
    if not (begin := _BEGIN.match(text)):
        return []
    parts, place = [], begin.end()
    while found := _SOME.match(text, place):
        parts.append(slice(place, found.end() - 1))
        place = found.end()
    last = _ELEMENT.match(text, place)
    if last is None:
        return []
    parts.append(slice(place, last.end()))
    if begin.end() + len(text) - last.end() > _MOST_OTHERS:
        return []
    try:
        orjson.loads(text[: begin.end()] + b"]}")
        rest = orjson.loads(b'{"":[' + text[last.end() :])
    except orjson.JSONDecodeError:
        return []
    return [] if "instances" in rest else parts


def _each(text: bytes, parts: Sequence[slice]) -> Iterator[Any]:
    for part in parts:
        yield from orjson.loads(b"[" + text[part] + b"]")


def _entity(value: Any) -> Any:
    """An entity as CSV has it: a whole number is its digits. Any other number has several forms, and is no name."""
    return str(value) if type(value) is int else value  # True and False are no numbers here


def _clean(text: bytes, family: Family, lines: bool) -> Hashed | None:
    """The pairs as the native kernel reads them; None if it leaves the text to the exact readers."""
    pairs = reader.read_instances(text, lines) if family is IPV4 else None
    return Hashed(Pairs(*pairs), {}, Removed()) if pairs else None


def _salvage(instances: Iterator[Any], family: Family, most: int | None) -> Hashed:
    parts: list[Records] = []
    faults: dict[int, Fault] = {}
    removed, count = Removed(), 0
    while some := list(itertools.islice(instances, _AT_ONCE)):
        found = [features(instance) for instance in some]
        pairs = [(_entity(f[0]), f[1]) if isinstance(f, list) and len(f) == 2 else None for f in found]
        salvaged = columns.salvage_pairs([pair or (None, None) for pair in pairs], family)
        for i, fault in salvaged.faults_by_row().items():
            faults[count + i] = fault.at(count + i) if pairs[i] else _misshapen(count + i, some[i])
        parts.append(salvaged.records)
        removed += salvaged.removed
        count += len(some)
        if most is not None and len(faults) > most:
            break
    return Hashed(Records.concat(parts).hashed(), faults, removed)


@dataclass(frozen=True)
class _Unreadable:
    """Takes the place of an instance whose line cannot be read."""

    line: str
    reason: str
    kind: Kind


def _misshapen(position: int, instance: Any) -> Fault:
    """The fault of an instance that does not have two features."""
    if isinstance(instance, _Unreadable):
        return Fault(position, instance.line[:SHOWN], instance.reason, instance.kind)
    shapes = '{"features": [entity, address]} or {"data": {"features": {"values": [entity, address]}}}'
    return Fault(position, shown(instance), f"expected {shapes}", Kind.SHAPE)


def _instance(line: bytes) -> Any:
    """The instance on a line. A comma or closing brackets may follow it, as in the sample in AWS's documentation."""
    if len(line) > LONGEST_LINE:
        reason = f"the line is longer than 1 MB ({LONGEST_LINE:,} bytes)"
        return _Unreadable(_beginning(line), reason, Kind.TOO_LONG)
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if _NO_MEMORY in error.msg:
            raise MemoryError(error.msg) from error
        shorter = line.strip()
        for _ in range(_TAIL):
            if not shorter.endswith((b",", b"]", b"}")):
                break
            shorter = shorter[:-1].rstrip()
            with contextlib.suppress(orjson.JSONDecodeError):
                return orjson.loads(shorter)
        return _Unreadable(_beginning(line), f"not JSON: {error}", Kind.NOT_JSON)


def _beginning(line: bytes) -> str:
    return line[: 4 * SHOWN].decode(errors="replace")
