from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.logs.rows import LogIn
from logs.reading import ADDRESSES, TIMES, log_ins, outcomes, reasons, write

AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101"
AGENTS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))
USERS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20
).filter(lambda user: user.strip() == user and user not in ("-", '""') and not user.isspace())


def line(
    user: str = "alice",
    address: str = "192.0.2.7",
    request: str = "GET /login_success HTTP/1.1",
    status: int = 200,
    time: str = "02/Jan/2026:03:04:05 +0100",
    behind: str = f' "-" "{AGENT}"',
) -> str:
    return f'{address} - {user} [{time}] "{request}" {status} 1234{behind}\n'


def escaped(user: str) -> str:
    """A user as Apache and nginx write it."""
    return "".join(
        chr(octet) if 32 <= octet < 127 and octet not in b'"\\' else f"\\x{octet:02x}" for octet in user.encode()
    )


def test_common_and_combined(tmp_path: Path) -> None:
    text = line(behind="") + line("bob", "2001:db8::1") + f"www.example.org:443 {line('carol', '2001:db8::2')}"
    assert log_ins(write(tmp_path, text), "access") == [
        ("alice", "192.0.2.7", "2026-01-02T02:04:05"),
        ("bob", "2001:db8::1", "2026-01-02T02:04:05"),
        ("carol", "2001:db8::2", "2026-01-02T02:04:05"),
    ]


@given(user=USERS, address=ADDRESSES, time=TIMES, agent=AGENTS)
def test_any_user_time_and_agent_comes_back(
    tmp_path_factory: pytest.TempPathFactory, user: str, address: str, time: datetime, agent: str
) -> None:
    stamp = f"{time:%d/%b/%Y:%H:%M:%S} {time.isoformat()[19:].replace(':', '')}"
    text = line(escaped(user), address, time=stamp, behind=f' "-" "{escaped(agent)}"')
    path = write(tmp_path_factory.mktemp("log"), text)
    assert outcomes(path, "access") == [LogIn(user, address, int(time.timestamp()))]


def test_a_user_may_have_blanks_in_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, line("Ann von Smith", "2001:db8::1"))
    assert log_ins(path, "access") == [("Ann von Smith", "2001:db8::1", "2026-01-02T02:04:05")]


def test_what_is_no_log_in(tmp_path: Path) -> None:
    text = line("-") + line('""') + line(status=401) + line(status=500) + line(time="32/Jan/2026:03:04:05 +0000")
    text += line() + "192.0.2.7 - alice GET\n" + line() + "\n" + line()
    assert reasons(outcomes(write(tmp_path, text), "access")) == [
        "requests without a user",
        "requests without a user",
        "requests with a status of 400 or above",
        "requests with a status of 400 or above",
        "not a time: '32/Jan/2026:03:04'",
        "LogIn",
        "not a line of an access log",
        "LogIn",
        "LogIn",
    ]


@pytest.mark.parametrize(
    ("resource", "kept"),
    [
        ("GET /login_success", "ab"),
        ("/login_success", "abc"),
        ("GET /log.*", "abde"),
        ("/a(b", "f"),
        ("/x?y=1", "g"),
        ("/x", "gh"),
    ],
)
def test_a_resource_is_a_path_or_a_pattern_of_it(tmp_path: Path, resource: str, kept: str) -> None:
    requests = {
        "a": "GET /login_success HTTP/1.1",
        "b": "GET /login_success?next=/ HTTP/2.0",
        "c": "POST /login_success HTTP/1.1",
        "d": "GET /login_success.png HTTP/1.1",
        "e": "GET /logout HTTP/1.1",
        "f": "GET /a(b HTTP/1.1",
        "g": "GET /x?y=1 HTTP/1.1",
        "h": "GET /x?y=12 HTTP/1.1",
    }
    path = write(tmp_path, "".join(line(user, request=request) for user, request in requests.items()))
    assert "".join(user for user, _, _ in log_ins(path, "access", resource=resource)) == kept


def test_statuses_are_kept_as_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(line(str(status), status=status) for status in (200, 302, 401)))
    assert [user for user, *_ in log_ins(path, "access", status=frozenset({"302", "401"}))] == ["302", "401"]


def test_forwarded_addresses_are_those_of_clients(tmp_path: Path) -> None:
    forwarded = {
        "8.8.4.4": "8.8.4.4",
        "10.0.0.1, 8.8.4.4, 9.9.9.9": "8.8.4.4",
        "unknown, 2600::1": "2600::1",
        "-": "192.0.2.7",
        "10.0.0.1": "192.0.2.7",
    }
    path = write(tmp_path, "".join(line(behind=f' "-" "{AGENT}" "{field}"') for field in forwarded))
    assert [address for _, address, _ in log_ins(path, "access", forwarded=True)] == list(forwarded.values())
    assert {address for _, address, _ in log_ins(path, "access")} == {"192.0.2.7"}
    combined = outcomes(write(tmp_path, line()), "access", forwarded=True)
    assert reasons(combined) == ["no quoted field for X-Forwarded-For behind the user agent"]


def test_a_user_cannot_write_another_line_into_the_log(tmp_path: Path) -> None:
    """A server escapes quotes, so what a user calls itself does not end the field."""
    name = 'x [01/Jan/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 1'
    [found] = outcomes(write(tmp_path, line(escaped(name), "192.0.2.9")), "access")
    assert found == LogIn(name, "192.0.2.9", int(datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC).timestamp()))
