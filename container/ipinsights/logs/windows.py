r"""Windows security events 4624, "An account was successfully logged on".

Read are CSV and JSON as PowerShell writes them (``Get-WinEvent ... | Export-Csv`` or ``ConvertTo-Json``), CSV of the
Event Viewer, tables with the columns TargetUserName and IpAddress, and JSON of winlogbeat. The facts are in the event's
properties, in their order, or in its message, if that is in English. The entity is ``domain\name`` in lower case,
since Windows compares it so.
"""

import re
from collections.abc import Iterator
from typing import Any

from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import FAILED, OTHER, Dropped, LogIn, Malformed, Outcome, Row, judged
from ipinsights.logs.text import Text, Unreadable

_ID = "Id", "EventID", "Event ID", "InstanceId"
_TIME = "TimeCreated", "TimeGenerated", "Date and Time", "@timestamp"
_LOGGED_ON, _NOT_LOGGED_ON = "4624", "4625"
_FACTS = {"TargetUserName": 5, "TargetDomainName": 6, "LogonType": 8, "IpAddress": 18}
"""Where the facts are among the properties of event 4624."""
_MESSAGE = re.compile(
    r"Logon Type:\s*(?P<LogonType>\d+).*?New Logon:.*?Account Name:[ \t]*(?P<TargetUserName>[^\r\n]*?)\s*\n"
    r"\s*Account Domain:[ \t]*(?P<TargetDomainName>[^\r\n]*?)\s*\n.*?Source Network Address:[ \t]*(?P<IpAddress>\S+)",
    re.DOTALL,
)
_TYPE_LINE = "#TYPE "
"""How Windows PowerShell begins CSV, unless it is told not to."""
_SERVICE_TYPE = "5"

_MACHINE = Dropped("log-ins of machine accounts (NAME$)", "Only machines logged in.")
_SERVICE = Dropped("log-ins of services (logon type 5)", "Services log in on the machine itself.")
_ANONYMOUS = Dropped("anonymous log-ins")


def _knows(text: Text, _: Options) -> bool:
    if any(_is_event(record) for record in text.head_records):
        return True
    header = next((line for line in text.head_lines() if not line.startswith(_TYPE_LINE)), "")
    return _is_event(dict.fromkeys(name.strip().strip('"') for name in header.lstrip("\ufeff").split(",")))


def _is_event(record: dict[str, Any]) -> bool:
    if isinstance(record.get("winlog"), dict):
        return True
    named = any(name in record for name in _ID) and any(name in record for name in _TIME)
    told = record.keys() & {"Message", "Properties", "Task Category"}
    return (named and bool(told)) or _FACTS.keys() - {"TargetDomainName", "LogonType"} <= record.keys()


def _rows(text: Text, options: Options) -> Iterator[Row]:
    def judge(record: Any) -> Outcome:
        if isinstance(record, Unreadable) or not isinstance(record, dict) or not _is_event(record):
            return Malformed(getattr(record, "reason", "not an event of Windows"))
        number = _number(record)
        if number not in ("", _LOGGED_ON):
            return FAILED if number == _NOT_LOGGED_ON else OTHER
        facts = _facts(record)
        if not facts:
            return Malformed("its properties are missing, and its message is missing or not in English")
        name, domain = str(facts["TargetUserName"] or ""), str(facts.get("TargetDomainName") or "")
        if name.endswith("$"):
            return _MACHINE
        if str(facts.get("LogonType") or "") == _SERVICE_TYPE:
            return _SERVICE
        if name.upper() == "ANONYMOUS LOGON":
            return _ANONYMOUS
        time = next((record[key] for key in _TIME if record.get(key)), None)
        if isinstance(time, dict):  # as Windows PowerShell writes some times
            time = time.get("value")
        if not time:
            return Malformed(f"without a time ({', '.join(_TIME)})")
        entity = f"{domain}\\{name}" if name and domain not in ("", "-") else name
        return LogIn(entity.lower(), str(facts["IpAddress"] or ""), options.clock.cell(str(time)))

    return judged(text.records() if text.head_records else _table(text), judge)


def _table(text: Text) -> Iterator[tuple[int, Any]]:
    """The rows of CSV by the names of their columns. The Event Viewer's last column, the message, has no name."""
    header: list[str] = []
    for number, row in text.rows(","):
        if isinstance(row, Unreadable):
            yield number, row
        elif header:
            yield number, dict(zip([*header, *["Message"] * (len(row) - len(header))], row, strict=False))
        elif not row[0].startswith(_TYPE_LINE):
            header = [name.strip() for name in row]


def _number(record: dict[str, Any]) -> str:
    """The event's number; "" if there is none, as in a table of such events only."""
    winlog = record.get("winlog")
    if isinstance(winlog, dict):
        return str(winlog.get("event_id", ""))
    return next((str(record[name]) for name in _ID if name in record), "")


def _facts(record: dict[str, Any]) -> dict[str, Any] | None:
    named = record["winlog"].get("event_data") if isinstance(record.get("winlog"), dict) else record
    if isinstance(named, dict) and "TargetUserName" in named and "IpAddress" in named:
        return named
    properties = record.get("Properties")
    if isinstance(properties, list) and len(properties) > max(_FACTS.values()):
        values = [p.get("Value") if isinstance(p, dict) else p for p in properties]
        return {name: values[place] for name, place in _FACTS.items()}
    found = _MESSAGE.search(str(record.get("Message") or ""))
    return found.groupdict() if found else None


FORMAT = Format("windows", "Windows security events 4624 (CSV or JSON)", _knows, _rows)
