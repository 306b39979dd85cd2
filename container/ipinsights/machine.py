"""The resources of this machine, or of the container in it."""

import ctypes
import math
import os
from pathlib import Path

from ipinsights.errors import UserError

_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""For control groups 2 and 1: the files of the limit and of the used memory, and the key of its cached part."""

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""The numbers of these parameters in glibc's malloc.h."""
_POOLED = 32 << 20
"""Bytes of the largest pieces that come from the pools: the most that glibc allows."""


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: those it may run on, or its control group's share of them if that is less.

    A share that is no whole number is rounded up. All cores if the system does not report them (as on macOS).
    """
    return max(1, math.ceil(min(_allowed_cores(), _quota(root))))


def limit_threads(root: Path = Path("/")) -> None:
    """Make torch and the like, which look at cores alone, use no more threads than the control group's share allows.

    To be called before they are loaded. What OMP_NUM_THREADS says stays.
    """
    cores = usable_cores(root)
    if cores < _allowed_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def share_memory_pools() -> None:
    """Make the threads of this process take memory from few pools, which keep what was freed for the next of them.

    To be called before pyarrow is loaded. Its own allocator keeps 4 MB for each thread that ever used it, and glibc's
    has eight pools a core (mallopt(3)). It would give large pieces back at once, and each costs the time to be cleared
    when it is taken again: a fifth of what a large request takes. What the environment says of either stays.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not everywhere but in glibc
    for name, parameter, value in (
        ("MALLOC_ARENA_MAX", _ARENA_MAX, 2),
        ("MALLOC_MMAP_THRESHOLD_", _MMAP_THRESHOLD, _POOLED),
        ("MALLOC_TRIM_THRESHOLD_", _TRIM_THRESHOLD, 2 * _POOLED),
    ):
        if mallopt and name not in os.environ:
            mallopt(parameter, value)


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system (malloc_trim(3)); what is in use stays.

    glibc keeps what was freed between pieces that are in use, for allocations that fit, and `share_memory_pools` has it
    keep more. Giving it back takes some 10 ms.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not everywhere but in glibc
    if trim:
        trim(0)


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path) -> float:
    """The cores' worth of time that the control group (2 or 1) may use, as by ``docker run --cpus``."""
    groups = root / "sys/fs/cgroup"
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((groups / file).read_text() for file in files).split()
        except OSError:
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf


def has_gpu(root: Path = Path("/")) -> bool:
    """Whether this machine has a GPU of NVIDIA's, even if nothing here can use it, as in a container that lacks it."""
    return (root / "dev/nvidia0").exists() or any((root / "proc/driver/nvidia/gpus").glob("*"))


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still allocate: the lesser of the free memory and its control group's allowance.

    None if the system does not report them.
    """
    found = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    groups = root / "sys/fs/cgroup"
    for limit, used, cached in _GROUPS:
        try:
            most = (groups / limit).read_text().strip()
            if most == "max":
                continue
            stat = ((groups / limit).parent / "memory.stat").read_text().splitlines()
            spare = sum(int(line.split()[1]) for line in stat if line.split()[0] == cached)
            found.append(max(0, int(most) - int((groups / used).read_text()) + spare))
        except OSError:
            continue
    return min(found, default=None)


def require_memory(needed: int) -> None:
    """Raise UserError if the machine has less free memory than ``needed`` bytes."""
    available = available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"training needs {needed / 1e6:,.0f} MB of memory, and this machine has {available / 1e6:,.0f} MB free: "
            "lower num_entity_vectors, vector_dim or mini_batch_size, or use a larger machine"
        )
