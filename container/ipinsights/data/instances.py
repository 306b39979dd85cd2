"""Reads pairs in JSON, the shapes of a request: a document with "instances", or one instance a line.

An instance is ``{"features": [entity, address]}``, ``{"data": {"features": {"values": [entity, address]}}}`` or
``[entity, address]``. Other keys are ignored. The native kernel reads usual text. Here all other text is read, and
each fault is found.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from ipinsights.data import columns
from ipinsights.data.addresses import IPV4, Family
from ipinsights.data.malformed import LONGEST_LINE, SHOWN, Fault, Kind, shown
from ipinsights.data.records import Hashed, Pairs, Records, Removed
from ipinsights.errors import UserError
from ipinsights.native import reader

_AT_ONCE = 4096
"""Instances that are parsed together."""
_TAIL = 8
"""Characters that may follow an instance on its line."""
_NO_MEMORY = "memory"
"""What orjson's error of a document says if there was no memory to parse it."""


def salvage_document(text: bytes, family: Family, most: int | None = None) -> Hashed:
    """The pairs of ``{"instances": [...]}`` and the faults of the other instances, whose positions count from 0.

    Reading stops some time after more than ``most`` faults. Raises UserError if the text is no such document, and
    MemoryError if there is no memory to parse it.
    """
    if clean := _clean(text, family, lines=False):
        return clean
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if _NO_MEMORY in error.msg:
            raise MemoryError(error.msg) from error
        raise UserError(f"the body is not JSON: {error}") from error
    instances = document.get("instances") if isinstance(document, dict) else None
    if not isinstance(instances, list):
        raise UserError('the body must be a JSON object with a list of "instances"')
    return _salvage(iter(instances), family, most)


def salvage_lines(text: bytes, family: Family, most: int | None = None, first_line: int | None = None) -> Hashed:
    """The same of JSON Lines. With ``first_line`` the positions of faults are numbers of lines, counted from there."""
    if clean := _clean(text, family, lines=True):
        return clean
    lines = text.split(b"\n")
    found = _salvage((_instance(line) for line in lines if line.strip()), family, most)
    if first_line is None or not found.faults:
        return found
    numbers = [number for number, line in enumerate(lines, first_line) if line.strip()]
    return found._replace(faults={row: fault.at(numbers[row]) for row, fault in found.faults.items()})


def features(instance: Any) -> Any:
    """The value under an instance's keys, which should be a list of two. Other keys are ignored."""
    for _ in range(3):
        if isinstance(instance, dict):
            instance = next((instance[key] for key in ("features", "data", "values") if key in instance), None)
    return instance


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
        pairs = [(f[0], f[1]) if isinstance(f, list) and len(f) == 2 else None for f in found]
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
