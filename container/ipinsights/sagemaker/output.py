"""Standard output and standard error of a server, which wait for nobody.

If nobody reads them and their pipe is full, whoever writes waits for ever: a request that gunicorn complains of, the
arbiter that says it stops. So text for which there is no room is dropped, as the access log drops its lines.
"""

import io
import select
import sys
from os import write

_PATIENCE = 100
"""Milliseconds for which a text waits for room."""


class Unblocked(io.TextIOBase):
    """A stream that drops what cannot be written at once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)

    def write(self, text: str, /) -> int:
        """Write a text as far as there is room."""
        data = text.encode(errors="backslashreplace")
        # A pipe that is ready has room for this much.
        for begin in range(0, len(data), select.PIPE_BUF):
            if not self._room.poll(_PATIENCE):
                break
            write(self._descriptor, data[begin : begin + select.PIPE_BUF])
        return len(text)

    def fileno(self) -> int:
        """The file descriptor."""
        return self._descriptor


def wait_for_nobody() -> None:
    """Put such streams in the place of this process's own."""
    sys.stdout.flush()
    sys.stdout, sys.stderr = Unblocked(1), Unblocked(2)
