import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from conftest import PEAK
from ipinsights import events
from ipinsights.addresses import IPV6
from ipinsights.entities import EntityIndex
from ipinsights.errors import UserError
from ipinsights.records import parse_csv

pytestmark = pytest.mark.usefixtures("either_way")


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


def test_the_first_bad_row_in_the_order_of_the_files_is_the_one_named(tmp_path: Path) -> None:
    """Whatever is read beside it; and the line is counted over all blocks of its file."""
    lines = "u,1.2.3.4\n\r\n" * 500_000
    for name in ("b.csv", "c.csv", "d.csv"):
        (tmp_path / name).write_text("v,nowhere\n")
    (tmp_path / "a.csv").write_text(f'{lines}"u",1.2.3.4\nu,1.2.3\n')
    with pytest.raises(UserError, match=r"a\.csv, line 1000002: .*'u,1\.2\.3'"):
        events.read(events.find_files(tmp_path), EntityIndex(10))


def test_events_do_not_depend_on_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more entities than rows, which then depend on who comes first."""
    for part in range(12):
        quote = '"' if part % 3 == 0 else ""
        lines = (f"{quote}u{i * i % (100 + part)}{quote},0.{part}.{i >> 8}.{i & 255}\n" for i in range(20_000 - part))
        (tmp_path / f"part-{part:02}.csv").write_text("".join(lines))
    results = []
    for cores in (1, 7):
        monkeypatch.setattr(events, "usable_cores", lambda cores=cores: cores)
        index = EntityIndex(70)
        read = events.read(events.find_files(tmp_path), index)
        results.append((read.entity.tolist(), read.address.tolist(), index.tags.tolist(), index.sharing))
    assert results[0] == results[1]
    index = EntityIndex(70)
    for path in events.find_files(tmp_path):
        index.claim(parse_csv(path.read_bytes()).entities)
    assert (index.tags.tolist(), index.sharing) == results[0][2:]


def test_entities_not_to_be_given_rows_are_not(tmp_path: Path) -> None:
    index = EntityIndex(10)
    (known,) = index.claim(pa.array(["u"]))
    (tmp_path / "a.csv").write_text("u,1.2.3.4\nv,1.2.3.4\n")
    assert events.read([tmp_path / "a.csv"], index, claim=False).entity.tolist() == [known, 10]
    assert index.owned == 1


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
