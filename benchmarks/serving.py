"""How fast the server is, against the usual one (`usual_server`), as Markdown tables.

    python -m benchmarks.serving            # 1,000,000 x 128: some 9 minutes, 6 GB of memory, 2 GB of disk
    python -m benchmarks.serving --small    # to see that all works: a quarter of a minute

Both have two workers of gunicorn's gthread class. Both are up, and one at a time has work: they take turns, and a ratio
is one of two turns of the same round. The clients (`load`) are a process of their own. Starts take turns as well, with
no other server up. Progress goes to stderr.
"""

import argparse
import functools
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from benchmarks import machine
from benchmarks.served import CSV, JSON, JSON_LINES, Payload, Served, largest, payload
from benchmarks.servers import Server, environment, free_port, time_limit
from benchmarks.tables import markdown, spread

_USUAL, _OURS = _NAMES = ("usual", "ours")
_WORKERS, _THREADS = 2, 4
_CONNECTIONS = (1, 4, 16)
_LIMIT = 1800
"""Seconds after which a process that has not done what takes seconds or minutes is killed."""
_DISTINCT = 256
"""One-row requests that the clients go through, again and again."""

_STARTED, _LOADED, _FIRST_PING = (
    "memory after the start, MB",
    "memory after all requests, MB",
    "start to first /ping, s",
)
_SCORE = "`ipinsights score`, rows/s"
REQUIRED: dict[str, tuple[str, Callable[[float], bool]]] = {
    "CSV to JSON, rows/s": ("8 x", lambda ratio: ratio >= 8),
    "JSON to JSON, rows/s": ("6 x", lambda ratio: ratio >= 6),
    "JSON Lines to JSON Lines, rows/s": ("6 x", lambda ratio: ratio >= 6),
    "one row of CSV, 4 connections, requests/s": ("2.5 x", lambda ratio: ratio >= 2.5),
    "one row of JSON, 4 connections, requests/s": ("1.3 x", lambda ratio: ratio >= 1.3),
    _STARTED: ("1/3 x", lambda ratio: ratio <= 1 / 3),
    _FIRST_PING: ("0.7 x", lambda ratio: ratio <= 0.7),
    _SCORE: ("300,000", lambda speed: speed >= 300_000),
}

_CAPTION = """\
**Serving speed**: {entities:,} entities x {dim}; {workers} workers of gunicorn's gthread class; the usual server has
{threads} threads a worker, ours what it ships with. Median of {rounds} rounds (lowest to highest), after one that
does not count. In a round large requests have a turn of {seconds:g} s, or of one request where that takes longer, and
one-row requests {turns} such turns, as it is chance which worker has how many of the connections; a ratio is of two
turns, one after the other. Large requests come one at a time: {sizes}. The others are {distinct} different ones, over
connections that are kept alive within a turn. Of {answers:,} answers {faults} had a status of 5xx and {refused}
another than 200; {different} differed from an earlier answer to the same request. The clients took {large_cores:.0%}
of a core at most for large requests and {small_cores:.0%} for the others; from a server that answers a constant they
got {ceiling:,.0f} answers a second over {ceiling_connections} connections. Memory is the PSS of all processes of a
server. {starts} `ipinsights score` is the whole command on one core, for {scored:,} lines.

Measured by `{command}` on {date}: {machine}."""

Values = dict[str, list[float]]
"""By server, one a turn."""


@dataclass(frozen=True)
class Task:
    """What a server is asked in a turn."""

    name: str
    payloads: list[Payload]
    connections: int = 1

    @property
    def rows(self) -> int:
        """In one request."""
        return self.payloads[0].rows

    @property
    def speed(self) -> str:
        """What is measured of it."""
        return f"{self.name}, {'requests/s' if self.rows == 1 else 'rows/s'}"


class Clients:
    """The process `load`, and a tally of all the answers it got."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.statuses: Counter[str] = Counter()
        self.different = 0
        self.cores: dict[bool, float] = defaultdict(float)
        """The most of a core that they took, for requests of one row and for others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with time_limit(self._process, 60):
            self._process.communicate()

    def run(self, server: str, port: int, task: Task, seconds: float) -> dict[str, Any]:
        """What `load.Load.run` says of a turn."""
        job = {
            "name": f"{server}, {task.rows} rows of {task.payloads[0].content_type}",
            "port": port,
            "requests": [p.request() for p in task.payloads],
            "connections": task.connections,
            "seconds": seconds,
        }
        if not (self._process.stdin and self._process.stdout):
            raise RuntimeError("the clients have no pipes")
        with time_limit(self._process, seconds + _LIMIT):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the clients failed: {job['name']}")
        turn: dict[str, Any] = json.loads(line)
        self.statuses += Counter(turn["statuses"])
        self.different += turn["different"]
        self.cores[task.rows == 1] = max(self.cores[task.rows == 1], turn["cores"])
        return turn


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        command = shlex.join(["python", "-m", "benchmarks.serving", *arguments])
        print(Measurement(Path(folder), options).tables(command))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    add = functools.partial(parser.add_argument, metavar="N")
    add("--rows", type=int, default=1_000_000, help="of the entity table (default 1000000)")
    add("--dim", type=int, default=128, help="vector_dim (default 128)")
    add("--payload", type=float, default=6.0, help="megabytes of a large request (default 6)")
    add("--rounds", type=int, default=7, help="that count (default 7)")
    add("--starts", type=int, default=5, help="of each server by itself (default 5)")
    add("--turns", type=int, default=8, help="of one-row requests in a round: each has new connections (default 8)")
    add("--seconds", type=float, default=0.5, help="that a turn takes (default .5)")
    parser.add_argument("--small", action="store_true", help="2,000 rows x 16, .05 MB, one round and turn of .1 s")
    options = parser.parse_args(arguments)
    if options.small:
        vars(options).update(rows=2000, dim=16, payload=0.05, rounds=1, starts=0, turns=1, seconds=0.1)
    return options


class Measurement:
    """Everything that is measured, in a folder of its own."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options = folder, options
        self._measured: dict[str, Values] = defaultdict(lambda: {name: [] for name in _NAMES})
        self._latencies: dict[str, Values] = defaultdict(lambda: {name: [] for name in _NAMES})
        size = int(1e6 * options.payload)
        served = Served.make(folder, options.rows, options.dim, pairs=max(_DISTINCT, size // 20))
        lines, instances = served.csv_lines(), served.instances()
        self._large = [
            Task("CSV to JSON", [largest(CSV, lines, size)]),
            Task("JSON to JSON", [largest(JSON, instances, size)]),
            Task("JSON Lines to JSON Lines", [largest(JSON_LINES, instances, size)]),
        ]
        self._single = [
            Task(f"one row of {name}, {n} connection{'s' * (n > 1)}", [payload(content, [r]) for r in rows], n)
            for name, content, rows in (("CSV", CSV, lines[:_DISTINCT]), ("JSON", JSON, instances[:_DISTINCT]))
            for n in _CONNECTIONS
        ]
        self._lines = folder / "pairs.csv"
        repeated = -(-options.rows // len(lines))
        self._lines.write_text("\n".join((lines * repeated)[: options.rows]) + "\n")

    def _start(self, name: str) -> Server:
        port = free_port()
        log = self._folder / f"{name}.log"
        if name == _OURS:
            settings = {"SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_MODEL_SERVER_WORKERS": str(_WORKERS)}
            settings["SAGEMAKER_BASE_DIR"] = str(self._folder / "ml")
            return Server(["ipinsights.sagemaker", "serve"], port, log, settings)
        gunicorn = ["gunicorn", "--bind", f"127.0.0.1:{port}", "--no-control-socket", "--timeout", "300"]
        gunicorn += ["--workers", str(_WORKERS), "--worker-class", "gthread", "--threads", str(_THREADS)]
        model = self._folder / "model.pt"
        return Server([*gunicorn, f"benchmarks.usual_server:create_app({str(model)!r})"], port, log, {})

    def tables(self, command: str) -> str:
        """Measure, and write it down."""
        self._measure_starts()
        with self._start(_USUAL) as usual, self._start(_OURS) as ours, Clients() as clients:
            servers = {_USUAL: usual, _OURS: ours}
            for name, server in servers.items():
                self._note_start(name, server, counts=not self._options.starts)
            self._take_turns(servers, clients)
            for name, server in servers.items():
                self._measured[_LOADED][name].append(server.memory() / 1e6)
            ceiling_connections = _CONNECTIONS[1]
            ceiling = self._ceiling(clients, ceiling_connections)
        speeds = self._score()
        caption = _CAPTION.format(
            entities=self._options.rows,
            dim=self._options.dim,
            workers=_WORKERS,
            threads=_THREADS,
            rounds=self._options.rounds,
            seconds=self._options.seconds,
            turns=self._options.turns,
            starts=f"Of the {self._options.starts} starts, each was with no other server up."
            if self._options.starts
            else "There was one start of each.",
            sizes=", ".join(f"{t.rows:,} rows of {t.name.partition(' to ')[0]}" for t in self._large),
            distinct=_DISTINCT,
            answers=clients.statuses.total(),
            faults=sum(n for status, n in clients.statuses.items() if status[0] == "5"),
            refused=sum(n for status, n in clients.statuses.items() if status[0] != "5" and status != "200"),
            different=clients.different,
            large_cores=clients.cores[False],
            small_cores=clients.cores[True],
            ceiling=ceiling,
            ceiling_connections=ceiling_connections,
            scored=self._options.rows,
            command=command,
            date=datetime.now(UTC).date(),
            machine=machine.description(),
        )
        return "\n\n".join([self._main_table(speeds), self._latency_table(), *map(_filled, caption.split("\n\n"))])

    def _measure_starts(self) -> None:
        """Start to first good /ping, with the files in the page cache; and the memory when all workers have loaded."""
        for number in tqdm(range(self._options.starts), "starts"):
            for name in _order(number):
                with self._start(name) as server:
                    self._note_start(name, server, counts=True)

    def _note_start(self, name: str, server: Server, counts: bool) -> None:
        memory = server.settled_memory(1 + _WORKERS) / 1e6
        if counts:
            self._measured[_FIRST_PING][name].append(server.seconds_to_ping)
            self._measured[_STARTED][name].append(memory)

    def _take_turns(self, servers: dict[str, Server], clients: Clients) -> None:
        turns = [(0, task) for task in [*self._large, *self._single]]
        for number in range(1, 1 + self._options.rounds):
            turns += [(number, task) for task in [*self._large, *self._single * self._options.turns]]
        with tqdm(turns) as bar:
            for i, (number, task) in enumerate(bar):
                bar.set_description(f"round {number}, {task.name}")
                for name in _order(i):
                    turn = clients.run(name, servers[name].port, task, self._options.seconds)
                    if turn["predictions"] != task.rows:
                        raise RuntimeError(f"{name} gave {turn['predictions']} predictions for {task.rows} rows")
                    if number:
                        self._measured[task.speed][name].append(turn["answers"] * task.rows / turn["seconds"])
                        for percentile in ("p50", "p99"):
                            self._latencies[f"{task.name}, {percentile}"][name].append(1000 * turn[percentile])

    def _ceiling(self, clients: Clients, connections: int) -> float:
        """Answers a second from a server that does nothing."""
        command = [sys.executable, "-m", "benchmarks.load", "constant"]
        with (
            subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as server,  # noqa: S603
            time_limit(server, 3 * self._options.seconds + _LIMIT),
        ):
            port = int(server.stdout.readline()) if server.stdout else 0
            small = dict(clients.cores)
            task = Task("", self._single[0].payloads, connections)
            turns = [clients.run("constant", port, task, self._options.seconds) for _ in range(3)]
            clients.cores.update(small)  # what they take of a core there is no matter
            clients.statuses["200"] -= sum(turn["answers"] for turn in turns)
            server.kill()
        rates: list[float] = [turn["answers"] / turn["seconds"] for turn in turns]
        return max(rates)

    def _score(self) -> list[tuple[float, float]]:
        """Lines a second that `ipinsights score` makes, on the clock and of processor time, in each round."""
        core = max(os.sched_getaffinity(0))
        run = f"import os; os.sched_setaffinity(0, [{core}]); from ipinsights.sagemaker.commands import main; main()"
        command = [sys.executable, "-c", run, "score", "--model", str(self._folder / "ml" / "model"), str(self._lines)]
        speeds = []
        for _ in tqdm(range(self._options.rounds), "ipinsights score"):
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            with (self._folder / "scored.csv").open("wb") as output:
                subprocess.run(command, env=environment(), stdout=output, timeout=_LIMIT, check=True)  # noqa: S603
            seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            speeds.append((self._options.rows / seconds, self._options.rows / processor))
        return speeds

    def _main_table(self, scored: list[tuple[float, float]]) -> str:
        lines = [self._line(task.speed, ",.0f") for task in [*self._large, *self._single]]
        lines += [self._line(_STARTED, ",.0f"), self._line(_LOADED, ",.0f"), self._line(_FIRST_PING, ".2f")]
        required, met = REQUIRED[_SCORE]
        clock, processor = zip(*scored, strict=True)
        verdict = "yes" if met(float(np.median(clock))) else "no"
        lines.append([_SCORE, "", spread(clock, ",.0f"), "", required, verdict])
        lines.append([f"{_SCORE} of processor time", "", spread(processor, ",.0f"), "", "", ""])
        return markdown(["", "usual server", "ours", "ratio", "required", "met"], lines)

    def _line(self, name: str, form: str) -> list[str]:
        usual, ours = (self._measured[name][server] for server in _NAMES)
        ratios = [b / a for a, b in zip(usual, ours, strict=True)]
        required, met = REQUIRED.get(name, ("", None))
        verdict = "" if met is None else "yes" if met(float(np.median(ratios))) else "no"
        return [name, spread(usual, form), spread(ours, form), spread(ratios, ".2f"), required, verdict]

    def _latency_table(self) -> str:
        lines = []
        for task in self._single:
            cells = [spread(self._latencies[f"{task.name}, {p}"][s], ".1f") for p in ("p50", "p99") for s in _NAMES]
            lines.append([task.name, *cells])
        return markdown(["milliseconds", "usual server, p50", "ours, p50", "usual server, p99", "ours, p99"], lines)


def _order(number: int) -> Sequence[str]:
    """Who goes first in a round: not always the same one."""
    return _NAMES if number % 2 else _NAMES[::-1]


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
