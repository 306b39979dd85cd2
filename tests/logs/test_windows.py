import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ipinsights.logs.times import Clock
from logs.reading import log_ins, outcomes, reasons, write

EXPECTED = [("corp\\alice", "192.0.2.7", "2026-01-02T03:04:05")]


def message(name: str, logon_type: int, address: str) -> str:
    """The text of an event 4624, in its parts that matter."""
    return (
        "An account was successfully logged on.\r\n\r\nSubject:\r\n\tSecurity ID:\t\tS-1-5-18\r\n"
        "\tAccount Name:\t\tSRV01$\r\n\tAccount Domain:\t\tCORP\r\n\tLogon ID:\t\t0x3E7\r\n\r\n"
        f"Logon Information:\r\n\tLogon Type:\t\t{logon_type}\r\n\tVirtual Account:\t\tNo\r\n\r\n"
        f"New Logon:\r\n\tSecurity ID:\t\tS-1-5-21-1\r\n\tAccount Name:\t\t{name}\r\n\tAccount Domain:\t\tCORP\r\n"
        "\tLogon ID:\t\t0x1F2\r\n\r\nNetwork Information:\r\n\tWorkstation Name:\tPC7\r\n"
        f"\tSource Network Address:\t{address}\r\n\tSource Port:\t\t50123\r\n"
    )


def properties(name: str, logon_type: int, address: str) -> list[dict[str, Any]]:
    values: list[Any] = ["S-1-5-18", "SRV01$", "CORP", 999, "S-1-5-21-1", name, "CORP", 498, logon_type, "User32"]
    values += ["Negotiate", "PC7", "{0}", "-", "-", 0, 4, "C:\\Windows\\System32\\svchost.exe", address, "50123"]
    return [{"Value": value} for value in values]


def event(name: str = "Alice", logon_type: int = 10, address: str = "192.0.2.7", **more: Any) -> dict[str, Any]:
    """As ``Get-WinEvent | ConvertTo-Json`` of Windows PowerShell writes it."""
    return {
        "Id": 4624,
        "Version": 2,
        "ProviderName": "Microsoft-Windows-Security-Auditing",
        "LogName": "Security",
        "MachineName": "SRV01.corp.example",
        "TimeCreated": "/Date(1767323045678)/",
        "Properties": properties(name, logon_type, address),
        "Message": "Ein Konto wurde erfolgreich angemeldet.",
        **more,
    }


def export_csv(rows: list[dict[str, Any]], type_line: bool = True) -> str:
    """As ``Export-Csv`` writes them: all fields in quotes, with line breaks in them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "#TYPE System.Diagnostics.Eventing.Reader.EventLogRecord\r\n" * type_line + text.getvalue()


def row(name: str = "Alice", logon_type: int = 10, address: str = "192.0.2.7", **more: Any) -> dict[str, Any]:
    return {
        "Message": message(name, logon_type, address),
        "Id": 4624,
        "Properties": "System.Collections.Generic.List`1[System.Diagnostics.Eventing.Reader.EventProperty]",
        "TimeCreated": "1/2/2026 3:04:05 AM",
        **more,
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("type_line", [True, False])
def test_export_csv(tmp_path: Path, encoding: str, type_line: bool) -> None:
    text = export_csv([row(), row(Id=4634)], type_line)
    path = write(tmp_path, text.encode(encoding))
    assert log_ins(path, "windows") == EXPECTED
    assert reasons(outcomes(path, "windows")) == ["LogIn", "Other"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_convert_to_json(tmp_path: Path, encoding: str) -> None:
    iso = event(TimeCreated="2026-01-02T04:04:05.678+01:00", Properties=["System"], Message=message("Alice", 3, "::1"))
    dotnet = event(TimeCreated={"value": "/Date(1767323045678)/", "DateTime": "Friday"})
    text = json.dumps([event(), iso, dotnet], indent=4).replace("/Date", "\\/Date")
    path = write(tmp_path, text.encode(encoding))
    assert log_ins(path, "windows") == [*EXPECTED, ("corp\\alice", "::1", "2026-01-02T03:04:05"), *EXPECTED]


def test_one_event_is_no_list(tmp_path: Path) -> None:
    assert log_ins(write(tmp_path, json.dumps(event(), indent=4)), "windows") == EXPECTED


def test_csv_of_the_event_viewer(tmp_path: Path) -> None:
    text = "Keywords,Date and Time,Source,Event ID,Task Category\r\n"
    quoted = message("Alice", 10, "192.0.2.7").replace('"', '""')
    text += f'Audit Success,1/2/2026 3:04:05 AM,Microsoft Windows security auditing.,4624,Logon,"{quoted}"\r\n'
    assert log_ins(write(tmp_path, text), "windows") == EXPECTED


def test_a_table_of_the_facts(tmp_path: Path) -> None:
    text = "TimeCreated,TargetDomainName,TargetUserName,LogonType,IpAddress\n"
    text += "2026-01-02T03:04:05Z,CORP,Alice,10,192.0.2.7\n2026-01-02T03:04:05Z,CORP,SRV01$,3,192.0.2.8\n"
    path = write(tmp_path, text)
    assert log_ins(path, "windows") == EXPECTED
    assert reasons(outcomes(path, "windows"))[1] == "log-ins of machine accounts (NAME$)"


def test_winlogbeat(tmp_path: Path) -> None:
    data = {"TargetUserName": "Alice", "TargetDomainName": "CORP", "LogonType": "10", "IpAddress": "192.0.2.7"}
    record = {"@timestamp": "2026-01-02T03:04:05.678Z", "winlog": {"event_id": "4624", "event_data": data}}
    failed = {**record, "winlog": {"event_id": 4625, "event_data": data}}
    path = write(tmp_path, json.dumps(record) + "\n" + json.dumps(failed))
    assert log_ins(path, "windows") == EXPECTED
    assert reasons(outcomes(path, "windows"))[1] == "failed log-ins"


def test_who_is_no_person(tmp_path: Path) -> None:
    events = [
        event("SRV01$"),
        event("SYSTEM", 5, "-"),
        event("ANONYMOUS LOGON", 3),
        event(Message="", Properties=[]),
        event(TimeCreated=None),
    ]
    assert reasons(outcomes(write(tmp_path, json.dumps(events)), "windows")) == [
        "log-ins of machine accounts (NAME$)",
        "log-ins of services (logon type 5)",
        "anonymous log-ins",
        "its properties are missing, and its message is missing or not in English",
        "without a time (TimeCreated, TimeGenerated, Date and Time, @timestamp)",
    ]


def test_times_of_other_countries_need_their_form(tmp_path: Path) -> None:
    path = write(tmp_path, export_csv([row(TimeCreated="02.01.2026 03:04:05")]))
    assert reasons(outcomes(path, "windows")) == ["not a time in ISO 8601: '02.01.2026 03:04:05'"]
    assert log_ins(path, "windows", clock=Clock(form="%d.%m.%Y %H:%M:%S")) == EXPECTED
