"""Clients that stop in the middle: whether the server still answers others.

    python -m benchmarks.slow                   # 2,000 of each kind, at once
    python -m benchmarks.slow --clients 5000

Each row is a server of its own, of one worker. While the slow clients hold their connections, others ask every now and
then, each on a new connection: for /ping, and for a score. The table has how long they waited.
"""

import argparse
import contextlib
import resource
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.servers import Server
from benchmarks.soak import save_model
from benchmarks.tables import markdown

_POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SCORE = _POST + b"Connection: close\r\nContent-Length: 9\r\n\r\na,1.2.3.4"
KINDS = {
    "nothing said": b"",
    "half of the headers": _POST[:-20],
    "half of a small body": _POST + b"Content-Length: 99\r\n\r\na,1.2.3.4\n",
    "half of a large body": _POST + b"Content-Length: 9000000\r\n\r\na,1.2.3.4\n",
    "half of a body in chunks": _POST + b"Transfer-Encoding: chunked\r\n\r\n9\r\na,1.2",
}
"""What slow clients send before they stop."""
_PATIENCE = 90
"""Seconds for which whoever asks waits for an answer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000, help="slow clients at once (default 2000)")
    parser.add_argument("--seconds", type=float, default=20, help="how long others ask (default 20)")
    options = parser.parse_args(arguments)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    rows = []
    for kind, text in KINDS.items():
        with tempfile.TemporaryDirectory() as scratch:
            rows.append([kind, *_measure(text, options.clients, options.seconds, Path(scratch))])
    header = ("slow clients", "pings", "slowest (s)", "median (s)", "scores", "slowest (s)", "median (s)", "MB")
    print(markdown(header, rows))
    print(f"\n{options.clients:,} slow clients of each kind, one worker.")


def _measure(text: bytes, clients: int, seconds: float, folder: Path) -> list[str]:
    """How many pings and scores were answered well, and how long they took; what the slow clients cost in memory."""
    save_model(folder / "model")
    with (
        Server.one_worker(folder) as server,
        contextlib.ExitStack() as held,
    ):
        before = server.settled_memory(2)
        for _ in range(clients):
            client = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE))
            client.sendall(text)
        found: dict[bytes, list[float]] = {PING: [], SCORE: []}
        good = dict.fromkeys(found, 0)
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            for request, times in found.items():
                asked = time.monotonic()
                good[request] += _asked(server.port, request).startswith(b"HTTP/1.1 200 ")
                times.append(time.monotonic() - asked)
            time.sleep(0.1)
        cost = server.memory() - before
    cells = []
    for request, times in found.items():
        cells += [f"{good[request]} of {len(times)}", f"{max(times):.3f}", f"{np.median(times):.4f}"]
    return [*cells, f"{cost / 1e6:.0f}"]


def _asked(port: int, request: bytes) -> bytes:
    """The beginning of the answer; nothing if there is none in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection:
            connection.sendall(request)
            return connection.recv(1000)
    except OSError:
        return b""


if __name__ == "__main__":
    main()
