"""The step for GPUs on a machine without one.

Its kernels are interpreted, as Triton can, and compiled for GPUs that are not there; what it would record in a CUDA
graph is played back by `Recorder`; and a whole training runs on a device of which only shapes are known.
"""

import copy
import itertools
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ipinsights import native
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training import gpu_step, trainer
from ipinsights.training.fit import fit
from ipinsights.training.gpu_step import GpuStep, list_rows
from ipinsights.training.step import Parameters, TorchStep
from training.gpu_kernels import INTERPRET, KERNELS, Idle
from training.recorder import Recorder, gpu_kernels, need_interpreter
from training.steps import close, make

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    with patch.dict(os.environ, INTERPRET):
        yield


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), st.integers(1, 8))
def test_rows_are_listed_in_pieces(numbers: list[int], piece: int) -> None:
    numbers.sort()
    starts, firsts, counts = list_rows(torch.tensor(numbers, dtype=torch.int32), piece)
    rows_, pieces = counts.tolist()
    members = [numbers[a:b] for a, b in itertools.pairwise(starts[: pieces + 1].tolist())]
    assert all(0 < len(part) <= piece and len(set(part)) == 1 for part in members)
    assert list(itertools.chain(*members)) == numbers
    assert [members[first][0] for first in firsts[:rows_].tolist()] == sorted(set(numbers))
    assert (starts[pieces:] == len(numbers)).all()
    assert (firsts[rows_:] == len(numbers)).all()


def test_a_training_by_recorded_steps_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one, in which the last mini-batch of an epoch has another size."""
    need_interpreter()
    rng = np.random.default_rng(0)
    address = rng.integers(8, size=230, dtype=np.uint32) << np.uint32(28)
    train = Events(rng.integers(40, size=230, dtype=np.int32), address, EntityIndex(40))
    hp = Hyperparameters(num_entity_vectors=40, vector_dim=8, mini_batch_size=100, epochs=3, learning_rate=0.02)
    made = []

    def on_gpu(parameters: Parameters, weight_decay: float) -> GpuStep:
        made.append(GpuStep(parameters, weight_decay, Recorder()))
        return made[0]

    monkeypatch.setattr(native, "library", lambda: None)
    specified = fit(train, hp, device="cpu")
    monkeypatch.setattr(trainer, "TorchStep", on_gpu)
    recorded = fit(train, hp, device="cpu")
    assert sorted(made[0]._recordings) == [30, 100]
    assert all(recording.play for recording in made[0]._recordings.values())
    close(torch.from_numpy(recorded.entity), torch.from_numpy(specified.entity))
    for name, array in vars(specified.encoder).items():
        close(torch.from_numpy(getattr(recorded.encoder, name)), torch.from_numpy(array))


HP = Hyperparameters(num_entity_vectors=2, vector_dim=16)
CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of sums that nobody wrote
def test_a_trial_tells_whether_the_kernels_work(monkeypatch: pytest.MonkeyPatch) -> None:
    need_interpreter()
    assert gpu_step.deviation(HP, 2, CPU, Recorder()) < 1e-6
    for name in KERNELS:
        with patch.object(gpu_kernels, name, Idle()):
            assert not gpu_step.deviation(HP, 2, CPU, Recorder()) < 0.01
    monkeypatch.setattr(gpu_step, "deviation", lambda *_: 0.02)
    assert gpu_step.why_not(HP, 5, CPU) == "the recorded steps differ from torch's on this GPU (by 0.02)"
    monkeypatch.setattr(gpu_step, "deviation", lambda *_: float("nan"))
    assert "the recorded steps differ from torch's on this GPU" in gpu_step.why_not(HP, 5, CPU)
    monkeypatch.setattr(gpu_step, "deviation", lambda *_: 1e-6)
    assert gpu_step.why_not(HP, 5, CPU) == ""


def test_what_cannot_be_recorded_is_done_as_it_is_and_told() -> None:
    need_interpreter()

    def fails(_: Callable[[], None]) -> Callable[[], None]:
        try:
            raise torch.OutOfMemoryError("no memory")
        finally:
            raise RuntimeError("and so recording ended badly")

    parameters, batch = make(16, 1, 30, 1, 1, 0)
    own = copy.deepcopy(parameters)
    ours, specified = GpuStep(own, 0.01, fails), TorchStep(parameters, 0.01)
    for step in (ours, specified):
        step.run(batch, 0.01)
    with pytest.warns(RuntimeWarning, match="recording the steps failed, .* slower: OutOfMemoryError: no memory"):
        ours.run(batch, 0.01)
    ours.run(batch, 0.01)
    for _ in range(2):
        specified.run(batch, 0.01)
    close(own.prefix, parameters.prefix)
    close(own.entity, parameters.entity)


def test_why_steps_cannot_be_recorded_is_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_step.why_not(HP, 5, CPU).startswith("its steps cannot be recorded on this GPU (")
    assert gpu_step.why_not(HP, 5, torch.device("cuda")).startswith("its steps cannot be recorded on this GPU (")


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, which has no types
    """The most memory that is held at a time, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's, which has no types
        self.held = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self.meet(result.untyped_storage())
        return results

    def meet(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self.known:
            self.known.add(place)
            self.held += size
            self.most = max(self.most, self.held)
            weakref.finalize(storage, self.leave, place, size)

    def leave(self, place: int, size: int) -> None:
        self.known.remove(place)
        self.held -= size


@pytest.mark.parametrize(
    ("dim", "blocks", "batch", "random_rate", "shuffled_rate"),
    [
        (128, 1, 1000, 5, 1),
        (16, 1, 2000, 5, 1),
        (64, 4, 2000, 1, 2),
        (64, 0, 2000, 0, 3),
        (512, 1, 500, 20, 5),
        (8, 1, 500, 0, 90),
    ],
)
def test_the_memory_of_a_step_is_known(
    dim: int, blocks: int, batch: int, random_rate: int, shuffled_rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KERNELS:
        monkeypatch.setattr(gpu_kernels, name, Idle())
    parameters, drawn = make(dim, blocks, batch, random_rate, shuffled_rate, 0)
    step = GpuStep(parameters, 0.0)
    with Meter() as meter:
        step.run(drawn, 0.01)
    random, levels = drawn.random[..., 0].numel(), drawn.positive.shape[1]
    assert meter.most < gpu_step.memory(batch, random, shuffled_rate, levels, blocks, dim) < 2 * meter.most


def run(script: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that a script of this folder prints, in an interpreter of its own."""
    own = (str(Path(__file__).parents[2] / name) for name in ("container", "tests", "."))
    paths = os.pathsep.join([*own, *sys.path])
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env=os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    assert run("compile_for_gpus.py", TRITON_CACHE_DIR=str(tmp_path)) == ["compiled 12"]


def test_a_training_on_another_device_never_waits_for_it() -> None:
    """And nothing but copies has to do with two devices: all else would be an error, or a wait."""
    assert set(run("pretend_device.py")) == {"aten._to_copy.default", "aten.copy_.default"}


def test_a_gpu_learns_what_the_cpu_learns() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    assert run("train_on_gpu.py") == ["recorded"]
