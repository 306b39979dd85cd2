"""What cannot be read as declared is told by what it looks like, and what to do."""

import bz2
import gzip
import io
import json
import lzma
import re
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data import events
from ipinsights.data.entities import EntityIndex
from ipinsights.data.formats import CSV, JSON_LINES, PARQUET, recognise
from ipinsights.data.records import salvage_csv
from ipinsights.errors import UserError

ROWS = [(f"user_{i}", f"10.0.{i}.1") for i in range(60)]
PLAIN = "".join(f"{name},{address}\n" for name, address in ROWS)
INSTANCES = "".join(json.dumps({"features": row}) + "\n" for row in ROWS)


def lines(form: str) -> bytes:
    return "".join(form.format(*row) + "\n" for row in ROWS).encode()


def tar(data: bytes = PLAIN.encode(), mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("log-ins.csv")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("log-ins.csv", PLAIN)
    return packed.getvalue()


LOOKS = {
    "tabs": (lines("{}\t{}"), "looks like tab-separated text. Write commas between the columns."),
    "semicolons": (lines('"Smith, {}";{}'), "looks like text separated by semicolons. Write commas"),
    "bars": (lines("{}|{}"), "looks like text separated by |. Write commas"),
    "blanks": (lines("{}   {}"), "looks like text separated by blanks. Write commas"),
    "time first": (
        lines("2026-11-01T08:00:00Z,{},{}"),
        "looks like CSV with 3 columns. A row has two columns, the entity and the address. A third may only be a time "
        "such as 2026-01-02T03:04:05Z (column 3 holds addresses, column 1 holds times).",
    ),
    "other times last": (lines("{},{},01/11/2026 8:00"), "(column 2 holds addresses, column 3 holds times)."),
    "five columns": (lines("x,{},{},ok,7"), "CSV with 5 columns. A row has two columns, the entity and the address"),
    "two addresses": (lines("{0},{1},{1}"), "(columns 2 and 3 hold addresses)."),
    "tabs with a header": (b"user\tip\ttime\n" + lines("{}\t{}\t8:00"), "looks like tab-separated text"),
    "JSON Lines": (INSTANCES.encode(), f"looks like JSON Lines. Declare the content type {JSON_LINES}."),
    "other JSON Lines": (lines('{{"user": "{}", "ip": "{}"}}'), 'JSON Lines. Write {"features": [entity, address]} a'),
    "JSON": (
        json.dumps({"instances": ROWS}, indent=1).encode(),
        "looks like a JSON document. Write one instance a line",
    ),
    "XML": (b"<?xml version='1.0'?>\n<a>1.2.3.4</a>\n", "looks like XML or HTML. Convert it"),
    "UTF-16": (PLAIN.encode("utf-16"), "looks like UTF-16. Write UTF-8."),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-be"), "looks like UTF-16. Write UTF-8."),
    "tar": (tar(), "looks like a tar archive. Unpack it"),
    "tar.gz": (tar(mode="w:gz"), "looks like a tar archive. Unpack it"),
    "zip": (zipped(), "looks like a zip archive or an Excel file. Unpack or convert it"),
    "gzip twice": (gzip.compress(gzip.compress(PLAIN.encode())), "looks like gzip within gzip. Unpack it once."),
    "bzip2": (bz2.compress(PLAIN.encode()), "looks like bzip2. Unpack it: only gzip is unpacked here."),
    "xz": (lzma.compress(PLAIN.encode()), "looks like xz. Unpack it"),
    "Parquet": (b"PAR1\x15\x04\n\xff", f"looks like Parquet. Declare the content type {PARQUET}, or write CSV"),
    "Avro": (b"Obj\x01\x04\x14avro.codec", "looks like Avro. Convert it: write CSV with two columns"),
}


@pytest.mark.parametrize(("data", "said"), LOOKS.values(), ids=LOOKS)
def test_another_format_is_told_with_what_to_do(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError) as caught:
        events.read([tmp_path / "a"], EntityIndex(100))
    assert re.match(r"\S{1,80}/a of channel 'train' looks like ", str(caught.value))
    assert said in str(caught.value)
    assert "skip" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_database_is_told(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a") as database:
        database.execute("create table log_ins (user text, ip text)")
    with pytest.raises(UserError, match="looks like an SQLite database"):
        events.read([tmp_path / "a"], EntityIndex(100))


@pytest.mark.parametrize(
    ("data", "said"),
    [(PLAIN, "looks like CSV. Declare the content type text/csv."), ("PAR1\n", "looks like Parquet")],
    ids=["CSV", "Parquet"],
)
def test_what_is_not_json_lines_as_declared_is_told(tmp_path: Path, data: str, said: str) -> None:
    (tmp_path / "a").write_text(data)
    with pytest.raises(UserError, match=said):
        events.read([tmp_path / "a"], EntityIndex(100), content_type=JSON_LINES)


def test_text_that_can_be_read_is_read_whatever_it_looks_like(tmp_path: Path) -> None:
    begins = ("PAR1", "ORC", "BZh", "{", "[", "<?xml", "PK\x03\x04", "a\tb", "a;b", "1.2.3.4", "a\0b\0c\0d\0" * 20)
    (tmp_path / "a").write_text("".join(f"{name},1.2.3.4\n" for name in begins))
    assert len(events.read([tmp_path / "a"], EntityIndex(100))) == len(begins)


@pytest.mark.parametrize(
    "form", ['{},"{}, 10.1.1.1"', '{},"{} 10.1.1.1"', "{},{};10.1.1.1", "{},www.example.com", "{}", "{},"]
)
def test_csv_of_malformed_rows_looks_like_nothing_else(form: str) -> None:
    assert recognise(lines(form)) is None


def test_where_malformed_rows_are_skipped_text_counts_by_its_rows_and_binary_data_does_not(tmp_path: Path) -> None:
    """A file of binary data has few line ends, so a share of its rows says nothing about what is lost."""
    (tmp_path / "a").write_text(PLAIN * 20)
    (tmp_path / "b").write_bytes(lines("{}\t{}"))
    files = [tmp_path / "a", tmp_path / "b"]
    assert len(events.read(files, EntityIndex(100), tolerated=0.1)) == 1200
    with pytest.raises(UserError, match="60 of 1,260 rows"):
        events.read(files, EntityIndex(100), tolerated=0.01)
    for harm in (tar(), bz2.compress(PLAIN.encode())):
        (tmp_path / "b").write_bytes(harm)
        with pytest.raises(UserError, match="b of channel 'train' looks like"):
            events.read(files, EntityIndex(100), tolerated=1)


@given(st.binary() | st.text().map(str.encode) | st.sampled_from([data for data, _ in LOOKS.values()]), st.data())
def test_any_bytes_are_recognised_or_not_without_a_fault(data: bytes, drawn: st.DataObject) -> None:
    cut = data[drawn.draw(st.integers(0, 20)) : drawn.draw(st.integers(0, len(data)))]
    for declared in (CSV, JSON_LINES):
        look = recognise(cut, declared)
        assert look is None or look.remedy.endswith(".")


@given(st.lists(st.sampled_from(["a", "1.2.3.4", ",", "\t", ";", " ", "\n", '"']), max_size=30).map("".join))
def test_what_looks_like_a_separator_is_none_in_text_that_can_be_read(text: str) -> None:
    if not salvage_csv(text.encode()).faults and text.strip():
        look = recognise(text.encode())
        assert look is None or "separated" not in look.name


def test_json_lines_are_events(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(PLAIN)
    (tmp_path / "b").write_text(INSTANCES)
    csv = events.read([tmp_path / "a"], EntityIndex(100))
    other = events.read([tmp_path / "b"], EntityIndex(100), content_type=JSON_LINES)
    assert other.entity.tolist() == csv.entity.tolist()
    assert other.address.tolist() == csv.address.tolist()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_malformed_line_of_json_is_told_by_its_number(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """In a file of several blocks, of which only the last is malformed; and \\r does not end a line of JSON."""
    text = INSTANCES.encode() * 3000 + b'\n["u",\r"1.2.3.4"]\n{"features": ["u"]}\n'
    (tmp_path / "a").write_bytes(pack(text))
    with pytest.raises(
        UserError, match=r"^1 of 180,002 rows .*a, line 180003: expected .*in \"\{'features': \['u'\]\}\""
    ):
        events.read([tmp_path / "a"], EntityIndex(100), content_type=JSON_LINES)
