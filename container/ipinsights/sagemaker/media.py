"""The wire formats: one table of the content types that a request may have, and one for answers.

A reader parses a body into pairs, in the arrays that the scorer takes. A writer renders predictions as bytes. Neither
creates an object per row, except for rows that the native kernel leaves to the exact readers (`records`, `instances`).
``verbose=True`` on an accepted type adds both embeddings to every prediction, ``calibrated=True`` how unusual it is,
``explain=True`` what the score consists of and the events behind it.

A row that cannot be read may keep its place in the answer: as ``{"dot_product":null,"error":"..."}``, or as ``nan`` in
CSV, which stays a column of numbers.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import orjson
from werkzeug.http import parse_options_header

from ipinsights.data.addresses import Family
from ipinsights.data.formats import CSV, JSON_LINES, recognise
from ipinsights.data.instances import salvage_document, salvage_lines
from ipinsights.data.malformed import Fault, MalformedRecords
from ipinsights.data.records import Hashed, Pairs, salvage_hashed
from ipinsights.errors import UserError
from ipinsights.model.explanation import PARTS, Explanation
from ipinsights.model.scoring import Calibrated, Embedded, Explained, LabelForm

_LONGEST_PREDICTION, _LONGEST_NUMBER, _LONGEST_EXPLANATION = 250, 25, 4000
"""Bytes of a prediction with neither, of a number of an embedding with its comma, and of an explanation: with IPv6 it
may have 20 known networks."""

_PIECE = 8192
"""Calibrated predictions in a piece of an answer: about 1 MB, which a processor's cache may hold, and whose memory is
used again. With fewer there are more calls (`benchmarks/README.md`)."""

JSON = "application/json"
"""The type of an answer unless the request asks for another."""

Predictions: TypeAlias = Iterable[Any] | Iterable[Embedded] | Iterable[Calibrated] | Iterable[Explained]
"""The predictions of a request in batches of consecutive rows: scores (float32 [n]), or scores with more."""


class UnsupportedContentType(UserError):
    """No reader for the request's Content-Type."""


class NotAcceptable(UserError):
    """No writer for any type of the request's Accept header."""


@dataclass(frozen=True)
class Rows:
    """The rows of a request."""

    pairs: Pairs
    """The pairs of the readable rows, in order."""
    faults: dict[int, Fault]
    """The faults of the other rows, by row index."""
    unit: "_Unit"
    """What the position of a fault counts."""
    cut: bool = False
    """Whether the reader stopped before the end of the body because it had found too many faults."""
    look: str = ""
    """Which other format the body looks like, and what to do, if no row can be read and one is recognised."""

    def __len__(self) -> int:
        return len(self.pairs.digests) + len(self.faults)

    @property
    def error(self) -> UserError:
        """All faults as one error."""
        error = MalformedRecords(list(self.faults.values()), self.unit, self.cut)
        return UserError(f"the body {self.look} ({error})") if self.look else error


class Text(NamedTuple):
    """The text of an answer."""

    size: int
    """Its bytes."""
    pieces: Iterable[bytes]
    """The text, in pieces that may be rendered only when they are sent: then it is never whole in memory."""

    @classmethod
    def of(cls, whole: bytes) -> "Text":
        """A text that is there."""
        return cls(len(whole), [whole])


@dataclass(frozen=True)
class Writer:
    """Renders predictions as one content type, with or without embeddings, what calibration says, and explanations."""

    content_type: str
    verbose: bool = False
    calibrated: bool = False
    explained: bool = False

    @property
    def by_lines(self) -> bool:
        """Whether each prediction is a line. Lines may end with a final line feed; a JSON document has none."""
        return self.content_type != JSON

    def row_size(self, vector_dim: int) -> int:
        """The most bytes of a prediction with its embeddings and explanation.

        0 without both: then it is not much larger than its row.
        """
        if not (self.verbose or self.explained):
            return 0
        embeddings = _LONGEST_NUMBER * 2 * vector_dim * self.verbose
        return _LONGEST_PREDICTION + embeddings + _LONGEST_EXPLANATION * self.explained

    def write(self, predictions: Predictions, rows: Rows, vector_dim: int, rated: bool = False) -> "Text":
        """Render the answer to a request: a prediction for each readable row, and a mark for each of the others.

        ``predictions`` has what the writer writes: `Calibrated` if it is calibrated, else scores with embeddings if it
        is verbose, else scores; all this within `Explained` if it is explained; no batch is empty. It may be a
        generator: each batch is rendered before the next one is computed, so they are never all in memory as arrays.
        ``vector_dim`` is the length of an embedding, and ``rated`` whether a calibrated prediction says what is
        anomalous: a mark in CSV has as many columns as they.
        """
        if not rows.faults and self.calibrated and not self.explained and not self.verbose:
            return self._calibrated(cast("Iterable[Calibrated]", predictions))
        if not rows.faults and not self.calibrated and not self.verbose and not self.explained:
            return Text.of(self._column(predictions))
        texts, faults = self._texts(predictions), rows.faults
        columns = 2 * vector_dim * self.verbose + (3 + rated) * self.calibrated + len(_COLUMNS) * self.explained
        return self._joined(
            [self._mark(faults[row], columns) if row in faults else next(texts) for row in range(len(rows))]
        )

    @property
    def _form(self) -> "_Form":
        return _WRITERS[self.content_type]

    def _column(self, predictions: Iterable[Any]) -> bytes:
        """An answer of scores alone. All of a batch are rendered at once, not one by one."""
        begin, prefix, suffix, separator, end = self._form
        between = suffix + separator + prefix
        scores = between.join([_numbers(batch.astype("f8")).replace(b",", between) for batch in predictions])
        return b"".join((begin, prefix, scores, suffix, end)) if scores else begin + end

    def _texts(self, predictions: Predictions) -> Iterator[bytes]:
        """Each prediction on its own."""
        prefix, suffix = self._form.prefix, self._form.suffix
        for batch in predictions:
            if isinstance(batch, Explained):
                texts = self._texts([batch.predictions])
                for text, explanation in zip(texts, batch.explanations, strict=True):
                    yield text[: len(text) - len(suffix)] + self._explanation(explanation) + suffix
            elif isinstance(batch, Calibrated):
                yield from self._lines(batch)
            elif isinstance(batch, Embedded):
                yield from self._embedded(batch)
            else:
                for score in _numbers(batch.astype("f8")).split(b","):
                    yield prefix + score + suffix

    def _embedded(self, batch: Embedded) -> Iterator[bytes]:
        """Predictions with their embeddings, keys in the order that the built-in has."""
        arrays = (array.astype("f8") for array in (batch.scores, batch.ip, batch.entity))
        for score, ip, entity in zip(*arrays, strict=True):
            if self.content_type == CSV:
                yield b",".join(map(_numbers, ([score], ip, entity)))
            else:
                prediction = {"dot_product": score, "ip_embedding": ip, "entity_embedding": entity}
                yield orjson.dumps(prediction, option=orjson.OPT_SERIALIZE_NUMPY)

    def _calibrated(self, predictions: Iterable[Calibrated]) -> "Text":
        """An answer of calibrated predictions alone. They are rendered when they are sent."""
        begin, prefix, _, separator, end = self._form
        form = self._labels(separator)
        parts, size = [], 0
        for batch in predictions:
            labelled = batch.labelled(form)
            size += labelled.size
            for start in range(0, len(batch.scores), _PIECE):
                some = slice(start, start + _PIECE)
                scores = batch.scores[some]
                numbers = _numbers(scores.astype("f8"))
                parts.append((labelled, numbers, some))
                size += len(numbers) - (len(scores) - 1)  # its commas
        if not parts:
            return Text.of(begin + end)
        beyond = len(separator + prefix)  # what leads to the next prediction, of which the last has none

        def pieces() -> Iterator[bytes]:
            for number, (labelled, numbers, some) in enumerate(parts, start=1):
                piece, last = labelled.behind(numbers, some), number == len(parts)
                yield b"".join(
                    (
                        begin + prefix if number == 1 else b"",
                        piece[: len(piece) - beyond] if last else piece,
                        end if last else b"",
                    )
                )

        return Text(len(begin + prefix) + size - beyond + len(end), pieces())

    def _labels(self, separator: bytes) -> LabelForm:
        """The labels of calibrated predictions. Many have the same, so each is rendered once.

        The last label of a prediction ends with all that precedes the score of the next one.
        """

        def render(name: str, values: list[Any]) -> list[bytes]:
            texts = map(orjson.dumps, values)
            if self.content_type == CSV:  # without quotes, and null is empty
                return [b"," + (b"" if text == b"null" else text.strip(b'"')) for text in texts]
            return [b',"%b":%b' % (name.encode(), text) for text in texts]

        return LabelForm(
            f"{self.content_type} {separator!r}", render, self._form.suffix + separator + self._form.prefix
        )

    def _lines(self, batch: Calibrated) -> Iterator[bytes]:
        """Each calibrated prediction on its own, with its embeddings if it has them."""
        prefix, suffix = self._form.prefix, self._form.suffix
        written = batch.labelled(self._labels(b"\n")).behind(_numbers(batch.scores.astype("f8")))
        lines = b"".join((prefix, written[: len(written) - len(b"\n" + prefix)])).split(b"\n")
        if not batch.embedded:
            yield from lines
            return
        for line, ip, entity in zip(lines, batch.embedded.ip, batch.embedded.entity, strict=True):
            tail = self._list("ip_embedding", ip), self._list("entity_embedding", entity)
            yield b"".join((line[: len(line) - len(suffix)], *tail, suffix))

    def _list(self, name: str, values: Any) -> bytes:
        """An embedding, as it is added to a prediction."""
        numbers = _numbers(values.astype("f8"))
        return b"," + numbers if self.content_type == CSV else b',"%b":[%b]' % (name.encode(), numbers)

    def _explanation(self, found: Explanation) -> bytes:
        """An explanation, as it is added to a prediction."""
        if self.content_type != CSV:
            return b',"explanation":' + orjson.dumps(_document(found))
        nearest = found.networks[0] if found.networks else None
        values = [
            *(getattr(found, name) for name in (*PARTS, *_EVENTS)),
            *((nearest.network, nearest.entities, nearest.events) if nearest else (None, None, None)),
            *(found.provider, found.country),
        ]
        return b"".join(b"," + (b"" if value is None else str(value).encode()) for value in values)

    def _mark(self, fault: Fault, columns: int) -> bytes:
        """What takes the place of a prediction where the row cannot be read."""
        if self.content_type == CSV:
            return b"nan" + b"," * columns
        return orjson.dumps({"dot_product": None, "error": fault.advice})

    def _joined(self, predictions: Sequence[bytes]) -> "Text":
        """They are joined when they are sent, some at a time: with embeddings they take much memory."""
        begin, _, _, separator, end = self._form
        between = len(separator) * max(0, len(predictions) - 1)

        def pieces() -> Iterator[bytes]:
            for start in range(0, max(1, len(predictions)), _PIECE):
                some = separator.join(predictions[start : start + _PIECE])
                last = start + _PIECE >= len(predictions)
                yield b"".join((separator if start else begin, some, end if last else b""))

        return Text(len(begin) + sum(map(len, predictions)) + between + len(end), pieces())


def read(content_type: str, body: bytes, family: Family, most: int | None = None, memory: float = float("inf")) -> Rows:
    """Parse a request's body into rows whose addresses are of one family.

    Stops early once there are more than ``most`` faults; without ``most`` it reads all rows. Raises
    UnsupportedContentType, UserError if the body as a whole cannot be parsed, and MemoryError if that takes too much:
    more than the system has, or, of a document of unusual form, more than ``memory`` bytes.
    """
    name = _known(content_type)
    reader, unit = _READERS[name]
    pairs, faults, _ = reader(body, family, most, memory)
    look = recognise(body, name) if faults and not len(pairs.digests) and name != JSON else None
    # What a server cannot read under any declaration is not recognised for it.
    return Rows(
        pairs, faults, unit, most is not None and len(faults) > most, "" if not look or look.binary else str(look)
    )


_Unit: TypeAlias = Literal["line", "instance"]
_Reader: TypeAlias = tuple[Callable[[bytes, Family, int | None, float], Hashed], _Unit]


@functools.lru_cache(1024)
def _known(content_type: str) -> str:
    """The name in a Content-Type header. Raises UnsupportedContentType if it has no reader."""
    name = parse_options_header(content_type)[0].lower()
    if name not in _READERS:
        raise UnsupportedContentType(
            f"Content-Type {content_type!r} is not supported; use one of: {', '.join(_READERS)}"
        )
    return name


@functools.lru_cache(1024)
def writer(accept: str, default: str = JSON) -> Writer:
    """The writer for an Accept header: for the most preferred of its types that has one. Raises NotAcceptable.

    ``default``, an Accept header too, decides where the header is empty or accepts any type.
    """
    for name, options in _by_preference(accept or "*/*"):
        wishes = [options.get(wish, "").lower() == "true" for wish in _WISHES]
        if name in ("*/*", "application/*"):
            chosen = writer(default) if default != JSON else Writer(JSON)
            usual = chosen.verbose, chosen.calibrated, chosen.explained
            return Writer(chosen.content_type, *map(max, usual, wishes))
        if name in _WRITERS:
            return Writer(name, *wishes)
    raise NotAcceptable(
        f"Accept {accept!r} is not supported; use one of: {', '.join(_WRITERS)}, each with "
        + " or ".join(f";{wish}=True" for wish in _WISHES)
    )


_WISHES = ("verbose", "calibrated", "explain")
"""The parameters of an accepted type, in the order of a writer's fields."""


def _by_preference(accept: str) -> list[tuple[str, dict[str, str]]]:
    """The types of an Accept header with their parameters: highest q first, then in the order of the header.

    Among types of equal q, CSV comes last: a client that lists it beside others was written for the built-in, which
    does not answer in CSV.
    """
    entries = [(name.lower(), options) for name, options in map(parse_options_header, accept.split(","))]
    weighted = [(-_quality(options.get("q", "1")), name == CSV, name, options) for name, options in entries]
    return [(name, options) for q, _, name, options in sorted(weighted, key=lambda entry: entry[:2]) if q < 0]


def _quality(text: str) -> float:
    """The weight in a ``q`` parameter; 0, which excludes the type, if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _numbers(values: Any) -> bytes:
    """Doubles with commas between them. The built-in writes a float32 as the double that it equals, and so do we."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


_EVENTS = ("events", "addresses", "uses")
"""What an explanation counts of the entity's own events, by the names of `Explanation`."""


def _document(found: Explanation) -> dict[str, Any]:
    """An explanation as JSON has it: a part that the score does not have is null, and so is what is not known."""
    return {
        **{name: getattr(found, name) for name in (*PARTS, *_EVENTS)},
        "networks": [
            {"network": each.network, "entities": each.entities, "events": each.events} for each in found.networks
        ],
        "provider": found.provider,
        "country": found.country,
    }


_COLUMNS = (*PARTS, *_EVENTS, "network", "network_entities", "network_events", "provider", "country")
"""What an explanation is in CSV. The network is the longest that training knows."""


def _read_csv(body: bytes, family: Family, most: int | None, _memory: float) -> Hashed:
    return salvage_hashed(body, family, most=most)


def _read_lines(body: bytes, family: Family, most: int | None, _memory: float) -> Hashed:
    return salvage_lines(body, family, most)


_READERS: dict[str, _Reader] = {
    CSV: (_read_csv, "line"),
    JSON: (salvage_document, "instance"),
    JSON_LINES: (_read_lines, "instance"),
}


class _Form(NamedTuple):
    """How predictions are joined to an answer."""

    begin: bytes
    prefix: bytes
    """Precedes a score that is a prediction on its own."""
    suffix: bytes
    """Follows it."""
    separator: bytes
    end: bytes


_WRITERS = {
    JSON: _Form(b'{"predictions":[', b'{"dot_product":', b"}", b",", b"]}"),
    JSON_LINES: _Form(b"", b'{"dot_product":', b"}", b"\n", b""),
    CSV: _Form(b"", b"", b"", b"\n", b""),
}

CONTENT_TYPES = tuple(_READERS)
"""The content types that a request may have."""
ACCEPTED_TYPES = tuple(_WRITERS)
"""The content types that an answer may have."""
