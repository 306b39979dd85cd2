"""Gunicorn's thread worker, mended where a client could keep others waiting or lose its request.

| gunicorn | here |
|---|---|
| a new connection has a thread at once, for up to 5 s without a word | it has one when there is something to read |
| nothing bounds the time between two pieces of a request or an answer | the system does |
| a connection is closed by the thread that takes new ones, which waits up to 2 s for the client | by another |
| a connection goes back to that thread after each request | the thread that answered stays with it for a moment |
| whoever is quicker takes a connection | the worker that has fewest |
| told to stop, it leaves connections that nobody has accepted yet to be reset | it accepts them and refuses others |
"""

import contextlib
import ctypes
import errno
import logging
import mmap
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import TConn, ThreadWorker

from ipinsights.sagemaker.sockets import timeval

_HEADERS = timeval(5)
"""The time that a client may leave a request's headers unfinished without sending any of them."""
_CLOSING = 32
"""Connections that wait at a time, up to 2 s, for their clients to close their end."""
_MORE_WORKERS = 16
"""Workers for which there is a place besides twice those asked for: signals have gunicorn start more, or all anew."""
_COURTESY = 0.0002
"""Seconds for which a worker leaves a connection to one that has fewer."""
_SCARCITY = 0.05
"""Seconds for which a worker takes no connection when the system has no more to give."""
_SO_ATTACH_FILTER = 26
"""Of Linux; the standard library has no name for it."""
_WITHOUT_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""Load the flags of a TCP header; if SYN is among them, drop the packet; else take all of it. As (code, jt, jf, k)."""
_HANDSHAKE = 0.01
"""Seconds in which a connection that has begun comes about."""
_MOMENT = 5
"""Milliseconds that a thread waits for a further request on a connection."""
_LINGER = 2
"""Seconds for which a server told to stop waits for requests on connections that it has taken."""


class Shared:
    """What the arbiter and its workers know of one another: numbers in memory that they share."""

    def __init__(self, workers: int) -> None:
        places = 2 * workers + _MORE_WORKERS
        numbers = memoryview(mmap.mmap(-1, 8 * (1 + places))).cast("q")
        self.stopping = numbers[:1]
        """Not 0 once the server as a whole is to stop."""
        self.connections = numbers[1:]
        """Of the worker in each place; -1 where there is none."""
        for place in range(places):
            self.leave(place)

    def enter(self) -> int:
        """A place for a worker. Called by the arbiter, before the fork."""
        free = [place for place, number in enumerate(self.connections) if number < 0]
        place = free[0] if free else len(self.connections) - 1  # shared, rather than no worker
        self.connections[place] = 0
        return place

    def leave(self, place: int) -> None:
        """Called by the arbiter, when it knows that the worker has ended."""
        self.connections[place] = -1


class PatientArbiter(Arbiter):  # type: ignore[misc]  # gunicorn is untyped
    """Lets its workers know when all of them are to stop. The application that it runs has ``shared``: a `Shared`."""

    def stop(self, graceful: bool = True) -> None:
        """Stop all workers."""
        self.app.shared.stopping[0] = 1
        super().stop(graceful)


def told_briefly(record: logging.LogRecord) -> bool:
    """That a client stalls is no fault of the program, and no traceback."""
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError):
        record.msg, record.args, record.exc_info = "A client stalled; its connection is closed", (), None
    return True


class _Connection(TConn):  # type: ignore[misc]
    """A connection whose client cannot keep a thread waiting, nor the worker when it is closed."""

    def __init__(self, closers: "_Closers", *arguments: Any) -> None:
        super().__init__(*arguments)
        self._closers = closers
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(self.cfg.timeout))

    def expect_headers(self) -> None:
        """Have headers come soon. The body has more time, which `app` gives it."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _HEADERS)

    def comes_more(self) -> bool:
        """Whether another request is there, or comes within a moment."""
        if self.parser.unreader.buf.getvalue():
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(_MOMENT))

    def close(self, graceful: bool = False) -> None:
        """Without having the thread that takes connections wait, up to 2 s, until the client closes its end."""
        if not (graceful and self._closers.take(super().close)):
            super().close()


class _Closers:
    """Threads that see connections closed; but so many clients cannot have them wait that others must."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_CLOSING)
        self._free = threading.BoundedSemaphore(_CLOSING)

    def take(self, close: Callable[[bool], None]) -> bool:
        """Whether one has taken to closing a connection."""
        if not self._free.acquire(blocking=False):
            return False
        self._pool.submit(close, True).add_done_callback(lambda _: self._free.release())
        return True


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """See the module."""

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: Any, *others: Any) -> None:
        self._shared = app.shared
        self.place = app.shared.enter()
        self._left = False
        self._ended = False
        super().__init__(age, ppid, sockets, app, *others)

    def init_process(self) -> None:
        """Begin, behind the fork."""
        self._closers = _Closers()
        super().init_process()

    @property
    def nr_conns(self) -> int:
        """Connections that the worker has; gunicorn counts them."""
        return int(self._shared.connections[self.place])

    @nr_conns.setter
    def nr_conns(self, number: int) -> None:
        self._shared.connections[self.place] = number

    def handle(self, connection: Any) -> Any:
        """Answer a request, and those that come at once after it: to give a connection back costs more than scoring.

        But not where there are more connections than threads, of which those without would then wait for ever.
        """
        while True:
            connection.expect_headers()
            kept = super().handle(connection)
            stays = kept is True and self.alive and self.nr_conns <= self.cfg.threads
            if not (stays and connection.comes_more()):
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
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.log.warning("A connection cannot be taken yet: %s", error.strerror)
                time.sleep(_SCARCITY)
                return
            gone = error.errno in (errno.EAGAIN, errno.ECONNABORTED)
            if gone or (error.errno == errno.EINVAL and self._shared.stopping[0]):  # another worker has shut the socket
                return
            raise
        self.nr_conns += 1
        connection = _Connection(self._closers, self.cfg, client, address, listener.getsockname())
        connection.timeout = time.monotonic() + (self.cfg.keepalive if self.alive else _LINGER)
        self.pending_conns.append(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, connection))

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections or do not; the last time, those that wait, and have the system refuse others."""
        if not self.alive and not self._ended:
            self._ended = True
            for listener in self.sockets:
                if self._shared.stopping[0]:
                    _refuse_more(listener.sock)
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


def _refuse_more(listener: socket.socket) -> None:
    """Have no further connection begin, so that all that have begun can be accepted before the socket is shut.

    Shutting it resets those that have not. The filter is a program for the system's packet filter.
    """
    instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in _WITHOUT_SYN)
    program = ctypes.create_string_buffer(instructions)
    with contextlib.suppress(OSError):  # a sandbox may lack it; then a few are reset
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_WITHOUT_SYN), ctypes.addressof(program))
        )
        time.sleep(_HANDSHAKE)
