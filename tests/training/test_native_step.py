"""The native step against the specification, in any shape that may be asked for."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import Traffic, to_events
from ipinsights import native
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training import sampling
from ipinsights.training.fit import fit
from ipinsights.training.native_step import NativeStep
from ipinsights.training.progress import Listener, Plan
from ipinsights.training.step import Batch, Parameters, RowGradients, TorchStep

LEVELS = 5


def test_a_machine_with_a_compiler_has_the_kernel() -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    assert native.library() is not None, native.why_absent()
    assert native.why_absent() == ""


needs_kernel = pytest.mark.skipif(native.library() is None, reason=f"no native kernel: {native.why_absent()}")


def make(
    dim: int, blocks: int, batch: int, random_rate: int, shuffled_rate: int, seed: int
) -> tuple[Parameters, Batch]:
    """Parameters in the middle of a training, and a batch, of float32."""
    g = torch.Generator().manual_seed(seed)
    entities, prefixes = 1 + seed % 50, LEVELS + seed % 200

    def state(axis: int, *shape: int) -> torch.Tensor:
        weight, mean, square = torch.randn((3, *shape), generator=g) / dim**0.5
        return torch.stack([weight, mean, square**2], axis)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=g, dtype=torch.int32)

    parameters = Parameters(
        state(1, entities, dim),
        state(0, dim),
        state(1, prefixes, dim),
        state(0, blocks, dim, dim),
        state(0, blocks, dim),
    )
    group = sampling.group_size(random_rate)
    return parameters, Batch(
        entity=integers(entities, batch),
        novelty=torch.rand(batch, generator=g) / 10,
        positive=integers(prefixes, batch, LEVELS),
        random=integers(prefixes, -(-batch // group), random_rate, LEVELS),
        group=group,
        shuffled_rate=shuffled_rate,
        tile=sampling.tile_size(random_rate, shuffled_rate, dim),
    )


def close(ours: torch.Tensor, specified: torch.Tensor, rounding: float = 1e-6) -> None:
    """Equal to float tolerance, as a whole: one wrong entry in a million shows, and so does a wrong sum.

    Not entry by entry: where a block's input is 0 but for rounding, its rectifier may open in one and not the other.
    """
    assert ours.shape == specified.shape
    difference, size = (ours.double() - specified.double()).norm(), specified.double().norm()
    assert difference <= 1e-4 * size + rounding * ours.numel() ** 0.5  # a sigmoid near 1 leaves 1e-7 of a gradient


CANCELLED = 1e-5
"""How far a score may be off: it is a sum of up to 4,096 products, which may come to nearly nothing."""


def ordered(gradient: RowGradients) -> tuple[torch.Tensor, torch.Tensor]:
    order = gradient.rows.argsort()
    return gradient.rows[order], gradient.values[order]


@needs_kernel
@settings(max_examples=60)
@given(
    dim=st.integers(4, 140),
    blocks=st.integers(0, 3),
    batch=st.integers(1, 700),
    rates=st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(any),
    threads=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
@example(dim=4096, blocks=1, batch=300, rates=(1, 1), threads=2, seed=0)
@example(dim=1000, blocks=2, batch=500, rates=(5, 1), threads=2, seed=1)
@example(dim=4, blocks=100, batch=50, rates=(1, 1), threads=1, seed=2)
@example(dim=128, blocks=1, batch=300, rates=(400, 100), threads=2, seed=3)
@example(dim=16, blocks=1, batch=2000, rates=(0, 500), threads=3, seed=4)
@example(dim=16, blocks=1, batch=5, rates=(500, 0), threads=8, seed=5)
@example(dim=128, blocks=1, batch=20_000, rates=(5, 1), threads=2, seed=6)
def test_a_step_is_the_specified_one(
    dim: int, blocks: int, batch: int, rates: tuple[int, int], threads: int, seed: int
) -> None:
    parameters, drawn = make(dim, blocks, batch, *rates, seed)
    own = copy.deepcopy(parameters)
    ours = NativeStep(native.library(), own, LEVELS, 0.01, threads)
    specified = TorchStep(parameters, 0.01)

    mine, learnt = ours.gradients(drawn), specified.gradients(drawn)
    for summed, theirs in ((mine.entity, learnt.entity), (mine.prefix, learnt.prefix)):
        assert torch.equal(ordered(summed)[0], ordered(theirs)[0])
        close(ordered(summed)[1], ordered(theirs)[1])
    for name in ("typical", "w", "b", "totals"):
        close(getattr(mine, name), getattr(learnt, name))
    close(ours.score(drawn.entity, drawn.positive), specified.score(drawn.entity, drawn.positive), CANCELLED)

    for step in (ours, specified):
        step.run(drawn, 0.01)
    close(ours.totals, specified.totals)
    for name, array in vars(parameters).items():
        close(getattr(own, name), array)
    # What was applied from outside is what the next gradients are of.
    ours.apply(learnt, 0.01)
    specified.apply(learnt, 0.01)
    close(ours.score(drawn.entity, drawn.positive), specified.score(drawn.entity, drawn.positive), CANCELLED)


@needs_kernel
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_layout_gives_the_same_bits(threads: int) -> None:
    after = []
    for _ in range(2):
        parameters, drawn = make(64, 2, 3000, 5, 2, 7)
        step = NativeStep(native.library(), parameters, LEVELS, 0.01, threads)
        for _ in range(5):
            step.run(drawn, 0.01)
        after.append(parameters)
    for name, array in vars(after[0]).items():
        assert torch.equal(getattr(after[1], name), array)


@needs_kernel
def test_numbers_out_of_range_are_seen() -> None:
    """A weight that is no number, or a score beyond all numbers, must show in the loss."""
    for value in (float("nan"), float("inf"), 3e38):
        parameters, drawn = make(16, 1, 40, 1, 1, 3)
        parameters.typical[0] = value
        step = NativeStep(native.library(), parameters, LEVELS, 0.0, 1)
        step.run(drawn, 0.01)
        assert not np.isfinite(float(step.totals[0]))


@needs_kernel
def test_other_kinds_of_memory_are_refused() -> None:
    parameters, _ = make(8, 1, 10, 1, 1, 0)
    with pytest.raises(TypeError, match="contiguous torch.float32 on the CPU"):
        NativeStep(native.library(), Parameters(*(a.double() for a in vars(parameters).values())), LEVELS, 0.0, 1)


class _Planned(Listener):
    def training_planned(self, plan: Plan) -> None:
        self.plan = plan


@needs_kernel
def test_training_with_and_without_the_kernel_gives_the_same_model(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws and the same steps, so that rounding alone is between them."""
    train = to_events(traffic.train, 200)
    hp = Hyperparameters(
        num_entity_vectors=200, vector_dim=16, epochs=1, mini_batch_size=256, learning_rate=0.01, seed=3
    )
    listener = _Planned()
    with_kernel = fit(train, hp, listener=listener)
    assert listener.plan.slower_because == ""
    with monkeypatch.context() as absent:
        absent.setattr(native, "library", lambda: None)
        absent.setattr(native, "why_absent", lambda: "the test says so")
        specified = fit(train, hp, listener=listener)
    assert listener.plan.slower_because == "the test says so"
    scores = [(m.entity[train.entity] * m.encode(train.address)).sum(1) for m in (with_kernel, specified)]
    assert np.abs(scores[0] - scores[1]).max() < 0.01 * np.abs(scores[1]).max()


def test_a_machine_without_a_compiler_installs_all_the_same(tmp_path: Path) -> None:
    root = Path(native.__file__).parents[3]
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--force",
        f"--build-lib={tmp_path}",
        f"--build-temp={tmp_path}",
    ]
    absent = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    result = subprocess.run(
        command, cwd=root, env={**os.environ, **absent}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "no-such-compiler" in result.stderr
    assert not list(tmp_path.rglob("_native*"))
