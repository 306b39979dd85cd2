import io
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipinsights.data import addresses, columns, records
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.malformed import MalformedRecords
from ipinsights.data.records import parse_csv
from ipinsights.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("either_way")]

names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters='\r\n\x00"\v\f\x1c\x1d\x1e\x85\u2028\u2029'), min_size=1
)


def pairs(data: bytes, family: Family = IPV4) -> list[tuple[str, str]]:
    parsed = parse_csv(data, family)
    assert parsed.addresses.dtype == family.dtype
    return list(zip(parsed.entities.to_pylist(), addresses.render(parsed.addresses, family), strict=True))


THREE = ["1.2.3.4", "5.6.7.8", "5.6.7.9"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,1.2.3.4\n", [("a", "1.2.3.4")]),
        ("a,1.2.3.4", [("a", "1.2.3.4")]),
        ("a, 1.2.3.4 \nb,\t5.6.7.8\n", [("a", "1.2.3.4"), ("b", "5.6.7.8")]),
        ("a,1.2.3.4\r\nb,5.6.7.8\r\n", [("a", "1.2.3.4"), ("b", "5.6.7.8")]),
        ("\ufeffa,1.2.3.4\n", [("a", "1.2.3.4")]),
        ("\n  \na,1.2.3.4\n\n", [("a", "1.2.3.4")]),
        ('"a,b",1.2.3.4\n"say ""hi""","5.6.7.8"\n', [("a,b", "1.2.3.4"), ('say "hi"', "5.6.7.8")]),
        (
            "NA,1.2.3.4\nnull,1.2.3.4\n-,1.2.3.4\n00123,1.2.3.4\n",
            [(e, "1.2.3.4") for e in ("NA", "null", "-", "00123")],
        ),
        ("a, 1.2.3.4\n", [("a", "1.2.3.4")]),
        (" a b ,1.2.3.4\n", [(" a b ", "1.2.3.4")]),
        ("Zoë,1.2.3.4\n", [("Zoë", "1.2.3.4")]),
        ("a,1.2.3.4\n\ufeffb,5.6.7.8\n", [("a", "1.2.3.4"), ("b", "5.6.7.8")]),
        ('a,1.2.3.4\r\n\ufeff\ufeff"b",5.6.7.8\r\ufeffc,5.6.7.9', [(e, a) for e, a in zip("abc", THREE, strict=True)]),
        ("a,1.2.3.4\n\ufeff\n\ufeff", [("a", "1.2.3.4")]),
        ("a\ufeff,1.2.3.4\n", [("a\ufeff", "1.2.3.4")]),
        ('"\ufeffa",1.2.3.4\n', [("\ufeffa", "1.2.3.4")]),
        ('"a","1.2.3.4" \t\n', [("a", "1.2.3.4")]),
        ('"a""",1.2.3.4\n"""",1.2.3.4\n', [('a"', "1.2.3.4"), ('"', "1.2.3.4")]),
        ("", []),
        ("\n \n", []),
    ],
)
def test_what_is_read(text: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(text.encode()) == expected


@given(st.lists(st.tuples(names, st.ip_addresses(v=4).map(str)), max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_quoted_records_survive_a_round_trip(rows: list[tuple[str, str]], end: str) -> None:
    text = "".join(f'"{name}",{address}{end}' for name, address in rows)
    assert pairs(text.encode()) == rows


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a,1.2.3.4\nb,1.2.3.999\n", 2, "Octet 999"),
        ("a,1.2.3.4\n\nb\n", 3, "expected 2 columns (entity, IPv4 address), found 1"),
        ('a,1.2.3.4\n3769,"37.244.105.230, 165.225.16.83"\n', 2, "not an IPv4 address"),
        ("a,1.2.3.4,x\n", 1, "found 3"),
        (",1.2.3.4\n", 1, "the entity is empty"),
        ("a,\n", 1, "not an IPv4 address"),
        ("a,2001:db8::1\n", 1, "not an IPv4 address: an IPv6 address"),
        ("a,1.2.3.4\nb,010.2.3.4\n", 2, "Leading zeros"),
        ('a,1.2.3.4\n"b\nc",1.2.3.4\nd,1.2.3.4\n', 2, "quote"),
        ('"b,1.2.3.4\n', 1, "quote"),
        ('"alice"x,1.2.3.4\n', 1, "text behind a closing quote"),
        ('a,1.2.3.4\n"alice" ,1.2.3.4\n', 2, "text behind a closing quote"),
        ('"Smith, \\"Bob\\"",1.2.3.4\n', 1, "text behind a closing quote"),
        ('"\\"Bob\\" Smith",1.2.3.4\n', 1, "a quote within a quoted field must be written twice"),
        ('"Bob\\"",1.2.3.4\n', 1, "a quote is not closed on its line"),
        ('""x,1.2.3.4\n', 1, "text behind a closing quote"),
        ('a,"1.2.3."4\n', 1, "text behind a closing quote"),
        ('a,"1.2.3.4\n', 1, "a quote is not closed on its line"),
    ],
)
def test_a_bad_row_is_named(text: str, line: int, reason: str) -> None:
    with pytest.raises(MalformedRecords, match=r"line \d+: ") as caught:
        parse_csv(text.encode())
    fault = caught.value.faults[0]
    assert fault.position == line
    assert reason in fault.reason
    assert fault.content == text.split("\n")[line - 1][: len(fault.content)]


def test_text_that_is_not_utf8_is_named() -> None:
    with pytest.raises(MalformedRecords, match="line 2: not UTF-8 text"):
        parse_csv(b"a,1.2.3.4\nZo\xeb,1.2.3.4\n")


@given(st.lists(st.text('a", ', max_size=6).map(lambda name: f"{name},1.2.3.4"), min_size=1, max_size=4))
def test_the_fast_and_the_exact_reader_agree(lines: list[str]) -> None:
    """Whether a line is good must not depend on its neighbours, of which a bad one brings in the exact reader."""
    alone = []
    for line in lines:
        try:
            alone += pairs(line.encode())
        except MalformedRecords:
            alone.append(("bad", line))
    try:
        pairs(("\n".join(lines) + "\nx,nowhere\n").encode())
    except MalformedRecords as error:
        bad = {fault.position for fault in error.faults}
    assert bad == {number for number, pair in enumerate(alone, 1) if pair[0] == "bad"} | {len(lines) + 1}


@given(
    st.lists(st.tuples(st.text('a", ', max_size=6), st.sampled_from(["1.2.3.4", " 1.2.3.4", "x", "", "1.2.3.4,"]))),
    st.integers(1, 40),
    st.integers(1, 50),
)
def test_good_rows_are_salvaged_whatever_their_neighbours(
    rows: list[tuple[str, str]], piece: int, first_line: int
) -> None:
    """Each line is read alone; and together, in pieces of any size, they come to the same."""
    lines = [f"{name},{address}".encode() for name, address in rows]
    alone = [records.salvage_csv(line) for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_PIECE", piece)
        whole, readable, faults, _ = records.salvage_csv(b"\n".join([*lines, b"x,nowhere"]), first_line=first_line)
    assert whole.entities.to_pylist() == [name for part in alone for name in part.records.entities.to_pylist()]
    assert len(whole.addresses) == len(whole.entities) == readable.sum()
    assert readable.tolist() == [is_ for part in alone for is_ in part.readable.tolist()] + [False]
    bad = [(number, lines[number].decode()) for number, part in enumerate(alone) if part.faults]
    assert [(fault.position - first_line, fault.content) for fault in faults] == [*bad, (len(lines), "x,nowhere")]


quoted = st.builds(
    lambda name, address, behind: f"{name},{address}{behind}",
    *(st.text('"a,\\ ', max_size=8), st.sampled_from(['"1.2.3.4"', "1.2.3.4", '"1.2.3."4']), st.text(' "', max_size=2)),
)


@settings(max_examples=1000)
@given(st.lists(quoted | st.text('"a,1.234 \r\ufeff', max_size=12), max_size=4).map("\n".join))
def test_what_is_read_at_once_is_what_is_read_line_by_line(text: str) -> None:
    """Of any arrangement of quotes: the fast reader leaves to the exact one what that reads otherwise."""
    data, _ = records._without_marks(text.encode())
    fast = records._parse_faultless(data, IPV4)
    if fast is not None:
        exact = records._parse_lines(data, IPV4, 1)
        assert not exact.faults
        assert fast.records.entities.to_pylist() == exact.records.entities.to_pylist()
        assert fast.records.addresses.tolist() == exact.records.addresses.tolist()


def test_marks_are_counted() -> None:
    text = "\ufeffa,1.2.3.4\n" * 3 + "b,1.2.3.4\n\ufeff\ufeffc,1.2.3.4\nd\ufeff,1.2.3.4\n"
    for more, faults in (("", 0), ("x\n", 1)):
        salvaged = records.salvage_csv((text + more).encode())
        assert (salvaged.removed.marks, len(salvaged.faults)) == (5, faults)
        assert records.salvage_hashed((text + more).encode()).removed.marks == 5


def test_lines_are_counted_as_editors_count_them() -> None:
    text = b"a,1.2.3.4\r\r\n\rb,1.2.3.4\rc,1.2.3.4\nx,nowhere\n" * 10_000
    whole, readable, faults, _ = records.salvage_csv(text)
    assert [fault.position for fault in faults] == list(range(3, 30_001, 3))
    assert readable.tolist() == [True, True, True, False] * 10_000
    assert len(whole) == 30_000


def test_a_long_name_is_no_fault_and_a_bad_row_among_many_is_found_at_once() -> None:
    name = "n" * 200_000
    with pytest.raises(MalformedRecords) as caught:
        parse_csv(f"{name},1.2.3.4\n{'u,1.2.3.4' + chr(10)}x\n".encode() + b"u,1.2.3.4\n" * 100_000)
    assert [fault.position for fault in caught.value.faults] == [3]


def test_every_bad_row_is_known_and_the_first_are_told() -> None:
    with pytest.raises(MalformedRecords) as caught:
        parse_csv(b"a,1.2.3.4\n" + b"b,x\n" * 9)
    assert [fault.position for fault in caught.value.faults] == list(range(2, 11))
    assert str(caught.value).count("line ") == 3
    assert str(caught.value).endswith("; and 6 more")


@given(st.lists(st.tuples(names, st.ip_addresses(v=4).map(str)), max_size=30), st.integers(1, 200))
def test_a_stream_reads_as_the_whole_whatever_the_block_size(rows: list[tuple[str, str]], size: int) -> None:
    text = "".join(f'"{name}",{address}\n' for name, address in rows).encode()
    blocks = list(records.parse_stream(io.BytesIO(text), "x.csv", block_size=size))
    assert b"".join(block for block, _ in blocks) == text
    whole = records.Records.concat([part for _, part in blocks])
    assert whole.entities.to_pylist() == [name for name, _ in rows]
    assert addresses.render(whole.addresses) == [address for _, address in rows]


def test_a_stream_names_itself_and_the_line_in_the_whole() -> None:
    text = b"a,1.2.3.4\n" * 1000 + b"b,1.2.3\n"
    with pytest.raises(UserError, match=r"^part-7\.csv, line 1001: .*'b,1\.2\.3'"):
        list(records.parse_stream(io.BytesIO(text), "part-7.csv", block_size=64))


def test_pairs_of_a_request_are_checked() -> None:
    pairs = [("a", " 1.2.3.4"), ("a", 7), ("b", "5.6.7.8"), ("", "1.2.3.4"), (None, "1.2.3.4"), ("c", "::1")]
    found, readable, faults, _ = columns.salvage_pairs(pairs)
    assert found.entities == pa.array(["a", "b"])
    assert addresses.render(found.addresses) == ["1.2.3.4", "5.6.7.8"]
    assert readable.tolist() == [True, False, True, False, False, False]
    assert [fault.position for fault in faults] == [1, 3, 4, 5]
    assert "strings" in faults[0].reason
    assert "IPv6" in faults[3].reason
    assert len(columns.salvage_pairs([]).records) == 0


NAMES = ["a", None, "", "NA", "d", "e", "f", " "]
TEXTS = ["1.2.3.4", "1.2.3.4", "1.2.3.4", " 5.6.7.8\t", None, "1.2.3", "::1", "9.9.9.9"]


@pytest.mark.parametrize(
    "column",
    [
        list,
        pd.Series,
        lambda values: pd.Series(values, dtype=object),
        lambda values: pd.Series(["skipped", *values])[1:],
        lambda values: pd.concat([pd.Series(values[:3]), pd.Series(values[3:])]),
        pa.array,
        lambda values: pa.chunked_array([values[:3], values[3:]]),
        lambda values: pa.array(values, pa.large_string()),
        lambda values: pa.array(["skipped", *values])[1:],
    ],
)
def test_of_columns_the_rows_that_can_be_read_are(column: Callable[[list[str | None]], columns.Column]) -> None:
    found, readable = columns.salvage_columns(column(NAMES), column(TEXTS))
    assert readable.tolist() == [True, False, False, True, False, False, False, True]
    assert found.entities.to_pylist() == ["a", "NA", " "]
    assert addresses.render(found.addresses) == ["1.2.3.4", "5.6.7.8", "9.9.9.9"]


def test_columns_may_be_empty_or_missing_or_of_ipv6() -> None:
    for missing in (pd.Series([], dtype=object), pd.Series([None, None])):
        found, readable = columns.salvage_columns(missing, missing)
        assert (len(found), readable.tolist()) == (0, [False] * len(missing))
    found, readable = columns.salvage_columns(pd.Series(["a", "b"]), pd.Series(["2001:db8::1", "1::2::3"]), IPV6)
    assert (addresses.render(found.addresses, IPV6), readable.tolist()) == (["2001:db8::"], [True, False])


def test_of_columns_what_is_not_utf8_cannot_be_read() -> None:
    names, texts = [b"a", b"b\xff", b"c", "é".encode()], [b"1.2.3.4", b"1.2.3.4", b"1.2.3.\xff", b"5.6.7.8"]
    entities, written = (pa.array(values).view(pa.string()) for values in (names, texts))
    for family in (IPV4, IPV6):
        found, readable = columns.salvage_columns(entities, written, family)
        assert readable.tolist() == [True, False, False, True]
        assert found.entities.to_pylist() == ["a", "é"]


@pytest.mark.parametrize("column", [pd.Series([7, None]), pd.Series([7, 8]), ["a", 7]])
def test_a_column_of_numbers_is_refused(column: columns.Column) -> None:
    with pytest.raises(TypeError, match="Expected"):
        columns.salvage_columns(column, ["1.2.3.4", "1.2.3.4"])


@pytest.mark.parametrize("entities", [["a"], ["a", "b", "c"]])
def test_columns_of_two_lengths_are_refused(entities: list[str]) -> None:
    with pytest.raises((ValueError, IndexError), match=f"there are {len(entities)} entities and 2 addresses"):
        columns.salvage_columns(entities, ["1.2.3.4", "1.2.3.4"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,2001:db8::1\n", [("a", "2001:db8::")]),
        ("a, 2001:DB8:0:1:2:3:4:5 \r\nb,\t1.2.3.4\r\n", [("a", "2001:db8:0:1::"), ("b", "2002:102:304::")]),
        ('"a:b, c",::ffff:1.2.3.4\n', [("a:b, c", "2002:102:304::")]),
        ("", []),
    ],
)
def test_ipv6_is_read_and_ipv4_beside_it(text: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(text.encode(), IPV6) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("b,1::2::3", "not an IP address: At most one '::'"),
        ("b,[2001:db8::1]", "not an IP address: Only hex digits"),
        ("b,fe80::1%eth0", "zone id"),
        ("b,2001:db8::/32", "not an IP address: a network, since a mask follows"),
        ("b,1.2.3.999", "not an IP address: Octet 999"),
        ("b", "expected 2 columns (entity, IP address), found 1"),
    ],
)
def test_a_bad_row_beside_ipv6_is_named(row: str, reason: str) -> None:
    with pytest.raises(MalformedRecords) as caught:
        parse_csv(f"a,2001:db8::1\n{row}\nc,1.2.3.4\n".encode(), IPV6)
    (fault,) = caught.value.faults
    assert (fault.position, fault.content) == (2, row)
    assert reason in fault.reason


@given(st.lists(st.tuples(names, st.ip_addresses().map(str)), max_size=30), st.integers(1, 200))
def test_a_stream_of_both_versions_reads_as_the_whole(rows: list[tuple[str, str]], size: int) -> None:
    text = "".join(f'"{name}",{address}\n' for name, address in rows).encode()
    parts = [part for _, part in records.parse_stream(io.BytesIO(text), "x.csv", IPV6, block_size=size)]
    assert all(part.addresses.dtype == np.uint64 for part in parts)
    whole = records.Records.concat(parts)
    expected, _ = addresses.parse(pa.array([address for _, address in rows], pa.string()), IPV6)
    assert whole.entities.to_pylist() == [name for name, _ in rows]
    assert whole.addresses.tolist() == expected.tolist()


def test_parts_of_either_family_are_joined_in_their_type() -> None:
    for family in (IPV4, IPV6):
        parts = [parse_csv(text, family) for text in (b"", b"a,1.2.3.4\n", b"b,255.255.255.255\n")]
        whole = records.Records.concat(parts)
        assert whole.addresses.dtype == family.dtype
        assert whole.addresses.tolist() == [parts[1].addresses[0], parts[2].addresses[0]]
    assert len(records.Records.concat([])) == 0


@pytest.mark.parametrize(
    ("family", "address", "wanted"), [(IPV4, "::1", "an IPv4 address."), (IPV6, "::g", "an IP address.")]
)
def test_a_stream_says_what_each_line_must_be(family: Family, address: str, wanted: str) -> None:
    with pytest.raises(UserError, match=rf"^x\.csv, line 1: .* Each line must be an entity and {wanted}$"):
        list(records.parse_stream(io.BytesIO(f"a,{address}\n".encode()), "x.csv", family))


def test_pairs_of_a_request_may_be_of_ipv6() -> None:
    good = columns.salvage_pairs([("a", " 2001:db8::1"), ("b", "1.2.3.4")], IPV6).records
    assert addresses.render(good.addresses, IPV6) == ["2001:db8::", "2002:102:304::"]
    (fault,) = columns.salvage_pairs([("a", "::1"), ("b", "1::2::3")], IPV6).faults
    assert fault.position == 1
    assert fault.reason.startswith("not an IP address: At most one '::'")
