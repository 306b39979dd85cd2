"""Whatever a log holds, each row of it is something, and no reader breaks."""

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.errors import UserError
from ipinsights.logs.counting import Count
from ipinsights.logs.formats import FORMATS
from ipinsights.logs.options import Options
from ipinsights.logs.text import Text
from logs.reading import write
from logs.test_access import line as access_line
from logs.test_cloud import cloudtrail, entra, okta
from logs.test_flow import flow
from logs.test_sshd import accepted
from logs.test_sshd import line as sshd_line
from logs.test_windows import event, row

VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    *(st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)),
    st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31", "1e99", "-", "::1%x"]),
)
RECORDS = {
    "cloudtrail": cloudtrail(),
    "okta": okta(),
    "entra": entra(),
    "windows": event(),
    "columns": {"user": "a", "ip": "192.0.2.7", "time": 1767323045},
}
ROWS = [row(), {"user": "a", "ip": "192.0.2.7", "time": "2026-01-02"}]
LINES = [
    access_line(),
    sshd_line(accepted()),
    flow("8.8.4.4", "10.0.0.5"),
    sshd_line(accepted(), "9999-12-31T23:59:59-14:00"),
]


def read(folder: Any, name: str, text: str) -> None:
    """Read a text as a format. It may be refused, and nothing else may be raised."""
    count, options = Count(), Options(cloudtrail="all")
    with Text(write(folder, text.encode("utf-8", "surrogatepass"))) as opened:
        file = count.begin(opened.name, FORMATS[name])
        try:
            for found in FORMATS[name].rows(opened, options):
                count.line(file, found, "")
        except UserError:
            pass


@pytest.mark.parametrize("name", RECORDS)
@given(of=st.sampled_from([*RECORDS]) | st.none(), data=st.data())
def test_records_with_other_values(
    tmp_path_factory: pytest.TempPathFactory, name: str, of: str | None, data: st.DataObject
) -> None:
    record = RECORDS[of or name]
    changed = dict(record)
    for key in data.draw(st.sets(st.sampled_from(sorted(record)), min_size=1, max_size=2)):
        inner = changed[key]
        if isinstance(inner, dict) and data.draw(st.booleans()):
            changed[key] = {**inner, data.draw(st.sampled_from(sorted(inner))): data.draw(VALUES)}
        else:
            changed[key] = data.draw(VALUES)
    read(tmp_path_factory.mktemp("log"), name, f"{json.dumps(record)}\n{json.dumps(changed)}\n")


@given(record=st.sampled_from(ROWS), data=st.data(), name=st.sampled_from(["windows", "columns"]))
def test_tables_with_other_values(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any], data: st.DataObject, name: str
) -> None:
    changed = {key: data.draw(VALUES) for key in record}
    text = io.StringIO()
    writer = csv.DictWriter(text, record)
    writer.writeheader()
    writer.writerows([record, changed])
    read(tmp_path_factory.mktemp("log"), name, text.getvalue())


@pytest.mark.parametrize("name", FORMATS)
@given(line=st.sampled_from(LINES), data=st.data())
def test_lines_with_other_parts(
    tmp_path_factory: pytest.TempPathFactory, name: str, line: str, data: st.DataObject
) -> None:
    begin = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(begin, min(len(line), begin + 6)))
    text = line[:begin] + data.draw(st.text(max_size=5)) + line[end:]
    read(tmp_path_factory.mktemp("log"), name, line + text)
