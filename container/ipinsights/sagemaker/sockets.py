"""What comes through a socket, and for how long it is waited for."""

import socket
import struct
from typing import TYPE_CHECKING

from gunicorn.http.errors import ParseException

from ipinsights.errors import UserError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_PIECE = 1 << 20


class TooLarge(UserError):
    """The body has more bytes than are taken."""


class Stalled(UserError):
    """The body stopped coming."""


def timeval(seconds: int) -> bytes:
    """A time as socket options have it. A timeout of Python's would cost two more system calls a read or write."""
    return struct.pack("ll", seconds, 0)


def read_body(environ: "WSGIEnvironment", limit: int, seconds: int) -> bytes:
    """A request's body, of at most ``limit`` bytes; it may come in chunks of no length known beforehand.

    Raises TooLarge; Stalled where nothing comes for so many seconds; UserError where it cannot be received.
    """
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > limit:
        raise _too_large(limit)
    if "gunicorn.socket" in environ:
        environ["gunicorn.socket"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(seconds))
    stream, pieces, size = environ["wsgi.input"], [], 0
    try:
        if length:
            body = bytes(stream.read(length))
            if len(body) < length:
                raise UserError(f"the body ended after {len(body)} of {length} bytes")
            return body
        while environ.get("wsgi.input_terminated") and (piece := stream.read(_PIECE)):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
    except BlockingIOError:
        raise Stalled(f"Nothing of the body came for {seconds} seconds") from None
    except (OSError, ParseException) as error:  # cut off, or in chunks that are none
        raise UserError(f"the body cannot be received ({error!r})") from error
    return b"".join(pieces)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes")
