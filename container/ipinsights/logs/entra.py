"""Sign-ins of Microsoft Entra ID as JSON: Graph's lists, the portal's downloads, or lines of diagnostic settings.

The entity is the userPrincipalName, in lower case, since Entra compares it so.
"""

from collections.abc import Iterator
from typing import Any

from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import FAILED, OTHER, Dropped, LogIn, Malformed, Outcome, Row, at, judged
from ipinsights.logs.text import Text

_CATEGORIES = "SignInLogs"
"""How the categories of diagnostic settings end that hold sign-ins; NonInteractiveUserSignInLogs, for example."""
_NO_USER = Dropped("sign-ins of applications", "They are sign-ins of service principals: export those of users.")


def _knows(text: Text, _: Options) -> bool:
    return any(_sign_in(record) for record in text.head_records)


def _sign_in(record: dict[str, Any]) -> dict[str, Any] | None:
    """What a record says of a sign-in; None if it is none."""
    properties = record.get("properties")
    if str(record.get("category", "")).endswith(_CATEGORIES) and isinstance(properties, dict):
        return properties
    named = "userPrincipalName" in record or "servicePrincipalName" in record
    return record if named and "createdDateTime" in record and "ipAddress" in record else None


def _rows(text: Text, options: Options) -> Iterator[Row]:
    def judge(record: Any) -> Outcome:
        if not isinstance(record, dict):
            return Malformed(getattr(record, "reason", "not a record of Entra"))
        sign_in = _sign_in(record)
        if sign_in is None:
            return OTHER if "category" in record else Malformed("not a sign-in of Entra")
        code = at(sign_in, "status.errorCode")
        if code is None:
            return Malformed("without status.errorCode")
        if str(code) != "0":
            return FAILED
        entity, time = sign_in.get("userPrincipalName"), sign_in.get("createdDateTime") or record.get("time")
        if not entity:
            return _NO_USER
        if not isinstance(time, str):
            return Malformed("without createdDateTime")
        return LogIn(str(entity).lower(), str(sign_in.get("ipAddress") or ""), options.clock.iso(time))

    return judged(text.records(), judge)


FORMAT = Format("entra", "Entra ID sign-ins (JSON)", _knows, _rows)
