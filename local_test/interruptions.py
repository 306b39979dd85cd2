"""Stops and kills real training jobs at random moments, and looks at what they leave behind.

python -m local_test.interruptions --runs 50

A job that gets SIGTERM must end with exit code 0 and a model that can be served. A job that is killed with SIGKILL, up
to three times, and started anew each time, must end with the very bytes of an unbroken run. Jobs run on one thread.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ipinsights.commands.main import main as ipinsights
from ipinsights.data.records import parse_csv
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker.paths import Paths

HYPERPARAMETERS = {
    "num_entity_vectors": "1000",
    "vector_dim": "32",
    "epochs": "4",
    "mini_batch_size": "500",
    "learning_rate": "0.01",
    "checkpoint_interval_minutes": "0.003",
    "saved_epoch": "best",
}


@dataclass(frozen=True)
class Site:
    """Where jobs of one kind run: data for them, and how an unbroken one went."""

    folder: Path
    seconds: float
    """That the unbroken job took."""
    model: bytes
    """Its model."""

    @classmethod
    def prepare(cls, folder: Path, users: int) -> "Site":
        """Simulate traffic and train once without a break."""
        traffic = folder / "traffic"
        ipinsights(["simulate", "--users", str(users), "--out", str(traffic)])
        began = time.monotonic()
        job = Job(folder, "unbroken")
        if job.run():
            raise SystemExit(f"the unbroken job failed: {job.log()}")
        return cls(folder, time.monotonic() - began, job.model())


class Job:
    """One training job on a tree of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        """Lay the tree out, with checkpoints."""
        self.paths = Paths(folder / name)
        self.paths.hyperparameters.parent.mkdir(parents=True)
        self.paths.hyperparameters.write_text(json.dumps(HYPERPARAMETERS))
        self.paths.checkpoints.mkdir()
        for channel in ("train", "validation"):
            self.paths.channel(channel).parent.mkdir(parents=True, exist_ok=True)
            self.paths.channel(channel).symlink_to(folder / "traffic" / channel)

    def start(self) -> "subprocess.Popen[bytes]":
        """The image's entry point, as a process."""
        environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(self.paths.base), "OMP_NUM_THREADS": "1"}
        with (self.paths.base / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ipinsights.sagemaker", "train"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self) -> int:
        """Start it and let it end. Returns its exit code."""
        return _ended(self.start(), 3600)

    def interrupt(self, number: int, after: float) -> int:
        """Start it and send a signal so many seconds after it began to watch for one, if it still runs.

        Returns its exit code.
        """
        process = self.start()
        while process.poll() is None and not _watches(process.pid):  # till then the signal ends any Python program
            time.sleep(0.005)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        return _ended(process, 120)

    def model(self) -> bytes:
        """The tensors of its model."""
        return (self.paths.model / artifact.TENSORS).read_bytes()

    def log(self) -> str:
        """The end of what its processes printed."""
        return (self.paths.base / "log").read_text()[-1500:]

    def remove(self) -> None:
        """Its tree."""
        shutil.rmtree(self.paths.base)


def _watches(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """The exit code of a job; that of one killed if it did not end in so many seconds."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(60)


def stop(site: Site, chance: random.Random, runs: int) -> Iterator[str]:
    """Stop jobs; yields what is wrong with each, "" where nothing is."""
    for run in range(runs):
        job = Job(site.folder, f"stopped-{run}")
        after = chance.uniform(0, site.seconds)
        code = job.interrupt(signal.SIGTERM, after)
        fault = f"exit code {code} after {after:.2f} s: {job.log()}" if code else ""
        if not fault:
            model = artifact.load(job.paths.model)
            scores = Scorer(model).score(parse_csv(b"user_1,192.0.2.1\nnobody,198.51.100.7\n"))
            fault = "" if abs(scores).max() < 1e6 else f"scores {scores} after {after:.2f} s"
        job.remove()
        yield fault


def kill(site: Site, chance: random.Random, runs: int) -> Iterator[str]:
    """Kill jobs, one to three times each, and let them end; yields what is wrong with each, "" where nothing is."""
    for run in range(runs):
        job = Job(site.folder, f"killed-{run}")
        moments = [chance.uniform(0, site.seconds) for _ in range(chance.randint(1, 3))]
        for after in moments:
            job.interrupt(signal.SIGKILL, after)
        code = job.run()
        fault = f"exit code {code} after {moments}: {job.log()}" if code else ""
        if not fault and job.model() != site.model:
            fault = f"another model after kills at {moments}: {job.log()}"
        job.remove()
        yield fault


def main() -> None:
    """Run both kinds and say how they went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="jobs of either kind (default 50)")
    parser.add_argument("--users", type=int, default=500, help="simulated users (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default 0)")
    options = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        site = Site.prepare(Path(folder), options.users)
        print(f"An unbroken job takes {site.seconds:.1f} s")
        for kind, name in ((stop, "stopped with SIGTERM"), (kill, "killed and resumed")):
            found = [*tqdm(kind(site, random.Random(options.seed), options.runs), name, options.runs, disable=None)]
            wrong = [fault for fault in found if fault]
            print(*wrong, sep="\n")
            print(f"{name}: {len(found) - len(wrong)} of {len(found)} as they should be", flush=True)
            faults += len(wrong)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
