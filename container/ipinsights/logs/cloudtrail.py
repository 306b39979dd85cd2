"""CloudTrail: files of records, also in gzip and in folders, as AWS stores them in a bucket, or one record a line.

The entity is the ARN that CloudTrail names. Of an assumed role it ends in the name of the session, which for people
who come by single sign-on is the person. Log-ins are successful events ConsoleLogin. All API calls are read where they
are asked for, refused ones too: CloudTrail knows who made them, and one who tries what is not allowed should be seen.
"""

from collections.abc import Iterator
from typing import Any

from ipinsights.logs.options import Format, Options
from ipinsights.logs.rows import FAILED, OTHER, Dropped, LogIn, Malformed, Outcome, Row, at, judged
from ipinsights.logs.text import Text

_CALL = Dropped(
    "API calls that are no log-in to the console",
    "There was no log-in to the console: take all API calls of users and roles with --cloudtrail all.",
)
_SERVICE = Dropped("calls by AWS services", "AWS services called for themselves, from inside AWS.")
_NO_ARN = Dropped("calls without an ARN", "CloudTrail does not say who made these calls.")


def _knows(text: Text, _: Options) -> bool:
    return any(_is_record(record) or _is_digest(record) for record in text.head_records)


def _is_record(record: dict[str, Any]) -> bool:
    return "eventSource" in record and "eventName" in record


def _is_digest(record: dict[str, Any]) -> bool:
    """Whether it is a file of checksums, which lies in the same bucket."""
    return "digestStartTime" in record


def _rows(text: Text, options: Options) -> Iterator[Row]:
    all_calls, clock = options.cloudtrail == "all", options.clock

    def judge(record: Any) -> Outcome:
        if not isinstance(record, dict):
            return Malformed(getattr(record, "reason", "not a record of CloudTrail"))
        if not _is_record(record):
            return OTHER if _is_digest(record) else Malformed("not a record of CloudTrail")
        if record["eventName"] == "ConsoleLogin":
            if at(record, "responseElements.ConsoleLogin") != "Success":
                return FAILED
        elif not all_calls:
            return _CALL
        address, time = record.get("sourceIPAddress"), record.get("eventTime")
        if not isinstance(address, str) or not isinstance(time, str):
            return Malformed("without sourceIPAddress or eventTime")
        arn = at(record, "userIdentity.arn")
        if not arn:
            by_service = at(record, "userIdentity.type") == "AWSService" or at(record, "userIdentity.invokedBy")
            return _SERVICE if by_service else _NO_ARN
        return LogIn(str(arn), address, clock.iso(time))

    return judged(text.records(), judge)


FORMAT = Format("cloudtrail", "CloudTrail (JSON)", _knows, _rows, uses=("cloudtrail",))
