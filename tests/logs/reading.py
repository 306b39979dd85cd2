"""Reads a text with a format of logs, and says what each row is."""

import gzip
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ipinsights.logs import formats
from ipinsights.logs.options import Options
from ipinsights.logs.rows import Dropped, LogIn, Malformed, Outcome
from ipinsights.logs.text import Text

LAST_CHANGE = datetime(2026, 1, 20, tzinfo=UTC)
"""When a log was last changed, unless a test says otherwise."""

MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2035, 1, 1)).map(lambda t: t.replace(microsecond=0))
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.builds(lambda moment, zone: moment.replace(tzinfo=zone), MOMENTS, ZONES)
"""Times in any zone, in whole seconds."""
ADDRESSES = st.one_of(st.ip_addresses(network="198.51.100.0/24"), st.ip_addresses(network="2001:db8::/32")).map(str)


def write(folder: Path, text: str | bytes, changed: datetime = LAST_CHANGE, name: str = "some.log") -> Path:
    path = folder / name
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    os.utime(path, (changed.timestamp(), changed.timestamp()))
    return path


def outcomes(path: Path, expected: str, **options: Any) -> list[Outcome]:
    """What the rows of a file are, whose format must be recognised."""
    chosen = Options(**options)
    with Text(path) as text:
        format_ = formats.find(text, chosen)
        assert format_ is not None
        assert format_.name == expected
        return [outcome for _, _, outcome in format_.rows(text, chosen)]


def log_ins(path: Path, expected: str, **options: Any) -> list[tuple[str, str, str]]:
    """Entity, address and time of the log-ins."""
    return [
        (o.entity, o.address, "" if o.time is None else datetime.fromtimestamp(o.time, UTC).isoformat()[:19])
        for o in outcomes(path, expected, **options)
        if isinstance(o, LogIn)
    ]


def reasons(found: list[Outcome]) -> list[str]:
    """Of each row why it is no log-in, or what it is."""
    return [o.reason if isinstance(o, (Dropped, Malformed)) else type(o).__name__ for o in found]
