"""The kernel compiled with the address and undefined-behaviour sanitizers, over every kind of shape and cut of text."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipinsights import native

pytestmark = pytest.mark.slow

NATIVE = Path(native.__file__).parent
STEP = """
import ctypes, sys
sys.path.insert(0, {tests!r})
from training.steps import LEVELS, make
from ipinsights.native import interface
from ipinsights.training.native_step import NativeStep
library = interface.declare(ctypes.CDLL({library!r}))
for dim, blocks, batch, rates in [
    (4, 0, 1, (1, 0)), (5, 1, 7, (1, 1)), (16, 3, 33, (0, 4)), (37, 2, 501, (5, 2)), (130, 1, 257, (7, 0)),
    (8, 1, 20, (40, 60)), (4, 100, 10, (1, 1)), (300, 1, 90, (2, 1)),
]:
    for threads in (1, 3):
        parameters, batch_ = make(dim, blocks, batch, *rates, seed=batch)
        step = NativeStep(library, parameters, LEVELS, 0.01, threads)
        step.gradients(batch_)
        for _ in range(2):
            step.run(batch_, 0.01)
        step.score(batch_.entity, batch_.positive)
        del step
print("done")
"""
READER = """
import ctypes
import numpy as np
import pyarrow as pa
from ipinsights import native
from ipinsights.native import interface
library = interface.declare(ctypes.CDLL({library!r}))
native.library = lambda: library
from ipinsights.native import reader, scoring
lines = ["a,1.2.3.4", "a,1.2.3.4", "b,255.255.255.255 ", "é€😀,0.0.0.0", "n" * 40 + ",\\t10.20.30.40", "", "a,"]
text = "\\r\\n".join([*lines, *reversed(lines)]).encode()
for first in range(len(text)):
    for last in range(first, len(text) + 1):
        reader.read_lines(text[first:last])
longest = np.full(len(text) + 1, -1.23456789e-38, np.float32)
for data in (text, b"\\xef\\xbb\\xbf" + text, b"a\\n" * len(text), b"\\r" * len(text)):
    for last in range(len(data) + 1):
        count = sum(1 for line in data[:last].removeprefix(b"\\xef\\xbb\\xbf").splitlines() if line.strip())
        for size in {{max(0, count - 1), count, count + 1}}:
            scored = scoring.append_scores(data[:last], longest[:size])
            assert (scored is None) == (size != count)
names = ["a", "é€😀", "n" * 40, "", "a\\\\n", "\\\\ud83d\\\\ude00"]
shapes = ['{{{{"features": [{{0}}]}}}}', '{{{{"data":{{{{"features":{{{{"values":[{{0}}]}}}}}}}}}}}}', "[{{0}}]"]
shapes.append('{{{{"k":[-1.5,{{{{"q":"\\t"}}}},true,null],"features":[{{0}}]}}}}')
instances = [shape.format('"' + name + '", " 10.2.3.4"') for shape in shapes for name in names]
request = ('{{"instances": [' + ", ".join(instances[:2] + instances[5:7] + instances[10:12]) + "]}}").encode()
several = "\\r\\n".join(instances).encode()
for last in range(len(request) + 1):
    reader.read_instances(request[:last], lines=False)
for first in range(len(several)):
    for last in range(first, len(several) + 1, 3):
        reader.read_instances(several[first:last], lines=True)
for dim in (1, 4, 8, 15, 16, 17, 128):
    table = np.ones((7, dim), np.float32)
    for size in (0, 1, 9):
        rows = np.arange(size, dtype=np.int32) % 7
        scoring.score_pairs(table, rows, table, rows[::-1].copy())
        scoring.sum_rows(table, np.stack([rows, rows[::-1], rows], axis=1))
        scoring.add_rows(table, rows, np.ones((size, dim), np.float32))
for size in (0, 1, 1023, 1024, 1025, 2048):
    for dtype in (np.uint32, np.uint64):
        for sharing in (False, True):
            table, starts = np.ones((6, 5), np.float32), np.arange(3, dtype=dtype) * 1000
            index = np.array([1, 0, 2, 3, 4], np.uint32)
            scorer = scoring.PairScorer(index, 256, sharing, (starts, np.arange(3, dtype=np.int32)), table, table[:3])
            digests = np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            assert (scorer(digests, np.arange(size, dtype=dtype))[0] == 5).all()
for size in (1, 9):
    lengths = np.array([0, 1, 31, 32, 33, 70])
    texts = np.zeros(lengths.sum() + scoring.PADDING, np.uint8)
    codes = np.arange(2 * size, dtype=np.int32).reshape(size, 2) % 6
    numbers, starts = b",".join([b"1.5"] * size), np.append(0, np.cumsum(lengths)).astype(np.int64)
    assert len(scoring.join(numbers, codes, texts, starts, 140)) == 3 * size + lengths[codes].sum()
    places = np.array([0, 1, 0], np.int32)
    numbered, total = scoring.number_texts(codes // 2, places, np.array([0, 1, 3], np.int32), starts)
    assert total == lengths[numbered].sum()
for text in lines:
    column = pa.array([text[:size] for size in range(len(text) + 1)])
    reader.hash_texts(column)
    reader.parse_quads(column)
    reader.parse_quads(pa.array([text[2:]]))
for size in range(1, 40):
    digests = np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for probes in (1, 8, 256):
        reader.find_rows(np.arange(size, dtype=np.uint32), probes, digests)
    for dtype in (np.uint32, np.uint64):
        numbers = np.arange(size, dtype=dtype)
        reader.find_intervals(numbers, numbers.astype(np.int32), numbers)
        reader.find_intervals(numbers, numbers.astype(np.int32), numbers[:0])
print("done")
"""


def runtime(name: str) -> str | None:
    """The path of a sanitizer's library, where the compiler has it."""
    if shutil.which("g++") is None:
        return None
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    return path if Path(path).is_absolute() else None


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if runtime("libasan.so") is None:
        pytest.skip("there is no g++ with its sanitizers")
    library = tmp_path_factory.mktemp("kernel") / "sanitized.so"
    machine = ["-march=x86-64-v3"] if os.uname().machine == "x86_64" else []
    flags = ["-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-pthread", "-fno-sanitize-recover=all", *machine]
    sources = map(str, NATIVE.glob("*.cpp"))
    subprocess.run(
        ["g++", *flags, "-fsanitize=address,undefined", *sources, "-o", str(library)], check=True, timeout=600
    )
    return library


@pytest.mark.parametrize("code", [STEP, READER], ids=["step", "reader"])
def test_nothing_is_read_or_written_that_is_not_its_own(code: str, library: Path) -> None:
    preloaded = {
        "LD_PRELOAD": runtime("libasan.so") or "",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # each object in memory of its own
    }
    result = subprocess.run(
        [sys.executable, "-c", code.format(tests=str(NATIVE.parents[2] / "tests"), library=str(library))],
        env={**os.environ, **preloaded},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "done\n"
