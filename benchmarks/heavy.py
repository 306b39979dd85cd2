"""Requests that cost: the most memory that a server takes for them, and what it answers.

    python -m benchmarks.heavy                  # with the memory of this machine
    python -m benchmarks.heavy --limit-mb 3000  # with an address space of 3 GB, as by `ulimit -v`

Each row is a server of its own, of one worker, and requests that all come at once. The peak is the worker's (VmHWM),
less what it had before them.
"""

import argparse
import contextlib
import http.client
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import Server
from benchmarks.soak import save_model
from benchmarks.tables import markdown
from ipinsights.sagemaker.media import JSON

_ROW = "user_{0},{1}.{2}.{3}.4\n"


class Load(NamedTuple):
    """Requests that come at once."""

    name: str
    body: bytes
    content_type: str
    accept: str = JSON
    clients: int = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=int, help="the server's address space")
    parser.add_argument("--megabytes", type=float, default=100, help="the size of the largest bodies (default 100)")
    parser.add_argument("--clients", type=int, default=128, help="the most that come at once (default 128)")
    parser.add_argument("--only", nargs="+", metavar="NUMBER", type=int, help="of all rows, these")
    options = parser.parse_args(arguments)
    rows: list[tuple[str, ...]] = []
    for load in _loads(round(options.megabytes * 1e6), options.clients, options.only):
        with tempfile.TemporaryDirectory() as scratch:
            rows.append((load.name, *_measure(load, Path(scratch), options.limit_mb)))
        print(*rows[-1], sep=" | ", flush=True)
    print(markdown(("requests", "answers", "peak (MB)", "seconds", "workers lost"), rows))


def _loads(size: int, clients: int, only: Sequence[int] | None) -> Iterator[Load]:
    """The loads, of bodies that have so many bytes at most, one after another: they are large."""
    megabytes = f"{size / 1e6:g} MB"
    makers: list[Callable[[], Load]] = [
        lambda: Load(f"{size / 1e7:g} MB of CSV, verbose", _csv(size // 10), "text/csv", f"{JSON};verbose=True"),
        lambda: Load(f"{size / 1e7:g} MB of CSV, explained", _csv(size // 10), "text/csv", f"{JSON};explain=True"),
        lambda: Load(f"{megabytes} of CSV", _csv(size), "text/csv"),
        lambda: Load(f"{megabytes} of quoted CSV", b'"quoted",1.2.3.4\n' + _csv(size - 20), "text/csv"),
        lambda: Load(f"{megabytes} of CSV without an entity", b",1.2.3.4\n" * (size // 9), "text/csv"),
        lambda: Load(f"{megabytes} of one line", b"x" * size, "text/csv"),
        lambda: Load(f"{megabytes} of instances", _document(size), JSON),
        lambda: Load(f"{megabytes} of `{{}}` in a document", _empty(size), JSON),
        lambda: Load(f"{megabytes} of `{{}}` behind another key", _empty(size, b'{"a":1,'), JSON),
        lambda: Load(f"{megabytes} of `{{}}`, cut", _empty(size)[:-1], JSON),
        lambda: Load(f"{megabytes} of `{{}}` as lines", b"{}\n" * (size // 3), "application/jsonlines"),
        lambda: Load(f"{megabytes} of brackets", b"[" * size, JSON),
        lambda: Load(f"{clients} times {megabytes} of CSV", _csv(size), "text/csv", clients=clients),
        lambda: Load(f"{clients} times {megabytes} of `{{}}`", _empty(size), JSON, clients=clients),
    ]
    for number, make in enumerate(makers):
        if only is None or number in only:
            yield make()


def _csv(size: int) -> bytes:
    rows = "".join(_ROW.format(i % 20_000, i % 200, i % 7, i % 250) for i in range(100_000)).encode()
    return (rows * (size // len(rows) + 1))[:size].rpartition(b"\n")[0]


def _document(size: int) -> bytes:
    one = b'{"features":["user_7","192.0.2.7"]},'
    return b'{"instances":[' + (one * (size // len(one)))[:-1] + b"]}"


def _empty(size: int, begin: bytes = b"{") -> bytes:
    return begin + b'"instances":[' + (b"{}," * (size // 3 - 10))[:-1] + b"]}"


def _measure(load: Load, folder: Path, limit_mb: int | None) -> tuple[str, str, str, str]:
    """The statuses, the peak, the seconds, and how many workers were replaced."""
    save_model(folder / "model")
    with _address_space(limit_mb):
        server = Server.one_worker(folder)
    with server:
        server.settled_memory(2)
        before = server.processes()
        worker = max(before)
        base = _peak(worker)
        began = time.perf_counter()
        with ThreadPoolExecutor(load.clients) as pool:
            statuses = Counter(pool.map(lambda _: _ask(server.port, load), range(load.clients)))
        seconds = time.perf_counter() - began
        after = server.processes()
        peak = _peak(worker) - base if worker in after else float("nan")
    shown = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
    return shown, f"{peak / 1e6:,.0f}", f"{seconds:.1f}", str(len({*before} - {*after}))


def _ask(port: int, load: Load) -> str:
    """Send a request. Returns its status, or how it failed; a refusal may come before all is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            headers = {"Content-Type": load.content_type, "Accept": load.accept}
            connection.request("POST", "/invocations", load.body, headers)
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        return str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


@contextlib.contextmanager
def _address_space(megabytes: int | None) -> Iterator[None]:
    """Limit that of processes started within."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if megabytes:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
