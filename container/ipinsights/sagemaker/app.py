"""The hosting contract over HTTP: routes and status codes.

| case | status |
|---|---|
| scored | 200 |
| empty body | 204 |
| malformed body; the answer names the first malformed rows | 400 |
| no such path, or no model of that name | 404 |
| method / Accept / Content-Type not supported; the answer lists those that are | 405 / 406 / 415 |
| the client stopped sending the body | 408 |
| a model of that name is loaded already | 409 |
| body too large, or its answer too large for the memory | 413 |
| fault of the program; the log has the traceback | 500 |
| /ping before the model is loaded, and when workers keep being ended by the system | 503 |
| no memory for the body beside those of other requests, or no thread to receive it (with Retry-After) | 503 |
| no memory for that model | 507 |

A scoring request goes straight through: the body is read, parsed into rows (`media.read`) and scored, and a
`media.Writer` renders the predictions.

Flask takes several times as long to dispatch a request as it takes to score one pair. So plain WSGI (PEP 3333) answers
the paths that platforms call all the time, and Flask answers the others.
"""

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from ipinsights.data.malformed import count
from ipinsights.data.records import Pairs
from ipinsights.errors import UserError, brief
from ipinsights.model import artifact
from ipinsights.model.calibration import RATES
from ipinsights.model.scoring import Calibrated, Explained, Scorer
from ipinsights.sagemaker import media
from ipinsights.sagemaker.access import AccessLog
from ipinsights.sagemaker.memory import BusyError, Memory
from ipinsights.sagemaker.models import ONLY, AlreadyLoaded, ModelStore, NotLoaded, OutOfMemory
from ipinsights.sagemaker.settings import ServerSettings
from ipinsights.sagemaker.sockets import Stalled, TooLarge, may_come_slowly, read_body

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_FAULTS = 1000
"""Malformed rows after which the reader stops, if malformed rows reject the request."""
_AT_ONCE, _FEW_AT_ONCE = 65536, 512
"""Pairs in a batch of predictions, and in one with embeddings or explanations."""
_MARK = 1000
"""Bytes that a mark of a malformed row takes, at most, as an object and in the answer."""
_LONGEST_LOAD = 1 << 20
"""Bytes of a request to load a model."""
_LONGEST_PATH = 4096
"""Characters of a model's path."""
_TEXT = "text/plain; charset=utf-8"
_CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_CUSTOM_ATTRIBUTES_IN = "HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES"
_REQUEST_IDS_IN = ("HTTP_X_AMZN_SAGEMAKER_INFERENCE_ID", "HTTP_X_AMZN_REQUESTID", "HTTP_X_REQUEST_ID")
"""Headers that may hold the caller's id of a request, as PEP 3333 names them. The first that is set counts."""

logger = logging.getLogger("ipinsights")


_STATUSES: dict[type[Exception], int] = {
    NotLoaded: 404,
    media.NotAcceptable: 406,
    Stalled: 408,
    AlreadyLoaded: 409,
    TooLarge: 413,
    media.UnsupportedContentType: 415,
    BusyError: 503,
    OutOfMemory: 507,
}
"""Status codes of errors that are not answered with 400."""


def create_app(
    models: ModelStore,
    settings: ServerSettings,
    log: AccessLog | None = None,
    healthy: Callable[[], bool] = lambda: True,
) -> Flask:
    """The WSGI application that scores with the models in the store. /ping tells whether the server is ``healthy``."""
    app = Flask("ipinsights")

    @app.get("/execution-parameters")
    def execution_parameters() -> dict[str, int | str]:
        """What Batch Transform uses unless its job sets something else."""
        return {
            "MaxConcurrentTransforms": settings.concurrent_transforms,
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": settings.max_payload_mb,
        }

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        return Response(f"{error.description}\n", error.code, mimetype="text/plain")

    if settings.multi_model:
        _add_models(app, models, settings)
    app.wsgi_app = _Front(app.wsgi_app, models, settings, log, healthy)  # type: ignore[method-assign]
    return app


def _add_models(app: Flask, models: ModelStore, settings: ServerSettings) -> None:
    """The calls by which a platform loads and unloads the models of a multi-model endpoint."""

    @app.errorhandler(UserError)
    def refuse(error: UserError) -> tuple[str, int]:
        return f"{error}\n", _status(error)

    @app.post("/invocations")
    def which_model() -> tuple[str, int]:
        return "this is a multi-model server: POST to /models/NAME/invoke\n", 404

    @app.get("/models")
    def list_models() -> dict[str, list[dict[str, str]]]:
        return {"models": [shown(name, folder) for name, folder in models.folders().items()]}

    @app.post("/models")
    def load_model() -> dict[str, str]:
        body = read_body(request.environ, min(settings.max_content_length, _LONGEST_LOAD), settings.timeout)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            document = None
        name, url = (document.get(key) if isinstance(document, dict) else None for key in ("model_name", "url"))
        if not (isinstance(name, str) and isinstance(url, str) and name and url):
            raise UserError('the body must be {"model_name": "...", "url": "the folder of a model"}')
        if not name.isprintable() or name.endswith("/invoke"):
            raise UserError(f"{brief(name)} cannot be the name of a model")
        folder = Path(os.path.normpath(url))  # so that no ".." leads out of the folder of all models
        if len(url) > _LONGEST_PATH or not folder.is_relative_to(os.path.normpath(settings.models_folder)):
            raise UserError(f"the url must be a folder in {settings.models_folder} (IPINSIGHTS_MODELS_FOLDER)")
        for path in (folder, folder / artifact.MANIFEST, folder / artifact.TENSORS):
            if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(settings.models_folder)):
                raise UserError(f"{path} is a link that leads out of {settings.models_folder}")
        models.load(name, folder)
        return shown(name, folder)

    @app.get("/models/<path:name>")
    def describe_model(name: str) -> dict[str, str]:
        return shown(name, models.folder(name))

    @app.delete("/models/<path:name>")
    def unload_model(name: str) -> dict[str, str]:
        models.unload(name)
        return {}

    def shown(name: str, folder: Path) -> dict[str, str]:
        return {"modelName": name, "modelUrl": str(folder)}


_NOTHING = media.Text.of(b"")


@dataclass(frozen=True)
class _Answer:
    status: int
    body: media.Text = _NOTHING
    content_type: str = _TEXT
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the access log says of the request."""
    headers: Sequence[tuple[str, str]] = ()


class _Front:
    """Answers /ping and scoring requests, passes the others on to Flask, and logs all but good pings."""

    def __init__(
        self,
        flask: "WSGIApplication",
        models: ModelStore,
        settings: ServerSettings,
        log: AccessLog | None,
        healthy: Callable[[], bool],
    ) -> None:
        self._flask = flask
        self._models = models
        self._settings = settings
        self._log = log
        self._healthy = healthy
        self._scoring = BoundedSemaphore(settings.scoring_slots)
        # Some threads wait for no client, so that they can answer pings and small requests.
        self._receiving = BoundedSemaphore(settings.threads - settings.threads // 16)
        megabytes = settings.requests_memory_mb
        self._memory = Memory(megabytes and (megabytes << 20) // settings.workers, settings.scoring_slots)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        ping = path == "/ping"
        if ping and self._ready and self._healthy() and environ["REQUEST_METHOD"] == "GET":
            start_response("200 OK", [("Content-Type", _TEXT), ("Content-Length", "0")])
            return [b""]
        started = time.perf_counter()
        request_id = next(filter(None, (_header(environ, name) for name in _REQUEST_IDS_IN)), None) or uuid.uuid4().hex
        model = self._model(path)
        if model is None and not ping:

            def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
                self._record(environ, request_id, started, int(status[:3]))
                return start_response(status, headers, error)

            return self._flask(environ, start)
        answer = self._invoke(environ, model, request_id) if model is not None else self._ping(environ)
        headers = [("X-Request-Id", request_id), *answer.headers]
        if attributes := _header(environ, _CUSTOM_ATTRIBUTES_IN):
            headers.append((_CUSTOM_ATTRIBUTES, attributes))
        if answer.status != 204:
            headers += [("Content-Type", answer.content_type), ("Content-Length", str(answer.body.size))]
        self._record(environ, request_id, started, answer.status, bytes_out=answer.body.size, **answer.facts)
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers)
        return answer.body.pieces

    @property
    def _ready(self) -> bool:
        return self._settings.multi_model or ONLY in self._models

    def _model(self, path: str) -> str | None:
        """The name of the model that a path scores with; None if it is another path."""
        if not self._settings.multi_model:
            return ONLY if path == "/invocations" else None
        found = re.fullmatch(r"/models/(.+)/invoke", path)
        return found[1].encode("latin-1").decode(errors="replace") if found else None  # the path as PEP 3333 has it

    def _record(
        self, environ: "WSGIEnvironment", request_id: str, started: float, status: int, **facts: object
    ) -> None:
        if self._log:
            entry = {
                "time": datetime.now(UTC),
                "request_id": request_id,
                "method": environ["REQUEST_METHOD"],
                "path": environ["PATH_INFO"],
                "status": status,
                "seconds": round(time.perf_counter() - started, 6),
            }
            self._log.add(entry | facts)

    def _ping(self, environ: "WSGIEnvironment") -> _Answer:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _not_allowed(environ, "GET, HEAD", {})
        return _Answer(200 if self._ready and self._healthy() else 503)

    def _score(
        self, scorer: Scorer, content_type: str, body: bytes, writer: media.Writer, facts: dict[str, object]
    ) -> _Answer:
        marking = self._settings.malformed_rows == "mark"
        if not body or body.isspace():
            return _Answer(204, facts=facts)
        most = self._memory.answer
        faults = _FAULTS if not marking else _whole(most / _MARK)
        rows = media.read(content_type, body, scorer.family, faults, self._memory.document)
        facts["rows"] = len(rows)
        if marking and rows.cut:
            raise TooLarge(f"there is too little memory to mark more than {_whole(most / _MARK):,} malformed rows")
        if len(rows) * (size := writer.row_size(scorer.vector_dim)) > most:
            raise TooLarge(
                f"there is too little memory for the {'embeddings' if writer.verbose else 'explanations'} of "
                f"{len(rows):,} rows: ask for {_whole(most / size):,} at a time"
            )
        if rows.faults:
            error = rows.error
            kinds = {kind.name.lower(): number for kind, number in count(rows.faults.values()).items()}
            facts |= {"malformed_rows": len(rows.faults), "malformed_kinds": kinds, "error": str(error)}
            if not marking:
                return _refusal(error, facts)
        rate = self._settings.max_false_alarms
        predictions = _predict(scorer, rows.pairs, writer, rate)
        if writer.calibrated:
            facts["below"] = below = dict.fromkeys(map(str, RATES), 0)
            predictions = _counted(predictions, below)
        text = writer.write(predictions, rows, scorer.vector_dim, rate is not None)
        if self._settings.batch and writer.by_lines and text.size:  # Batch Transform concatenates answers as they are
            text = media.Text(text.size + 1, chain(text.pieces, [b"\n"]))
        return _Answer(200, text, writer.content_type, facts)

    def _receive(self, environ: "WSGIEnvironment", take: Callable[[int], None]) -> bytes:
        """The body of a request. Raises BusyError if all threads that may wait for one do so."""
        slow = may_come_slowly(environ)
        if slow and not self._receiving.acquire(blocking=False):
            raise BusyError("the server is receiving from as many clients as it can: ask again in a moment")
        try:
            return read_body(environ, self._settings.max_content_length, self._settings.timeout, take)
        finally:
            if slow:
                self._receiving.release()

    def _invoke(self, environ: "WSGIEnvironment", model: str, request_id: str) -> _Answer:
        """Answer a scoring request, whatever happens."""
        content_type, accept = environ.get("CONTENT_TYPE", ""), environ.get("HTTP_ACCEPT", "")
        facts: dict[str, object] = {"content_type": content_type, "accept": accept}
        if model != ONLY:
            facts["model"] = model
        try:
            if environ["REQUEST_METHOD"] != "POST":
                return _not_allowed(environ, "POST", facts)
            if not self._ready:
                return _Answer(503, media.Text.of(b"the model is not loaded yet\n"), facts=facts)
            with self._memory.receiving() as take:
                body = self._receive(environ, take)
                facts["bytes_in"] = len(body)
                writer = media.writer(accept, self._settings.default_accept)
                with self._scoring, self._memory.scoring(len(body)), self._models.borrow(model) as loan:
                    return self._score(loan.scorer, content_type, body, writer, facts)
        except UserError as error:
            return _refusal(error, facts)
        except MemoryError:
            return _refusal(TooLarge("there is too little memory for this request: send fewer rows at a time"), facts)
        except Exception:
            logger.exception("A fault of the program while answering request %s", request_id)
            message = f"Internal error; the log has the details under request {request_id}"
            return _Answer(500, media.Text.of(f"{message}\n".encode()), facts=facts)


def _predict(scorer: Scorer, pairs: Pairs, writer: media.Writer, rate: float | None) -> Iterator[Any]:
    """Score pairs, with what the writer writes besides, a batch at a time, when the writer asks for it.

    So the embeddings and explanations of a large request are never all in memory. And since rendering a batch holds
    Python's global lock, the threads that answer pings get it between two batches.
    """
    size = _FEW_AT_ONCE if writer.verbose or writer.explained else _AT_ONCE
    for start in range(0, len(pairs.digests), size):
        batch = pairs.digests[start : start + size], pairs.addresses[start : start + size]
        found: Any
        if writer.calibrated:
            found = scorer.calibrate_hashed(*batch, rate, writer.verbose)
        else:
            found = (scorer.embed_hashed if writer.verbose else scorer.score_hashed)(*batch)
        yield Explained(found, scorer.explain_hashed(*batch)) if writer.explained else found


def _counted(predictions: Iterator[Any], below: dict[str, int]) -> Iterator[Any]:
    """Count how many calibrated predictions have no more than each rate as their percentile."""
    for batch in predictions:
        calibrated: Calibrated = batch.predictions if isinstance(batch, Explained) else batch
        for rate, number in zip(below, calibrated.below(RATES), strict=True):
            below[rate] += number
        yield batch


def _not_allowed(environ: "WSGIEnvironment", methods: str, facts: Mapping[str, object]) -> _Answer:
    body = f"{environ['PATH_INFO']} accepts {methods}\n".encode()
    text = _NOTHING if environ["REQUEST_METHOD"] == "HEAD" else media.Text.of(body)
    return _Answer(405, text, facts=facts, headers=[("Allow", methods)])


def _status(error: UserError) -> int:
    return _STATUSES.get(type(error), 400)


def _refusal(error: UserError, facts: Mapping[str, object]) -> _Answer:
    status = _status(error)
    message = f"Unable to evaluate payload provided: {error}" if status == 400 else str(error)
    later = [("Retry-After", "1")] if status == 503 else []
    text = f"{message}\n".encode(errors="backslashreplace")
    return _Answer(status, media.Text.of(text), facts={**facts, "error": message}, headers=later)


def _whole(number: float) -> int | None:
    """A number that may be infinite, as a whole one; None for no limit."""
    return int(number) if number < float("inf") else None


def _header(environ: "WSGIEnvironment", name: str) -> str:
    """A request's header, or "" if it is not set or cannot be a header of the answer."""
    value: str = environ.get(name, "")
    return value if value.isascii() and value.isprintable() else ""
