"""Clients of a server, in one process that costs it little: the same few requests again and again.

    python -m benchmarks.load             # reads jobs from stdin, one a line, and writes what it measured to stdout
    python -m benchmarks.load constant    # a server that answers anything at once, to see how fast the clients can be

Each client has one connection, kept alive, and sends its next request when the answer to the last one is there.
Requests are bytes made beforehand; of an answer's head, only the status and the Content-Length are read. Nothing but
the standard library is imported, so that the process is small.
"""

import gc
import json
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any

_PIECE = 1 << 16
_LIMIT = 600
"""Seconds after which a server that neither takes nor sends a byte has failed."""


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_LIMIT)
        # From here on the limit on sending is the kernel's, and on receiving the selector's: Python's would cost a
        # system call more each time.
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _LIMIT, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = 0
        """Which request is under way."""
        self.sent = 0.0
        """When its sending began."""
        self._head = bytearray()
        self._body = bytearray()
        self._missing = -1
        """Bytes of the body that have not come yet; -1 while its length is not known."""

    def send(self, request: int, data: bytes) -> None:
        """Begin a request."""
        self.request, self.sent, self._missing = request, time.perf_counter(), -1
        self._head = bytearray()
        self.socket.sendall(data)

    def receive(self) -> tuple[str, bytearray] | None:
        """Read what is there: status and body, once the answer is whole; the body is good until the next request.

        Raises ConnectionError if it will never be.
        """
        if self._missing < 0:
            piece = self.socket.recv(_PIECE)
            self._head += piece
            taken = len(piece)
            self._look_at_head()
        else:
            taken = self.socket.recv_into(memoryview(self._body)[-self._missing :])
            self._missing -= taken
        if not taken:
            raise ConnectionError("the server closed the connection")
        return None if self._missing else (self._head[9:12].decode(), self._body)

    def _look_at_head(self) -> None:
        """Find the length of the body, if it is there, and begin the body with what has come of it."""
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return
        length = bytes(self._head[:end]).lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        begun = self._head[end + 4 :]
        if len(self._body) != int(length):
            self._body = bytearray(int(length))
        self._body[: len(begun)] = begun
        self._missing = len(self._body) - len(begun)


class Load:
    """Runs jobs, and remembers the first good answer to each request of a name."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], bytes] = {}

    def run(self, name: str, port: int, requests: list[str], connections: int, seconds: float) -> dict[str, Any]:
        """Send requests for some seconds, and at least one a connection; wait for the last answers.

        Jobs of one name have the same requests, whose good answers must be the same, too.
        """
        data = [request.encode() for request in requests]
        clients = [Client(port) for _ in range(connections)]
        selector = selectors.DefaultSelector()
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        latencies: list[float] = []
        statuses: Counter[str] = Counter()
        different = 0
        busy, started = time.process_time(), time.perf_counter()
        now, deadline, following = started, started + seconds, 0
        for client in clients:
            client.send(following % len(data), data[following % len(data)])
            following += 1
        waiting = len(clients)
        while waiting:
            ready = selector.select(_LIMIT)
            if not ready:
                raise TimeoutError(f"no answer for {_LIMIT} s")
            for key, _ in ready:
                client = key.data
                answer = client.receive()
                if answer is None:
                    continue
                now = time.perf_counter()
                latencies.append(now - client.sent)
                status, body = answer
                statuses[status] += 1
                if status == "200":
                    first = self._first.get((name, client.request))
                    if first is None:
                        self._first[name, client.request] = bytes(body)
                    else:
                        different += first != body
                if now < deadline:
                    client.send(following % len(data), data[following % len(data)])
                    following += 1
                else:
                    waiting -= 1
        busy = time.process_time() - busy
        for client in clients:
            client.socket.close()
        selector.close()
        answers = [body for (other, _), body in self._first.items() if other == name]
        latencies.sort()
        return {
            "answers": len(latencies),
            "seconds": now - started,
            "p50": latencies[len(latencies) // 2],
            "p99": latencies[int(len(latencies) * 0.99)],
            "cores": busy / (now - started),
            "statuses": statuses,
            "different": different,
            "predictions": sum(body.count(b'"dot_product"') for body in answers) / max(1, len(answers)),
        }


def serve_jobs() -> None:
    """Run the jobs that come in on stdin."""
    load = Load()
    gc.disable()
    for line in sys.stdin:
        print(json.dumps(load.run(**json.loads(line))), flush=True)
        gc.collect()


def serve_a_constant() -> None:
    """Answer whatever comes in on a free port, which is printed first: {"predictions": [{"dot_product": 0.5}]}.

    Ends when nothing comes any more.
    """
    body = b'{"predictions": [{"dot_product": 0.5}]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", 0))
    selector.register(listener, selectors.EVENT_READ)
    print(listener.getsockname()[1], flush=True)
    while ready := selector.select(_LIMIT):
        for key, _ in ready:
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ, connection)
            elif key.data.recv(_PIECE):
                key.data.send(answer)
            else:
                selector.unregister(key.data)
                key.data.close()


if __name__ == "__main__":
    serve_a_constant() if sys.argv[1:] == ["constant"] else serve_jobs()
