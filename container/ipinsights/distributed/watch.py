"""The watch: every process that trains keeps one TCP connection to the leader, and both ends send a byte a second.

A host has one such process, or one for each of its GPUs. So one that dies, freezes or loses its network is noticed
within the patience, and told by its name to all others. The library that exchanges the numbers cannot do that: of a
dead peer it knows a port, and of a frozen one nothing until its own timeout, which must be as long as the longest
honest work. Plain sockets in threads of their own cannot be made to wait by anybody else.

The watch is the rendezvous, too. It waits for hosts that come late and for names that do not resolve yet. And each
process tells how many its host has, which nobody else knows.
"""

import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ipinsights.distributed.group import OtherHostStopped
from ipinsights.errors import AlgorithmError

PORT = 7744
BEAT = 1.0
"""Seconds between two signs of life."""
PATIENCE = 60.0
"""Seconds of silence after which a host counts as gone."""
RENDEZVOUS = 15 * 60.0
"""Seconds that hosts wait for one another at the start: as long as a platform may take to start the last one."""

_MAGIC = b"ipinsights ranks"
_HELLO = struct.Struct("<16sIiii")
"""The magic bytes, a digest of the hosts' names, the number of the host, that of the process there, how many it has."""
_ALIVE, _BYE, _STOP, _LOST, _READY = b".", b"b", b"s", b"l", b"r"
"""Kinds of messages. The last two have a text: its length, and JSON. The third asks the leader not to begin."""
_LENGTH = struct.Struct("<i")
_LONGEST, _LONGEST_REASON = 1 << 20, 4000
_GREETING, _FAREWELL = 5.0, 2.0
"""Seconds that a connection has to come about and to say who it is, and that others have to hang up."""
_REMINDER = 30.0
"""Seconds between two reports of who is waited for."""
_LOOK = 0.1
_LOOPBACK = "127.0.0.1"

Place = tuple[int, int]
"""The number of a host, and that of a process on it."""
_LEADER: Place = (0, 0)


class Watch:
    """The connections of one process. `ready` brings all together; from then on the watch goes on by itself."""

    def __init__(
        self,
        hosts: Sequence[str],
        host: int,
        lost: Callable[[str, bool], object],
        *,
        process: int = 0,
        processes: int = 1,
        port: int = PORT,
        server: socket.socket | None = None,
        patience: float = PATIENCE,
        rendezvous: float = RENDEZVOUS,
        waiting: Callable[[Sequence[str]], object] = lambda _: None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """Connect to all others, which takes until all are there.

        This is one ``process`` of so many ``processes`` on the host of that number. The first one of the first host is
        the leader, to whom all connect. It listens on the ``port``, or with a ``server`` that does so already.

        ``lost`` is called, once and in another thread, when a host is gone or has failed. It gets the reason, which
        names the host, and whether that host has told it itself. It should end the process, since nothing else can end
        an exchange with a host that is frozen. ``waiting`` is called now and then with the hosts that have not come.
        ``check`` is called often while it waits; an exception from it ends the wait, here and on all hosts that have
        come.

        Raises AlgorithmError, which names a host, if one does not come in time, and OtherHostStopped if the ``check``
        of another has ended the wait.
        """
        self._hosts, self._patience = hosts, patience
        self.place: Place = (host, process)
        self._numbers: dict[int, int] = {host: processes}
        """How many processes the hosts have, as far as it is known."""
        self._digest = zlib.crc32("\n".join(hosts).encode())
        self._lost = lost
        self._waiting, self._check = waiting, check
        self._deadline = time.monotonic() + rendezvous
        self._rendezvous = rendezvous
        self._lock = threading.Lock()
        self._over = False
        """Whether this process has left, or knows of one that is lost."""
        self._peers: dict[Place, socket.socket] = {}
        self._heard: dict[Place, float] = {}
        self._left: set[Place] = set()
        self._asked: Place | None = None
        """Who has asked the leader not to begin."""
        self._news = threading.Condition()
        self._told: Any = None
        self._listeners: list[threading.Thread] = []
        self._server = server
        try:
            if self.leads:
                self._receive_all(port)
            else:
                self._connect(port)
        except BaseException:
            self._close()
            raise

    @property
    def leads(self) -> bool:
        """Whether this is the leader."""
        return self.place == _LEADER

    @property
    def processes(self) -> list[int]:
        """How many processes each host has, once `ready`."""
        return [self._numbers[host] for host in range(len(self._hosts))]

    def name(self, place: Place) -> str:
        """How messages call a process: by its host, and by its GPU where the host has several."""
        host, process = place
        return f"{self._hosts[host]} (GPU {process})" if self._numbers.get(host, 1) > 1 else self._hosts[host]

    def ready(self, told: Any = None) -> Any:
        """Begin. What the leader has to tell, anything that JSON has, is what everybody gets."""
        if self.leads:
            self._go_on()
            self._send(_READY, json.dumps([self.processes, told]), self._peers)
            return told
        wish: Exception | None = None
        with self._news:
            while self._told is None:
                self._news.wait(_LOOK)
                if _LEADER in self._left:
                    self.leave()
                    raise wish or OtherHostStopped(self._hosts[0])
                try:
                    self._check()
                except Exception as error:  # the leader decides: it may have begun, and then nobody must be missing
                    if not wish:
                        self._send(_STOP, None, [_LEADER])
                    wish = error
        processes, told = self._told
        self._numbers = dict(enumerate(processes))
        return told

    @property
    def address(self) -> str:
        """An address to which this is connected: on the leader that of another host, if there is one."""
        place = max(self._peers)  # the leader's own host is the first one
        return str(self._peers[place].getpeername()[0])

    def fail(self, reason: str) -> None:
        """Leave, and tell all others that it is because of a failure here."""
        with self._lock:
            if self._over:
                return
            self._over = True
        reason = f"host {self.name(self.place)} failed: {reason}"
        self._send(_LOST, json.dumps([self.place, reason[:_LONGEST_REASON], True]), self._peers)
        self._drain()
        self._close()

    def leave(self) -> None:
        """The work is done. From now on nobody minds if this process is gone."""
        with self._lock:
            self._over = True
        self._send(_BYE, None, self._peers)
        self._close()

    # ------------------------------------------------------------------------------------------------- coming together

    def _go_on(self) -> None:
        """On the leader: raise what ends the wait, here or on another host. All that have come are told."""
        try:
            self._check()
        except Exception:
            self.leave()
            raise
        if self._asked is not None:
            self.leave()
            raise OtherHostStopped(self.name(self._asked))

    def _receive_all(self, port: int) -> None:
        self._server = self._server or socket.create_server(("", port), backlog=len(self._hosts))
        self._server.settimeout(_LOOK)
        remind = time.monotonic() + _REMINDER
        threading.Thread(target=self._beat, daemon=True).start()
        while late := self._late():
            self._go_on()
            if time.monotonic() > self._deadline:
                reason = f"host {', '.join(late)} has not come within {_minutes(self._rendezvous)}"
                self._send(_LOST, json.dumps([_LEADER, reason, False]), self._peers)
                raise AlgorithmError(reason)
            if time.monotonic() > remind:
                remind += _REMINDER
                self._waiting(late)
            with contextlib.suppress(TimeoutError):
                connection, _ = self._server.accept()
                self._welcome(connection)
        self._server.close()

    def _late(self) -> list[str]:
        """Who has not come. Of a host that is not there at all, nobody knows how many processes it has."""
        places = ((host, p) for host in range(len(self._hosts)) for p in range(self._numbers.get(host, 1)))
        return [self.name(place) for place in places if place != _LEADER and place not in self._peers]

    def _welcome(self, connection: socket.socket) -> None:
        """Take the connection of one of us; one of anybody else is closed."""
        connection.settimeout(min(self._patience, _GREETING))
        greeting = b""
        with contextlib.suppress(OSError):
            greeting = connection.recv(_HELLO.size, socket.MSG_WAITALL)
        magic, digest, host, process, processes = (
            _HELLO.unpack(greeting) if len(greeting) == _HELLO.size else (b"", 0, 0, 0, 0)
        )
        place = host, process
        ours = (magic, digest) == (_MAGIC, self._digest) and 0 <= host < len(self._hosts) and 0 <= process < processes
        if not ours or place in (_LEADER, *self._peers) or self._numbers.setdefault(host, processes) != processes:
            connection.close()
            return
        connection.settimeout(self._patience)
        self._follow(place, connection)

    def _connect(self, port: int) -> None:
        """Reach the leader, whose name may not resolve yet, and who may not be there yet."""
        pause, remind = 0.1, time.monotonic() + _REMINDER
        leader = self._hosts[0] if self.place[0] else _LOOPBACK
        while True:
            self._check()
            try:
                connection = socket.create_connection((leader, port), timeout=min(_GREETING, self._patience))
                break
            except OSError as error:
                if time.monotonic() > self._deadline:
                    raise AlgorithmError(
                        f"host {self._hosts[0]}, the leader, cannot be reached on port {port} within "
                        f"{_minutes(self._rendezvous)}: {error}"
                    ) from error
            if time.monotonic() > remind:
                remind += _REMINDER
                self._waiting(self._hosts[:1])
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
        connection.settimeout(self._patience)
        connection.sendall(_HELLO.pack(_MAGIC, self._digest, *self.place, self._numbers[self.place[0]]))
        self._follow(_LEADER, connection)
        threading.Thread(target=self._beat, daemon=True).start()

    def _follow(self, place: Place, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard[place] = time.monotonic()
        self._peers[place] = connection
        self._listeners.append(threading.Thread(target=self._listen, args=(place, connection), daemon=True))
        self._listeners[-1].start()

    # ------------------------------------------------------------------------------------------------------- the watch

    def _listen(self, place: Place, connection: socket.socket) -> None:
        while True:
            try:
                kind = connection.recv(1)
                text = self._text(connection) if kind in (_LOST, _READY) else None
            except TimeoutError:
                return  # the beat tells it
            except (OSError, ValueError):
                kind = b""
            self._heard[place] = time.monotonic()
            if kind == _READY:
                with self._news:
                    self._told = text
                    self._news.notify_all()
            elif kind == _LOST and isinstance(text, list):
                self._report(*text)
                return
            elif kind == _STOP:
                self._asked = place
            elif kind == _BYE:
                self._left.add(place)
                return
            elif not kind:
                self._report(place, f"host {self.name(place)} is gone: its connection broke off", False)
                return

    def _text(self, connection: socket.socket) -> Any:
        (length,) = _LENGTH.unpack(connection.recv(_LENGTH.size, socket.MSG_WAITALL))
        if not 0 <= length <= _LONGEST:
            raise ValueError(length)
        return json.loads(connection.recv(length, socket.MSG_WAITALL))

    def _beat(self) -> None:
        while not self._over:
            self._send(_ALIVE, None, [place for place in list(self._peers) if place not in self._left])
            now = time.monotonic()
            for place, heard in list(self._heard.items()):
                if place not in self._left and now - heard > self._patience:
                    self._report(place, f"host {self.name(place)} has been silent for {self._patience:.0f} s", False)
                    return
            time.sleep(min(BEAT, self._patience / 4))

    def _report(self, place: Sequence[int], reason: str, told: bool) -> None:
        """A host is lost: tell the others, and whoever owns the watch."""
        with self._lock:
            if self._over:
                return
            self._over = True
        if self.leads:
            others = [other for other in self._peers if other != tuple(place)]
            self._send(_LOST, json.dumps([place, reason, told]), others)
            self._drain()
        self._lost(reason, told)

    def _send(self, kind: bytes, text: str | None, places: Iterable[Place]) -> None:
        message = kind
        if text is not None:
            message += _LENGTH.pack(len(text.encode())) + text.encode()
        for place in places:
            # Nobody waits here: a peer that reads nothing is told by its silence.
            with contextlib.suppress(OSError):
                self._peers[place].sendall(message) if text is not None else self._peers[place].send(
                    message, socket.MSG_DONTWAIT
                )

    def _drain(self) -> None:
        """Wait until the others have hung up, but not long: what an ending process has sent may get lost."""
        until = time.monotonic() + _FAREWELL
        for listener in self._listeners:
            if listener is not threading.current_thread():
                listener.join(max(0.0, until - time.monotonic()))

    def _close(self) -> None:
        """Close so that what was sent still arrives."""
        self._over = True
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        if self._server:
            self._server.close()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"
