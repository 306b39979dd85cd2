"""Shared fixtures: small real traffic, a small trained model, and /opt/ml trees with real processes on them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# Small jobs side by side: threads would wait for one another. Set before numpy is imported, since the last bit of a
# product of matrices can depend on it, and processes started here inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The page that a job makes takes seconds; the tests that are about it ask for it.
os.environ["IPINSIGHTS_REPORT"] = "off"

import numpy as np
import pyarrow as pa
import pytest
import requests
from hypothesis import settings

from benchmarks.servers import free_port, terminate
from ipinsights import native
from ipinsights.data import addresses
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.evaluation import simulation
from ipinsights.training.gpu_step import GpuStep
from ipinsights.training.native_step import NativeStep
from ipinsights.training.step import Batch, Step, TorchStep

settings.register_profile("untimed", deadline=None)  # how long an example takes is no property of the code
settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The image's tests take longest. So they come first where others run beside them, and last where they do not."""
    beside = hasattr(config, "workerinput")
    items.sort(key=lambda item: ("container" in item.path.parts) != beside)


SMALL = {
    "num_entity_vectors": "200",
    "vector_dim": "16",
    "epochs": "2",
    "mini_batch_size": "500",
    "learning_rate": "0.01",
}
"""Hyperparameters that train in seconds, as the platform sends them."""


def records(traffic: simulation.Traffic) -> Records:
    return Records(pa.array(traffic.names(), pa.string()), traffic.address)


def to_csv(pairs: Records) -> str:
    lines = zip(pairs.entities.to_pylist(), addresses.render(pairs.addresses), strict=True)
    return "".join(f"{entity},{address}\n" for entity, address in lines)


def to_events(pairs: Records, num_entity_vectors: int) -> Events:
    index = EntityIndex(num_entity_vectors)
    return Events(index.claim(pairs.entities), pairs.addresses, index)


def two_countries() -> Networks:
    """Every /8 of IPv4 is of another provider, and every second one is in the other country."""
    first = (np.arange(256) << 24).astype(np.uint32)
    labels = np.stack([np.arange(256) + 1, np.arange(256) % 2 + 1]).astype(np.uint32)
    return Networks(first, first + np.uint32((1 << 24) - 1), labels)


def no_events() -> Events:
    return Events(np.zeros(0, np.int32), np.zeros(0, np.uint32), EntityIndex(1))


@pytest.fixture(params=["kernel", "no kernel"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """What uses this is tested with the native kernel and without."""
    if request.param == "kernel" and native.library() is None:
        pytest.skip(f"there is no kernel, because {native.why_absent()}")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "no kernel":
            patch.setattr(native, "library", lambda: None)
        yield


@dataclass(frozen=True)
class Traffic:
    train: Records
    normal: Records
    attacks: Records


@pytest.fixture(scope="session")
def traffic() -> Traffic:
    """A hundred users' log-ins, later ones, and attacks on them."""
    rng = np.random.default_rng(0)
    ranges = simulation.Ranges.synthetic(rng)
    log_ins = simulation.simulate(100, ranges, rng)
    train, case = simulation.split(log_ins, ranges, 2000, rng)
    return Traffic(records(train), records(case.normal), records(case.attacks))


PEAK = "int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
"""An expression for the most memory, in KB, that this process has held; ru_maxrss would count its parent's, too."""


class Tree:
    """A folder that plays /opt/ml, and the image's two roles run on it as processes."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.failure = base / "output" / "failure"
        self.model = base / "model"

    def configure(self, hyperparameters: dict[str, str], **others: object) -> None:
        folder = self.base / "input" / "config"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {"hyperparameters": hyperparameters, **others}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))

    def channel(self, name: str, **files: str) -> Path:
        folder = self.base / "input" / "data" / name
        for file, text in files.items():
            path = folder / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a module with this tree as /opt/ml, to its end."""
        return self._run(["-m", *command], environment)

    def run_code(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same of a line of Python."""
        return self._run(["-c", code], environment)

    def _run(self, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment(environment),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def train(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("ipinsights.sagemaker", "train", **environment)

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "SAGEMAKER_BASE_DIR": str(self.base), **extra}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "ml")


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, traffic: Traffic
) -> tuple[Tree, subprocess.CompletedProcess[str]]:
    """A tree on which `train` has run, and what it printed."""
    return _trained(Tree(tmp_path_factory.mktemp("trained") / "ml"), traffic, to_csv(traffic.normal))


@pytest.fixture(scope="session")
def trained_with_strangers(
    tmp_path_factory: pytest.TempPathFactory, traffic: Traffic
) -> tuple[Tree, subprocess.CompletedProcess[str]]:
    """The same, with some validation events of entities that training never saw."""
    strange = "".join(f"stranger {line}\n" for line in to_csv(traffic.normal).splitlines()[:50])
    return _trained(Tree(tmp_path_factory.mktemp("strangers") / "ml"), traffic, to_csv(traffic.normal) + strange)


def _trained(tree: Tree, traffic: Traffic, validation: str) -> tuple[Tree, subprocess.CompletedProcess[str]]:
    tree.configure({**SMALL, "batch_metrics_publish_interval": "20"})
    half = len(traffic.train) // 2
    text = to_csv(traffic.train).splitlines(keepends=True)
    tree.channel(
        "train", **{"part-0.csv": "".join(text[:half]), "nested__part-1.csv": "".join(text[half:]), "_SUCCESS": ""}
    )
    tree.channel("validation", **{"v.csv": validation})
    job = tree.train()
    assert job.returncode == 0, job.stdout + job.stderr
    return tree, job


def lose_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loss be no number after so many steps."""
    taken = iter(range(1_000_000))
    for kind in (NativeStep, TorchStep, GpuStep):

        def run(self: Step, batch: Batch, rate: float, run: Callable[..., None] = kind.run) -> None:
            run(self, batch, rate)
            self.totals *= 1 if next(taken) < steps else float("nan")

        monkeypatch.setattr(kind, "run", run)


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, for a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def bound() -> list[str]:
    """What to put before a command so that bits of permission bind it, as they bind every user but root."""
    if os.geteuid():
        return []
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
    if not shutil.which(command[0]) or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("root cannot give up its rights here")
    return command


class Server:
    """`serve` as a process on a port of its own."""

    def __init__(self, tree: Tree, output: int | None = None, /, **environment: str) -> None:
        """On a model; with a file descriptor for what it prints, unless it is to be kept."""
        port = self.port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = {"SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_MODEL_SERVER_WORKERS": "1", **environment}
        self._log = tree.base.parent / f"serve-{port}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ipinsights.sagemaker", "serve"],
                env=tree.environment(settings),
                stdout=log if output is None else output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/ping", timeout=2).status_code == 200:
                    return
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.1)
        raise AssertionError("serve did not start: " + self.stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def post(
        self,
        body: str | bytes | Iterable[bytes],
        content_type: str | None = "text/csv",
        accept: str | None = None,
        path: str = "/invocations",
        **headers: str,
    ) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Content-Type": content_type, "Accept": accept, **named}
        with requests.Session() as session:
            del session.headers["Accept"]  # or it would send one where none is given
            present = {name: value for name, value in given.items() if value is not None}
            return session.post(self.url + path, data=body, headers=present, timeout=60)

    def connect(self) -> socket.socket:
        """A connection, to say on it what no client does."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> str:
        """Stop the process and return what it printed."""
        terminate(self.process, 40)
        return self.printed()

    def printed(self) -> str:
        """All that the process has printed so far."""
        return self._log.read_text()

    def entries(self) -> list[dict[str, Any]]:
        """The access log so far."""
        return [json.loads(line) for line in self.printed().splitlines() if line.startswith("{")]


@pytest.fixture(scope="session")
def server(trained: tuple[Tree, object]) -> Iterator[Server]:
    server = Server(trained[0])
    yield server
    server.stop()
