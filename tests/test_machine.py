from pathlib import Path

import pytest

from ipinsights.machine import available_memory

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
