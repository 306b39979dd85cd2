"""A real server, asked changed requests: PYTHONPATH=tests python -m fuzzing.served --number 100_000

Good requests are changed anywhere in their bytes: in the method, the path, the headers, the body. An answer may refuse
them, but with no status of 5xx except those that are documented: 503 with Retry-After, and 501 and 505 of the protocol
itself. Between them a good request must be answered as ever, and no worker may end. Requests that break a rule are
printed, with what came back.
"""

import argparse
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.servers import Server
from benchmarks.soak import save_model

_TYPES = (b"text/csv", b"application/json", b"application/jsonlines")
_ACCEPTS = (
    *_TYPES,
    b"application/json;verbose=True",
    b"text/csv;calibrated=True",
    b"*/*;explain=True",
    b"image/png;q=.1",
)
_BODIES = (
    b'alice,192.0.2.1\r\n"Smith, ""Bob""", 10.0.0.1:80\n\xc3\xa9,255.0.0.1,2026-01-02T03:04:05Z\n',
    b'{"instances": [{"features": ["user_1", "192.0.2.1"]}, {"data":{"features":{"values":["b","10.0.0.1"]}}}]}',
    b'{"features": ["user_2", "192.0.2.1"]}\n[7, "1.2.3.4"]\n{"features": ["\\ud83d\\ude00", "0.0.0.0"], "k": [1.5]}',
)
_PATHS = (b"/invocations", b"/ping", b"/execution-parameters", b"/models", b"/models/m/invoke", b"/")
_WORDS = (
    *(b"GET", b"POST", b"HTTP/1.1", b"HTTP/9.9", b"chunked", b"Transfer-Encoding: ", b"Content-Length: ", b"Expect: 1"),
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\0", b"\xff", b": ", b",", b'"', b"[", b"{", b"}", b";q=", b"%00", b"../", b"\t"),
    *(b"9" * 20, b"-1", b"1e999", b"null", b"[" * 2000, b"a" * 9000, b"Connection: upgrade\r\nUpgrade: h2c\r\n"),
)
GOOD = (
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nConnection: close\r\n"
    b"Content-Length: 14\r\n\r\nuser_1,1.2.3.4"
)
_AT_ONCE, _BETWEEN = 4, 50
"""Requests at the same time, and how many of them come before a good one."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100_000, help="requests (default 100,000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        statuses, faults = ask(Path(scratch), options.number, options.seed)
        seconds = time.monotonic() - began
    print(f"{statuses.total():,} answers in {seconds:,.0f} s: {dict(sorted(statuses.items()))}")
    for fault in faults[:10]:
        print(fault)
    sys.exit(bool(faults))


def ask(folder: Path, number: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Ask so many requests. Returns how often each status came, and what broke a rule."""
    save_model(folder / "model")
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    lock = threading.Lock()
    with Server.one_worker(folder) as server:
        before, expected = server.processes(), _answer(server.port, GOOD).partition(b"\r\n\r\n")[2]

        def some(seeds: range) -> None:
            for each in seeds:
                request = changed(random.Random(each))
                answer = _answer(server.port, request)
                status = answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "closed" if not answer else "?"
                with lock:
                    statuses[status] += 1
                    if not _allowed(status, answer):
                        faults.append(f"{status} for {request[:2000]!r}: {answer[:500]!r}")
            if _answer(server.port, GOOD).partition(b"\r\n\r\n")[2] != expected:
                faults.append(f"another answer to a good request after {seeds}")

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            parts = range(seed, seed + number, _BETWEEN)
            for done in [pool.submit(some, range(part, min(part + _BETWEEN, seed + number))) for part in parts]:
                done.result()
        if server.processes() != before:
            faults.append(f"the processes were {before} and are {server.processes()}")
    log = (folder / "log").read_text(errors="replace")
    faults += [
        f"a traceback in the log: {log[found.start() : found.start() + 2000]}"
        for found in re.finditer("Traceback", log)
    ]
    return statuses, faults


def changed(draw: random.Random) -> bytes:
    """A request with some changes, often with the length that its body has."""
    which = draw.randrange(len(_BODIES))
    body = _edited(_BODIES[which], draw, draw.choice((0, 1, 1, 3)))
    path = b"/invocations" if draw.random() < 0.8 else draw.choice(_PATHS)
    length = len(body) if draw.random() < 0.9 else draw.choice((0, len(body) - 1, len(body) + 9, 10**9, 10**30))
    fields = [
        b"Host: x",
        b"Content-Type: " + (_TYPES[which] if draw.random() < 0.9 else draw.choice(_TYPES)),
        *([b"Accept: " + draw.choice(_ACCEPTS)] if draw.random() < 0.7 else []),
        *([b"X-Amzn-SageMaker-Custom-Attributes: " + draw.choice(_WORDS)] if draw.random() < 0.1 else []),
    ]
    if draw.random() < 0.1:
        fields.append(b"Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        fields.append(b"Content-Length: %d" % length)
    draw.shuffle(fields)
    head = b"\r\n".join((b"POST " + path + b" HTTP/1.1", *fields)) + b"\r\n\r\n"
    return _edited(head, draw, draw.choice((0, 0, 1, 3))) + body


def _edited(text: bytes, draw: random.Random, number: int) -> bytes:
    for _ in range(number):
        at, length = draw.randrange(len(text) + 1), draw.choice((0, 0, 1, 1, 5, 40))
        piece = draw.choice((b"", draw.randbytes(draw.randrange(1, 4)), draw.choice(_WORDS)))
        text = text[:at] + piece + text[at + length :]
    return text


def _answer(port: int, request: bytes) -> bytes:
    """All that comes back when no more than this is sent; nothing if the connection is closed without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        answer = b""
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                answer += piece
        except (BrokenPipeError, ConnectionResetError):  # it was refused before all was read
            pass
        return answer


def _allowed(status: str, answer: bytes) -> bool:
    if status == "503":
        return b"\r\nRetry-After: " in answer
    return status in ("closed", "501", "505") or status[:1] in ("1", "2", "3", "4")


if __name__ == "__main__":
    main()
