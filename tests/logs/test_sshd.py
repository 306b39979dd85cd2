from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.errors import UserError
from ipinsights.logs.rows import LogIn
from ipinsights.logs.times import Clock
from logs.reading import ADDRESSES, TIMES, log_ins, outcomes, reasons, write

KEY = "ssh2: ED25519 SHA256:x9Zz"


def accepted(user: str = "alice", address: str = "192.0.2.7", method: str = "publickey") -> str:
    return f"Accepted {method} for {user} from {address} port 51234 {KEY}"


def line(message: str, time: str = "Jan  2 03:04:05", program: str = "sshd[1234]") -> str:
    return f"{time} gate {program}: {message}\n"


@pytest.mark.parametrize(
    ("time", "program"),
    [
        ("Jan  2 03:04:05", "sshd[1]"),
        ("Jan 02 03:04:05", "sshd[1]"),
        ("<38>Jan  2 03:04:05", "sshd[1]"),
        ("2026-01-02T03:04:05+00:00", "sshd[1]"),
        ("2026-01-02T04:04:05.123456+01:00", "sshd-session[1]"),
        ("2026-01-02T04:04:05+0100", "sshd"),
    ],
)
def test_times_of_syslog_rsyslog_and_journal(tmp_path: Path, time: str, program: str) -> None:
    path = write(tmp_path, line(accepted(), time, program))
    assert log_ins(path, "sshd") == [("alice", "192.0.2.7", "2026-01-02T03:04:05")]


@given(address=ADDRESSES, time=TIMES, user=st.from_regex(r"[a-z_][a-z0-9_.\\@-]{0,30}\$?", fullmatch=True))
def test_any_log_in_comes_back(
    tmp_path_factory: pytest.TempPathFactory, address: str, time: datetime, user: str
) -> None:
    path = write(tmp_path_factory.mktemp("log"), line(accepted(user, address), time.isoformat()))
    assert outcomes(path, "sshd") == [LogIn(user, address, int(time.timestamp()))]


def test_what_is_no_log_in(tmp_path: Path) -> None:
    messages = [
        "Server listening on :: port 22.",
        "Failed password for invalid user Accepted from 192.0.2.9 port 4 ssh2",
        "Invalid user x from 192.0.2.9 port 4",
        "Accepted key ED25519 SHA256:x9Zz found at /home/alice/.ssh/authorized_keys:1",
        accepted("CORP\\ann smith", method="keyboard-interactive/pam"),
        "Accepted password for alice",
        accepted("eve from 192.0.2.1"),
        f"{accepted()} ID x from 192.0.2.9 port 22 (serial 0) CA RSA SHA256:y",
    ]
    text = "-- Journal begins at Fri 2026-01-02 --\n" + "".join(line(message) for message in messages)
    text += line(accepted("mallory"), program="logger[7]") + line(f"x sshd[1]: {accepted('mallory')}", program="cron")
    found = outcomes(write(tmp_path, text), "sshd")
    assert reasons(found) == [
        "Other",
        "Other",
        "failed log-ins",
        "Other",
        "Other",
        "LogIn",
        'not "Accepted METHOD for USER from ADDRESS port NUMBER"',
        "LogIn",
        "LogIn",
        "Other",
        "Other",
    ]
    assert [(o.entity, o.address) for o in found if isinstance(o, LogIn)] == [
        ("CORP\\ann smith", "192.0.2.7"),
        ("eve from 192.0.2.1", "192.0.2.7"),
        ("alice", "192.0.2.7"),
    ]


def test_the_year_is_the_latest_that_is_not_in_the_future(tmp_path: Path) -> None:
    text = "".join(line(accepted(), time) for time in ("Nov 30 23:59:59", "Dec 31 23:59:59", "Jan  1 00:00:00"))
    path = write(tmp_path, text, changed=datetime(2026, 1, 1, 0, 5, tzinfo=UTC))
    times = [time for *_, time in log_ins(path, "sshd")]
    assert times == ["2025-11-30T23:59:59", "2025-12-31T23:59:59", "2026-01-01T00:00:00"]


@given(times=st.lists(st.datetimes(datetime(2023, 2, 1), datetime(2024, 1, 29)), min_size=1).map(sorted))
def test_any_log_of_less_than_a_year_has_its_years(
    tmp_path_factory: pytest.TempPathFactory, times: list[datetime]
) -> None:
    text = "".join(line(accepted(), f"{time:%b %e %H:%M:%S}") for time in times)
    path = write(tmp_path_factory.mktemp("log"), text, changed=times[-1].replace(tzinfo=UTC))
    whole = [time.replace(microsecond=0).isoformat() for time in times]
    assert [time for *_, time in log_ins(path, "sshd")] == whole
    given_year = log_ins(path, "sshd", clock=Clock(year=times[0].year))
    assert [time for *_, time in given_year] == whole


def test_29_february_is_in_a_leap_year(tmp_path: Path) -> None:
    path = write(tmp_path, line(accepted(), "Feb 29 03:04:05"), changed=datetime(2026, 1, 1, tzinfo=UTC))
    assert log_ins(path, "sshd") == [("alice", "192.0.2.7", "2024-02-29T03:04:05")]
    assert reasons(outcomes(path, "sshd", clock=Clock(year=2025))) == ["no such day in that year"]


def test_a_log_of_more_than_a_year_needs_its_year(tmp_path: Path) -> None:
    months = ["Mar  1", "Sep  1", "Feb  1", "Aug  1", "Jan  5"]
    path = write(tmp_path, "".join(line(accepted(), f"{day} 00:00:00") for day in months))
    with pytest.raises(UserError, match=r"some\.log: its times name no year, .* go back by .* --year"):
        outcomes(path, "sshd")
    found = [time[:7] for *_, time in log_ins(path, "sshd", clock=Clock(year=2024))]
    assert found == ["2024-03", "2024-09", "2025-02", "2025-08", "2026-01"]


def test_a_time_zone_counts_where_the_log_names_none(tmp_path: Path) -> None:
    text = line(accepted(), "Jul  2 03:04:05") + line(accepted(), "2026-01-02T03:04:05+00:00")
    clock = Clock(ZoneInfo("Europe/Berlin"))
    times = [time for *_, time in log_ins(write(tmp_path, text), "sshd", clock=clock)]
    assert times == ["2025-07-02T01:04:05", "2026-01-02T03:04:05"]
