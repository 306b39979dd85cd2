"""Kills one host of a training at random moments, and starts the job again: with as many hosts, or with others.

    python -m benchmarks.kills --times 20

Hosts are processes of this machine. One of them gets SIGKILL while it reads, trains, or writes a checkpoint; the others
must end by themselves. Then the job starts anew, every other time with another number of hosts (1, 2 or 3). As on the
platform, all hosts' checkpoints are kept in one place, from which nothing is ever removed, and each host starts with a
copy of them. The job must go on from no earlier than the last whole checkpoint, and end as an unbroken one does.
"""

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.servers import environment, free_port
from benchmarks.tables import markdown
from ipinsights.commands.main import main as ipinsights
from ipinsights.model import artifact
from ipinsights.sagemaker.paths import Paths

HYPERPARAMETERS = {
    "num_entity_vectors": "400",
    "vector_dim": "16",
    "epochs": "8",
    "mini_batch_size": "400",
    "learning_rate": "0.01",
    "training_hosts": "all",
    "checkpoint_interval_minutes": "0.0001",
    "saved_epoch": "best",
}
PHASES = {"reading": "Reading channel", "training": "Training on", "saving": "Wrote the checkpoint"}
"""What the leader's log says when it is at it."""
AS_GOOD = 0.01
"""How much lower the area under the ROC curve may be than that of an unbroken training."""
_LIMIT = 600
"""Seconds that a job may take to end."""
_NAMES = ("127.0.0.1", "algo-2", "algo-3")
"""The leader's name must resolve."""
_RESUMING = re.compile(r"Resuming from the checkpoint after (\d+) epochs and (\d+) steps")


@dataclass(frozen=True)
class Kill:
    """A start of the job that was killed."""

    hosts: int
    resumed: tuple[int, int] | None
    """Epochs and steps from which it went on; None where it began, or was killed before."""
    phase: str
    victim: int
    """The place of the killed host in the list."""


class Hosts:
    """One start of the job."""

    def __init__(self, folder: Path, traffic: Path, store: Path, number: int) -> None:
        """Start it on so many hosts, in trees of their own below a folder."""
        self.number = number
        self._store = store
        self._paths = [Paths(folder / f"host-{rank}") for rank in range(number)]
        self._processes: list[subprocess.Popen[bytes]] = []
        port = free_port()
        code = (
            f"from ipinsights.sagemaker import stopping, job; stopping.watch(); job.train(port={port}, patience=30.0)"
        )
        for rank, paths in enumerate(self._paths):
            resources = {"current_host": _NAMES[rank], "hosts": _NAMES[:number]}
            paths.hyperparameters.parent.mkdir(parents=True)
            paths.hyperparameters.write_text(json.dumps(HYPERPARAMETERS))
            paths.resource_config.write_text(json.dumps(resources))
            paths.channels.symlink_to(traffic)
            shutil.copytree(store, paths.checkpoints)
            with (paths.base / "log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(  # noqa: S603  # this very package
                        [sys.executable, "-c", code],
                        env=environment(SAGEMAKER_BASE_DIR=str(paths.base), IPINSIGHTS_REPORT="off"),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def log(self, rank: int = 0) -> str:
        """What a host has printed."""
        return (self._paths[rank].base / "log").read_text()

    def wait_for(self, text: str) -> bool:
        """Until the leader has printed a text. Returns whether it has, before it ended."""
        while text not in self.log():
            if self._processes[0].poll() is not None:
                return text in self.log()
            time.sleep(0.02)
        return True

    def kill(self, rank: int) -> None:
        """Kill one."""
        self._processes[rank].send_signal(signal.SIGKILL)

    def end(self) -> list[int]:
        """Wait until all have ended, and keep their checkpoints. Returns their exit codes."""
        until = time.monotonic() + _LIMIT
        try:
            codes = [process.wait(max(1.0, until - time.monotonic())) for process in self._processes]
        finally:
            for process in self._processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        for paths in self._paths:
            shutil.copytree(paths.checkpoints, self._store, dirs_exist_ok=True)
        return codes

    def auc(self) -> float:
        """That of the model it saved."""
        return float(artifact.read(self._paths[0].model)[1]["metrics"]["discriminator_auc"])

    def resumed(self) -> tuple[int, int] | None:
        """Epochs and steps after which it went on."""
        found = _RESUMING.search(self.log())
        return (int(found[1]), int(found[2])) if found else None


class Job:
    """A job that is killed again and again."""

    def __init__(self, folder: Path, users: int, seed: int) -> None:
        """Simulate its traffic, and train once without a break."""
        self._folder = folder
        self._chance = random.Random(seed)  # noqa: S311  # no secret
        self._starts = 0
        ipinsights(["simulate", "--users", str(users), "--out", str(folder / "traffic")])
        self._store = folder / "store"
        self._begin()
        unbroken = self._start(2)
        if any(unbroken.end()):
            raise RuntimeError(f"the unbroken job failed: {unbroken.log()}")
        self.expected = unbroken.auc()
        self._begin()

    def _begin(self) -> None:
        """A job that nobody has started yet."""
        shutil.rmtree(self._store, ignore_errors=True)
        self._store.mkdir()
        self._reached = (0, 0)

    def _start(self, hosts: int) -> Hosts:
        self._starts += 1
        self._resumable = self._has_checkpoint()
        return Hosts(self._folder / f"start-{self._starts}", self._folder / "traffic", self._store, hosts)

    def _has_checkpoint(self) -> bool:
        """Whether all parts of one are there."""
        parts: dict[tuple[str, int], int] = {}
        for path in self._store.glob("checkpoint-*.safetensors"):
            _, steps, *which = path.stem.split("-")
            written = steps, int(which[2]) if which else 1
            parts[written] = parts.get(written, 0) + 1
        return any(number == hosts for (_, hosts), number in parts.items())

    def kills(self, times: int) -> Iterator[Kill]:
        """Kill it so many times, and then let it end. Raises RuntimeError if anything is not as it should be."""
        running, number = self._start(2), 0
        while number < times:
            phase = self._chance.choice([*PHASES])
            reached = running.wait_for(PHASES[phase])
            if reached:
                time.sleep(self._chance.uniform(0, 0.3))
                victim = self._chance.randrange(running.number)
                running.kill(victim)
            codes = running.end()
            if not reached or not any(codes):  # it has ended before
                self._check_end(running, codes)
                self._begin()
                running = self._start(running.number)
                continue
            if 0 in codes:
                raise RuntimeError(f"some hosts ended well, and some did not: {codes}")
            self._check(running)
            yield Kill(running.number, running.resumed(), phase, victim)
            others = [hosts for hosts in range(1, len(_NAMES) + 1) if hosts != running.number]
            running = self._start(self._chance.choice(others) if number % 2 else running.number)
            number += 1
        self._check_end(running, running.end())

    def _check(self, running: Hosts) -> None:
        """It must have gone on from where it was, if it came to that."""
        resumed = running.resumed()
        if resumed is None and self._resumable and PHASES["saving"] in running.log():
            raise RuntimeError(f"it began anew, in spite of a checkpoint: {running.log()}")
        if resumed and resumed < self._reached:
            raise RuntimeError(f"it went on from {resumed}, and before from {self._reached}: {running.log()}")
        self._reached = resumed or self._reached

    def _check_end(self, running: Hosts, codes: list[int]) -> None:
        """It must have ended as an unbroken one does."""
        if any(codes):
            raise RuntimeError(f"it ended with {codes}: {running.log()}")
        self._check(running)
        self.auc = running.auc()
        if self.auc < self.expected - AS_GOOD:
            raise RuntimeError(f"the area under the ROC curve is {self.auc:.4f}, unbroken {self.expected:.4f}")


def main() -> None:
    """Print a row for each kill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="kills (default 20)")
    parser.add_argument("--users", type=int, default=200, help="simulated users (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default 0)")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        job = Job(Path(folder), options.users, options.seed)
        found = []
        for kill in job.kills(options.times):
            found.append(kill)
            print(f"{len(found)}: {kill}", file=sys.stderr, flush=True)
        rows = [
            [
                str(number),
                str(kill.hosts),
                "{} epochs, {} steps".format(*kill.resumed) if kill.resumed else "",
                kill.phase,
                str(kill.victim + 1),
            ]
            for number, kill in enumerate(found, start=1)
        ]
        print(markdown(["start", "hosts", "went on from", "killed while", "killed host"], rows))
        print(f"Area under the ROC curve at the end: {job.auc:.4f}; unbroken {job.expected:.4f}")


if __name__ == "__main__":
    main()
