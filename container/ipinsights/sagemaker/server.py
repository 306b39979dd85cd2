"""A server for the model in /opt/ml/model: Flask under gunicorn.

The model is loaded before workers are forked, so they share one copy of its pages. Workers are one a core; each has
more threads than may score at a time, so that /ping does not wait for them.
"""

import gc
import logging
import sys

from flask import Flask
from gunicorn.app.base import BaseApplication

from ipinsights.errors import UserError
from ipinsights.sagemaker.app import create_app
from ipinsights.sagemaker.models import ModelStore
from ipinsights.sagemaker.paths import Paths
from ipinsights.sagemaker.settings import ServerSettings

logger = logging.getLogger("ipinsights")


def main() -> None:
    """The console script ``serve``. A model that cannot be loaded ends it with exit code 1 and one clear sentence."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s")
    try:
        settings = ServerSettings.from_environment()
        models = ModelStore(Paths.from_environment().model)
        models.load()
    except UserError as error:
        logger.error("ClientError: %s", error)  # noqa: TRY400  # a sentence for the user, not a traceback
        sys.exit(1)
    gc.set_threshold(100_000)  # a request in JSON may make as many objects, none of which is ever garbage in a circle
    gc.freeze()  # what is loaded is never garbage: the collector need not look, and pages stay shared after the fork
    _Server(create_app(models, settings), settings).run()


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn is untyped
    def __init__(self, app: Flask, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options = {
            "bind": f"0.0.0.0:{settings.port}",
            "workers": settings.workers,
            "worker_class": "gthread",
            "threads": settings.threads,
            "timeout": settings.timeout,
            "keepalive": 60,
            "preload_app": True,
            "control_socket_disable": True,  # it would be a file in a home that may be read-only
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._app
