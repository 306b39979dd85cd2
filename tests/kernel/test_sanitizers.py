"""The kernel compiled with the address and undefined-behaviour sanitizers, over every kind of shape."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipinsights import kernel

KERNEL = Path(kernel.__file__).parent
SHAPES = """
import ctypes, sys
sys.path.insert(0, {tests!r})
from kernel.test_native_step import LEVELS, make
from ipinsights.kernel.step import NativeStep
native = ctypes.CDLL({library!r})
for dim, blocks, batch, rates in [
    (4, 0, 1, (1, 0)), (5, 1, 7, (1, 1)), (16, 3, 33, (0, 4)), (37, 2, 501, (5, 2)), (130, 1, 257, (7, 0)),
    (8, 1, 20, (40, 60)), (4, 100, 10, (1, 1)), (300, 1, 90, (2, 1)),
]:
    for threads in (1, 3):
        parameters, batch_ = make(dim, blocks, batch, *rates, seed=batch)
        step = NativeStep(native, parameters, LEVELS, 0.01, threads)
        step.gradients(batch_)
        for _ in range(2):
            step.run(batch_, 0.01)
        step.score(batch_.entity, batch_.positive)
        del step
print("done")
"""


def runtime(name: str) -> str | None:
    """The path of a sanitizer's library, where the compiler has it."""
    if shutil.which("g++") is None:
        return None
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return path if Path(path).is_absolute() else None


@pytest.mark.skipif(runtime("libasan.so") is None, reason="there is no g++ with its sanitizers")
def test_no_step_reads_or_writes_what_is_not_its_own(tmp_path: Path) -> None:
    library = tmp_path / "sanitized.so"
    machine = ["-march=x86-64-v3"] if os.uname().machine == "x86_64" else []
    flags = ["-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-pthread", "-fno-sanitize-recover=all", *machine]
    sources = map(str, KERNEL.glob("*.cpp"))
    subprocess.run(["g++", *flags, "-fsanitize=address,undefined", *sources, "-o", str(library)], check=True)
    result = subprocess.run(
        [sys.executable, "-c", SHAPES.format(tests=str(KERNEL.parents[2] / "tests"), library=str(library))],
        env={**os.environ, "LD_PRELOAD": runtime("libasan.so") or "", "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "done\n"
