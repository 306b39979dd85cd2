"""What counting and writing it into the tables take after a training, by the number of events.

    python -m benchmarks.refit                          # 2 million events: some 15 s
    python -m benchmarks.refit --events 100_000_000     # some minutes, and 8 GB of memory

The log-ins are the tutorial's simulation with as many users as it takes, and the tables are random: what training would
have learnt does not matter here. Each size is a process of its own, with one thread. The yardstick is a sort of as many
64-bit numbers, in the same process.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks import datasets, machine
from benchmarks.servers import environment
from benchmarks.tables import markdown
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.evaluation.simulation import Ranges, simulate
from ipinsights.model.counting import Counts
from ipinsights.model.history import History
from ipinsights.model.model import RESERVED, Encoder, Model
from ipinsights.model.refit import Refit
from ipinsights.model.vocabulary import Vocabulary

T = TypeVar("T")

_PER_USER = 212
"""Events of a user, about."""
_BLOCK = 20_000
"""Users that are simulated together."""

_HEAD = [
    "events", "entities", "pairs", "history, s", "counting, s", "refit, s", "all, s", "all / a sort", "memory, MB",
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refit", description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, nargs="+", default=[2_000_000], metavar="N", help="default 2000000")
    parser.add_argument("--dim", type=int, default=128, metavar="D", help="vector_dim (default 128)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        print("|".join(_measured(options.events[0], options.dim)))
        return
    rows = []
    for events in options.events:
        command = [sys.executable, "-m", "benchmarks.refit", "--inside", "--events", str(events)]
        command += ["--dim", str(options.dim)]
        done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
        rows.append(done.stdout.strip().split("|"))
    print(markdown(_HEAD, rows))
    print(f"\nProcessor time of one thread; memory above that of the events and the tables. {machine.description()}.")


def _measured(events: int, dim: int) -> list[str]:
    """A row of the table."""
    train = _simulated(events)
    rng = np.random.default_rng(1)
    yardstick, _ = _timed(lambda: np.sort(rng.integers(1 << 62, size=len(train))))
    vocabulary = Vocabulary.build(train.address)
    index = train.index
    entity = rng.standard_normal((index.num_rows + 1, dim), dtype=np.float32) * np.float32(0.1)
    prefix = rng.standard_normal((vocabulary.num_rows, dim), dtype=np.float32) * np.float32(0.1)
    entity[:, -RESERVED:] = prefix[:, -RESERVED:] = 0
    encoder = Encoder(prefix, np.zeros((1, dim, dim), np.float32), np.zeros((1, dim), np.float32))
    learnt = Model(vocabulary, index, entity, encoder)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: proc(5)
    before = _peak()
    listing, history = _timed(lambda: History.of(train, IPV4))
    counting, counts = _timed(lambda: Counts(vocabulary, history))
    refitting, model = _timed(lambda: Refit(counts).model(learnt, seed=0))
    if model is None:
        raise RuntimeError("the refit gave up")
    every = listing + counting + refitting
    return [
        *(f"{number:,}" for number in (len(train), len(history.rows), len(history))),
        *(f"{seconds:.1f}" for seconds in (listing, counting, refitting, every)),
        f"{every / yardstick:.1f}",
        f"{(_peak() - before) / 1e6:,.0f}",
    ]


def _simulated(events: int) -> Events:
    rng = np.random.default_rng(0)
    ranges = Ranges.read(datasets.RANGES) if datasets.RANGES.exists() else Ranges.synthetic(rng)
    users, entity, address = 0, [], []
    with tqdm(total=events, unit="event", unit_scale=True) as bar:
        while bar.n < events:
            some = simulate(min(_BLOCK, max(2, (events - bar.n) // _PER_USER)), ranges, rng)
            entity.append(some.user + np.int32(users))
            address.append(some.address)
            users += int(some.user.max()) + 1
            bar.update(len(some.user))
    tags: npt.NDArray[np.uint32] = np.arange(1, users + 1, dtype=np.uint32)
    return Events(np.concatenate(entity), np.concatenate(address), EntityIndex(users, tags))


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Processor time in seconds, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def _peak() -> float:
    """The most bytes that the process has had in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024.0


if __name__ == "__main__":
    main()
