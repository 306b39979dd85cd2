"""The resources of this machine, or of the container in it."""

import os
from pathlib import Path

from ipinsights.errors import UserError

_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""For control groups 2 and 1: the files of the limit and of the used memory, and the key of its cached part."""


def usable_cores() -> int:
    """The cores that this process may run on; all cores if the system does not report this (as on macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
