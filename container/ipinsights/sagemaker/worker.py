"""Gunicorn's thread worker, changed where a client could block others or lose its request.

| gunicorn | here |
|---|---|
| a connection occupies a thread when it is new, or has a byte of a request | only when a request has arrived |
| no limit on pauses within a request or an answer | timeouts of the socket |
| the thread that accepts connections also closes them, and waits up to 2 s for each client | other threads do |
| a connection returns to that thread after each request | its thread waits a moment for the next request |
| the quickest worker accepts a connection | the worker that has the fewest |
| at shutdown, connections that nobody has accepted yet are reset | they are accepted; later ones are refused |
| a thread that was needed once stays, with what it keeps of freed memory | idle ones end every minute |
| freed memory stays with the process | every minute it goes back to the system |

These classes override methods that gunicorn does not document. So they are for one release of gunicorn, and `misfit`
says whether the installed one is that. If it is not, the server uses gunicorn's own thread worker.
"""

import contextlib
import errno
import inspect
import itertools
import logging
import mmap
import operator
import os
import selectors
import signal
import socket
import time
from functools import partial
from typing import Any

import gunicorn
from gunicorn import arbiter
from gunicorn.http.body import LengthReader
from gunicorn.workers import gthread

from ipinsights.machine import return_freed_memory
from ipinsights.sagemaker.connections import HEADERS, Awaited, Closers, Connection

WRITTEN_FOR = "27.0"
"""The release of gunicorn that the classes are for, with any patch level."""
LOST = (
    "threads kept free of idle clients, timeouts for clients that pause within headers or an answer, an even share of "
    "connections among the workers, idle threads ended and freed memory given back, and, at shutdown, answers on "
    "connections that no worker has accepted yet"
)
"""What the server does without if it uses gunicorn's own thread worker."""
_OVERRIDDEN = {
    (arbiter, "Arbiter.stop"): "(self, graceful=True)",
    (gthread, "TConn.__init__"): "(self, cfg, sock, client, server)",
    (gthread, "TConn.close"): "(self, graceful=False)",
    (gthread, "ThreadWorker.__init__"): "(self, *args, **kwargs)",
    (gthread, "ThreadWorker.init_process"): "(self)",
    (gthread, "ThreadWorker.handle"): "(self, conn)",
    (gthread, "ThreadWorker.notify"): "(self)",
    (gthread, "ThreadWorker.get_thread_pool"): "(self)",
    (gthread, "ThreadWorker.accept"): "(self, listener)",
    (gthread, "ThreadWorker.set_accept_enabled"): "(self, enabled)",
    (gthread, "ThreadWorker.on_pending_socket_readable"): "(self, conn, client)",
    (gthread, "ThreadWorker.on_client_socket_readable"): "(self, conn, client)",
    (gthread, "ThreadWorker.enqueue_req"): "(self, conn)",
    (gthread, "ThreadWorker.murder_pending"): "(self)",
    (gthread, "ThreadWorker._keepalive_after"): "(self, conn, keepalive)",
}
"""The signatures of the methods that the classes override or call."""

_MORE_WORKERS = 16
"""Slots for workers beyond twice the number configured: on a signal, gunicorn starts more workers, or all anew."""
_DEATHS = 2
"""Workers that the system ends in a row, after which the server counts as broken."""
_COURTESY = 0.0002
"""Seconds for which a worker leaves a connection to a worker that has fewer."""
_SCARCITY = 0.05
"""Seconds for which a worker accepts nothing after the system ran out of descriptors or memory."""
_DRAINING = 0.01
"""Seconds for which a thread reads the rest of a body that nobody wanted; then the connection is closed."""
_LINGER = 2
"""Seconds for which a worker that stops waits for requests on the connections that it has."""
_TIDYING = 60
"""Seconds between two times that a worker ends idle threads and gives freed memory back."""

logger = logging.getLogger("ipinsights")


def misfit() -> str | None:
    """Why the classes of this module do not fit the installed gunicorn; None if they fit."""
    if not f"{gunicorn.__version__}.".startswith(f"{WRITTEN_FOR}."):
        return "another version"
    for (module, name), expected in _OVERRIDDEN.items():
        try:
            found = str(inspect.signature(operator.attrgetter(name)(module)))
        except AttributeError:
            return f"{name} is missing"
        if found != expected:
            return f"{name} takes {found} instead of {expected}"
    return None


class Shared:
    """Numbers in memory that the arbiter and its workers share."""

    def __init__(self, workers: int) -> None:
        places = 2 * workers + _MORE_WORKERS
        numbers = memoryview(mmap.mmap(-1, 8 * (1 + places))).cast("q")
        self.stopping = numbers[:1]
        """Not 0 once the whole server stops."""
        self.connections = numbers[1:]
        """The number of connections of the worker in each slot; -1 if the slot is free."""
        for place in range(places):
            self.leave(place)

    def enter(self) -> int:
        """Take a slot for a worker. The arbiter calls this before it forks the worker."""
        free = [place for place, number in enumerate(self.connections) if number < 0]
        place = free[0] if free else len(self.connections) - 1  # better a shared slot than no worker
        self.connections[place] = 0
        return place

    def leave(self, place: int) -> None:
        """Free the slot of a worker. The arbiter calls this once the worker has exited."""
        self.connections[place] = -1


class Health:
    """Whether the server is fit to go on, in memory that the arbiter and its workers share.

    A worker that touches memory which is not there is ended by the system, and nobody answers its requests. If that
    happens to two in a row, it will happen again: a file was cut short under the server, say, or a library is at fault.
    """

    def __init__(self) -> None:
        self._deaths = memoryview(mmap.mmap(-1, 8)).cast("q")

    @property
    def good(self) -> bool:
        """Whether it is; once it is not, it never is again."""
        return self._deaths[0] < _DEATHS

    def worker_ended(self, killer: int) -> None:
        """Take note that a worker has ended, by which signal; 0 for none. Only the arbiter calls this."""
        if not self.good:
            return
        self._deaths[0] = self._deaths[0] + 1 if killer in (signal.SIGBUS, signal.SIGSEGV) else 0
        if not self.good:
            reason = (
                "a file that it has open was cut short or written over; replace a model by renaming the new one"
                if killer == signal.SIGBUS
                else "native code is at fault, please report it"
            )
            logger.error(
                "%s workers in a row were ended by %s (%s). From now on /ping answers 503, so that this server is "
                "replaced",
                *(_DEATHS, signal.Signals(killer).name, reason),
            )


class WatchfulArbiter(arbiter.Arbiter):  # type: ignore[misc]  # gunicorn is untyped
    """Takes note of how its workers end. The application that it runs has an attribute more: ``health``, a `Health`."""

    def reap_workers(self) -> None:
        """Look at the workers that have ended before they are reaped, which is when the system forgets how they did."""
        if hasattr(os, "waitid"):  # not everywhere but on Linux
            for pid in list(self.WORKERS):
                with contextlib.suppress(ChildProcessError):
                    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if ended:
                        killed = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
                        self.app.health.worker_ended(ended.si_status if killed else 0)
        super().reap_workers()


class PatientArbiter(WatchfulArbiter):
    """Tells its workers when all of them are to stop.

    The application that it runs has also ``shared``, a `Shared`, and ``client_timeout``, the seconds for which a client
    may take nothing of an answer.
    """

    def stop(self, graceful: bool = True) -> None:
        """Stop all workers."""
        self.app.shared.stopping[0] = 1
        super().stop(graceful)


def shorten_stalls(record: logging.LogRecord) -> bool:
    """A log filter: a client that stalls is not a fault of the program, so its record gets no traceback."""
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError):
        record.msg, record.args, record.exc_info = "A client stalled; its connection is closed", (), None
    return True


class PatientWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """The thread worker with the changes that the module's docstring lists."""

    tpool: Any
    """Gunicorn's pool of threads."""

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: Any, *others: Any) -> None:
        self._shared: Shared = app.shared
        self.place = app.shared.enter()
        self._left = False
        self._ended = False
        super().__init__(age, ppid, sockets, app, *others)

    def init_process(self) -> None:
        """Start in the forked process."""
        self._closers = Closers()
        self._begun: dict[Awaited, dict[Connection, None]] = {awaited: {} for awaited in Awaited}
        """Connections with a part of a request, by what they wait for. The one that has waited longest comes first."""
        self._tidied = time.monotonic()
        super().init_process()

    def notify(self) -> None:
        """Show the arbiter that this worker lives, as it does every second at least. Now and then, tidy up."""
        super().notify()
        if time.monotonic() >= self._tidied + _TIDYING:
            used, self.tpool = self.tpool, self.get_thread_pool()
            used.shutdown(wait=False)  # busy threads end after their connection
            return_freed_memory()
            self._tidied = time.monotonic()

    @property
    def nr_conns(self) -> int:
        """The number of connections of this worker, which gunicorn counts, where other workers can read it."""
        return int(self._shared.connections[self.place])

    @nr_conns.setter
    def nr_conns(self, number: int) -> None:
        self._shared.connections[self.place] = number

    def handle(self, connection: Any) -> Any:
        """Answer a request, and further ones that follow it at once: handing a connection back costs more than scoring.

        With more connections than threads the thread hands it back all the same, or the others would wait for ever.
        """
        while True:
            connection.expect_headers()
            kept = super().handle(connection)
            stays = kept is True and self.alive and self.nr_conns <= self.cfg.threads
            if not (stays and connection.has_more()):
                return kept

    def accept(self, listener: Any) -> None:
        """Accept a connection. If another worker has fewer, leave it to that one for a moment first."""
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
                self.log.warning("A connection cannot be accepted yet: %s", error.strerror)
                time.sleep(_SCARCITY)
                return
            gone = error.errno in (errno.EAGAIN, errno.ECONNABORTED)
            shut = error.errno == errno.EINVAL and self._shared.stopping[0]  # by another worker
            if gone or shut:
                return
            raise
        self.nr_conns += 1
        connection = Connection(
            self._closers, self.app.client_timeout, self.cfg, client, address, listener.getsockname()
        )
        connection.timeout = time.monotonic() + (self.cfg.keepalive if self.alive else _LINGER)
        self.pending_conns.append(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, connection))

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections. When the worker stops for good, it first accepts those that wait.

        When all workers stop, it then shuts the socket down, so that clients who come later are refused at once.
        """
        if not self.alive and not self._ended:
            self._ended = True
            for listener in self.sockets:
                before = -1
                while before != self.nr_conns:
                    before = self.nr_conns
                    self.accept(listener)
                if self._shared.stopping[0]:
                    with contextlib.suppress(OSError):  # another worker has shut it down
                        listener.sock.shutdown(socket.SHUT_RDWR)
            for connection in itertools.chain(self.pending_conns, *self._begun.values()):
                connection.timeout = min(connection.timeout, time.monotonic() + _LINGER)
        super().set_accept_enabled(enabled)

    def on_pending_socket_readable(self, connection: Any, client: socket.socket) -> None:
        """Look at what has arrived on a new connection."""
        self.pending_conns.remove(connection)
        self._look(connection, client)

    def on_client_socket_readable(self, connection: Any, client: socket.socket) -> None:
        """The same on one that has had an answer."""
        self.keepalived_conns.remove(connection)
        self._look(connection, client)

    def _look(self, connection: Any, client: socket.socket) -> None:
        """Give a connection a thread if its request has arrived, or else let it wait for the rest."""
        for begun in self._begun.values():
            begun.pop(connection, None)
        awaited = connection.awaits()
        if awaited is None:
            self._begin(connection)
            return
        patience = {Awaited.HEADERS: HEADERS, Awaited.BODY: self.app.client_timeout}[awaited]
        connection.timeout = time.monotonic() + (patience if self.alive else min(patience, _LINGER))
        self._begun[awaited][connection] = None
        self.poller.modify(client, selectors.EVENT_READ, partial(self._look, connection))

    def _begin(self, connection: Any) -> None:
        self.poller.unregister(connection.sock)
        connection.data_ready = True
        self.enqueue_req(connection)

    def murder_pending(self) -> None:
        """Give up connections that have waited too long. Those with a part of a request are told so by a thread."""
        super().murder_pending()
        for begun in self._begun.values():
            while begun and (connection := next(iter(begun))).timeout <= time.monotonic():
                del begun[connection]
                connection.give_up()
                self._begin(connection)

    def _keepalive_after(self, connection: Any, keepalive: bool) -> bool:
        """Whether another request may follow: not if this one's body was not read and does not arrive at once."""
        reader = connection.parser.mesg.body.reader
        read = reader.length == 0 if isinstance(reader, LengthReader) else reader.parser is None
        return keepalive and (read or bool(connection.parser.finish_body(deadline=time.monotonic() + _DRAINING)))
