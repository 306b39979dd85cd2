"""Runs a function of a test module as several ranks: real processes, each of which connects to the others.

A function gets the group and a folder. What it returns is pickled, for the test to see.
"""

import importlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers import free_port
from ipinsights.distributed.group import Group

HOSTS = ["127.0.0.1", "algo-10", "algo-2", "algo-3"]
"""The leader's name must resolve. Nobody connects to the others."""
PATIENCE, RENDEZVOUS = 20.0, 180.0
LOST, FAILED = 77, 78
"""Exit codes of a rank that has heard of another's end, or failed itself."""


class Together:
    """Ranks under way."""

    def __init__(
        self,
        folder: Path,
        ranks: int,
        function: Callable[[Group, Path], Any],
        *started: int,
        rendezvous: float = RENDEZVOUS,
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        module = Path(sys.modules[function.__module__].__file__ or "").resolve()
        self._command = [
            sys.executable,
            __file__,
            str(module),
            function.__name__,
            str(folder),
            str(ranks),
            str(rendezvous),
        ]
        self.port = free_port()
        self._paths = os.pathsep.join(map(str, [module.parent, *Path(__file__).resolve().parents[1:3], *sys.path]))
        self.processes: dict[int, subprocess.Popen[str]] = {}
        for rank in started or range(ranks):
            self.start(rank)

    def start(self, rank: int) -> None:
        """Start one more."""
        self.processes[rank] = subprocess.Popen(
            [*self._command, str(self.port), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": self._paths},
        )

    def wait_for(self, name: str) -> None:
        """Until every rank has made a file of that name with its number behind."""
        deadline = time.monotonic() + 120
        while not all((self.folder / f"{name}{rank}").exists() for rank in self.processes):
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes.values()):
                for process in self.processes.values():
                    process.kill()
                raise AssertionError(f"no {name}: {self.end()}")
            time.sleep(0.02)

    def end(self, but: Sequence[int] = ()) -> dict[int, tuple[int, str]]:
        """The exit code and the output of each rank."""
        ended = {}
        try:
            for rank, process in self.processes.items():
                if rank not in but:
                    output, _ = process.communicate(timeout=240)
                    ended[rank] = process.returncode, output
        except subprocess.TimeoutExpired:
            for process in self.processes.values():
                process.kill()
            raise
        return ended

    def results(self) -> list[Any]:
        """What the function returned on each rank."""
        for rank, (code, output) in self.end().items():
            assert code == 0, f"rank {rank}: {output}"
        return [pickle.loads((self.folder / f"result-{rank}").read_bytes()) for rank in range(self.ranks)]


def together(folder: Path, ranks: int, function: Callable[[Group, Path], Any]) -> list[Any]:
    """What a function of a test module returns on each of so many ranks."""
    return Together(folder, ranks, function).results()


def main(module: str, function: str, folder: str, ranks: str, rendezvous: str, port: str, rank: str) -> None:
    """One rank."""
    import torch

    from ipinsights.distributed import ranks as distributed

    torch.set_num_threads(1)

    def lost(reason: str, told: bool) -> None:
        print(f"LOST told={told}: {reason}", flush=True)
        os._exit(LOST)

    group = distributed.connect(
        HOSTS[: int(ranks)],
        int(rank),
        lost,
        port=int(port),
        patience=PATIENCE,
        rendezvous=float(rendezvous),
        gpu_backend="gloo",
    )
    try:
        result = getattr(importlib.import_module(Path(module).stem), function)(group, Path(folder))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        group.fail(str(error))
        os._exit(FAILED)
    Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
    group.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
