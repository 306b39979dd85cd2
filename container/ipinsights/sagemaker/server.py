"""A server for the model in /opt/ml/model: Flask under gunicorn.

The model is loaded before workers are forked, so they share one copy of its pages. Workers are one a core; each has
more threads than may score at a time, so that /ping does not wait for them.
"""

import contextlib
import gc
import logging
import resource
import sys
import tempfile

import pandas  # noqa: F401  # pyarrow wants it for some requests: once, before the fork
from flask import Flask
from gunicorn.app.base import BaseApplication

from ipinsights.errors import UserError
from ipinsights.machine import available_memory
from ipinsights.sagemaker.access import AccessLog
from ipinsights.sagemaker.app import create_app
from ipinsights.sagemaker.models import ONLY, ModelStore
from ipinsights.sagemaker.paths import Paths
from ipinsights.sagemaker.settings import ServerSettings
from ipinsights.sagemaker.worker import PatientArbiter, PatientWorker, Shared, told_briefly

_DRAINING = 25
"""Seconds that a server told to stop leaves its requests; after 30 the platform kills it."""

_FILES = 4096
"""Open files of a worker."""

logger = logging.getLogger("ipinsights")


def main() -> None:
    """The console script ``serve``. A model that cannot be loaded ends it with exit code 1 and one clear sentence."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s")
    try:
        settings = ServerSettings.from_environment()
        folder = _writable_folder()
        models = _models(settings)
    except UserError as error:
        logger.error("ClientError: %s", error)  # noqa: TRY400  # a sentence for the user, not a traceback
        sys.exit(1)
    _allow_files()
    gc.set_threshold(100_000)  # a request in JSON may make as many objects, none of which is ever garbage in a circle
    gc.freeze()  # what is loaded is never garbage: the collector need not look, and pages stay shared after the fork
    logging.getLogger("gunicorn.error").addFilter(told_briefly)
    log = AccessLog() if settings.access_log else None
    _Server(create_app(models, settings, log), settings, folder, log).run()


def _models(settings: ServerSettings) -> ModelStore:
    """The one model, open; or room for those that will be told of. Raises UserError."""
    if not settings.multi_model:
        models = ModelStore()
        models.load(ONLY, Paths.from_environment().model)
        return models
    free = available_memory()
    limit = settings.models_memory_mb * 2**20 if settings.models_memory_mb else free and free * 4 // 5
    logger.info("Models come by POST /models; they may take %s bytes together", f"{limit:,}" if limit else "all")
    return ModelStore(limit)


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn is untyped
    def __init__(self, app: Flask, settings: ServerSettings, folder: str, log: AccessLog | None) -> None:
        self._app = app
        self._settings = settings
        self._folder = folder
        self._log = log
        self.shared = Shared(settings.workers)
        super().__init__()

    def run(self) -> None:
        PatientArbiter(self).run()

    def load_config(self) -> None:
        settings = self._settings
        options = {
            "bind": f"0.0.0.0:{settings.port}",
            "workers": settings.workers,
            "worker_class": PatientWorker,
            "worker_tmp_dir": self._folder,
            "threads": settings.threads,
            "timeout": settings.timeout,
            "graceful_timeout": _DRAINING,
            "keepalive": 60,
            "preload_app": True,
            "control_socket_disable": True,  # it would be a file in a home that may be read-only
            "worker_exit": self._close_log,
            "child_exit": lambda _arbiter, worker: self.shared.leave(worker.place),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._app

    def _close_log(self, _arbiter: object, _worker: object) -> None:
        if self._log:
            self._log.close()


def _allow_files() -> None:
    """A connection is a file, and a worker may have a thousand; many systems allow 1,024 unless they are asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FILES:  # without a limit it is negative
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES if hard < 0 else min(hard, _FILES), hard))


def _writable_folder() -> str:
    """Where a worker may have a file without a name, by which it shows that it lives. Raises UserError.

    A container whose file system is read-only may have nothing but its shared memory; another may lack just that.
    """
    for folder in (None, "/dev/shm"):  # noqa: S108
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder):
            return folder or tempfile.gettempdir()
    raise UserError("no folder can be written to, neither /tmp nor /dev/shm: the server needs one for an empty file")
