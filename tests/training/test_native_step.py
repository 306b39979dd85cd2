"""The native step against the specification, in any shape that may be asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Traffic, to_events
from ipinsights import native
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training.fit import fit
from ipinsights.training.native_step import NativeStep
from ipinsights.training.progress import Listener, Plan
from ipinsights.training.step import Parameters
from training.steps import LEVELS, make


def test_a_machine_with_a_compiler_has_the_kernel() -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    assert native.library() is not None, native.why_absent()
    assert native.why_absent() == ""


needs_kernel = pytest.mark.skipif(native.library() is None, reason=f"no native kernel: {native.why_absent()}")


@needs_kernel
def test_other_kinds_of_memory_are_refused() -> None:
    parameters, _ = make(8, 1, 10, 1, 1, 0)
    library = native.library()
    assert library is not None
    with pytest.raises(TypeError, match="contiguous torch.float32 on the CPU"):
        NativeStep(library, Parameters(*(a.double() for a in vars(parameters).values())), LEVELS, 0.0, 1)


def test_vectors_of_any_width_give_the_same_bits(tmp_path: Path) -> None:
    """A processor with AVX-512 multiplies matrices by other code. A model must not tell where it was trained."""
    library = native.library()
    if library is None or "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor lacks AVX-512, or there is no kernel")
    root = Path(__file__).parents[2]
    build = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
    flags = dict.fromkeys(("CFLAGS", "CXXFLAGS"), "-DNARROW")
    subprocess.run(build, cwd=root, env=os.environ | flags, check=True, timeout=300)
    built = tmp_path / "ipinsights" / "native" / native.LIBRARY
    assert built.read_bytes() != (root / "container" / "ipinsights" / "native" / native.LIBRARY).read_bytes()
    narrow, why = native.load(built)
    assert narrow, why
    for dim, blocks, size in ((128, 1, 1000), (64, 2, 37), (33, 1, 5), (4, 3, 100)):
        made = [make(dim, blocks, size, 5, 1, seed=dim) for _ in range(2)]
        for kernel, (parameters, batch) in zip((library, narrow), made, strict=True):
            step = NativeStep(kernel, parameters, LEVELS, 0.01, threads=2)
            for _ in range(3):
                step.run(batch, 0.01)
        (ours, _), (theirs, _) = made
        for name, array in vars(ours).items():
            assert torch.equal(array, getattr(theirs, name)), (name, dim)


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
    with_kernel = fit(train, hp, listener=listener, device="cpu")
    assert (listener.plan.step, listener.plan.slower_because) == ("native", "")
    with monkeypatch.context() as absent:
        absent.setattr(native, "library", lambda: None)
        absent.setattr(native, "why_absent", lambda: "the test says so")
        specified = fit(train, hp, listener=listener, device="cpu")
    assert (listener.plan.step, listener.plan.slower_because) == ("torch", "the test says so")
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
        command, cwd=root, env={**os.environ, **absent}, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0
    assert "no-such-compiler" in result.stderr
    assert not list(tmp_path.rglob("_native*"))
