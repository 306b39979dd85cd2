"""A server under load for an hour: whether its memory grows, and whether it keeps descriptors.

    python -m benchmarks.soak                # an hour
    python -m benchmarks.soak --minutes 10

At first as many requests as there are threads stop in the middle, so that every worker starts all its threads: a pool
starts one when none is idle and never ends it, and each keeps some memory. Then clients ask all the time, in all
formats, well and badly, on connections that stay and on new ones; others say nothing or leave in the middle. Every few
seconds all processes of the server are measured: memory (PSS, in which shared pages count once), open descriptors,
threads. After a warm-up, a line is fitted to each by least squares. The run fails if the line rises by more than a
bound over the run, if an answer is not as expected, or if a worker was replaced.
"""

import argparse
import contextlib
import http.client
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.servers import Server, free_port
from ipinsights.data.addresses import IPV4
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.sagemaker.settings import ServerSettings

WARM_UP = 0.2
"""The share of the run that does not count: caches fill, and the allocator finds its size."""
READINGS = 200
MEMORY_BOUND = 0.05
"""By which share of itself memory may rise, along the fitted line, from the warm-up to the end."""
DESCRIPTOR_BOUND = 2
"""By how many descriptors (of connections, which come and go) their line may rise."""
CLIENTS = 16
_STARTED = 0.9
"""The share of all threads that is started before: a worker keeps some from waiting for the rest of a request."""
_ROWS = 2000
_ENTITIES, _DIM = 20_000, 64

Request = tuple[bytes, dict[str, str], int]
"""Body, headers, and the status that must come back."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        faults = soak(Path(scratch), options.minutes * 60, options.workers)
    for fault in faults:
        print(f"failed: {fault}")
    sys.exit(bool(faults))


def soak(folder: Path, seconds: float, workers: int, memory_bound: float = MEMORY_BOUND) -> list[str]:
    """Run it, print what was measured, and return what is wrong."""
    save_model(folder / "model")
    port = free_port()
    settings = {
        "SAGEMAKER_BASE_DIR": str(folder),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_MODEL_SERVER_WORKERS": str(workers),
        "IPINSIGHTS_UNTRAINED_MODEL": "accept",
    }
    answers: Counter[int] = Counter()
    wrong: list[str] = []
    ending = threading.Event()
    with Server(["ipinsights.sagemaker", "serve"], port, folder / "log", settings) as server:
        server.settled_memory(1 + workers)
        before = server.processes()
        _start_threads(server, port, workers)
        clients = [
            threading.Thread(target=_ask, args=(number, port, ending, answers, wrong)) for number in range(CLIENTS)
        ]
        clients.append(threading.Thread(target=_disturb, args=(port, ending)))
        for client in clients:
            client.start()
        readings = _measured(server, seconds)
        ending.set()
        for client in clients:
            client.join()
        if server.processes() != before:
            wrong.append(f"the processes were {before} and are {server.processes()}")
    print(f"{sum(answers.values()):,} answers in {seconds / 60:.1f} minutes: {dict(sorted(answers.items()))}")
    return wrong[:5] + rises(np.array(readings), memory_bound)


def _start_threads(server: Server, port: int, workers: int) -> None:
    """Have all threads of all workers wait for the rest of a request at a time."""
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n"
    with contextlib.ExitStack() as held:
        for _ in range(workers * ServerSettings.threads):
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=120)).sendall(head)
        deadline = time.monotonic() + 60
        while server.threads() < workers * ServerSettings.threads * _STARTED:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server has {server.threads()} threads only")
            time.sleep(0.1)


def rises(readings: npt.NDArray[np.float64], memory_bound: float = MEMORY_BOUND) -> list[str]:
    """Judge readings of the time, of bytes, of descriptors and of threads, [n, 4]. Returns what rises too much."""
    kept = readings[readings[:, 0] >= readings[0, 0] + WARM_UP * (readings[-1, 0] - readings[0, 0])]
    faults = []
    for column, name, unit in ((1, "memory (MB, PSS)", 1e6), (2, "descriptors", 1), (3, "threads", 1)):
        values = kept[:, column] / unit
        slope, start = np.polyfit(kept[:, 0] - kept[0, 0], values, 1)
        rise = slope * (kept[-1, 0] - kept[0, 0])
        bound = memory_bound * start if column == 1 else DESCRIPTOR_BOUND
        print(
            f"{name}: {values[0]:,.1f} after the warm-up, {values[-1]:,.1f} at the end, {values.max():,.1f} at most; "
            f"the line rises by {rise:+.2f} (bound {bound:.2f}), which is {slope * 3600:+.2f} an hour"
        )
        if rise > bound and column != 3:  # of threads a pool starts one when it needs it, up to a limit
            faults.append(f"{name} rises by {rise:.2f}, more than {bound:.2f}")
    return faults


def _measured(server: Server, seconds: float) -> list[tuple[float, int, int, int]]:
    """Readings over some seconds."""
    found = []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        pids = server.processes()
        found.append(
            (
                time.monotonic() - began,
                server.memory(),
                sum(len([*Path(f"/proc/{pid}/fd").iterdir()]) for pid in pids),
                server.threads(),
            )
        )
        time.sleep(seconds / READINGS)
    return found


def _requests() -> list[Request]:
    """All kinds of requests: of all formats, small and large, good and bad."""
    rows = [(f"user_{i % _ENTITIES}", f"{i % 200}.{i % 7}.{i % 250}.{i % 9}") for i in range(_ROWS)]
    csv = "".join(f"{entity},{address}\n" for entity, address in rows).encode()
    quoted = csv.replace(b"user_7,", b'"user_7",')
    lines = "".join(json.dumps({"features": row}) + "\n" for row in rows).encode()
    document = json.dumps({"instances": [{"data": {"features": {"values": row}}} for row in rows]}).encode()
    verbose = "application/json;verbose=True"
    good = [
        (csv[:40].rpartition(b"\n")[0], "text/csv", ""),
        *((body, "text/csv", accept) for body in (csv, quoted) for accept in ("", "text/csv", "application/jsonlines")),
        (csv[:2000].rpartition(b"\n")[0], "text/csv", verbose),
        (lines, "application/jsonlines", "application/jsonlines"),
        (document, "application/json", ""),
    ]
    bad = [
        (csv + b"x\n", "text/csv", "", 400),
        (lines + b"{", "application/jsonlines", "", 400),
        (document[:-9], "application/json", "", 400),
        (csv, "image/png", "", 415),
        (csv, "text/csv", "image/png", 406),
        (b"", "text/csv", "", 204),
    ]
    return [
        (body, {"Content-Type": type_, **({"Accept": accept} if accept else {})}, status)
        for body, type_, accept, status in [*((*request, 200) for request in good), *bad]
    ]


def _ask(number: int, port: int, ending: threading.Event, answers: Counter[int], wrong: list[str]) -> None:
    """Ask until the end, now and then on a new connection."""
    draw, requests, first = random.Random(number), _requests(), dict[int, bytes]()  # noqa: S311  # no secrets
    while not ending.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            for _ in range(draw.randrange(1, 100)):
                which = draw.randrange(len(requests))
                body, headers, expected = requests[which]
                connection.request("POST", "/invocations", body, headers)
                answer = connection.getresponse()
                text = answer.read()
                answers[answer.status] += 1
                if answer.status != expected or first.setdefault(which, text) != text:
                    wrong.append(f"{headers}: {answer.status} instead of {expected}, {text[:100]!r}")
        except (OSError, http.client.HTTPException) as error:
            wrong.append(repr(error))
        finally:
            connection.close()


def _disturb(port: int, ending: threading.Event) -> None:
    """Open connections that say nothing, half of something or nonsense, and leave."""
    texts = (
        b"",
        b"GET /pi",
        b"\0\xff nonsense\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nContent-Length: 99\r\n\r\na,1",
    )
    while not ending.wait(0.1):
        for text in texts:
            with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
                connection.sendall(text)


def save_model(folder: Path) -> None:
    """A model of random numbers: what they are does not matter here."""
    draw = np.random.default_rng(0)
    model = Model.blank(IPV4, 2 * _ENTITIES, _DIM, 1)
    model.entity[:] = draw.normal(size=model.entity.shape)
    model.encoder.prefix[:] = draw.normal(size=model.encoder.prefix.shape)
    model.index.claim(pa.array([f"user_{i}" for i in range(_ENTITIES)], pa.string()))
    artifact.save(model, folder, facts={})


if __name__ == "__main__":
    main()
