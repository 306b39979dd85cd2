import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ipinsights.errors import UserError
from ipinsights.logs.rows import LogIn
from ipinsights.logs.times import Clock
from logs.reading import ADDRESSES, MOMENTS, log_ins, outcomes, reasons, write

EXPECTED = [("alice", "192.0.2.7", "2026-01-02T03:04:05")]
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: not set(name) & set("\r\n\0") and name == name.strip()
)


@pytest.mark.parametrize(
    "text",
    [
        "time,user,ip\n2026-01-02T03:04:05Z,alice,192.0.2.7\n",
        "User Name;Client IP;Event Time\nalice;192.0.2.7;2026-01-02 03:04:05\n",
        "ip_address\t@timestamp\tuser_id\n192.0.2.7\t1767323045123\talice\n",
        "alice,192.0.2.7,2026-01-02T03:04:05Z\n",
        '{"user": "alice", "ip": "192.0.2.7", "ts": 1767323045}\n',
        '{"user": {"name": "alice"}, "source": {"ip": "192.0.2.7"}, "@timestamp": 1767323045.9}',
    ],
)
def test_columns_are_found_by_common_names(tmp_path: Path, text: str) -> None:
    assert log_ins(write(tmp_path, text), "columns") == EXPECTED


def test_columns_may_be_named(tmp_path: Path) -> None:
    text = "when,device,user,from,ip\n2026-01-02T03:04:05Z,alice,x,192.0.2.7,y\n"
    found = log_ins(write(tmp_path, text), "columns", entity="device", address="from")
    assert found == EXPECTED
    text = json.dumps({"actor": {"id": "alice"}, "client": {"ip": "192.0.2.7"}, "at": "2026-01-02T03:04:05Z"})
    named = {"entity": "actor.id", "address": "client.ip", "time": "at"}
    assert log_ins(write(tmp_path, text), "columns", **named) == EXPECTED
    text = "192.0.2.9,alice,192.0.2.7\n"
    assert log_ins(write(tmp_path, text), "columns", entity="2", address="3") == [("alice", "192.0.2.7", "")]


def test_rows_without_times(tmp_path: Path) -> None:
    assert log_ins(write(tmp_path, "user,ip\nalice,192.0.2.7\n"), "columns") == [("alice", "192.0.2.7", "")]
    assert log_ins(write(tmp_path, "alice,192.0.2.7\n"), "columns") == [("alice", "192.0.2.7", "")]


def test_rows_may_be_chosen_by_their_values(tmp_path: Path) -> None:
    text = "user,ip,result,kind\nalice,192.0.2.7,Success,web\nbob,192.0.2.7,failure,web\ncarol,192.0.2.7,success,vpn\n"
    path = write(tmp_path, text)
    assert log_ins(path, "columns", where=(("result", "success"), ("kind", "web"))) == [("alice", "192.0.2.7", "")]
    found = reasons(outcomes(path, "columns", where=(("result", "success"), ("kind", "web"))))
    assert found == ["LogIn", "rows in which result is not success", "rows in which kind is not web"]
    text = '{"user": "alice", "ip": "192.0.2.7", "time": 1767323045, "login": {"ok": true}}\n'
    path = write(tmp_path, text + text.replace("true", "false"))
    assert log_ins(path, "columns", where=(("login.ok", "true"),)) == EXPECTED
    parquet.write_table(pa.table({"user": ["alice", "bob"], "ip": ["192.0.2.7"] * 2, "ok": [1, 0]}), path)
    assert log_ins(path, "columns", where=(("ok", "1"),)) == [("alice", "192.0.2.7", "")]


@given(entity=NAMES, address=ADDRESSES, time=MOMENTS)
def test_any_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, entity: str, address: str, time: datetime
) -> None:
    seconds = int(time.replace(tzinfo=UTC).timestamp())
    folder = tmp_path_factory.mktemp("log")
    row = {"entity": entity, "address": address, "time": f"{time.isoformat()}Z"}
    text = io.StringIO()
    writer = csv.DictWriter(text, row)
    writer.writeheader()
    writer.writerow(row)
    table = pa.table({"user": [entity], "ip": [address], "time": pa.array([time], pa.timestamp("ns", "UTC"))})
    parquet.write_table(table, folder / "some.parquet")
    paths = [
        write(folder, text.getvalue(), name="some.csv"),
        write(folder, json.dumps(row), name="some.json"),
        folder / "some.parquet",
    ]
    for path in paths:
        assert outcomes(path, "columns") == [LogIn(entity, address, seconds)]


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    text = 'time,user,ip\n2026-01-02T03:04:05Z,,192.0.2.7\n,alice,192.0.2.7\n2026,alice\n"x'
    found = reasons(outcomes(write(tmp_path, text), "columns"))
    assert found[:3] == [
        "rows without an entity",
        "not a time in ISO 8601: ''",
        "too few columns: 2, and column 3 is needed",
    ]
    records = [{"user": "alice", "ip": "192.0.2.7", "time": None}, {"ip": "192.0.2.7"}, {"user": [1], "ip": "x"}, 5]
    text = json.dumps([{"user": "a", "ip": "192.0.2.7", "time": 1767323045}, *records])
    assert reasons(outcomes(write(tmp_path, text), "columns")) == [
        "LogIn",
        "not a time in ISO 8601: ''",
        "rows without an entity",
        "its entity is no text, or its address is none",
        "not a JSON object",
    ]


def test_an_unclosed_quote_costs_no_more_than_a_field_may_hold(tmp_path: Path) -> None:
    csv.field_size_limit(1 << 30)  # as another reader may have set it
    text = 'time,user,ip\n1767323045,"alice,192.0.2.7\n' + "1767323045,bob,192.0.2.7\n" * 20_000
    found = outcomes(write(tmp_path, text), "columns")
    assert reasons(found[:1]) == ["not CSV: field larger than field limit (131072)"]
    assert len(found) > 14_000
    assert set(reasons(found[2:])) == {"LogIn"}


def test_parquet_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    columns = {"user": [7, None], "ip": ["192.0.2.7"] * 2, "time": pa.array([1767323045, None], pa.timestamp("s"))}
    parquet.write_table(pa.table(columns), path)
    assert log_ins(path, "columns") == [("7", "192.0.2.7", "2026-01-02T03:04:05")]
    parquet.write_table(pa.table({**columns, "user": ["a", "b"]}), path)
    assert reasons(outcomes(path, "columns"))[1] == "not a time in ISO 8601: ''"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("who,where\nalice,192.0.2.7\nbob,192.0.2.8\n", {}, r"the names 'who', 'where'\. Name them: --entity COLUMN"),
        ("user,ip\nalice,192.0.2.7\n", {"time": "at"}, "no column 'at'. Its columns have the names 'user', 'ip'"),
        ("user,ip\nalice,192.0.2.7\n", {"where": (("at", "x"),)}, "no column 'at'|no format"),
        ("alice,192.0.2.7\n", {"entity": "user"}, "no column 'user'. Its columns have no header,.* the numbers 1 to 2"),
        ("2026-01-02 03:04:05,123 INFO,192.0.2.7\n", {}, r"They have no header.* numbers 1 to 3\. Name them"),
        ("192.0.2.7,alice\n", {}, r"They have no header.* numbers 1 to 2\. Name them"),
        ("alice,192.0.2.7,new\n", {}, r"They have no header.* numbers 1 to 3\. Name them"),
        ("192.0.2.7,x\n", {"entity": "2", "address": "9"}, "no column '9'"),
        ('{"who": "alice"}\n', {"entity": "user"}, "the names 'who'"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        outcomes(write(tmp_path, text), "columns", **options)


def test_times_in_a_given_form(tmp_path: Path) -> None:
    path = write(tmp_path, "user,ip,time\nalice,192.0.2.7,02.01.2026 03.04.05\n")
    assert log_ins(path, "columns", clock=Clock(form="%d.%m.%Y %H.%M.%S")) == EXPECTED
