from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.logs.times import Clock, render
from logs.reading import TIMES


@given(time=TIMES, fraction=st.sampled_from(["", ".5", ".123", ".999999", ".1234567"]), blank=st.booleans())
def test_iso_8601_in_any_zone(time: datetime, fraction: str, blank: bool) -> None:
    zone = time.isoformat()[19:]
    text = f"{time.replace(tzinfo=None).isoformat()}{fraction}{zone}"
    assert Clock().cell(text.replace("T", " ") if blank else text) == int(time.timestamp())


@given(time=TIMES, unit=st.sampled_from([1, 1_000, 1_000_000, 1_000_000_000]))
def test_numbers_in_any_unit(time: datetime, unit: int) -> None:
    seconds = int(time.timestamp())
    if seconds < 10**9:
        seconds += 10**9
    assert Clock().cell(str(seconds * unit)) == seconds


@given(seconds=st.integers(0, 4 * 10**9))
def test_what_is_rendered_is_read_and_sorts(seconds: int) -> None:
    assert render(seconds) == datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert Clock().cell(render(seconds)) == seconds
    assert render(seconds) < render(seconds + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02 03:04:05 UTC", "2026-01-02T03:04:05Z"),
        ("2026-01-02 03:04:05+00", "2026-01-02T03:04:05Z"),
        ("20260102T030405Z", "2026-01-02T03:04:05Z"),
        ("20260102", "2026-01-02T00:00:00Z"),
        ("1767323045.75", "2026-01-02T03:04:05Z"),
        ("1.767323045e9", "2026-01-02T03:04:05Z"),
        ("/Date(1767323045678)/", "2026-01-02T03:04:05Z"),
        ("1/2/2026 3:04:05 AM", "2026-01-02T03:04:05Z"),
        ("12/31/2025 12:00:00 PM", "2025-12-31T12:00:00Z"),
    ],
)
def test_forms_that_are_recognised(text: str, expected: str) -> None:
    assert render(Clock().cell(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "-", "nan", "yesterday", "13/2/2026 3:04:05 AM", "1969-12-31T00:00:00Z", "9" * 30]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="time|month"):
        Clock().cell(text)


def test_a_form_may_be_given() -> None:
    clock = Clock(form="%d.%m.%Y %H:%M")
    assert render(clock.cell("02.01.2026 03:04")) == "2026-01-02T03:04:00Z"
    with pytest.raises(ValueError, match=r"not a time of the form '%d\.%m\.%Y %H:%M': '2026-01-02'"):
        clock.cell("2026-01-02")


@given(time=TIMES)
def test_minutes_of_access_logs(time: datetime) -> None:
    offset = time.utcoffset() or timedelta()
    minutes = abs(offset) // timedelta(minutes=1)
    sign = "-" if offset < timedelta() else "+"
    read = Clock().minute(f"{time:%d/%b/%Y:%H:%M}", f"{sign}{minutes // 60:02}{minutes % 60:02}")
    assert read + time.second == int(time.timestamp())
