"""The hosts of a training job: a real process for each, with a tree of its own, as the platform starts them.

Of a host whose GPUs are pretended, this is the first process, which starts the others.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers import free_port
from conftest import SMALL, Tree

HYPERPARAMETERS = {**SMALL, "training_hosts": "all"}
ENDLESS = {**HYPERPARAMETERS, "epochs": "1000000", "batch_metrics_publish_interval": "1000000"}
NAMES = ["127.0.0.1", "algo-10", "algo-2", "algo-3"]
"""The leader's name must resolve."""
_TESTS = Path(__file__).parents[1]
_PRETEND = _TESTS / "sagemaker" / "pretend_gpus.py"
_PATHS = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


class Hosts:
    """The trees and processes of a job."""

    def __init__(self, folder: Path, number: int) -> None:
        self.trees = [Tree(folder / f"host-{rank}") for rank in range(number)]
        self.processes: list[subprocess.Popen[str]] = []
        """Those that were started, in the order of their ranks."""
        self.started: Sequence[int] = range(number)
        self.port = free_port()
        self.names = NAMES[:number]

    def configure(self, hyperparameters: dict[str, str], **channels: object) -> None:
        for tree, name in zip(self.trees, self.names, strict=True):
            resources = {"current_host": name, "hosts": self.names, "network_interface_name": "ethwe"}
            tree.configure(hyperparameters, resourceconfig=resources, inputdataconfig=channels)

    def channel(self, name: str, **files: str) -> None:
        for tree in self.trees:
            tree.channel(name, **files)

    def start(
        self,
        patience: float = 20.0,
        networks: Sequence[str] = (),
        *,
        gpus: Sequence[int] = (),
        only: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        first: str = "pass",
    ) -> None:
        """Start all, or ``only`` some. They have so many ``gpus`` each, which `pretend_gpus` has them see, or none.

        Those without GPUs run the code ``first``.
        """
        options = {"port": self.port, "patience": patience, "rendezvous": 60}
        code = (
            "from ipinsights.sagemaker import stopping; stopping.watch(); from ipinsights.sagemaker import job; "
            f"{first}; job.train(**{options})"
        )
        program = [str(_PRETEND), json.dumps(options)] if gpus else ["-c", code]
        self.started = only or range(len(self.trees))
        for rank in self.started:
            seen = {"PRETEND_GPUS": str(gpus[rank])} if gpus else {}
            log = (self.trees[rank].base / "log").open("w")
            self.processes.append(
                subprocess.Popen(
                    [*(["ip", "netns", "exec", networks[rank]] if networks else []), sys.executable, *program],
                    env=self.trees[rank].environment(
                        {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _PATHS, **seen, **(environment or {})}
                    ),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            log.close()

    def log(self, rank: int) -> str:
        return (self.trees[rank].base / "log").read_text()

    def wait_for(self, text: str, rank: int = 0) -> None:
        deadline = time.monotonic() + 120
        while text not in self.log(rank):
            assert time.monotonic() < deadline, self.log(rank)
            assert self.processes[self.started.index(rank)].poll() is None, self.log(rank)
            time.sleep(0.05)

    def end(self) -> list[int]:
        return [process.wait(240) for process in self.processes]

    def run(self, gpus: Sequence[int] = (), **environment: str) -> list[int]:
        self.start(gpus=gpus, environment=environment)
        return self.end()

    def further(self) -> list[int]:
        """The further processes of the first host that was started."""
        first = self.processes[0].pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def failure(self, rank: int) -> str | None:
        file = self.trees[rank].failure
        return file.read_text() if file.exists() else None

    def logs(self) -> str:
        return "\n".join(self.log(rank) for rank in self.started)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(60)


@contextmanager
def clusters(folder: Path) -> Iterator[Callable[[int], Hosts]]:
    """Makes jobs of so many hosts, none of which outlives the test."""
    made: list[Hosts] = []

    def make(number: int) -> Hosts:
        made.append(Hosts(folder / str(len(made)), number))
        return made[-1]

    try:
        yield make
    finally:
        for hosts in made:
            hosts.kill()


def lines(text: str, parts: int) -> list[str]:
    every = text.splitlines(keepends=True)
    return ["".join(every[part::parts]) for part in range(parts)]
