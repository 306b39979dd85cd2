import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import PEAK
from ipinsights import events
from ipinsights.addresses import IPV6
from ipinsights.entities import EntityIndex
from ipinsights.errors import UserError


def test_files_are_found_in_nested_folders_and_markers_are_not_data(tmp_path: Path) -> None:
    for name in (
        "b.csv",
        "a/part-0",
        "a/_SUCCESS",
        "a/.part-0.crc",
        "b.csv.metadata",
        "b.csv.crc",
        ".hidden/c.csv",
        "_temporary/d.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x,1.2.3.4\n")
    (tmp_path / "empty.csv").touch()
    assert [str(path.relative_to(tmp_path)) for path in events.find_files(tmp_path)] == ["a/part-0", "b.csv"]


def test_all_files_are_read_in_order_into_eight_bytes_an_event(tmp_path: Path) -> None:
    count = 100_000  # more than an array begins with
    (tmp_path / "a.csv").write_text("".join(f"u{i % 7},0.0.{i >> 8 & 255}.{i & 255}\n" for i in range(count)))
    (tmp_path / "b.csv").write_text("z,255.255.255.255\n")
    seen: list[int] = []
    read = events.read(events.find_files(tmp_path), EntityIndex(1000), progress=seen.append)
    assert len(read) == count + 1
    assert read.entity.dtype.itemsize + read.address.dtype.itemsize == 8
    assert (read.address[:count] == np.arange(count) % 65536).all()
    assert read.address[-1] == 2**32 - 1
    assert (read.entity[:count] == read.entity[np.arange(count) % 7]).all()
    assert sum(seen) == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_a_bad_row_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,1.2.3.4\n")
    (tmp_path / "b.csv").write_text("u,1.2.3.4\nu,nowhere\n")
    with pytest.raises(UserError, match=r"b\.csv, line 2: .*'u,nowhere'"):
        events.read(events.find_files(tmp_path), EntityIndex(10))


def test_ipv6_is_read_into_twelve_bytes_an_event(tmp_path: Path) -> None:
    count = 100_000
    (tmp_path / "a.csv").write_text("".join(f"u{i % 7},2001:db8:{i >> 16:x}:{i & 65535:x}::9\n" for i in range(count)))
    (tmp_path / "b.csv").write_text("z,ffff:ffff:ffff:ffff::\nz,1.2.3.4\n")
    read = events.read(events.find_files(tmp_path), EntityIndex(1000), IPV6)
    assert len(read) == count + 2
    assert read.entity.dtype.itemsize + read.address.dtype.itemsize == 12
    assert (read.address[:count] == (0x20010DB8 << 32) + np.arange(count, dtype=np.uint64)).all()
    assert read.address[count:].tolist() == [2**64 - 1, 0x2002_0102_0304 << 16]


def test_ipv6_that_was_not_asked_for_is_named_with_what_to_ask_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,1.2.3.4\nu,2001:db8::1\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: .*ip_version=6, in 'u,2001:db8::1'"):
        events.read(events.find_files(tmp_path), EntityIndex(10))


def test_an_event_costs_eight_bytes_and_its_text_none(tmp_path: Path) -> None:
    """Ten times the events, in the same files' bytes a block: only the arrays grow, by a quarter to spare at most."""
    lines = "".join(f"u{i % 1000},10.{i >> 16}.{i >> 8 & 255}.{i & 255}\n" for i in range(200_000))
    (tmp_path / "part-0.csv").write_text(lines)
    peaks = []
    for copies in (4, 40):
        code = (
            "import pathlib; from ipinsights.entities import EntityIndex; from ipinsights import events\n"
            f"read = events.read([pathlib.Path({str(tmp_path / 'part-0.csv')!r})] * {copies}, EntityIndex(2000))\n"
            f"assert len(read) == {copies * 200_000}\n"
            f"print({PEAK})"
        )
        peaks.append(int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 36 * 200_000 * 8 * 1.25 / 1024 * 1.2
