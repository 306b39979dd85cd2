"""What was looked at: a file of accounts and networks that are left out of the next list.

It is CSV without a header, a pair a line, with the time when it was marked: a person can add to it with any editor.
"""

import csv
import datetime
from collections.abc import Iterable
from pathlib import Path

from ipinsights.alerts.listing import Alert, Pair
from ipinsights.errors import UserError, brief, refusals


def read(path: Path, missing: bool = False) -> set[Pair]:
    """The pairs in a file; none if it is ``missing`` and may be. Raises UserError that names the line at fault."""
    pairs: set[Pair] = set()
    with refusals("read", path):
        if missing and not path.exists():
            return pairs
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file, strict=True)
            try:
                for row in rows:
                    if len(row) == 1 or (len(row) > 1 and "/" not in row[1]):
                        raise UserError(
                            f"{path}, line {rows.line_num}: {brief(','.join(row))} is no account and network, such as "
                            "alice,192.0.2.0/24"
                        )
                    if row:
                        pairs.add((row[0], row[1]))
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{path}, line {rows.line_num + 1} is not CSV: {error}") from error
    return pairs


def mark(path: Path, alerts: Iterable[Alert]) -> None:
    """Add alerts to a file. Raises UserError if it cannot be written."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with refusals("write to", path), path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows((alert.entity, alert.network, now) for alert in alerts)
