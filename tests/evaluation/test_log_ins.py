import datetime
import gzip
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6
from ipinsights.data.entities import hash_names
from ipinsights.errors import UserError
from ipinsights.evaluation import log_ins

TIMED = 'alice,192.0.2.1,2026-01-02T03:04:05Z\n\n"Smith, Bob",192.0.2.2,2026-01-03T03:04:05.5+01:00\n'


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_times_are_read_where_there_are_any(tmp_path: Path) -> None:
    found = log_ins.read(write(tmp_path, a=TIMED, b="NA, 192.0.2.3 ,2026-01-04T00:00:00Z\r\n"), IPV4)
    assert found.pairs.entities.to_pylist() == ["alice", "Smith, Bob", "NA"]
    assert addresses.render(found.pairs.addresses) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert found.times is not None
    assert found.times.tolist() == [
        datetime.datetime(2026, 1, 2, 3, 4, 5),
        datetime.datetime(2026, 1, 3, 2, 4, 5),
        datetime.datetime(2026, 1, 4),
    ]
    assert found.days == pytest.approx(1 + (20 * 3600 + 55 * 60 + 55) / 86400)
    some = found.where(np.array([True, False, False]))
    assert (len(some), some.days) == (1, 1.0)
    assert some.pairs.entities.to_pylist() == ["alice"]


def test_files_without_times_are_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b'"Smith, Bob",192.0.2.1\n'))
    found = log_ins.read(tmp_path, IPV4)
    assert found.pairs.entities.to_pylist() == ["Smith, Bob"]
    assert found.times is None
    assert found.days is None


def test_a_time_without_a_zone_is_utc(tmp_path: Path) -> None:
    path = write(tmp_path, a="a,2001:db8::1,2026-01-02T03:04:05\nb,192.0.2.1,2026-01-02 03:04:06\n") / "a.csv"
    times = log_ins.read(path, IPV6).times
    assert times is not None
    assert times.tolist() == [datetime.datetime(2026, 1, 2, 3, 4, second) for second in (5, 6)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("bob,192.0.2.1,2026-01-02T03:04:05Z,x", "expected 2 columns (entity, IPv4 address), found 4"),
        ("bob,192.0.2,2026-01-02T03:04:05Z", "not an IPv4 address"),
        ("bob,192.0.2.1,yesterday", "expected 2 columns (entity, IPv4 address), found 3"),
        (",192.0.2.1,2026-01-02T03:04:05Z", "the entity is empty"),
    ],
)
def test_the_first_line_that_cannot_be_read_is_told(line: str, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path, a=TIMED + line + "\n") / "a.csv"
    with pytest.raises(UserError) as refused:
        log_ins.read(path, IPV4)
    assert str(refused.value).startswith(f"{path}, line 4: {complaint}")
    assert line in str(refused.value)


def test_a_malformed_line_of_the_training_log_ins_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, a="alice,192.0.2.1\nbob,192.0.2\n") / "a.csv"
    with pytest.raises(UserError, match=r"a\.csv, line 2"):
        log_ins.read_training(path, IPV4)


def test_all_files_have_times_or_none_has(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        folder = tmp_path / one
        folder.mkdir()
        write(folder, **{one: TIMED, other: "bob,192.0.2.1\n"})
        with pytest.raises(UserError, match=r"give all log-ins a time, or none"):
            log_ins.read(folder, IPV4)


def test_a_file_of_nothing_holds_no_log_ins(tmp_path: Path) -> None:
    for text in ("", "\n \n"):
        with pytest.raises(UserError, match="holds no log-ins"):
            log_ins.read(write(tmp_path, a=text) / "a.csv", IPV4)
        with pytest.raises(UserError, match="holds no log-ins"):
            log_ins.read_training(tmp_path, IPV4)


def test_training_log_ins_are_the_same_pairs_with_or_without_times(tmp_path: Path) -> None:
    for name, text in (("timed", TIMED), ("plain", 'alice,192.0.2.1\n"Smith, Bob",192.0.2.2\n')):
        (tmp_path / name).mkdir()
        digests, values = log_ins.read_training(write(tmp_path / name, a=text), IPV4)
        read = log_ins.read(tmp_path / name, IPV4).pairs
        assert (digests == hash_names(read.entities)).all()
        assert (values == read.addresses).all()


ENTITY = st.text(st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]), min_size=1)
ADDRESS = st.ip_addresses(v=4).map(str)
TIME = st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2200, 1, 1))


@given(st.lists(st.tuples(ENTITY, ADDRESS, TIME), min_size=1, max_size=9))
def test_what_is_written_is_read(rows: list[tuple[str, str, datetime.datetime]]) -> None:
    lines = [
        '"{}",{},{}Z'.format(entity.replace('"', '""'), address, time.isoformat()) for entity, address, time in rows
    ]
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write("\n".join(lines).encode())
        file.flush()
        found = log_ins.read(Path(file.name), IPV4)
    assert found.times is not None
    assert found.pairs.entities.to_pylist() == [row[0] for row in rows]
    assert addresses.render(found.pairs.addresses) == [row[1] for row in rows]
    assert found.times.tolist() == [row[2].replace(microsecond=0) for row in rows]
