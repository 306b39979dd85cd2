"""A server for the model in /opt/ml/model: Flask under gunicorn.

The model is loaded before workers are forked, so they share one copy of its pages. Workers are one a core; each has
more threads than may score at a time, so that /ping does not wait for them.
"""

import contextlib
import errno
import gc
import logging
import mmap
import selectors
import socket
import sys
import tempfile
import time
from concurrent.futures import Executor
from functools import partial
from typing import Any

import pandas  # noqa: F401  # pyarrow wants it for some requests: once, before the fork
from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import TConn, ThreadWorker

from ipinsights.errors import UserError
from ipinsights.machine import available_memory
from ipinsights.sagemaker.access import AccessLog
from ipinsights.sagemaker.app import create_app
from ipinsights.sagemaker.models import ONLY, ModelStore
from ipinsights.sagemaker.paths import Paths
from ipinsights.sagemaker.settings import ServerSettings

_DRAINING = 25
"""Seconds that a server told to stop leaves its requests; after 30 the platform kills it."""

_HEADERS = 5
"""Seconds that a client may leave a request's headers unfinished without sending any of them."""
_LINGER = 2
"""Seconds for which a server told to stop waits for requests on connections that it has taken."""

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
    gc.set_threshold(100_000)  # a request in JSON may make as many objects, none of which is ever garbage in a circle
    gc.freeze()  # what is loaded is never garbage: the collector need not look, and pages stay shared after the fork
    logging.getLogger("gunicorn.error").addFilter(_told_briefly)
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


class _Arbiter(Arbiter):  # type: ignore[misc]  # gunicorn is untyped
    def stop(self, graceful: bool = True) -> None:
        self.app.stopping[0] = 1
        super().stop(graceful)


def _told_briefly(record: logging.LogRecord) -> bool:
    """That a client stalls is no fault of the program, and no traceback."""
    if record.exc_info and isinstance(record.exc_info[1], TimeoutError):
        record.msg, record.args, record.exc_info = "A client stalled; its connection is closed", (), None
    return True


class _Connection(TConn):  # type: ignore[misc]
    """A connection whose client cannot keep a thread waiting, nor the worker when it is closed."""

    def __init__(self, pool: Executor, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pool = pool

    def init(self) -> None:
        """Called before each request on it is read. A body and an answer have more time, which `app` gives them."""
        super().init()
        self.sock.settimeout(_HEADERS)

    def close(self, graceful: bool = False) -> None:
        """Without having the thread that takes connections wait, up to 2 s, until the client closes its end."""
        try:
            self._pool.submit(super().close, graceful)
        except RuntimeError:  # the pool is shut, since the worker ends
            super().close()


class _Worker(ThreadWorker):  # type: ignore[misc]
    """A worker in which no client keeps others waiting, and that loses no connection when the server is told to stop.

    gunicorn gives every new connection a thread, for up to 5 s without a request. Here it has one once there is
    something to read. And when it stops, gunicorn leaves connections that nobody has accepted yet to be reset when the
    last worker closes the socket, seconds later. Here a worker first accepts all that wait, and then has the system
    refuse others.
    """

    def accept(self, listener: Any) -> None:
        try:
            client, address = listener.accept()
        except OSError as error:
            gone = error.errno in (errno.EAGAIN, errno.ECONNABORTED)
            if gone or (error.errno == errno.EINVAL and self.app.stopping[0]):  # another worker has shut the socket
                return
            raise
        self.nr_conns += 1
        connection = _Connection(self.tpool, self.cfg, client, address, listener.getsockname())
        connection.timeout = time.monotonic() + (self.cfg.keepalive if self.alive else _LINGER)
        self.pending_conns.append(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, connection))

    def set_accept_enabled(self, enabled: bool) -> None:
        if not self.alive and self._accepting:
            for listener in self.sockets:
                before = -1
                while before != self.nr_conns:
                    before = self.nr_conns
                    self.accept(listener)
                if self.app.stopping[0]:
                    with contextlib.suppress(OSError):
                        listener.sock.shutdown(socket.SHUT_RDWR)
            for connection in self.pending_conns:
                connection.timeout = min(connection.timeout, time.monotonic() + _LINGER)
        super().set_accept_enabled(enabled)


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, app: Flask, settings: ServerSettings, folder: str, log: AccessLog | None) -> None:
        self._app = app
        self._settings = settings
        self._folder = folder
        self._log = log
        self.stopping = mmap.mmap(-1, 1)
        """Not 0 once the server as a whole is to stop; a byte that the arbiter and its workers share."""
        super().__init__()

    def run(self) -> None:
        _Arbiter(self).run()

    def load_config(self) -> None:
        settings = self._settings
        options = {
            "bind": f"0.0.0.0:{settings.port}",
            "workers": settings.workers,
            "worker_class": _Worker,
            "worker_tmp_dir": self._folder,
            "threads": settings.threads,
            "timeout": settings.timeout,
            "graceful_timeout": _DRAINING,
            "keepalive": 60,
            "preload_app": True,
            "control_socket_disable": True,  # it would be a file in a home that may be read-only
            "worker_exit": self._close_log,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._app

    def _close_log(self, _arbiter: object, _worker: object) -> None:
        if self._log:
            self._log.close()


def _writable_folder() -> str:
    """Where a worker may have a file without a name, by which it shows that it lives. Raises UserError.

    A container whose file system is read-only may have nothing but its shared memory; another may lack just that.
    """
    for folder in (None, "/dev/shm"):  # noqa: S108
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder):
            return folder or tempfile.gettempdir()
    raise UserError("no folder can be written to, neither /tmp nor /dev/shm: the server needs one for an empty file")
