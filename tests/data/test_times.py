"""Times of log-ins, as text."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data import times
from ipinsights.data.records import Records, parse_csv, salvage_csv

EARLIEST, LATEST = datetime(1700, 1, 1), datetime(2199, 12, 31)
moments = st.datetimes(EARLIEST, LATEST)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def seconds(moment: datetime) -> int:
    return (moment.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


def read(*texts: str | None) -> list[int | None]:
    values, valid = times.read(pa.array(texts, pa.string()))
    assert values.dtype == np.dtype("datetime64[s]")
    assert (np.isnat(values) == ~valid).all()
    return [int(value) if ok else None for value, ok in zip(values.astype(np.int64), valid, strict=True)]


@given(st.lists(moments))
def test_what_is_written_is_read_again(drawn: list[datetime]) -> None:
    values = np.array([moment.replace(microsecond=0) for moment in drawn], dtype="datetime64[s]")
    assert times.read(pa.array(times.render(values), pa.string()))[0].tolist() == values.tolist()


@given(moments, offsets, st.sampled_from(["T", " "]), st.booleans())
def test_any_offset_is_taken_back_to_utc(moment: datetime, zone: timezone, between: str, colon: bool) -> None:
    local = moment.replace(tzinfo=zone)
    text = local.isoformat(between)
    if not colon:
        text = text[:-3] + text[-2:]
    assert read(text) == [seconds(local.astimezone(UTC))]


@given(moments, st.sampled_from(["seconds", "milliseconds", "microseconds"]))
def test_without_an_offset_it_is_utc(moment: datetime, precision: str) -> None:
    assert read(moment.isoformat(timespec=precision)) == [seconds(moment.replace(tzinfo=UTC))]
    assert read(f"{moment:%Y-%m-%d}", f"{moment:%Y-%m-%d %H:%M}") == [
        seconds(datetime(moment.year, moment.month, moment.day, tzinfo=UTC)),
        seconds(moment.replace(second=0, tzinfo=UTC)),
    ]


@given(st.integers(100_000_000, 9_999_999_999), st.integers(0, 999))
def test_unix_time_is_read(second: int, thousandth: int) -> None:
    assert read(str(second), f"{second}.{thousandth:03}", f"{second}{thousandth:03}") == [second] * 3


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "8:00", "2026-13-01", "2026-02-30T00:00:00Z", "2026-01-02T24:00:00Z", "01/02/2026 8:00", "12345"),
        *("2026-01-02T03:04:05Z\n", " 2026-01-02", "17700000001", "2026-01-02T03:04:05 Z", "9999-12-31", None),
    ],
)
def test_what_is_no_time_is_not_guessed(text: str | None) -> None:
    assert read(text, "2026-01-02") == [None, 1767312000]


def test_the_third_column_of_log_ins_is_a_time() -> None:
    text = b'a,1.2.3.4,2026-01-02T03:04:05Z\n"b,c",1.2.3.5,1767323045\n'
    for more in (b"", b"x,nowhere,2026-01-02\n"):  # of several readers
        found = salvage_csv(text + more).records
        assert found.entities.to_pylist() == ["a", "b,c"]
        assert found.times is not None
        assert times.render(found.times) == ["2026-01-02T03:04:05Z"] * 2
    assert parse_csv(b"a,1.2.3.4\n").times is None


@pytest.mark.parametrize("third", ["", "yes", "8:00", "5.6.7.8"])
def test_another_third_column_is_malformed(third: str) -> None:
    (fault,) = salvage_csv(f"a,1.2.3.4,{third}\n".encode()).faults
    assert fault.reason.startswith("expected 2 columns (entity, IPv4 address), found 3")


def test_rows_without_a_time_have_none() -> None:
    found = salvage_csv(b"a,1.2.3.4\nb,1.2.3.5,2026-01-02\n").records
    joined = Records.concat([parse_csv(b"c,1.2.3.6\n"), found])
    assert found.times is not None
    assert joined.times is not None
    assert (times.render(found.times), times.render(joined.times)) == (
        ["", "2026-01-02T00:00:00Z"],
        ["", "", "2026-01-02T00:00:00Z"],
    )
