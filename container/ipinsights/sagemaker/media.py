"""The wire formats: one table of what a request may be, one of what an answer may be.

A reader takes the body's bytes to records; a writer takes an answer to bytes. ``verbose=True`` on an accepted type adds
both embeddings to every prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from werkzeug.http import parse_options_header

from ipinsights import records
from ipinsights.addresses import Family
from ipinsights.errors import UserError
from ipinsights.records import Fault, MalformedRecords, Records
from ipinsights.scoring import Embedded, Scorer

DEFAULT_ACCEPT = "application/json"


class UnsupportedContentType(UserError):
    """The request's Content-Type has no reader."""


class NotAcceptable(UserError):
    """The request's Accept has no writer."""


@dataclass(frozen=True)
class Writer:
    """How an answer is to be written."""

    content_type: str
    verbose: bool

    def write(self, scorer: Scorer, pairs: Records) -> bytes:
        """Score the pairs and write their predictions, in order."""
        if self.verbose:
            predictions = _verbose(scorer.embed(pairs))
        else:
            predictions = [{"dot_product": score} for score in scorer.score(pairs).tolist()]
        return _WRITERS[self.content_type](predictions)


def read(content_type: str, body: bytes, family: Family) -> Records:
    """Read a request's body, with addresses of a family.

    Raises UnsupportedContentType, or UserError where the body is malformed.
    """
    name, _ = parse_options_header(content_type)
    reader = _READERS.get(name.lower())
    if reader is None:
        raise UnsupportedContentType(
            f"Content-Type {content_type!r} is not supported; use one of: {', '.join(_READERS)}"
        )
    return reader(body, family)


def writer(accept: str) -> Writer:
    """The writer for an Accept header: for its most preferred type that has one. Raises NotAcceptable."""
    for name, options in _by_preference(accept or "*/*"):
        name = DEFAULT_ACCEPT if name in ("*/*", "application/*") else name
        if name in _WRITERS:
            return Writer(name, verbose=options.get("verbose", "").lower() == "true")
    raise NotAcceptable(
        f"Accept {accept!r} is not supported; use one of: {', '.join(_WRITERS)}, each with ;verbose=True"
    )


def _by_preference(accept: str) -> list[tuple[str, dict[str, str]]]:
    """The types that an Accept header admits with their parameters: by q, highest first, then in the order given."""
    entries = [(name.lower(), options) for name, options in map(parse_options_header, accept.split(","))]
    weighted = [(_quality(options.get("q", "1")), name, options) for name, options in entries]
    return [(name, options) for q, name, options in sorted(weighted, key=lambda entry: -entry[0]) if q > 0]


def _quality(text: str) -> float:
    """The weight that a ``q`` gives; 0, as refused, where it is not a number."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _verbose(embedded: Embedded) -> list[dict[str, Any]]:
    """Predictions with embeddings, keys in the built-in's order."""
    return [
        {"dot_product": score, "ip_embedding": ip, "entity_embedding": entity}
        for score, ip, entity in zip(
            embedded.scores.tolist(), embedded.ip.tolist(), embedded.entity.tolist(), strict=True
        )
    ]


def _read_json(body: bytes, family: Family) -> Records:
    """``{"instances": [...]}``, each instance in either of the documented shapes."""
    document = _loads(body, "the body")
    instances = document.get("instances") if isinstance(document, dict) else None
    if not isinstance(instances, list):
        raise UserError('the body must be a JSON object with a list of "instances"')
    return _from_instances(instances, family)


def _read_jsonlines(body: bytes, family: Family) -> Records:
    """One instance a line."""
    lines = [line for line in body.splitlines() if line.strip()]
    return _from_instances([_loads(line, f"instance {i}") for i, line in enumerate(lines)], family)


def _from_instances(instances: list[Any], family: Family) -> Records:
    columns: tuple[list[object], list[object]] = ([], [])
    faults = []
    for i, instance in enumerate(instances):
        features = _features(instance)
        if isinstance(features, list) and len(features) == 2:
            columns[0].append(features[0])
            columns[1].append(features[1])
        else:
            shapes = '{"features": [entity, address]} or {"data": {"features": {"values": [entity, address]}}}'
            faults.append(Fault(i, records.shown(instance), f"expected {shapes}"))
    if faults:
        raise MalformedRecords(faults, unit="instance")
    return records.from_columns(*columns, family)


def _features(instance: Any) -> Any:
    """The two values of an instance of either shape; None where it has neither."""
    if not isinstance(instance, dict):
        return None
    if "features" in instance:
        return instance["features"]
    value = instance.get("data")
    for key in ("features", "values"):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _loads(text: bytes, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{what} is not JSON: {error}") from error


def _write_json(predictions: list[dict[str, Any]]) -> bytes:
    return orjson.dumps({"predictions": predictions})


def _write_jsonlines(predictions: list[dict[str, Any]]) -> bytes:
    return b"\n".join(map(orjson.dumps, predictions))


_READERS: dict[str, Callable[[bytes, Family], Records]] = {
    "text/csv": records.parse_csv,
    "application/json": _read_json,
    "application/jsonlines": _read_jsonlines,
}
_WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "application/json": _write_json,
    "application/jsonlines": _write_jsonlines,
}

CONTENT_TYPES = tuple(_READERS)
"""What a request may be."""
ACCEPTED_TYPES = tuple(_WRITERS)
"""What an answer may be."""
