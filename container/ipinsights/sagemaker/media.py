"""The wire formats: one table of what a request may be, one of what an answer may be.

A reader takes the body's bytes to pairs as the scorer wants them; a writer takes an answer to bytes. Neither has an
object a row, but for rows that the native kernel leaves to the exact readers (`records`). ``verbose=True`` on an
accepted type adds both embeddings to every prediction.

A row that cannot be read may keep its place in the answer: as ``{"dot_product":null,"error":"..."}``, or as ``nan`` in
CSV, which stays a column of numbers.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson
from werkzeug.http import parse_options_header

from ipinsights.data import columns, records
from ipinsights.data.addresses import IPV4, Family
from ipinsights.data.records import Fault, MalformedRecords, Pairs
from ipinsights.errors import UserError
from ipinsights.model.scoring import Scorer
from ipinsights.native import reader

JSON = "application/json"
"""What is answered unless another type is asked for."""
JSON_LINES = "application/jsonlines"
CSV = "text/csv"

_AT_ONCE, _VERBOSE_AT_ONCE = 65536, 512
"""Predictions that are written at a time, without embeddings and with, so that other threads, which answer pings, have
their turn in between."""
_INSTANCES_AT_ONCE = 4096
_TAIL = 8
"""Characters that may stand behind an instance."""


class UnsupportedContentType(UserError):
    """The request's Content-Type has no reader."""


class NotAcceptable(UserError):
    """The request's Accept has no writer."""


@dataclass(frozen=True)
class Rows:
    """The rows of a request."""

    pairs: Pairs
    """Of those that can be read, in order."""
    faults: dict[int, Fault]
    """What is wrong with the others, by their index."""
    unit: Literal["line", "instance"]
    """What a fault's position counts."""
    cut: bool = False
    """Whether reading ended before the end, because of so many faults."""

    def __len__(self) -> int:
        return len(self.pairs.digests) + len(self.faults)

    @property
    def error(self) -> MalformedRecords:
        """All that is wrong with them."""
        return MalformedRecords(list(self.faults.values()), self.unit, self.cut)


@dataclass(frozen=True)
class Writer:
    """How an answer is to be written."""

    content_type: str
    verbose: bool

    @property
    def by_lines(self) -> bool:
        """Whether a prediction is a line, which a final line feed ends."""
        return self.content_type != JSON

    def write(self, scorer: Scorer, rows: Rows) -> bytes:
        """Score the rows and write their predictions, in order; those that cannot be read are marked as such."""
        if rows.faults:
            return self._marked(scorer, rows)
        if self.verbose or not len(rows):
            return self._joined(self._embedded(scorer, rows.pairs))
        before, behind, separator = self._form.before, self._form.behind, self._form.separator
        between = behind + separator + before
        numbers = between.join(part.replace(b",", between) for part in _scores(scorer, rows.pairs))
        return self._form.begin + before + numbers + behind + self._form.end

    @property
    def _form(self) -> "_Form":
        return _WRITERS[self.content_type]

    def _marked(self, scorer: Scorer, rows: Rows) -> bytes:
        if self.verbose:
            readable = iter(self._embedded(scorer, rows.pairs))
        else:
            parts = _scores(scorer, rows.pairs)
            before, behind = self._form.before, self._form.behind
            readable = (before + number + behind for part in parts for number in part.split(b","))
        return self._joined(
            [
                self._mark(rows.faults[i], scorer.vector_dim) if i in rows.faults else next(readable)
                for i in range(len(rows))
            ]
        )

    def _embedded(self, scorer: Scorer, pairs: Pairs) -> list[bytes]:
        """The predictions with their embeddings, keys in the built-in's order."""
        found = []
        for start in range(0, len(pairs.digests), _VERBOSE_AT_ONCE):
            part = slice(start, start + _VERBOSE_AT_ONCE)
            embedded = scorer.embed_hashed(pairs.digests[part], pairs.addresses[part])
            rows = zip(*(array.astype("f8") for array in (embedded.scores, embedded.ip, embedded.entity)), strict=True)
            if self.content_type == CSV:
                found += [b",".join(map(_numbers, ([score], ip, entity))) for score, ip, entity in rows]
            else:
                found += [
                    orjson.dumps(
                        {"dot_product": score, "ip_embedding": ip, "entity_embedding": entity},
                        option=orjson.OPT_SERIALIZE_NUMPY,
                    )
                    for score, ip, entity in rows
                ]
        return found

    def _mark(self, fault: Fault, dim: int) -> bytes:
        """What stands in the place of a prediction."""
        if self.content_type == CSV:
            return b"nan" + (b"," * 2 * dim if self.verbose else b"")
        return orjson.dumps({"dot_product": None, "error": fault.reason})

    def _joined(self, predictions: Sequence[bytes]) -> bytes:
        return self._form.begin + self._form.separator.join(predictions) + self._form.end


def read(content_type: str, body: bytes, family: Family, most: int | None = None) -> Rows:
    """Read a request's body, with addresses of a family; not to the end if there are more than ``most`` faults.

    Raises UnsupportedContentType, or UserError where the body as a whole cannot be read.
    """
    return _reader(content_type)(body, family, most)


_Reader: TypeAlias = Callable[[bytes, Family, int | None], Rows]


@functools.lru_cache(1024)
def _reader(content_type: str) -> _Reader:
    name, _ = parse_options_header(content_type)
    found = _READERS.get(name.lower())
    if found is None:
        raise UnsupportedContentType(
            f"Content-Type {content_type!r} is not supported; use one of: {', '.join(_READERS)}"
        )
    return found


@functools.lru_cache(1024)
def writer(accept: str, default: str = JSON) -> Writer:
    """The writer for an Accept header: for its most preferred type that has one. Raises NotAcceptable.

    ``default`` is what answers a header that leaves the choice, or none.
    """
    for name, options in _by_preference(accept or "*/*"):
        verbose = options.get("verbose", "").lower() == "true"
        if name in ("*/*", "application/*"):
            chosen = writer(default) if default != JSON else Writer(JSON, verbose=False)
            return Writer(chosen.content_type, chosen.verbose or verbose)
        if name in _WRITERS:
            return Writer(name, verbose)
    raise NotAcceptable(
        f"Accept {accept!r} is not supported; use one of: {', '.join(_WRITERS)}, each with ;verbose=True"
    )


def _by_preference(accept: str) -> list[tuple[str, dict[str, str]]]:
    """The types that an Accept header admits with their parameters: by q, highest first, then in the order given.

    Of those with the same q CSV comes last: who lists it beside others wrote that for the built-in, which has no CSV.
    """
    entries = [(name.lower(), options) for name, options in map(parse_options_header, accept.split(","))]
    weighted = [(-_quality(options.get("q", "1")), name == CSV, name, options) for name, options in entries]
    return [(name, options) for q, _, name, options in sorted(weighted, key=lambda entry: entry[:2]) if q < 0]


def _quality(text: str) -> float:
    """The weight that a ``q`` gives; 0, as refused, where it is not a number."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _scores(scorer: Scorer, pairs: Pairs) -> Iterator[bytes]:
    """The scores as `_numbers` writes them, in parts."""
    for start in range(0, len(pairs.digests), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        yield _numbers(scorer.score_hashed(pairs.digests[part], pairs.addresses[part]).astype("f8"))


def _numbers(values: Any) -> bytes:
    """Numbers with commas between. They are written as what a float32 is as a double, as the built-in does."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _read_csv(body: bytes, family: Family, most: int | None) -> Rows:
    pairs, faults = records.salvage_hashed(body, family, most=most)
    return Rows(pairs, faults, "line", cut=most is not None and len(faults) > most)


def _read_json(body: bytes, family: Family, most: int | None) -> Rows:
    """``{"instances": [...]}``."""
    if rows := _clean_instances(body, family, lines=False):
        return rows
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UserError(f"the body is not JSON: {error}") from error
    instances = document.get("instances") if isinstance(document, dict) else None
    if not isinstance(instances, list):
        raise UserError('the body must be a JSON object with a list of "instances"')
    return _from_instances(iter(instances), family, most)


def _read_jsonlines(body: bytes, family: Family, most: int | None) -> Rows:
    """One instance a line."""
    if rows := _clean_instances(body, family, lines=True):
        return rows
    return _from_instances((_line(line) for line in body.split(b"\n") if line.strip()), family, most)


def _clean_instances(body: bytes, family: Family, lines: bool) -> Rows | None:
    """The rows by the native kernel; None where it leaves them to the readers here, or where there are none."""
    pairs = reader.read_instances(body, lines) if family is IPV4 else None
    return Rows(Pairs(*pairs), {}, "instance") if pairs else None


def _from_instances(instances: Iterator[Any], family: Family, most: int | None) -> Rows:
    parts: list[records.Records] = []
    faults: dict[int, Fault] = {}
    count, ended, cut = 0, False, False
    while not (ended or cut):
        some = list(itertools.islice(instances, _INSTANCES_AT_ONCE))
        found = [_features(instance) for instance in some]
        pairs = [(f[0], f[1]) if isinstance(f, list) and len(f) == 2 else None for f in found]
        salvaged = columns.salvage_pairs([pair or (None, None) for pair in pairs], family, first=count)
        for i, fault in salvaged.faults_by_row().items():
            faults[count + i] = fault if pairs[i] else _misshapen(count + i, some[i])
        parts.append(salvaged.records)
        count += len(some)
        ended = len(some) < _INSTANCES_AT_ONCE
        cut = most is not None and len(faults) > most
    return Rows(records.Records.concat(parts).hashed(), faults, "instance", cut and not ended)


def _features(instance: Any) -> Any:
    """What an instance's keys lead to, which should be its two values. Other keys are of no concern."""
    for _ in range(3):
        if isinstance(instance, dict):
            instance = next((instance[key] for key in ("features", "data", "values") if key in instance), None)
    return instance


@dataclass(frozen=True)
class _NotJson:
    """In the place of an instance."""

    line: str
    reason: str


def _misshapen(position: int, instance: Any) -> Fault:
    """What is wrong with an instance that has no two features."""
    if isinstance(instance, _NotJson):
        return Fault(position, records.shown(instance.line), f"not JSON: {instance.reason}")
    shapes = '{"features": [entity, address]} or {"data": {"features": {"values": [entity, address]}}}'
    return Fault(position, records.shown(instance), f"expected {shapes}")


def _line(text: bytes) -> Any:
    """An instance, also with the comma, or the brackets of a list, behind it that AWS's documentation shows."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        shorter = text.strip()
        for _ in range(_TAIL):
            if not shorter.endswith((b",", b"]", b"}")):
                break
            shorter = shorter[:-1].rstrip()
            with contextlib.suppress(orjson.JSONDecodeError):
                return orjson.loads(shorter)
        return _NotJson(text.decode(errors="replace"), str(error))


_READERS: dict[str, _Reader] = {
    CSV: _read_csv,
    JSON: _read_json,
    JSON_LINES: _read_jsonlines,
}


class _Form(NamedTuple):
    """How predictions are put together."""

    begin: bytes
    before: bytes
    """Of a score that is all of its prediction."""
    behind: bytes
    separator: bytes
    end: bytes


_WRITERS = {
    JSON: _Form(b'{"predictions":[', b'{"dot_product":', b"}", b",", b"]}"),
    JSON_LINES: _Form(b"", b'{"dot_product":', b"}", b"\n", b""),
    CSV: _Form(b"", b"", b"", b"\n", b""),
}

CONTENT_TYPES = tuple(_READERS)
"""What a request may be."""
ACCEPTED_TYPES = tuple(_WRITERS)
"""What an answer may be."""
