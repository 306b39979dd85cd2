import gzip
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from conftest import PEAK
from ipinsights.data import events
from ipinsights.data.addresses import IPV4, IPV6
from ipinsights.data.entities import EntityIndex
from ipinsights.data.malformed import ABSENT, Fault, Kind, Malformed
from ipinsights.data.records import parse_csv
from ipinsights.data.sources import Pipe
from ipinsights.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("either_way")]


def test_files_are_found_in_nested_folders_and_markers_are_not_data(tmp_path: Path) -> None:
    for name in (
        "b.csv",
        "a/part-0",
        "a/_SUCCESS",
        "a/.part-0.crc",
        "b.csv.metadata",
        "b.csv.crc",
        ".hidden/c.csv",
        "deeper/.hidden",
        "_temporary/d.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x,1.2.3.4\n")
    (tmp_path / "empty.csv").touch()
    assert [str(path.relative_to(tmp_path)) for path in events.find_files(tmp_path)] == ["a/part-0", "b.csv"]


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    channel, elsewhere = tmp_path / "train", tmp_path / "elsewhere"
    for folder in (channel / "a", elsewhere):
        folder.mkdir(parents=True)
        (folder / "x.csv").write_text("x,1.2.3.4\n")
    (channel / "linked").symlink_to(elsewhere)
    (channel / "a" / "around").symlink_to(channel)
    (elsewhere / "again").symlink_to(channel / "a")
    found = [str(path.relative_to(channel)) for path in events.find_files(channel)]
    assert found == ["a/x.csv", "linked/x.csv"]
    assert events.find_files(tmp_path / "nowhere") == []


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
    said = (
        r"a\.csv, line 2: not an IPv4 address: an IPv6 address, in 'u,2001:db8::1'\. .*hyperparameter ip_version=6\. "
    )
    with pytest.raises(UserError, match=said):
        events.read(events.find_files(tmp_path), EntityIndex(10))


def test_an_event_costs_eight_bytes_and_its_text_none(tmp_path: Path) -> None:
    """Ten times the events, in the same files' bytes a block: only the arrays grow, by a quarter to spare at most."""
    lines = "".join(f"u{i % 1000},10.{i >> 16}.{i >> 8 & 255}.{i & 255}\n" for i in range(200_000))
    (tmp_path / "part-0.csv").write_text(lines)
    peaks = []
    for copies in (4, 40):
        code = (
            "import pathlib; from ipinsights.data.entities import EntityIndex; from ipinsights.data import events\n"
            f"read = events.read([pathlib.Path({str(tmp_path / 'part-0.csv')!r})] * {copies}, EntityIndex(2000))\n"
            f"assert len(read) == {copies * 200_000}\n"
            f"print({PEAK})"
        )
        command = [sys.executable, "-c", code]
        peaks.append(int(subprocess.run(command, capture_output=True, timeout=300, check=True).stdout))
    assert peaks[1] - peaks[0] < 36 * 200_000 * 8 * 1.25 / 1024 * 1.2


BAD = [b"u,nowhere", b"v", b"v,1.2.3.4,5", b",1.2.3.4", b"Zo\xeb,1.2.3.4", b'"v,1.2.3.4', b"v,2001:db8::1"]


def test_good_rows_are_kept_in_order_and_faulty_ones_counted_and_claim_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two files of some blocks each, with every kind of fault anywhere among rows of every kind."""
    rng = np.random.default_rng(0)
    lines: list[bytes] = []
    where: list[int] = []
    for i in range(600_000):
        if rng.random() < 0.0001:
            lines.append(BAD[len(where) % len(BAD)])
            where.append(i + 1)
        else:
            lines.append(b"" if i % 1000 == 7 else b'"a,%d", 0.%d.%d.%d \r' % (i % 90, i >> 16, i >> 8 & 255, i & 255))
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfnew,255.0.0.1\nworse\n")
    monkeypatch.chdir(tmp_path)
    index = EntityIndex(200)
    read = events.read(events.find_files(Path()), index, tolerated=0.01)
    good = [i for i, line in enumerate(lines) if line and line not in BAD]
    assert read.address.tolist() == [*good, (255 << 24) + 1]
    assert index.owned == 91
    rows = index.find(pa.array([f"a,{i % 90}" for i in good] + ["new"]))
    assert read.entity.tolist() == rows.tolist()
    assert read.malformed.count == len(where) + 1 > len(BAD)
    assert [text.partition(": ")[0] for text in read.malformed.examples] == [
        f"a.csv, line {line}" for line in where[: len(BAD)]
    ]
    assert max(read.malformed.kinds.values()) - min(read.malformed.kinds.values()) <= 2
    assert len(read.malformed.kinds) == len(BAD)


def test_what_too_many_malformed_rows_come_to_is_told_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("u,1.2.3.4\n" * 7 + "u,1.2.3.4,5\n" * 5)
    Path("b.csv").write_text("u,1.2.3.4\n" * 988)
    with pytest.raises(UserError) as caught:
        events.read(events.find_files(Path()), EntityIndex(10))
    text = "expected 2 columns (entity, IPv4 address), found 3, in 'u,1.2.3.4,5'"
    listed = "; ".join(f"a.csv, line {line}: {text}" for line in (8, 9, 10))
    assert str(caught.value) == (
        f"5 of 1,000 rows of channel 'train' are malformed (all with too many columns): {listed}; and 2 more. "
        "Each line must be an entity and an IPv4 address. Correct them, or set malformed_rows=skip to skip them."
    )
    with pytest.raises(UserError) as caught:
        events.read(events.find_files(Path()), EntityIndex(10), channel="validation", tolerated=0.004)
    assert str(caught.value) == (
        "5 of 1,000 rows of channel 'validation' are malformed (all with too many columns), more than "
        "malformed_rows_limit=0.004 allows: "
        f"{listed}; and 2 more. Each line must be an entity and an IPv4 address. Correct them."
    )
    assert len(events.read(events.find_files(Path()), EntityIndex(10), tolerated=0.005)) == 995
    with pytest.raises(UserError, match="more than malformed_rows_limit=0 allows"):
        events.read(events.find_files(Path()), EntityIndex(10), tolerated=0)


def test_one_malformed_row_is_told_of_in_the_singular(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u\n")
    with pytest.raises(UserError, match=r"^1 of 1 rows of channel 'train' is malformed: .*, in 'u'\. Each"):
        events.read([tmp_path / "a.csv"], EntityIndex(10))


def test_all_are_counted_however_many(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"1.2.3.4,{'u' * 300}\n" * 30_000)
    with pytest.raises(
        UserError,
        match=r"^30,000 of 30,000 rows of channel 'train' are malformed \(all with .*\): .*; and 29,997 more",
    ):
        events.read([tmp_path / "a.csv"], EntityIndex(10))


def test_whatever_the_rows_hold_the_message_fits_where_a_thousand_characters_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    for row in ("\0" * 500, "\U000e0001," * 400, "u," + "\U000e0001" * 500, "u," + "9" * 500, "u," + ":" * 300):
        (folder / "a.csv").write_text(f"{row}\n" * 20_000 + "u,1.2.3.4\n")
        for family in (IPV4, IPV6):
            with pytest.raises(UserError) as caught:
                events.read([folder / "a.csv"], EntityIndex(10), family)
            text = str(caught.value)
            assert len(text) <= 1000
            assert text.endswith("set malformed_rows=skip to skip them.")
            assert "d/a.csv, line 1: " in text


def test_skipping_is_no_advice_where_no_row_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,www.example.com\n" * 3)
    with pytest.raises(UserError, match=r"Each line must be an entity and an IPv4 address\. Correct them\.$"):
        events.read([tmp_path / "a.csv"], EntityIndex(10))


def test_the_remedy_is_told_whole_and_once_behind_any_number_of_kinds(tmp_path: Path) -> None:
    """Where a platform shows 1,024 characters of the failure, of which "ClientError: " are some."""
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    text = ["-", "", "a.example.com", "s3.amazonaws.com", "::1", "fe80::1%eth0", "1.2.3.4:x", "1.2.3.0/24", "ip", "x"]
    text += ['"1.2.3.4, 5.6.7.8"', "1.2.3.4,x", '"x', "\x00" * 300, "9" * (1 << 21)]
    rows = "".join(f"u,{address}\n" for address in text) + ",1.2.3.4\nu\n"
    (folder / "a.csv").write_bytes((rows + "u,1.2.3.4\n").encode() + b"Zo\xeb,1.2.3.4\n")
    with pytest.raises(UserError) as caught:
        events.read([folder / "a.csv"], EntityIndex(10))
    told = str(caught.value)
    assert len(told) <= 1000
    assert told.startswith("18 of 19 rows of channel 'train' are malformed (2 with other text for an address, 1 with ")
    for kind in set(Kind) - {Kind.NOT_JSON, Kind.SHAPE}:
        assert told.count(kind.rows) == 1, kind
    assert told.count("d/a.csv, line 1: not an IPv4 address: a placeholder, in 'u,-'") == 1
    for remedy in (
        "To read IPv6 addresses, train with the hyperparameter ip_version=6. Remove header lines. Or correct them, or ",
        "set malformed_rows=skip to skip them. malformed_rows=skip_placeholders skips rows without an address, ",
    ):
        assert told.count(remedy) == 1


def test_rows_without_an_address_can_be_apart_from_damage(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,1.2.3.4\n" * 60 + "u,ec2.amazonaws.com\nu,AWS Internal\nu,\n" * 20 + "u\n" * 3)
    path = tmp_path / "a.csv"
    with pytest.raises(UserError) as caught:
        events.read([path], EntityIndex(10), tolerated=0.1)
    assert str(caught.value).startswith(
        "63 of 123 rows of channel 'train' are malformed (20 with the name of an AWS service, 20 with a placeholder "
        "for an address, 20 with an empty address, 3 with too few columns), more than malformed_rows_limit=0.1 allows: "
    )
    assert "malformed_rows=skip_placeholders skips rows without" in str(caught.value)
    found = events.read([path], EntityIndex(10), tolerated=0.05, spared=ABSENT)
    assert (len(found), found.malformed.count) == (60, 63)
    with pytest.raises(UserError) as caught:
        events.read([path], EntityIndex(10), tolerated=0.04, spared=ABSENT)
    assert str(caught.value).startswith(
        "3 of 63 rows of channel 'train' are malformed (all with too few columns), more than malformed_rows_limit=0.04 "
        f"allows, besides 60 rows without an address: {path}, line 121: expected 2 columns "
    )
    assert "skip" not in str(caught.value)


@pytest.mark.parametrize("end", [b"\n", b"\r", b""], ids=["feed", "return", "none"])
def test_a_line_without_an_end_takes_time_in_proportion_and_little_memory(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"u,1.2.3.4\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(end + b"u,1.2.3.4\n" if end else b"")
    started = time.process_time()
    with pytest.raises(
        UserError, match=r"1 of \d rows .*a\.csv, line 2: the line is longer than 1 MB \(1,048,576 bytes"
    ):
        events.read([path], EntityIndex(10))
    assert time.process_time() - started < 5  # it was more than a minute


def test_a_file_whose_lines_end_in_returns_alone_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,1.2.3.4\r" * 2_000_000)
    assert len(events.read([tmp_path / "a.csv"], EntityIndex(10))) == 2_000_000


def test_malformed_rows_add_up() -> None:
    malformed = Malformed()
    malformed.add("a", [Fault(1, "x", "bad")])
    malformed.add("b", [])
    malformed.add("b", [Fault(i, "y", "worse") for i in (3, 4, 5)])
    assert str(malformed) == "a, line 1: bad, in 'x'; b, line 3: worse, in 'y'; b, line 4: worse, in 'y'; and 1 more"


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_packed_and_piped_data_are_the_same_events(tmp_path: Path, begin: bytes) -> None:
    """Of more entities than rows, where it shows if blocks are cut elsewhere; and progress is of bytes as they lie."""
    text = begin + "".join(f"u{i * i % 1009},0.{i >> 16}.{i >> 8 & 255}.{i & 255}\n" for i in range(400_000)).encode()
    half = len(text) // 2
    (tmp_path / "plain.csv").write_bytes(text)
    (tmp_path / "packed.csv").write_bytes(gzip.compress(text[:half]) + gzip.compress(text[half:]))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / "packed.csv").read_bytes()))
    writer.start()
    results = []
    for source in (tmp_path / "plain.csv", tmp_path / "packed.csv", Pipe(tmp_path / "pipe")):
        index, told = EntityIndex(700), [0]
        read = events.read([source], index, progress=told.append)
        results.append((read.entity.tolist(), read.address.tolist(), index.tags.tolist(), index.sharing))
        path = tmp_path / "packed.csv" if isinstance(source, Pipe) else source
        assert sum(told) == path.stat().st_size
    writer.join()
    assert results[0] == results[1] == results[2]
    assert len(results[0][0]) == 400_000


def test_of_a_packed_file_without_text_progress_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b""))
    told: list[int] = []
    assert len(events.read([tmp_path / "a.csv"], EntityIndex(10), progress=told.append)) == 0
    assert sum(told) == (tmp_path / "a.csv").stat().st_size


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"u,1.2.3.4\n" * 1000)[:-4])
    with pytest.raises(UserError, match=r"a\.csv is a truncated or damaged gzip file"):
        events.read([tmp_path / "a.csv"], EntityIndex(10))


def test_what_progress_raises_ends_the_reading_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'"u",1.2.3.4\n' * 3_000_000)
    told: list[int] = []
    before = threading.active_count()

    def stop(size: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(size)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        events.read([tmp_path / "a.csv"], EntityIndex(10), progress=stop)
    assert len(told) == 2
    assert threading.active_count() == before


def test_a_pipe_without_data_tells_progress_so(tmp_path: Path) -> None:
    def stop(size: int) -> None:
        assert size == 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        events.read([Pipe(tmp_path / "never")], EntityIndex(10), progress=stop)
