"""Log-ins in Parquet."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from ipinsights.data import events, tables
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.formats import PARQUET
from ipinsights.data.sources import Pipe
from ipinsights.errors import UserError

parquet = pytest.importorskip("pyarrow.parquet")

NAMES = [f"u{i % 7}" for i in range(1000)]
TEXTS = [f"10.{i % 3}.0.{i % 250}" for i in range(1000)]


def write(path: Path, *columns: object, **options: object) -> Path:
    parquet.write_table(pa.table(dict(zip("abcdef", columns, strict=False))), path, **options)
    return path


def read(*paths: Path, family: Family = IPV4, tolerated: float | None = None) -> events.Events:
    return events.read(paths, EntityIndex(100), family, content_type=PARQUET, tolerated=tolerated)


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_two_columns_of_strings_are_the_events_that_csv_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: pa.DataType, family: Family
) -> None:
    monkeypatch.setattr(tables, "_ROWS", 64)
    (tmp_path / "a.csv").write_text("".join(f"{name},{text}\n" for name, text in zip(NAMES, TEXTS, strict=True)))
    csv = events.read([tmp_path / "a.csv"], EntityIndex(100), family)
    columns = (pa.array(values).cast(type_) for values in (NAMES, TEXTS))
    path = write(tmp_path / "a.parquet", *columns, row_group_size=300)
    told: list[int] = []
    found = events.read([path], EntityIndex(100), family, content_type=PARQUET, progress=told.append)
    assert (found.entity.tolist(), found.address.tolist()) == (csv.entity.tolist(), csv.address.tolist())
    assert sum(told) == path.stat().st_size
    assert len(told) > 10


def test_malformed_rows_are_told_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ROWS", 4)
    path = write(
        tmp_path / "a", ["u"] * 6 + [None, "", "u", "u"], ["1.2.3.4:80"] * 5 + ["-", "1.2.3.4", "1.2.3.4", None, "x"]
    )
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(
        "5 of 10 rows of channel 'train' are malformed (2 without an entity, 1 with a placeholder for an address, 1 "
        f"with an empty address, 1 with other text for an address): {path}, row 6: not an IPv4 address: a placeholder"
    )
    assert f"{path}, row 10: " in str(caught.value)
    found = read(path, tolerated=0.5)
    assert (len(found), found.removed.ports) == (5, 5)


def test_text_that_is_not_utf8_is_malformed(tmp_path: Path) -> None:
    names, texts = (pa.array(values).view(pa.string()) for values in ([b"a", b"b\xff"], [b"1.2.3.4", b"1.2.3.4"]))
    found = read(write(tmp_path / "a", names, texts), tolerated=0.5)
    assert (len(found), found.malformed.count) == (1, 1)


def test_an_empty_table_has_no_events(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "a", pa.array([], pa.string()), pa.array([], pa.string())))) == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((NAMES,), "has the columns 'a' (string): it must have two columns of strings"),
        ((NAMES, TEXTS, TEXTS), "the entity and the IP address, and no third"),
        ((list(range(1000)), TEXTS), "has the columns 'a' (int64), 'b' (string): "),
    ],
)
def test_a_table_of_other_columns_is_refused(tmp_path: Path, columns: tuple[object, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(write(tmp_path / "a", *columns), tolerated=1)
    assert said in str(caught.value)


def test_what_is_not_parquet_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a", NAMES, TEXTS).read_bytes()
    for harm in (b"u,1.2.3.4\n", whole[:-9], whole[:200] + bytes(400) + whole[600:]):
        (tmp_path / "b").write_bytes(harm)
        with pytest.raises(UserError, match=str(tmp_path / "b")):
            read(tmp_path / "b")
    with pytest.raises(UserError, match="No such file"):
        list(tables.batches(tmp_path / "none"))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a pipe, through which Parquet cannot be read"):
        events.read([Pipe(tmp_path / "p")], EntityIndex(10), content_type=PARQUET)


def test_without_parquet_in_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", NAMES, TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.delattr(pa, "parquet", raising=False)
    with pytest.raises(UserError, match=r"cannot read .*: this installation of pyarrow has no Parquet\. Install"):
        read(path)
