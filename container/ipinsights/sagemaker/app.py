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
"""

import logging
from threading import BoundedSemaphore

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ipinsights.errors import UserError
from ipinsights.sagemaker import media
from ipinsights.sagemaker.models import ModelStore
from ipinsights.sagemaker.settings import ServerSettings

logger = logging.getLogger("ipinsights")


def create_app(models: ModelStore, settings: ServerSettings) -> Flask:
    """The WSGI application that scores with the model in the store."""
    app = Flask("ipinsights")
    # A body sent in chunks is cut at this limit without a word, so the limit lies one byte beyond the one promised.
    app.config["MAX_CONTENT_LENGTH"] = settings.max_content_length + 1
    scoring = BoundedSemaphore(settings.scoring_slots)

    @app.get("/ping")
    def ping() -> Response:
        return Response(status=200 if models.ready else 503)

    @app.get("/execution-parameters")
    def execution_parameters() -> dict[str, int | str]:
        """What Batch Transform should do unless its request says otherwise."""
        return {
            "MaxConcurrentTransforms": settings.concurrent_transforms,
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": settings.max_payload_mb,
        }

    @app.post("/invocations")
    def invocations() -> Response:
        writer = media.writer(request.headers.get("Accept", ""))
        body = request.get_data(cache=False)
        if len(body) > settings.max_content_length:
            raise RequestEntityTooLarge
        if not body.strip():
            return Response(status=204)
        with scoring:
            scorer = models.scorer
            pairs = media.read(request.headers.get("Content-Type", ""), body, scorer.family)
            return Response(writer.write(scorer, pairs), content_type=writer.content_type)

    @app.errorhandler(media.UnsupportedContentType)
    def unsupported(error: media.UnsupportedContentType) -> Response:
        return _refuse(415, str(error))

    @app.errorhandler(media.NotAcceptable)
    def not_acceptable(error: media.NotAcceptable) -> Response:
        return _refuse(406, str(error))

    @app.errorhandler(UserError)
    def malformed(error: UserError) -> Response:
        return _refuse(400, f"Unable to evaluate payload provided: {error}")

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> Response:
        return _refuse(413, f"The body is larger than {settings.max_content_length} bytes")

    @app.errorhandler(Exception)
    def fault(error: Exception) -> Response | HTTPException:
        if isinstance(error, HTTPException):
            return error
        logger.exception("A fault of the program while answering %s %s", request.method, request.path)
        return _refuse(500, "Internal error; the log has the details")

    return app


def _refuse(status: int, message: str) -> Response:
    return Response(message + "\n", status=status, content_type="text/plain; charset=utf-8")
