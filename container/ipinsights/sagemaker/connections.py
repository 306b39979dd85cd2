"""Connections on which no client can block a thread for long, nor the worker when it closes the connection.

A thread that reads a request waits for its client. So a connection gets a thread once a request has arrived whole,
unless its body is larger than `WHOLE`. Until then its socket waits in the worker's poller: what has come is looked at,
but left there (MSG_PEEK, recv(2)), and the system reports the socket when there is more (SO_RCVLOWAT, socket(7)).
"""

import re
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

from gunicorn.workers import gthread

from ipinsights.sagemaker.sockets import NO_TIME, WHOLE, timeval

_TConn: Any = getattr(gthread, "TConn", object)  # undocumented; without it this module can still be imported

HEADERS = 5
"""Seconds for which a client may pause within the headers of a request."""
_CLOSING = 32
"""Connections that may wait at the same time, for up to 2 s, until their clients close them."""
_MOMENT = 5
"""Milliseconds for which a thread waits for the next request on its connection."""
_PARTS = 3
"""Parts in which that may arrive: clients often send the body of a request behind its headers."""
_LOOK = 2 * WHOLE + 4
"""Bytes to look at: headers and a body."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,7})[ \t]*\r\n", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:", re.IGNORECASE)


class Awaited(Enum):
    """What a connection waits for."""

    HEADERS = "the rest of a request's headers"
    BODY = "the rest of its body"


def missing(begin: bytes) -> tuple[int, Awaited]:
    """How many bytes at least a request lacks that begins so, and of what.

    0 if it is for a thread: if it is whole, or if its body is larger than `WHOLE`, has no length, or is sent only when
    the server asks for it. Headers of more than `WHOLE` are for a thread, too.
    """
    end = begin.find(b"\r\n\r\n")
    if end < 0:
        return int(len(begin) < WHOLE), Awaited.HEADERS
    head = begin[: end + 2]
    length = _LENGTH.search(head)
    if length is None or int(length[1]) > WHOLE or end > WHOLE or _EXPECT.search(head):
        return 0, Awaited.BODY
    return max(0, end + 4 + int(length[1]) - len(begin)), Awaited.BODY


class Connection(_TConn):  # type: ignore[misc]
    """A connection of the worker."""

    def __init__(self, closers: "Closers", client_timeout: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._closers = closers
        self._patience = timeval(HEADERS)
        self._needed = 1
        """Bytes that must have arrived before there is something new to look at."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(client_timeout))

    def expect_headers(self) -> None:
        """Set the timeout for headers. `sockets.read_body` sets a longer one for the body."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, self._patience)
        self._patience = timeval(HEADERS)

    def awaits(self) -> Awaited | None:
        """What must arrive before a thread reads the next request; None if nothing, also if the client has left."""
        try:
            begin = self.sock.recv(_LOOK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return Awaited.HEADERS
        except OSError:  # the thread will find out
            return None
        number, of = missing(begin)
        if len(begin) < self._needed:  # reported all the same: no more comes, or there is no room for it
            number = 0
        self._need(len(begin) + number if number else 1)
        return of if number else None

    def _need(self, size: int) -> None:
        if size != self._needed:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._needed = size

    def give_up(self) -> None:
        """Have a thread read what there is, and find that the rest has not arrived in time."""
        self._patience = NO_TIME
        self._need(1)

    def has_more(self) -> bool:
        """Whether another request has arrived, or arrives within a moment."""
        if self.parser.unreader.buf.getvalue():
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        arrived = any(poll.poll(_MOMENT) and not self.awaits() for _ in range(_PARTS))
        self._need(1)
        return arrived

    def close(self, graceful: bool = False) -> None:
        """Close it. A graceful close waits up to 2 s for the client, so a thread of its own does that."""
        if not (graceful and self._closers.take(super().close)):
            super().close()


class Closers:
    """Threads that close connections gracefully. If all are busy, a connection is closed at once instead."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_CLOSING)
        self._free = threading.BoundedSemaphore(_CLOSING)

    def take(self, close: Callable[[bool], None]) -> bool:
        """Have a thread close a connection. Returns whether one was free."""
        if not self._free.acquire(blocking=False):
            return False
        self._pool.submit(close, True).add_done_callback(lambda _: self._free.release())
        return True
