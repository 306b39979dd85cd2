"""The hosting contract over HTTP: routes and status codes.

| case | status |
|---|---|
| scored | 200 |
| empty body | 204 |
| malformed body; the answer names the first faulty rows | 400 |
| unknown Accept / Content-Type; the answer lists the known | 406 / 415 |
| body too large | 413 |
| fault of the program; the log has the traceback | 500 |
| /ping before the model is loaded | 503 |

Flask's way from a request to a view and back takes several times as long as scoring a single pair. So the two paths
that platforms call all the time are answered before it, in plain WSGI (PEP 3333); Flask has all others.
"""

import logging
from collections.abc import Iterable
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from flask import Flask

from ipinsights.errors import UserError
from ipinsights.sagemaker import media
from ipinsights.sagemaker.models import ModelStore
from ipinsights.sagemaker.settings import ServerSettings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PIECE = 1 << 20
_TEXT = "text/plain; charset=utf-8"
_METHODS = {"/ping": ("GET", "HEAD"), "/invocations": ("POST",)}

logger = logging.getLogger("ipinsights")


class TooLarge(UserError):
    """The body has more bytes than are taken."""


def create_app(models: ModelStore, settings: ServerSettings) -> Flask:
    """The WSGI application that scores with the model in the store."""
    app = Flask("ipinsights")

    @app.get("/execution-parameters")
    def execution_parameters() -> dict[str, int | str]:
        """What Batch Transform should do unless its request says otherwise."""
        return {
            "MaxConcurrentTransforms": settings.concurrent_transforms,
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": settings.max_payload_mb,
        }

    app.wsgi_app = _Front(app.wsgi_app, models, settings)  # type: ignore[method-assign]
    return app


class _Front:
    """Answers /ping and /invocations."""

    def __init__(self, behind: "WSGIApplication", models: ModelStore, settings: ServerSettings) -> None:
        self._behind = behind
        self._models = models
        self._settings = settings
        self._scoring = BoundedSemaphore(settings.scoring_slots)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in _METHODS:
            return self._behind(environ, start_response)
        if environ["REQUEST_METHOD"] not in _METHODS[path]:
            status, content_type, body = _refusal(405, f"{path} takes {' or '.join(_METHODS[path])}")
        elif path == "/ping":
            status, content_type, body = (200 if self._models.ready else 503), _TEXT, b""
        else:
            status, content_type, body = self._invoke(environ)
        headers = [] if status == 204 else [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [body]

    def _invoke(self, environ: "WSGIEnvironment") -> tuple[int, str, bytes]:
        """Status, content type and body of a scoring request's answer."""
        try:
            writer = media.writer(environ.get("HTTP_ACCEPT", ""), self._settings.default_accept)
            body = self._body(environ)
            if not body.strip():
                return 204, _TEXT, b""
            with self._scoring:
                scorer = self._models.scorer
                pairs = media.read(environ.get("CONTENT_TYPE", ""), body, scorer.family)
                answer = writer.write(scorer, pairs)
            # Batch Transform puts answers behind one another as they are.
            ended = self._settings.batch and writer.by_lines and answer
            return 200, writer.content_type, answer + b"\n" if ended else answer
        except media.UnsupportedContentType as error:
            return _refusal(415, str(error))
        except media.NotAcceptable as error:
            return _refusal(406, str(error))
        except TooLarge as error:
            return _refusal(413, str(error))
        except UserError as error:
            return _refusal(400, f"Unable to evaluate payload provided: {error}")
        except Exception:
            logger.exception("A fault of the program while answering a request")
            return _refusal(500, "Internal error; the log has the details")

    def _body(self, environ: "WSGIEnvironment") -> bytes:
        """The body, which may come in chunks of no length known beforehand. Raises UserError."""
        limit = self._settings.max_content_length
        stream, length = environ["wsgi.input"], environ.get("CONTENT_LENGTH")
        if length:
            if int(length) > limit:
                raise TooLarge(f"The body is larger than {limit} bytes")
            body = bytes(stream.read(int(length)))
            if len(body) < int(length):
                raise UserError(f"the body ended after {len(body)} of {length} bytes")
            return body
        pieces, size = [], 0
        while environ.get("wsgi.input_terminated") and (piece := stream.read(_PIECE)):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise TooLarge(f"The body is larger than {limit} bytes")
        return b"".join(pieces)


def _refusal(status: int, message: str) -> tuple[int, str, bytes]:
    return status, _TEXT, f"{message}\n".encode(errors="backslashreplace")
