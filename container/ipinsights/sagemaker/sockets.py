"""Reading the body of a request from its socket, with a size limit and a timeout."""

import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from gunicorn.http.errors import ParseException

from ipinsights.errors import UserError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

WHOLE = 1 << 16
"""Bytes of the largest body that arrives whole before a thread reads it."""
_PIECE = 1 << 20


class TooLarge(UserError):
    """The body is larger than the limit."""


class Stalled(UserError):
    """The client stopped sending the body."""


def timeval(seconds: int) -> bytes:
    """A number of seconds as the socket options SO_RCVTIMEO and SO_SNDTIMEO take it.

    A timeout of a Python socket would cost two more system calls per read or write.
    """
    return struct.pack("ll", seconds, 0)


NO_TIME = struct.pack("ll", 0, 1)
"""The timeout of a socket whose client has had its time."""


def may_come_slowly(environ: "WSGIEnvironment") -> bool:
    """Whether a thread may have to wait for a request's body."""
    return "HTTP_EXPECT" in environ or not 0 < int(environ.get("CONTENT_LENGTH") or 0) <= WHOLE


def read_body(
    environ: "WSGIEnvironment", limit: int, seconds: int, take: Callable[[int], object] = lambda _: None
) -> bytes:
    """Read a request's body, which has a length or comes in chunks.

    ``take`` is called with each number of bytes before there is memory for them; what it raises ends the reading.
    Raises TooLarge if it has more than ``limit`` bytes, Stalled if nothing arrives for so many seconds, and UserError
    if it cannot be received.
    """
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > limit:
        raise _too_large(limit)
    if (client := environ.get("gunicorn.socket")) and not _had_its_time(client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))
    stream, pieces, size = environ["wsgi.input"], [], 0
    try:
        if length:
            take(length)
            body = bytes(stream.read(length))
            if len(body) < length:
                raise UserError(f"the body ended after {len(body)} of {length} bytes")
            return body
        while environ.get("wsgi.input_terminated") and (piece := stream.read(_PIECE)):
            take(2 * len(piece))  # the pieces are joined in the end
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
    except BlockingIOError:
        raise Stalled(f"Nothing of the body arrived for {seconds} seconds") from None
    except (OSError, ParseException) as error:  # cut off, or malformed chunks
        raise UserError(f"the body cannot be received ({error!r})") from error
    return b"".join(pieces)


def _had_its_time(client: socket.socket) -> bool:
    timeout = client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, len(NO_TIME))
    seconds, microseconds = struct.unpack("ll", timeout)
    return (seconds, microseconds > 0) == (0, True)  # the system rounds them


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes")
