import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data.malformed import LONGEST_LINE
from ipinsights.logs import text as texts
from ipinsights.logs.text import Text, Unreadable
from logs.reading import write

LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff"), max_size=30))
VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text(min_size=1), VALUES, min_size=1, max_size=3), min_size=1, max_size=4)


@given(lines=LINES, end=st.sampled_from(["\n", "\r\n"]), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_lines_of_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, encoding: str
) -> None:
    path = write(tmp_path_factory.mktemp("text"), "".join(line + end for line in lines).encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "_BLOCK", 7)
        with Text(path) as text:
            assert [*text.lines()] == [*enumerate(lines, 1)]


@given(records=RECORDS, indent=st.sampled_from([None, 1]), shape=st.sampled_from(["lines", "list", "Records", "value"]))
def test_records_of_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, records: list[object], indent: int | None, shape: str
) -> None:
    if shape == "lines":
        data = "\n".join(json.dumps(record, indent=indent) for record in records)
    else:
        document = records if shape == "list" else {"@odata.context": "x", "n": 1, shape: records, "next": 'a"}]'}
        data = json.dumps(document, indent=indent)
    path = write(tmp_path_factory.mktemp("text"), data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "_BLOCK", 7)
        with Text(path) as text:
            found = [*text.records()]
    assert [record for _, record in found] == records
    begins = [line for line, _ in found]
    if shape == "lines" and indent is None:
        assert begins == [*range(1, len(records) + 1)]
    assert begins == sorted(begins)


def test_what_is_no_json_is_told_with_its_line(tmp_path: Path) -> None:
    data = '{"a": 1}\n{"a": \n{"a": 3}\n' + "[" * 100_000 + "\n" + '{"a": 5}'
    with Text(write(tmp_path, data)) as text:
        found = [*text.records()]
    assert found[0] == (1, {"a": 1})
    assert found[-1] == (5, {"a": 5})
    assert any(line == 2 and isinstance(record, Unreadable) for line, record in found)


def test_a_line_without_end_takes_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path, b"x" * (5 * LONGEST_LINE) + b"\nlast\n", name="some.gz")
    with Text(path) as text:
        (_, first), last = text.lines()
    assert len(first) <= LONGEST_LINE + 5 * LONGEST_LINE % texts._BLOCK
    assert last == (2, "last")


def test_progress_is_told_in_bytes_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(b"a\n" * 100_000))
    told: list[int] = []
    with Text(path, told.append) as text:
        assert len([*text.lines()]) == 100_000
    assert sum(told) == path.stat().st_size
