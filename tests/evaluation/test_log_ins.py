import datetime
import gzip
from pathlib import Path

import numpy as np
import pytest

from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6
from ipinsights.data.entities import hash_names
from ipinsights.errors import UserError
from ipinsights.evaluation import log_ins

TIMED = 'alice,192.0.2.1,2026-01-02T03:04:05Z\n\n"Smith, Bob",192.0.2.2,2026-01-03T03:04:05+01:00\n'


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_the_days_are_those_from_the_first_to_the_last_time(tmp_path: Path) -> None:
    found = log_ins.read(write(tmp_path, a=TIMED, b="NA, 192.0.2.3 ,2026-01-04T00:00:00Z\r\n"), IPV4)
    assert found.pairs.entities.to_pylist() == ["alice", "Smith, Bob", "NA"]
    assert addresses.render(found.pairs.addresses) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert found.span == (np.datetime64("2026-01-02T03:04:05"), np.datetime64("2026-01-04T00:00:00"))
    assert found.days == pytest.approx(1 + (20 * 3600 + 55 * 60 + 55) / 86400)
    some = found.where(np.array([False, True, False]))
    assert (len(some), some.days) == (1, 1.0)
    assert some.pairs.entities.to_pylist() == ["Smith, Bob"]
    assert some.pairs.times is not None
    assert some.pairs.times.tolist() == [datetime.datetime(2026, 1, 3, 2, 4, 5)]


def test_log_ins_without_times_have_no_days(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b'"Smith, Bob",2001:db8::1\n'))
    found = log_ins.read(tmp_path / "a.csv", IPV6)
    assert found.pairs.entities.to_pylist() == ["Smith, Bob"]
    assert found.span is None
    assert found.days is None
    assert found.where(np.array([True])).days is None


def test_days_are_told_although_some_log_ins_have_no_time(tmp_path: Path) -> None:
    found = log_ins.read(write(tmp_path, a=TIMED, b="bob,192.0.2.1\n"), IPV4)
    assert len(found) == 3
    assert found.days == 1.0
    assert found.where(np.array([False, False, True])).days is None


def test_a_file_of_nothing_holds_no_log_ins(tmp_path: Path) -> None:
    for text in ("", "\n \n"):
        for read in (log_ins.read, log_ins.read_training):
            with pytest.raises(UserError, match="holds no log-ins"):
                read(write(tmp_path, a=text), IPV4)


def test_a_malformed_line_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, a=TIMED + "bob,192.0.2,2026-01-02T03:04:05Z\n") / "a.csv"
    for read in (log_ins.read, log_ins.read_training):
        with pytest.raises(UserError, match=r"a\.csv, line 4"):
            read(path, IPV4)


def test_a_malformed_line_is_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, a=TIMED + "bob,192.0.2,2026-01-02T03:04:05Z\n") / "a.csv"
    good = write(tmp_path, b=TIMED) / "b.csv"
    skipped, whole = log_ins.read([path, good], IPV4, skip=True), log_ins.read(good, IPV4)
    assert skipped.pairs.entities.to_pylist() == whole.pairs.entities.to_pylist() * 2
    assert list(log_ins.read_training([path], IPV4, skip=True).digests) == list(whole.pairs.hashed().digests)


def test_training_log_ins_are_the_same_pairs_with_or_without_times(tmp_path: Path) -> None:
    for name, text in (("timed", TIMED), ("plain", 'alice,192.0.2.1\n"Smith, Bob",192.0.2.2\n')):
        (tmp_path / name).mkdir()
        digests, values = log_ins.read_training(write(tmp_path / name, a=text), IPV4)
        read = log_ins.read(tmp_path / name, IPV4).pairs
        assert (digests == hash_names(read.entities)).all()
        assert (values == read.addresses).all()


def test_names_and_addresses_are_distinct_and_of_their_column(tmp_path: Path) -> None:
    folder = write(tmp_path, log_ins=TIMED * 2, one='"b, c"\na\n"b, c"\n', addresses=" 192.0.2.9\n192.0.2.1\n")
    assert log_ins.read_names(folder / "log_ins.csv").to_pylist() == ["alice", "Smith, Bob"]
    assert log_ins.read_names(folder / "one.csv").to_pylist() == ["b, c", "a"]
    for name, found in (("log_ins", ["192.0.2.1", "192.0.2.2"]), ("addresses", ["192.0.2.1", "192.0.2.9"])):
        assert addresses.render(log_ins.read_addresses(folder / f"{name}.csv", IPV4)) == found
