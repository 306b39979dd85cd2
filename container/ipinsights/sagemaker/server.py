"""A server for the model in /opt/ml/model: Flask under gunicorn.

The model is loaded before the workers are forked, so they share one copy of its pages. There is one worker per core.
Each has more threads than may score at the same time, so that /ping does not wait for scoring.
"""

import contextlib
import errno
import gc
import json
import logging
import resource
import shlex
import socket
import sys
import tempfile

import gunicorn
import pandas  # noqa: F401  # pyarrow imports it for some requests: better once, before the fork
from flask import Flask
from gunicorn.app.base import BaseApplication

from ipinsights.errors import UserError, one_line, quote_data
from ipinsights.machine import available_memory
from ipinsights.sagemaker.access import AccessLog
from ipinsights.sagemaker.app import create_app
from ipinsights.sagemaker.models import ONLY, ModelStore
from ipinsights.sagemaker.output import wait_for_nobody
from ipinsights.sagemaker.paths import Paths
from ipinsights.sagemaker.settings import ServerSettings
from ipinsights.sagemaker.worker import (
    LOST,
    WRITTEN_FOR,
    Health,
    PatientArbiter,
    PatientWorker,
    Shared,
    WatchfulArbiter,
    misfit,
    shorten_stalls,
)

_DRAINING = 25
"""Seconds that requests have to finish when the server stops; the platform kills it after 30."""
_HEARTBEAT = 10
"""Seconds after which a worker that shows no sign of life is replaced, at least. It shows one every second, or a
little later on a busy machine."""
_CONNECTIONS, _OTHER_FILES = 4000, 96
"""Connections that a worker may have, and other open files."""

_SAMPLE = "Ask for a score: curl %s -H 'Content-Type: text/csv' --data 'alice,192.0.2.17'"

logger = logging.getLogger("ipinsights")


def main() -> None:
    """The console script ``serve``. If the model cannot be loaded, it exits with code 1 and one clear sentence."""
    wait_for_nobody()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s")
    try:
        settings = ServerSettings.from_environment()
        quote_data(settings.quote_data)
        folder = _writable_folder()
        models = _models(settings)
        _require_port(settings)
    except UserError as error:
        logger.error("ClientError: %s", one_line(str(error)))  # noqa: TRY400  # a sentence for the user, not a traceback
        sys.exit(1)
    _allow_files()
    gc.set_threshold(100_000)  # parsing a JSON request may create as many objects, and none of them in a cycle
    gc.freeze()  # the collector skips what is loaded by now, so those pages stay shared after the fork
    logging.getLogger("gunicorn.error").addFilter(shorten_stalls)
    log = AccessLog() if settings.access_log else None
    _introduce(models, settings)
    server = _StockServer if _must_use_stock_worker() else _Server
    health = Health()
    server(create_app(models, settings, log, lambda: health.good), settings, folder, log, health).run()


def _require_port(settings: ServerSettings) -> None:
    """Raise UserError if another program listens where the server is to listen, or this one may not."""
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn will
        try:
            probe.bind((settings.address, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"cannot listen on {settings.address}: {error.strerror}. Set IPINSIGHTS_BIND_ADDRESS to an address "
                    "of this machine"
                ) from error
            raise UserError(
                f"cannot listen on port {settings.port}: {error.strerror}. Stop the program that does, or set "
                "SAGEMAKER_BIND_TO_PORT to another port"
            ) from error


def _introduce(models: ModelStore, settings: ServerSettings) -> None:
    """Tell a person what is served, where, and how to ask."""
    everywhere = settings.address == ServerSettings.address
    logger.info("Serving on port %d of %s", settings.port, "every interface" if everywhere else settings.address)
    url = f"http://localhost:{settings.port}" if everywhere else shlex.quote(f"http://{settings.bind}")
    if settings.multi_model:
        asked = json.dumps({"model_name": "NAME", "url": f"{settings.models_folder}/NAME/model"})
        logger.info("Load a model: curl %s/models --data '%s'", url, asked)
        logger.info(_SAMPLE, f"{url}/models/NAME/invoke")
        return
    with models.borrow(ONLY) as loan:
        logger.info(
            "The model in %s knows %s entities and takes %s addresses; its embeddings have %d dimensions. %s",
            models.folder(ONLY),
            f"{loan.scorer.entities:,}",
            "IPv6 and IPv4" if loan.scorer.family.version == 6 else "IPv4",
            loan.scorer.vector_dim,
            "It is untrained: every score is 0" if loan.scorer.untrained else "A score below 0 is suspicious",
        )
    logger.info(_SAMPLE, f"{url}/invocations")


def _must_use_stock_worker() -> bool:
    """Whether the installed gunicorn is not the one that `worker` is for; then the log says what that costs."""
    reason = misfit()
    if reason:
        logger.warning(
            "gunicorn %s is installed, but the server's own worker is for gunicorn %s (%s). "
            "The server uses gunicorn's thread worker instead, without %s.",
            *(gunicorn.__version__, WRITTEN_FOR, reason, LOST),
        )
    return reason is not None


def _models(settings: ServerSettings) -> ModelStore:
    """The store: with the one model loaded, or, for a multi-model endpoint, empty. Raises UserError."""
    untrained = settings.untrained_model == "accept"
    if not settings.multi_model:
        models = ModelStore(untrained=untrained, verify=settings.verify_model)
        models.load(ONLY, Paths.from_environment().model)
        return models
    free = available_memory()
    limit = settings.models_memory_mb * 2**20 if settings.models_memory_mb else free and free * 4 // 5
    logger.info("Models are loaded by POST /models; together they may take %s bytes", f"{limit:,}" if limit else "all")
    return ModelStore(limit, untrained, settings.verify_model)


class _StockServer(BaseApplication):  # type: ignore[misc]  # gunicorn is untyped
    """The application under gunicorn's own thread worker, of any release since 23."""

    def __init__(
        self, app: Flask, settings: ServerSettings, folder: str, log: AccessLog | None, health: Health
    ) -> None:
        self.health = health
        self._app = app
        self._settings = settings
        self._folder = folder
        self._log = log
        super().__init__()

    def run(self) -> None:
        WatchfulArbiter(self).run()

    def load_config(self) -> None:
        for name, value in self.options().items():
            self.cfg.set(name, value)

    def options(self) -> dict[str, object]:
        """The settings of gunicorn that differ from its defaults."""
        settings = self._settings
        found = {
            "bind": settings.bind,
            "workers": settings.workers,
            "worker_class": "gthread",
            "worker_tmp_dir": self._folder,
            "threads": settings.threads,
            "worker_connections": _connections(),
            "timeout": max(settings.timeout, _HEARTBEAT),
            "graceful_timeout": _DRAINING,
            "keepalive": 60,
            "preload_app": True,
            "worker_exit": self._close_log,
        }
        if "control_socket_disable" in self.cfg.settings:  # gunicorn 23 has no such socket
            found["control_socket_disable"] = True  # it is a file in the home folder, which may be read-only
        return found

    def load(self) -> Flask:
        return self._app

    def _close_log(self, _arbiter: object, _worker: object) -> None:
        if self._log:
            self._log.close()


class _Server(_StockServer):
    """The application under the worker of this package."""

    def __init__(
        self, app: Flask, settings: ServerSettings, folder: str, log: AccessLog | None, health: Health
    ) -> None:
        self.shared = Shared(settings.workers)
        self.client_timeout = settings.timeout
        super().__init__(app, settings, folder, log, health)

    def run(self) -> None:
        PatientArbiter(self).run()

    def options(self) -> dict[str, object]:
        """The settings of gunicorn that differ from its defaults."""
        ours = {"worker_class": PatientWorker, "child_exit": lambda _, worker: self.shared.leave(worker.place)}
        return super().options() | ours


def _allow_files() -> None:
    """Raise the limit on open files: each connection is one, and many systems allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS + _OTHER_FILES
    if 0 <= soft < wanted:  # negative means no limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(hard, wanted), hard))


def _connections() -> int:
    """How many a worker may have: no more than there are files for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _CONNECTIONS if soft < 0 else max(1, min(_CONNECTIONS, soft - _OTHER_FILES))


def _writable_folder() -> str:
    """A folder for the unnamed file through which a worker shows the arbiter that it lives. Raises UserError.

    In a container with a read-only file system only its shared memory may be writable; another may lack just that.
    """
    for folder in (None, "/dev/shm"):  # noqa: S108
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder):
            return folder or tempfile.gettempdir()
    raise UserError("no folder can be written to, neither /tmp nor /dev/shm: the server needs one for an empty file")
