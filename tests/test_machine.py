import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipinsights.machine import available_memory, has_gpu, limit_threads, usable_cores

MEMINFO = "MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n"


def lay(root: Path, **files: str) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **{k.replace("__", "/"): v for k, v in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_tells() -> None:
    found = available_memory()
    assert found is not None
    assert 10_000_000 < found < 100_000_000_000_000


def test_without_a_limit_it_is_what_is_free(tmp_path: Path) -> None:
    assert available_memory(lay(tmp_path)) == 20_000_000 * 1024
    assert available_memory(lay(tmp_path, **{"sys/fs/cgroup/memory.max": "max\n"})) == 20_000_000 * 1024


@pytest.mark.parametrize(
    ("folder", "limit", "used", "cached"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_containers_limit_counts(folder: str, limit: str, used: str, cached: str, tmp_path: Path) -> None:
    """What it holds as a cache of files it gives back."""
    files = {limit: "4000000000\n", used: "1500000000\n", "memory.stat": f"anon 7\n{cached} 500000000\nfile 9\n"}
    root = lay(tmp_path, **{f"{folder}/{name}": text for name, text in files.items()})
    assert available_memory(root) == 3_000_000_000


def test_where_nothing_tells_nothing_is_said(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


@pytest.mark.parametrize("path", ["dev/nvidia0", "proc/driver/nvidia/gpus/0000:00:1e.0"])
def test_a_gpu_shows_whether_this_container_was_given_it_or_not(path: str, tmp_path: Path) -> None:
    assert not has_gpu(tmp_path)
    (tmp_path / path).mkdir(parents=True)
    assert has_gpu(tmp_path)


QUOTAS = [
    pytest.param({"sys__fs__cgroup__cpu.max": "{} 100000\n"}, id="control group 2"),
    pytest.param(
        {"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "{}\n", "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n"},
        id="control group 1",
    ),
]


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.mark.parametrize("files", QUOTAS)
@pytest.mark.parametrize(
    ("quota", "cores"), [(50_000, 1), (100_000, 1), (150_000, 2), (400_000, 4), (1_600_000, 8), ("max", 8), (-1, 8)]
)
def test_a_containers_share_of_the_cores_counts(
    files: dict[str, str], quota: int | str, cores: int, tmp_path: Path, eight_cores: None
) -> None:
    """As ``docker run --cpus`` gives it."""
    root = lay(tmp_path, **{path: text.format(quota) for path, text in files.items()})
    assert usable_cores(root) == cores


@pytest.mark.parametrize("files", QUOTAS)
def test_no_library_starts_more_threads_than_the_share_allows(
    files: dict[str, str], tmp_path: Path, eight_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lay(tmp_path, **{path: text.format(200_000) for path, text in files.items()})
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    limit_threads(root)
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads(tmp_path / "of a machine without a share")
    assert "OMP_NUM_THREADS" not in os.environ
    limit_threads(root)
    assert os.environ["OMP_NUM_THREADS"] == "2"


POOLS = """
import ctypes, threading
from ipinsights.machine import share_memory_pools
share_memory_pools()
import pyarrow
c, all_started = ctypes.CDLL(None), threading.Barrier(20)
def take():
    all_started.wait()
    c.malloc(100_000)
threads = [threading.Thread(target=take) for _ in range(20)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
c.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(c.fopen(b"/dev/stdout", b"w"))
c.malloc_info(0, file)
c.fclose(file)
print(pyarrow.default_memory_pool().backend_name)
"""


@pytest.mark.parametrize(
    ("given", "backend", "pools"),
    [({}, "system", 2), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc", "MALLOC_ARENA_MAX": "3"}, "mimalloc", 3)],
)
def test_threads_share_memory_pools(given: dict[str, str], backend: str, pools: int) -> None:
    printed = beside_glibc(POOLS, given)
    assert printed.count("<heap nr=") == pools
    assert printed.endswith(f"{backend}\n")


LARGE = """
import ctypes
from ipinsights.machine import return_freed_memory, share_memory_pools
share_memory_pools()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
resident = lambda: int(open("/proc/self/statm").read().split()[1])
before, size = resident(), 20_000_000
piece = c.malloc(size)
ctypes.memset(piece, 1, size)
c.free(ctypes.c_void_p(piece))
kept = resident() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.parametrize(("given", "keeps"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_large_pieces_are_kept_until_they_are_given_back(given: dict[str, str], keeps: bool) -> None:
    kept, rest = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in beside_glibc(LARGE, given).split())
    assert (kept > 0.9 * 20_000_000) == keeps
    assert rest < 0.1 * 20_000_000


GAPS = """
import ctypes
from ipinsights.machine import return_freed_memory
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
resident = lambda: int(open("/proc/self/statm").read().split()[1])
pieces = [c.malloc(4_000) for _ in range(20_000)]
for piece in pieces:
    ctypes.memset(piece, 1, 4_000)
for place, piece in enumerate(pieces):
    if place % 10:
        c.free(ctypes.c_void_p(piece))
before = resident()
return_freed_memory()
print(before - resident())
"""


def test_freed_memory_goes_back_to_the_system() -> None:
    assert int(beside_glibc(GAPS, {})) * os.sysconf("SC_PAGE_SIZE") > 0.5 * 20_000 * 4_000


def beside_glibc(program: str, given: dict[str, str]) -> str:
    """What a Python program prints that asks glibc; the test is skipped without."""
    if "glibc" not in "".join(os.confstr(name) or "" for name in os.confstr_names if "GNU_LIBC" in name):
        pytest.skip("the C library is not glibc")
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return run.stdout
