"""Okta's System Log as JSON: a list of events, or one a line. The entity is the actor's alternateId."""

from collections.abc import Iterator
from typing import Any

from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import FAILED, OTHER, LogIn, Malformed, Outcome, Row, at, judged
from ipinsights.logs.text import Text

_LOG_IN = "user.session.start"


def _knows(text: Text, _: Options) -> bool:
    return any("eventType" in record and "actor" in record for record in text.head_records)


def _rows(text: Text, options: Options) -> Iterator[Row]:
    def judge(record: Any) -> Outcome:
        if not isinstance(record, dict) or "eventType" not in record:
            return Malformed(getattr(record, "reason", "not an event of Okta's System Log"))
        if record["eventType"] != _LOG_IN:
            return OTHER
        if at(record, "outcome.result") != "SUCCESS":
            return FAILED
        entity, address = at(record, "actor.alternateId") or "", at(record, "client.ipAddress") or ""
        time = record.get("published")
        if not isinstance(time, str):
            return Malformed('without "published"')
        return LogIn(str(entity), str(address), options.clock.iso(time))

    return judged(text.records(), judge)


FORMAT = Format("okta", "Okta System Log (JSON)", _knows, _rows)
