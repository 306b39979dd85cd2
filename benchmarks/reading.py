"""How fast a training channel is read, and how soon training begins, as a Markdown table.

    python -m benchmarks.reading    # the AWS tutorial's size: a minute

The readers take turns on one file; a ratio is one of two readings of the same round.
"""

import argparse
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from benchmarks import datasets, machine
from benchmarks.servers import time_limit
from benchmarks.tables import markdown, spread
from ipinsights import native
from ipinsights.data import addresses, events
from ipinsights.data.entities import EntityIndex

_USUAL, _EXACT, _OURS = "pandas and ipaddress", "ours without the kernel", "**ours**"
_FIRST_BATCH = "epoch=0, batch=0 "
"""What the line has that a job prints after its first mini-batch."""

_CAPTION = """\
**Reading** {rows:,} simulated log-ins, {size:.0f} MB in one file that is in memory already, to rows of the entity table
and addresses. Median of {rounds} rounds (lowest to highest), in which the readers took turns. *A core* is per second of
processor time, of all threads. From the start of `train`, of the whole process, to the end of its first mini-batch it
takes {seconds} s. Measured on {machine}."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10_000, help="whose log-ins are simulated (default 10000)")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--synthetic", action="store_true", help="simulate on made-up networks: needs no file")
    options = parser.parse_args(arguments)
    if not options.synthetic and not datasets.RANGES.exists():
        parser.error(f"there is no {datasets.RANGES} (see IPINSIGHTS_DATA); --synthetic needs none")
    with tempfile.TemporaryDirectory() as folder:
        print(_table(Path(folder), options.users, options.rounds, options.synthetic))


def _table(folder: Path, users: int, rounds: int, synthetic: bool) -> str:
    traffic = datasets.tutorial(users, synthetic).train
    path = folder / "input" / "data" / "train" / "log-ins.csv"
    path.parent.mkdir(parents=True)
    lines = zip(traffic.names(), addresses.render(traffic.address), strict=True)
    path.write_text("".join(f"{name},{address}\n" for name, address in lines))
    rows = len(traffic.user)

    def ours() -> None:
        events.read([path], EntityIndex(2 * users))

    def without_kernel() -> None:
        with patch.object(native, "library", return_value=None):
            ours()

    readers = {_USUAL: lambda: _usual(path), _EXACT: without_kernel, _OURS: ours}
    wall, cores = _take_turns(readers, rounds)
    ratios = {name: wall[_USUAL] / wall[name] for name in readers}
    cells = [
        [name, *(spread(values, ".2f") for values in (rows / 1e6 / wall[name], rows / 1e6 / cores[name], ratios[name]))]
        for name in readers
    ]
    header = ["", "million rows/s", "million rows/s a core", "x pandas"]
    started = [_seconds_to_first_batch(folder, users) for _ in tqdm(range(rounds), "train")]
    caption = _CAPTION.format(
        rows=rows,
        size=path.stat().st_size / 1e6,
        rounds=rounds,
        seconds=spread(started, ".2f"),
        machine=machine.description(),
    )
    return f"{markdown(header, cells)}\n\n{caption}"


def _usual(path: Path) -> None:
    """As most would write it."""
    table = pd.read_csv(path, header=None, names=["entity", "ip"], dtype=str, keep_default_na=False)
    pd.factorize(table["entity"])
    np.array([int(ipaddress.IPv4Address(ip)) for ip in table["ip"]], dtype=np.uint32)


def _take_turns(
    readers: dict[str, Callable[[], None]], rounds: int
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
    """Seconds on the clock and of the processor, of each reader in each round after one that does not count."""
    wall, processor = ({name: np.zeros(1 + rounds) for name in readers} for _ in range(2))
    for number in tqdm(range(1 + rounds), "reading"):
        for name, read in readers.items():
            start = time.perf_counter(), time.process_time()
            read()
            wall[name][number] = time.perf_counter() - start[0]
            processor[name][number] = time.process_time() - start[1]
    return {name: w[1:] for name, w in wall.items()}, {name: p[1:] for name, p in processor.items()}


def _seconds_to_first_batch(base: Path, users: int) -> float:
    """How long `train` takes to learn from its first mini-batch, with the tutorial's hyperparameters."""
    configuration = base / "input" / "config" / "hyperparameters.json"
    configuration.parent.mkdir(exist_ok=True)
    values = {**datasets.TUTORIAL_HYPERPARAMETERS, "num_entity_vectors": 2 * users}
    configuration.write_text(json.dumps({name: str(value) for name, value in values.items()}))
    start = time.perf_counter()
    command = [sys.executable, "-m", "ipinsights.sagemaker", "train"]
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base), "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as job,  # noqa: S603  # ours
        time_limit(job, 1800),
    ):
        found = any(_FIRST_BATCH in line for line in job.stdout or [])
        seconds = time.perf_counter() - start
        job.kill()
    if not found:
        raise RuntimeError("train printed no metric of its first mini-batch")
    return seconds


if __name__ == "__main__":
    main()
