"""How much memory the requests of a worker may take together, so that the system need not end the worker.

| what | limit | beyond it |
|---|---|---|
| bodies that are received or wait | a quarter of the memory | 503 with Retry-After |
| requests that are scored, each taken for `COST` times its body | all of the memory | they wait |
| a JSON document of unusual form, parsed as a whole, which may take 32 times its size | half of the memory (*) | 413 |
| an answer with embeddings or marks, whose size is known before it is written | an eighth of the memory (*) | 413 |

(*) If two requests are scored at a time. If it is S of them, the memory divided by S and by 4 S.

A body that is the only one is received and scored, whatever its size. `MAX_CONTENT_LENGTH` limits that.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ipinsights.errors import UserError

COST = 8
"""What it takes to score a body, in its sizes: 4 to 5 if its form is usual, and 8 if the exact readers read it."""
_IN_FLIGHT = 4
"""Bodies may have a quarter of the memory together."""
_ANSWERS = 4
"""So may answers, as each is in memory twice for a moment, in pieces and whole."""


class BusyError(UserError):
    """There is no memory for this request now, but there may be soon."""


class Memory:
    """The memory for requests. With no limit, all there is."""

    def __init__(self, limit: int | None = None, at_a_time: int = 2) -> None:
        """``limit`` is a number of bytes. So many requests are scored ``at_a_time``."""
        self._limit = float("inf") if limit is None else float(limit)
        self._at_a_time = at_a_time
        self._received = 0
        self._scored = 0
        self._lock = threading.Condition()

    @property
    def answer(self) -> float:
        """The most bytes that an answer may have."""
        return self._limit / (_ANSWERS * self._at_a_time)

    @property
    def document(self) -> float:
        """The most bytes that a document may take that is parsed as a whole."""
        return self._limit / self._at_a_time

    @contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """Account for a body from its first byte until it is answered.

        Whoever receives it calls what this yields with each further number of bytes. Raises BusyError where there is
        no room for them beside other bodies.
        """
        own = 0

        def take(size: int) -> None:
            nonlocal own
            with self._lock:
                if self._received > own and self._received + size > self._limit / _IN_FLIGHT:
                    raise BusyError("the server is receiving as much as it has memory for: ask again in a moment")
                self._received += size
                own += size

        try:
            yield take
        finally:
            with self._lock:
                self._received -= own

    @contextmanager
    def scoring(self, body: int) -> Iterator[None]:
        """Wait until there is memory to score a body of so many bytes."""
        cost = body * COST
        with self._lock:
            self._lock.wait_for(lambda: not self._scored or self._scored + cost <= self._limit)
            self._scored += cost
        try:
            yield
        finally:
            with self._lock:
                self._scored -= cost
                self._lock.notify_all()
