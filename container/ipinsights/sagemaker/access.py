"""The access log: a line of JSON for every request, which waits for nobody.

Requests leave their lines in memory, and a thread writes them out every now and then. So a request costs no system
call. If nobody reads the standard output and its pipe is full, requests do not wait: the log drops lines and reports
their number in the next line that it can write.
"""

import os
import select
import threading
from collections import deque
from typing import Any

import orjson

_INTERVAL = 0.2
"""Seconds between two writes."""
_MOST = 20_000
"""Lines in memory at most."""
_LONGEST = 500
"""Characters of a text in a line."""
_AT_ONCE = select.PIPE_BUF
"""Bytes written at a time at most: so much, or one line, gets through a pipe whole, whoever else writes to it."""


class AccessLog:
    """Writes entries to a file descriptor, in order. It serves several threads, of the process that first uses it."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._starting = threading.Lock()
        self._writer: threading.Thread | None = None
        self._closing = threading.Event()

    def add(self, entry: dict[str, Any]) -> None:
        """Have an entry written as a line."""
        if len(self._waiting) >= _MOST:
            self._dropped += 1
            return
        brief = {k: v[:_LONGEST] if isinstance(v, str) else v for k, v in entry.items()}
        self._waiting.append(orjson.dumps(brief, option=orjson.OPT_APPEND_NEWLINE))
        if self._writer is None:  # not before, since a thread does not live through a fork
            with self._starting:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write, name="access log", daemon=True)
                    self._writer.start()

    def close(self) -> None:
        """Write what waits, if that takes no longer than a second."""
        self._closing.set()
        if self._writer is not None:
            self._writer.join(timeout=1)

    def _write(self) -> None:
        last = False
        while not last:
            last = self._closing.wait(_INTERVAL)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._waiting.append(
                    orjson.dumps({"access_log_lines_dropped": dropped}, option=orjson.OPT_APPEND_NEWLINE)
                )
            text = b""
            for _ in range(len(self._waiting)):
                line = self._waiting.popleft()
                if len(text) + len(line) > _AT_ONCE:
                    self._put(text)
                    text = b""
                text += line
            self._put(text)

    def _put(self, text: bytes) -> None:
        while text:
            try:
                text = text[os.write(self._descriptor, text) :]
            except BlockingIOError:  # somebody has told this file not to wait
                select.select([], [self._descriptor], [])
            except OSError:  # as on a full disk, which may have space again
                self._dropped += text.count(b"\n")
                return
