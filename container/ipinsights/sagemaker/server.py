"""A server for the model in /opt/ml/model: Flask under gunicorn.

The model is loaded before workers are forked, so they share one copy of its pages. Workers are one a core; each has
more threads than may score at a time, so that /ping does not wait for them.
"""

import contextlib
import ctypes
import errno
import gc
import logging
import mmap
import select
import selectors
import socket
import struct
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
from ipinsights.sagemaker.app import create_app, timeval
from ipinsights.sagemaker.models import ONLY, ModelStore
from ipinsights.sagemaker.paths import Paths
from ipinsights.sagemaker.settings import ServerSettings

_DRAINING = 25
"""Seconds that a server told to stop leaves its requests; after 30 the platform kills it."""

_HEADERS = 5
"""Seconds that a client may leave a request's headers unfinished without sending any of them."""
_MORE_WORKERS = 16
"""Workers for which there is a place besides those asked for: a signal tells gunicorn to have one more."""
_COURTESY = 0.0002
"""Seconds for which a worker leaves a connection to one that has fewer."""
_SO_ATTACH_FILTER, _BPF_RETURN = 26, 6
"""Of Linux; the standard library has no names for them."""
_MOMENT = 5
"""Milliseconds that a thread waits for a further request on a connection."""
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


class _Shared:
    """What the arbiter and its workers know of one another: numbers in memory that they share."""

    def __init__(self, workers: int) -> None:
        places = workers + _MORE_WORKERS
        numbers = memoryview(mmap.mmap(-1, 8 * (1 + places))).cast("q")
        self.stopping = numbers[:1]
        """Not 0 once the server as a whole is to stop."""
        self.connections = numbers[1:]
        """Of the worker in each place; -1 where there is none."""
        for place in range(places):
            self.leave(place)

    def enter(self) -> int:
        """A place for a worker. Called by the arbiter, before the fork."""
        place = self.connections.tolist().index(-1)
        self.connections[place] = 0
        return place

    def leave(self, place: int) -> None:
        """Called by the arbiter, when it knows that the worker has ended."""
        self.connections[place] = -1


class _Arbiter(Arbiter):  # type: ignore[misc]  # gunicorn is untyped
    def stop(self, graceful: bool = True) -> None:
        self.app.shared.stopping[0] = 1
        super().stop(graceful)


def _told_briefly(record: logging.LogRecord) -> bool:
    """That a client stalls is no fault of the program, and no traceback."""
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError):
        record.msg, record.args, record.exc_info = "A client stalled; its connection is closed", (), None
    return True


class _Connection(TConn):  # type: ignore[misc]
    """A connection whose client cannot keep a thread waiting, nor the worker when it is closed."""

    def __init__(self, pool: Executor, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._pool = pool
        for option, seconds in ((socket.SO_RCVTIMEO, _HEADERS), (socket.SO_SNDTIMEO, self.cfg.timeout)):
            self.sock.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))

    def comes_more(self) -> bool:
        """Whether another request comes within a moment."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(_MOMENT))

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
    last worker closes the socket, seconds later.
    """

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: "_Server", *others: Any) -> None:
        self._shared = app.shared
        self.place = app.shared.enter()
        self._left = False
        super().__init__(age, ppid, sockets, app, *others)

    @property
    def nr_conns(self) -> int:
        """Connections that the worker has; gunicorn counts them."""
        return int(self._shared.connections[self.place])

    @nr_conns.setter
    def nr_conns(self, number: int) -> None:
        self._shared.connections[self.place] = number

    def handle(self, connection: Any) -> Any:
        """Answer a request, and those that come at once after it: to give a connection back costs more than scoring."""
        kept = super().handle(connection)
        while kept is True and self.alive and connection.comes_more():
            kept = super().handle(connection)
        return kept

    def accept(self, listener: Any) -> None:
        """Take a connection, unless another worker has fewer; but once left, and there still, it is taken."""
        fewest = min(number for number in self._shared.connections if number >= 0)
        if self.alive and self.nr_conns > fewest and not self._left:
            self._left = True
            time.sleep(_COURTESY)
            return
        self._left = False
        try:
            client, address = listener.accept()
        except OSError as error:
            gone = error.errno in (errno.EAGAIN, errno.ECONNABORTED)
            if gone or (error.errno == errno.EINVAL and self._shared.stopping[0]):  # another worker has shut the socket
                return
            raise
        self.nr_conns += 1
        connection = _Connection(self.tpool, self.cfg, client, address, listener.getsockname())
        connection.timeout = time.monotonic() + (self.cfg.keepalive if self.alive else _LINGER)
        self.pending_conns.append(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, connection))

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections or do not; the last time, those that wait, and have the system refuse others."""
        if not self.alive and self._accepting:
            for listener in self.sockets:
                if self._shared.stopping[0]:
                    _make_deaf(listener.sock)
                before = -1
                while before != self.nr_conns:
                    before = self.nr_conns
                    self.accept(listener)
                if self._shared.stopping[0]:
                    with contextlib.suppress(OSError):
                        listener.sock.shutdown(socket.SHUT_RDWR)
            for connection in self.pending_conns:
                connection.timeout = min(connection.timeout, time.monotonic() + _LINGER)
        super().set_accept_enabled(enabled)


def _make_deaf(listener: socket.socket) -> None:
    """Have no connection come about any more, so that all that have can be accepted before the socket is shut.

    Shutting it resets those that have not. The filter is a program for the system's packet filter that takes no packet.
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    with contextlib.suppress(OSError):  # a sandbox may lack it; then a few are reset
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, app: Flask, settings: ServerSettings, folder: str, log: AccessLog | None) -> None:
        self._app = app
        self._settings = settings
        self._folder = folder
        self._log = log
        self.shared = _Shared(settings.workers)
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
            "child_exit": lambda _arbiter, worker: self.shared.leave(worker.place),
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
