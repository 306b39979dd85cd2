from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.errors import UserError
from ipinsights.logs.splitting import MINUTE, Split
from ipinsights.logs.times import DAY, render

START = int(datetime(2026, 1, 2, 15, 30, tzinfo=UTC).timestamp())


def cuts(split: str, times: list[int]) -> list[int]:
    parsed = Split.parse(split)
    assert parsed is not None
    return parsed.by_time(Counter(time // MINUTE for time in times), min(times), max(times))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("7d:1d:2d", ["2026-01-09T00:00:00Z", "2026-01-10T00:00:00Z", "2026-01-12T00:00:00Z"]),
        ("rest,1d,2d", ["2026-01-10T00:00:00Z", "2026-01-11T00:00:00Z", "2026-01-12T15:30:00Z"]),
        ("rest:24h:36h", ["2026-01-10T03:30:00Z", "2026-01-11T03:30:00Z", "2026-01-12T15:30:00Z"]),
        ("24h:12h:rest", ["2026-01-03T15:30:00Z", "2026-01-04T03:30:00Z", "2026-01-12T15:30:00Z"]),
        ("1d:rest:1d", ["2026-01-03T00:00:00Z", "2026-01-12T00:00:00Z", "2026-01-12T15:30:00Z"]),
    ],
)
def test_durations(split: str, expected: list[str]) -> None:
    assert [render(cut) for cut in cuts(split, [START, START + 10 * DAY - 1])] == expected


def test_durations_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"cover 24\.0 hours, too few for --split rest:1d:1d"):
        cuts("rest:1d:1d", [START, START + DAY])
    with pytest.raises(UserError, match="have no times"):
        Split(durations=["7d", "1d", "2d"]).by_order(10)


@given(times=st.lists(st.integers(START, START + 30 * DAY), min_size=1), shares=st.tuples(*[st.integers(1, 9)] * 3))
def test_shares_are_as_near_as_whole_minutes_allow(times: list[int], shares: tuple[int, int, int]) -> None:
    found = cuts(":".join(map(str, shares)), times)
    assert found == sorted(found)
    assert max(times) < found[-1]
    largest = max(Counter(time // MINUTE for time in times).values())
    for part in range(2):
        before = sum(time < found[part] for time in times)
        assert abs(before - len(times) * sum(shares[: part + 1]) / sum(shares)) <= largest / 2 + 0.5


@pytest.mark.parametrize(
    "split", ["", "8:1", "8:1:1:1", "0:1:1", "rest:rest:1d", "7d:1:1", "0d:1d:1d", "7w:1d:1d", "-1:1:1"]
)
def test_what_is_no_split(split: str) -> None:
    with pytest.raises(UserError, match="--split is"):
        Split.parse(split)


def test_none_is_no_split() -> None:
    assert Split.parse("none") is None
