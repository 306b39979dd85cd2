"""The formats of JSON records: CloudTrail, Okta and Entra."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.logs import formats
from ipinsights.logs.options import Options
from ipinsights.logs.rows import LogIn
from ipinsights.logs.text import Text
from logs.reading import ADDRESSES, MOMENTS, log_ins, outcomes, reasons, write

USER = "arn:aws:iam::111122223333:user/alice"
ROLE = "arn:aws:sts::111122223333:assumed-role/Admin/alice@example.com"


def cloudtrail(
    name: str = "ConsoleLogin", address: str = "192.0.2.7", time: str = "2026-01-02T03:04:05Z", **more: Any
) -> dict[str, Any]:
    return {
        "eventVersion": "1.09",
        "userIdentity": {"type": "IAMUser", "arn": USER, "accountId": "111122223333", "userName": "alice"},
        "eventTime": time,
        "eventSource": "signin.amazonaws.com",
        "eventName": name,
        "awsRegion": "us-east-1",
        "sourceIPAddress": address,
        "requestParameters": None,
        "responseElements": {"ConsoleLogin": "Success"} if name == "ConsoleLogin" else None,
        **more,
    }


def okta(user: str = "alice@example.com", address: str = "192.0.2.7", time: str = "2026-01-02T03:04:05.123Z") -> Any:
    return {
        "actor": {"id": "00u1", "type": "User", "alternateId": user, "displayName": "Alice"},
        "client": {"userAgent": {"os": "Linux"}, "ipAddress": address},
        "eventType": "user.session.start",
        "outcome": {"result": "SUCCESS", "reason": None},
        "published": time,
        "target": [],
    }


def entra(user: str = "Alice@Example.com", address: str = "192.0.2.7", time: str = "2026-01-02T03:04:05Z") -> Any:
    return {
        "id": "66ea54eb",
        "createdDateTime": time,
        "userPrincipalName": user,
        "ipAddress": address,
        "status": {"errorCode": 0, "failureReason": "Other.", "additionalDetails": None},
        "location": {"city": "Ulm"},
    }


MAKERS: dict[str, Callable[..., Any]] = {"cloudtrail": cloudtrail, "okta": okta, "entra": entra}
SHAPES: dict[str, Callable[[list[Any]], str]] = {
    "lines": lambda records: "".join(json.dumps(record) + "\n" for record in records),
    "list": json.dumps,
    "pretty list": lambda records: json.dumps(records, indent=2),
    "of CloudTrail": lambda records: json.dumps({"Records": records}),
    "of Azure Monitor": lambda records: json.dumps({"records": records}, indent=1),
    "of Graph": lambda records: json.dumps(
        {
            "@odata.context": "https://example.org/$metadata",
            "value": records,
            "@odata.nextLink": "https://example.org/2",
        }
    ),
    "two documents": lambda records: json.dumps({"Records": records[:1]}) + "\n" + json.dumps({"Records": records[1:]}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAKERS)
def test_records_are_found_in_any_document(tmp_path: Path, name: str, shape: str) -> None:
    records = [MAKERS[name](address=f"192.0.2.{i}") for i in range(3)]
    found = outcomes(write(tmp_path, SHAPES[shape](records)), name)
    assert [o.address for o in found if isinstance(o, LogIn)] == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]
    assert len(found) == 3


@given(name=st.sampled_from([*MAKERS]), address=ADDRESSES, time=MOMENTS, shape=st.sampled_from([*SHAPES]))
def test_any_log_in_comes_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, address: str, time: datetime, shape: str
) -> None:
    record = MAKERS[name](address=address, time=f"{time.isoformat()}Z")
    path = write(tmp_path_factory.mktemp("log"), SHAPES[shape]([record]))
    [found] = outcomes(path, name)
    assert isinstance(found, LogIn)
    assert found[1:] == (address, int(time.replace(tzinfo=UTC).timestamp()))


def test_cloudtrail_of_the_console_and_of_all_calls(tmp_path: Path) -> None:
    service = {"type": "AWSService", "invokedBy": "ec2.amazonaws.com"}
    records = [
        cloudtrail(),
        cloudtrail(responseElements={"ConsoleLogin": "Failure"}, errorMessage="Failed authentication"),
        cloudtrail("GetObject", userIdentity={"type": "AssumedRole", "arn": ROLE}),
        cloudtrail("GetObject", errorCode="AccessDenied"),
        cloudtrail("AssumeRole", "ec2.amazonaws.com", userIdentity=service),
        cloudtrail("GetBucketAcl", "cloudtrail.amazonaws.com"),
        cloudtrail("Decrypt", "AWS Internal"),
        cloudtrail("GetObject", userIdentity={"type": "AWSAccount", "accountId": "444455556666"}),
    ]
    path = write(tmp_path, json.dumps({"Records": records}))
    assert log_ins(path, "cloudtrail") == [(USER, "192.0.2.7", "2026-01-02T03:04:05")]
    assert reasons(outcomes(path, "cloudtrail"))[1:3] == [
        "failed log-ins",
        "API calls that are no log-in to the console",
    ]
    found = outcomes(path, "cloudtrail", cloudtrail="all")
    assert [o.entity if isinstance(o, LogIn) else "" for o in found] == [USER, "", ROLE, USER, "", USER, USER, ""]
    assert reasons(found)[4] == "calls by AWS services"
    assert reasons(found)[7] == "calls without an ARN"


def test_digests_of_cloudtrail_hold_no_records(tmp_path: Path) -> None:
    digest = {"awsAccountId": "1", "digestStartTime": "2026-01-02T03:04:05Z", "logFiles": [{"s3Object": "x"}]}
    assert reasons(outcomes(write(tmp_path, json.dumps(digest)), "cloudtrail")) == ["Other"]


def test_an_empty_file_of_cloudtrail_is_empty(tmp_path: Path) -> None:
    with Text(write(tmp_path, '{"Records":[]}')) as text:
        assert formats.find(text, Options()) is None


def test_what_is_no_log_in_of_okta(tmp_path: Path) -> None:
    records = [
        okta(),
        {**okta(), "outcome": {"result": "FAILURE", "reason": "INVALID_CREDENTIALS"}},
        {**okta(), "eventType": "user.authentication.sso"},
        {**okta(), "published": None},
        {"a": 1},
    ]
    found = outcomes(write(tmp_path, json.dumps(records)), "okta")
    assert reasons(found) == [
        *("LogIn", "failed log-ins", "Other", 'without "published"', "not an event of Okta's System Log")
    ]
    assert log_ins(tmp_path / "some.log", "okta") == [("alice@example.com", "192.0.2.7", "2026-01-02T03:04:05")]


def test_entra_of_graph_and_of_diagnostic_settings(tmp_path: Path) -> None:
    def line(category: str, properties: Any) -> str:
        return json.dumps({"time": "2026-01-02T03:04:06Z", "category": category, "properties": properties}) + "\n"

    text = line("SignInLogs", entra(time="2026-01-02T03:04:05.1234567+00:00"))
    text += line("NonInteractiveUserSignInLogs", entra("bob@example.com"))
    text += line("SignInLogs", {**entra(), "status": {"errorCode": 50126}})
    text += line("AuditLogs", {"activity": "Add user"})
    text += line("ServicePrincipalSignInLogs", {**entra(), "userPrincipalName": None})
    found = outcomes(write(tmp_path, text), "entra")
    assert reasons(found) == ["LogIn", "LogIn", "failed log-ins", "Other", "sign-ins of applications"]
    assert log_ins(tmp_path / "some.log", "entra")[0] == ("alice@example.com", "192.0.2.7", "2026-01-02T03:04:05")


def test_a_broken_record_costs_its_line(tmp_path: Path) -> None:
    lines = [json.dumps(okta(address=f"192.0.2.{i}")) for i in range(4)]
    lines[1] = lines[1][:50]
    found = outcomes(write(tmp_path, "\n".join(lines)), "okta")
    assert [o.address if isinstance(o, LogIn) else "" for o in found] == ["192.0.2.0", "", "192.0.2.2", "192.0.2.3"]
    assert reasons(found)[1].startswith("not JSON: ")
