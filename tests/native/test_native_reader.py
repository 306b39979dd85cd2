"""The kernel's reader against the exact one, xxhash and numpy: the same for every input."""

import ctypes
import io
import json
import re
from collections.abc import Callable
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipinsights import native
from ipinsights.data import instances, records
from ipinsights.data.addresses import IPV4, Addresses
from ipinsights.data.entities import FORGOTTEN, PROBES, EntityIndex, hash_names
from ipinsights.data.malformed import LONGEST_LINE, Fault, Kind
from ipinsights.data.records import (
    Block,
    Removed,
    line_blocks,
    parse_csv,
    record_lines,
)
from ipinsights.errors import UserError
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.native import reader, scoring
from ipinsights.sagemaker import media

pytestmark = [pytest.mark.slow, pytest.mark.skipif(native.library() is None, reason=native.why_absent())]

entity = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='\r\n",'), min_size=1).filter(
    lambda name: not name.startswith("\ufeff")
)
blanks = st.text(" \t", max_size=2)
moments = st.datetimes(datetime(1700, 1, 1), datetime(2199, 12, 31))
time = st.just("") | moments.map(lambda moment: f",{moment:%Y-%m-%dT%H:%M:%SZ}")
ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n\r\n"])
clean_line = st.builds(
    lambda name, before, address, after, time, end: f"{name},{before}{address}{after}{time}{end}".encode(),
    *(entity, blanks, st.ip_addresses(v=4), blanks, time.filter(lambda text: "-02-29T" not in text), ends),
)
TIMES = [
    *("2026-01-02T03:04:05Z", '"2026-01-02T03:04:05Z"', " 2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z ", "2026-01-31"),
    *("2026-01-02T03:04:05", "2026-01-02 03:04:05+01:00", "2026-01-02T03:04:05.25Z", "1770000000", "2026-01-02T03:04"),
    *("2026-02-29T03:04:05Z", "2024-02-29T03:04:05Z", "2026-04-31T03:04:05Z", "2026-13-01T00:00:00Z"),
    *("2026-00-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-02T24:00:00Z", "2026-01-02T03:60:05Z"),
    *("2026-01-02T03:04:60Z", "0001-01-02T03:04:05Z", "2026-01-02T03:04:05Zx", "2026-01-02T03:04:05Z,x"),
]
dirty = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [
            b'"a",1.2.3.4\n',
            b'"a,b",1.2.3.4\n',
            b'a,"1.2.3.4"\n',
            b'"a\n',
            b'"',
            b"a,1.2.3.4,\n",
            b"a\n",
            b",1.2.3.4\n",
            b"a,\n",
            b"a,1.2.3.4\r",
            b"a,1.2.3.4\r\r\n",
            b"a\rb,1.2.3.4\n",
            b"\r",
            b" \n",
            b"\x0b\n",
            b" a,1.2.3.4\n",
            b"a\x00b,1.2.3.4\n",
            b"a\x1cb\xc2\x85c\xe2\x80\xa8,1.2.3.4\n",
            b"a,1.2.3.4\x0b\n",
            b"a,1.2.3.4\x00\n",
            b"\xef\xbb\xbf",
            b"\xef\xbb\xbfa,1.2.3.4\n",
            b"\xef\xbb\xbf\xef\xbb\xbfa,1.2.3.4\r\n",
            b'\xef\xbb\xbf"a",1.2.3.4\n',
            b"\xef\xbb\xbf\n",
            b"\xef\xbb\xbf\r",
            b"\xef\xbb,1.2.3.4\n",
            b"a\xef\xbb\xbf,1.2.3.4\n",
            b'"a"x,1.2.3.4\n',
            b'"a" ,1.2.3.4\n',
            b'a,"1.2.3.4" \n',
            b'a,"1.2.3."4\n',
            b'a"b,1.2.3.4\n',
            b'"a""b""",1.2.3.4\n',
            b'"Smith, \\"Bob\\"",1.2.3.4\n',
            b"\xed\xa0\x80,1.2.3.4\n",  # a surrogate
            b"\xc0\x80,1.2.3.4\n",  # longer than need be
            b"\xe0\x80\x80,1.2.3.4\n",
            b"\xf0\x80\x80\x80,1.2.3.4\n",
            b"\xf4\x90\x80\x80,1.2.3.4\n",  # beyond the last character
            b"\xe2\x80,1.2.3.4\n",
            b"a,::1\n",
            b"a,::ffff:1.2.3.4\n",
            b"a,1.2.3.4:443\n",
            b"a,1.2.3.4:65536\n",
            b"a,[2001:db8::1]:443\n",
            b"a,[::ffff:1.2.3.4]:443\n",
            b"a,1.2.3.4, 5.6.7.8\n",
            b"a,ec2.amazonaws.com\n",
            b"a,NULL\n",
            b"a,1.2.3.256\n",
            b"a,256.2.3.4\n",
            b"a,999.2.3.4\n",
            b"a,1.2.3.04\n",
            b"a,00.2.3.4\n",
            b"a,1.2.3.1000\n",
            b"a,1234.2.3.4\n",
            b"a,1.2.3\n",
            b"a,1.2.3.\n",
            b"a,1..2.3\n",
            b"a,1.2.3.4.5\n",
            b"a,1.2.3.4 5\n",
            b"a,1.2. 3.4\n",
            b"a,+1.2.3.4\n",
            b"a,1.2.3./\n",
            b"a,1.2.3.:\n",
            *(f"a,1.2.3.4,{time}\n".encode() for time in TIMES),
        ]
    ),
)
mixture = st.lists(clean_line | dirty, max_size=8).map(b"".join)
number = st.sampled_from([0, 1, 9, 10, 25, 99, 100, 199, 200, 249, 250, 255, 256, 260, 300, 999, 1000, 2550])
octet = st.builds("{}{}".format, st.sampled_from(["", "", "", "0", " "]), number)


@st.composite
def almost_clean(draw: st.DrawFn) -> bytes:
    """Clean lines of which one byte is another, or missing, or one too many."""
    text = bytearray(b"".join(draw(st.lists(clean_line, min_size=1, max_size=4))))
    at = draw(st.integers(0, len(text) - 1))
    text[at : at + draw(st.integers(0, 1))] = draw(st.binary(max_size=1) | st.sampled_from([b",", b".", b"\r", b'"']))
    return bytes(text)


Outcome = tuple[list[int], list[int], dict[int, Fault], Removed]


def outcome(block: Block) -> Outcome:
    (digests, addresses), faults, removed = block.salvage(IPV4)
    assert (digests.dtype, addresses.dtype) == (np.dtype(np.uint64), np.dtype(np.uint32))
    return digests.tolist(), addresses.tolist(), faults, removed


def without_kernel(block: Block) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return outcome(block)


@given(st.lists(clean_line, max_size=20).map(b"".join), st.booleans())
def test_clean_lines_are_read_natively(text: bytes, last_line_ends: bool) -> None:
    text = text if last_line_ends else text.rstrip(b"\r\n")
    parsed = reader.read_lines(text)
    assert parsed is not None
    exact = parse_csv(text)
    assert parsed[0].tolist() == [xxhash.xxh64_intdigest(name.encode()) for name in exact.entities.to_pylist()]
    assert parsed[1].tolist() == exact.addresses.tolist()


@settings(max_examples=1000)
@given(mixture | almost_clean() | st.binary())
def test_any_bytes_are_read_as_the_exact_reader_reads_them(text: bytes) -> None:
    block = Block("x.csv", 1, text)
    assert outcome(block) == without_kernel(block)


LONG = [f"{'n' * (LONGEST_LINE + more - len(',1.2.3.4'))},1.2.3.4".encode() for more in (-1, 0, 1, 5)]


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from([*LONG, b" " * 2 * LONGEST_LINE, b"\xef\xbb\xbf" + LONG[1], b"a,1.2.3.4", b"x"]), max_size=4
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([1 << 14, 1 << 20, 1 << 22]),
)
def test_lines_about_the_longest_are_read_alike_whatever_the_block_size(
    lines: list[bytes], end: bytes, size: int
) -> None:
    """A line may have 1 MB: those that have are read, and others are malformed, by each reader."""
    text = b"".join(line + end for line in lines)
    expected = [
        len(line.removeprefix(b"\xef\xbb\xbf")) <= LONGEST_LINE and line != b"x" for line in lines if line.strip()
    ]
    for read in (outcome, without_kernel):
        found = [read(block) for block in line_blocks(io.BytesIO(text), "x.csv", size)]
        rows = [len(digests) + len(faults) for digests, _, faults, _ in found]
        readable = [i not in faults for (_, _, faults, _), n in zip(found, rows, strict=True) for i in range(n)]
        assert readable == expected
        kinds = {fault.kind for _, _, faults, _ in found for fault in faults.values()}
        assert kinds <= {Kind.TOO_LONG, Kind.TOO_FEW}


@given(st.lists(st.sampled_from([-2, -1, 0, 1, 2]), min_size=1, max_size=3), st.text(" \t\r", max_size=3))
@settings(max_examples=30)
def test_lines_of_json_about_the_longest_are_read_alike(lengths: list[int], blanks: str) -> None:
    bare = len('["","1.2.3.4"]')
    lines = [f'{blanks}["{"n" * (LONGEST_LINE + more - bare - len(blanks))}","1.2.3.4"]' for more in lengths]
    text = "\n".join(lines).encode()
    clean = reader.read_instances(text, lines=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        exact = instances.salvage_lines(text, IPV4)
    assert {i: fault.kind for i, fault in exact.faults.items()} == {
        i: Kind.TOO_LONG for i, more in enumerate(lengths) if more > 0
    }
    assert (clean is None) == bool(exact.faults)
    if clean:
        assert clean[0].tolist() == exact.pairs.digests.tolist()


@settings(max_examples=1000)
@given(st.lists(octet, min_size=3, max_size=5).map(".".join))
def test_any_numbers_are_read_as_the_exact_reader_reads_them(address: str) -> None:
    block = Block("x.csv", 1, f"a,{address}\nb,1.2.3.4\n".encode())
    assert outcome(block) == without_kernel(block)


@given(mixture, st.integers(1, 40))
def test_the_readers_agree_whatever_the_block_size(text: bytes, size: int) -> None:
    blocks = list(line_blocks(io.BytesIO(text), "x.csv", size))
    assert b"".join(block.text for block in blocks) == text
    assert [outcome(block) for block in blocks] == [without_kernel(block) for block in blocks]


@given(mixture, st.integers(1, 40))
def test_a_stream_is_hashed_as_it_is_parsed(text: bytes, size: int) -> None:
    for block in line_blocks(io.BytesIO(text), "x.csv", size):
        found = block.salvage(IPV4)
        if found.faults:
            with pytest.raises(UserError, match=re.escape(str(block.error([*found.faults.values()], IPV4)))):
                block.parse(IPV4)
        else:
            assert [*map(list, found.pairs)] == [*map(list, block.parse(IPV4).hashed())]


pieces = [b"\n", b"\r", b" ", b"\t", b"\v", b"\f", b"\x1c", b"\xc2\x85", b"\xef\xbb\xbf", b"a", b","]
any_text = mixture | almost_clean() | st.lists(st.sampled_from(pieces)).map(b"".join) | st.binary()


@settings(max_examples=1000)
@given(any_text, st.data())
def test_scores_are_put_behind_lines_as_without_the_kernel(text: bytes, data: st.DataObject) -> None:
    count = sum(1 for _ in record_lines(text))
    drawn = data.draw(st.lists(st.floats(width=32), min_size=count, max_size=count))
    scores = np.array(drawn, dtype=np.float32)
    scored = scoring.append_scores(text, scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        assert scored == records.append_scores(text, scores)


def test_a_score_is_written_as_python_writes_it() -> None:
    exponents = np.arange(-46, 39)
    powers = np.concatenate([[0.0], 10.0**exponents]).astype("f4")
    special = np.concatenate([powers, np.nextafter(powers, np.float32(-1)), [999999999.5, np.inf, np.nan]]).astype("f4")
    drawn = np.random.default_rng(0).integers(1 << 32, size=100_000, dtype=np.uint32).view("f4")
    scores = np.concatenate([special, -special, drawn])
    written = scoring.append_scores(b"a\n" * len(scores), scores)
    assert written is not None
    assert bytes(written).splitlines() == [b"a,%.9g" % score for score in scores.tolist()]


@pytest.mark.parametrize("text", [b"", b"a\n", b"a\n\nb", b"\n" * 9])
def test_as_many_scores_as_lines_are_wanted(text: bytes) -> None:
    count = len(text.split())
    for scores in (np.zeros(count + 1, np.float32), np.zeros(max(0, count - 1), np.float32)):
        if len(scores) != count:
            assert scoring.append_scores(text, scores) is None
            with pytest.raises(ValueError, match="zip"):
                records.append_scores(text, scores)


def test_an_address_at_the_very_end_of_the_text_is_read_and_nothing_behind_it() -> None:
    for address in ("1.2.3.4", "255.255.255.255"):
        for text in (f"a,{address}", f"a,{address} ", f"a,{address}\r\n"):
            parsed = reader.read_lines(text.encode())
            assert parsed is not None
            assert parsed[1].tolist() == parse_csv(text.encode()).addresses.tolist()
        for short in (address.rpartition(".")[0], address.rpartition(".")[0] + "."):
            assert reader.read_lines(f"a,{short}".encode()) is None


@given(st.lists(st.text()))
@example(["", "a" * 31, "b" * 32, "c" * 33, "d" * 64, "e" * 1000])
def test_the_hash_is_xxh64(texts: list[str]) -> None:
    digests = reader.hash_texts(pa.array(texts, pa.string()))
    assert digests is not None
    assert digests.tolist() == [xxhash.xxh64_intdigest(text.encode(), 0) for text in texts]


def test_the_hash_is_xxh64_at_every_length() -> None:
    texts = pa.array(["0123456789abcdefghijklmnopqrstuvwxyz"[i % 7 :] * 4 for i in range(7)], pa.string())
    for length in range(130):
        cut = pa.compute.utf8_slice_codeunits(texts, 0, length)
        digests = reader.hash_texts(cut[2:])  # a slice, whose offsets do not begin at 0
        assert digests is not None
        assert digests.tolist() == [xxhash.xxh64_intdigest(text.encode(), 0) for text in cut.to_pylist()[2:]]


def claim_and_find(
    num_rows: int, blocks: list[npt.NDArray[np.uint64]], others: npt.NDArray[np.uint64]
) -> tuple[list[list[int]], list[int], int, list[int]]:
    index = EntityIndex(num_rows)
    claimed = [index.claim_hashed(block).tolist() for block in blocks]
    return claimed, index.tags.tolist(), index.sharing, index.find_hashed(others).tolist()


# Digests with equal tags, equal homes, tag 0 and the last ones, besides any.
tag = st.integers(0, 3) | st.integers(FORGOTTEN - 2, FORGOTTEN)
digest = st.integers(0, 2**64 - 1) | st.builds(lambda tag, home: tag << 32 | home, tag, st.integers(0, 9))
digests = st.lists(digest, max_size=60).map(lambda values: np.array(values, np.uint64))


@settings(max_examples=300)
@given(st.integers(1, 600), st.lists(digests, max_size=4), digests)
def test_any_entities_claim_the_same_rows_without_the_kernel(
    num_rows: int, blocks: list[npt.NDArray[np.uint64]], others: npt.NDArray[np.uint64]
) -> None:
    with_kernel = claim_and_find(num_rows, blocks, others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        assert claim_and_find(num_rows, blocks, others) == with_kernel


@settings(max_examples=300)
@given(st.integers(1, 600), digests, st.data(), digests)
def test_any_entities_are_forgotten_alike_without_the_kernel(
    num_rows: int, known: npt.NDArray[np.uint64], data: st.DataObject, others: npt.NDArray[np.uint64]
) -> None:
    index = EntityIndex(num_rows)
    index.claim_hashed(known)
    gone = data.draw(st.lists(st.sampled_from(np.flatnonzero(index.tags).tolist()), unique=True)) if len(known) else []
    both = np.concatenate([known, others])
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            later = index.without(np.array(gone, np.int64))
            found = later.find_hashed(both).tolist()
            results.append((found, later.claim_hashed(others).tolist(), later.tags.tolist(), later.sharing))
            patch.setattr(native, "library", lambda: None)
    assert results[0] == results[1]


@pytest.mark.parametrize("num_rows", [255, 256, 257, 5000])
@pytest.mark.parametrize("load", [0.5, 0.99, 1.5])
def test_many_entities_claim_the_same_rows_without_the_kernel(
    num_rows: int, load: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    entities = rng.integers(2**64 - 1, size=int(load * num_rows), dtype=np.uint64)
    blocks = np.array_split(rng.choice(entities, 3 * len(entities)), 5)
    others = np.concatenate([entities, rng.integers(2**64 - 1, size=1000, dtype=np.uint64)])
    with_kernel = claim_and_find(num_rows, blocks, others)
    monkeypatch.setattr(native, "library", lambda: None)
    assert claim_and_find(num_rows, blocks, others) == with_kernel


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_an_address_is_in_the_last_interval_that_begins_at_or_below_it(dtype: type[np.unsignedinteger]) -> None:
    rng = np.random.default_rng(0)
    highest = np.iinfo(dtype).max
    for count in (1, 2, 3, 7, 8, 100, 1000):
        drawn = rng.integers(highest, size=count - 1, dtype=dtype, endpoint=True)
        starts: Addresses = np.unique(np.append(drawn, dtype(0)))
        values = rng.integers(1000, size=len(starts), dtype=np.int32)
        near = np.concatenate([starts, starts[1:] - dtype(1), starts + dtype(1)])
        anywhere = rng.integers(highest, size=500, dtype=dtype)
        queries: Addresses = np.concatenate([near, anywhere, [highest]]).astype(dtype)
        expected: npt.NDArray[np.int32] = values[np.searchsorted(starts, queries, side="right") - 1]
        found = reader.find_intervals(starts, values, queries)
        assert found is not None
        assert found.tolist() == expected.tolist()
        some = reader.find_intervals(starts, values, queries[::2])
        assert some is not None
        assert some.tolist() == expected[::2].tolist()


def test_arrays_of_another_type_are_refused() -> None:
    with pytest.raises(Exception, match="an array of uint64 without gaps is needed, not of int64"):
        reader.find_rows(np.zeros(4, np.uint32), 4, np.zeros(3, np.int64))
    with pytest.raises(Exception, match="an array of uint32 without gaps"):
        Vocabulary.build(np.arange(9, dtype=np.uint32)).leaves(np.arange(9, dtype=np.int64))  # type: ignore[arg-type]  # as it must be


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
texts = st.one_of(
    st.ip_addresses(v=4).map(str), st.sampled_from(["1.2.3", "01.2.3.4", " 1.2.3.4\t", "::1", "", "1.2.3.4 5"])
)
values = st.tuples(names, texts).map(list)
others = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)
extra = st.dictionaries(names | st.sampled_from(["features", "data", "values", "instances"]), others, max_size=2)


def mixed(*objects: dict[str, object]) -> st.SearchStrategy[dict[str, object]]:
    """An object with the members of some, the last of which count, in any order."""
    members = [member for each in objects for member in each.items()]
    return st.permutations(members).map(lambda found: dict(found) | objects[-1])


def shapes(pair: list[object], more: dict[str, object]) -> st.SearchStrategy[object]:
    inner = mixed(more, {"values": pair}).flatmap(lambda found: mixed(more, {"features": found}))
    return st.one_of(
        st.just(pair),
        mixed({"features": pair}),
        mixed(more, {"features": pair}),
        mixed({"data": {"features": {"values": pair}}}),
        inner.flatmap(lambda found: mixed(more, {"data": found})),
        st.sampled_from([{"data": pair}, {"features": [*pair, "more"]}, {"features": [pair[0], 7]}, {}]),
    )


shaped = st.tuples(values, extra).flatmap(lambda both: shapes(*both))
spaced = st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")])


def assert_read_as_exactly(body: bytes, lines: bool) -> bool:
    """What the native reader makes of a body is what the exact one makes of it, or nothing; whether it is something."""
    found = reader.read_instances(body, lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "read_instances", lambda *_, **__: None)
        try:
            exact = media.read("application/jsonlines" if lines else "application/json", body, IPV4)
        except UserError:
            assert found is None
            return False
    if exact.faults:
        assert found is None
    if found is not None:
        assert found[0].tolist() == exact.pairs.digests.tolist()
        assert found[1].tolist() == exact.pairs.addresses.tolist()
    return found is not None


@given(
    st.lists(shaped, max_size=5),
    spaced,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", " ", "\n", "\r\n", ",", "]}", "x"]),
)
@settings(max_examples=500)
def test_clean_instances_are_read_as_the_exact_reader_reads_them(
    instances: list[object], separators: tuple[str, str], ascii_: bool, lines: bool, end: str
) -> None:
    def dumps(value: object) -> str:
        return json.dumps(value, separators=separators, ensure_ascii=ascii_)

    text = "\n".join(map(dumps, instances)) if lines else dumps({"instances": instances})
    assert_read_as_exactly((text + end).encode(), lines)


INSTANCES = [
    '{"features": ["a\\u00eb\\ud83d\\ude00\\n", "1.2.3.4"], "id": -12.50}',
    '{"when":"2026\\/01", "data": {"features": {"x": [], "values": ["b", "5.6.7.8"]}}, "y": {"z": [1, {"q": null}]}}',
    '["c", "9.9.9.9"]',
    '{"data": "x", "features": ["", "1.2.3.4"]}',
    '{"features": ["d", "1.2.3.4"], "features": ["e", "1.2.3.5"]}',
    '{"features": ["d", "1.2.3.4"], "data": {"features": {"values": ["e", "1.2.3.5"]}}}',
    '{"k": 1e5, "t": true, "features": ["f", "1.2.3.4"]}',
]
CLEAN = [True, True, True, False, False, True, False]
"""Whether the native reader takes them: not an empty name, not two names of the same key, no exponent."""
SOUP = [
    *'"\\{}[]:,',
    *"0123456789.-+eE",
    *" \t\r\n",
    "\\u",
    "\\ud800",
    "\\udc00",
    "null",
    "tru",
    "x",
    "é",
    "\xff",
    "\0",
    '"data":',
    '"values":',
]


@pytest.mark.parametrize("lines", [True, False])
def test_instances_with_other_members_and_escapes_are_clean(lines: bool) -> None:
    """Or a request with an id in each would be read slowly."""
    bodies = [text if lines else f'{{"instances": [{text}]}}' for text in INSTANCES]
    assert [assert_read_as_exactly(body.encode(), lines) for body in bodies] == CLEAN


@given(
    st.lists(st.sampled_from(INSTANCES), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(SOUP)), max_size=3),
)
@settings(max_examples=1500)
def test_whatever_becomes_of_instances_they_are_read_as_the_exact_reader_reads_them(
    instances: list[str], lines: bool, changes: list[tuple[int, int, str]]
) -> None:
    text = "\n".join(instances) if lines else '{"instances": [' + ", ".join(instances) + "]}"
    for at, removed, put in changes:
        text = text[: at % len(text)] + put + text[at % len(text) + removed :]
    assert_read_as_exactly(
        text.encode("utf-8", "surrogateescape") if "\xff" not in text else text.encode("latin-1", "replace"), lines
    )


@pytest.mark.parametrize("lines", [True, False])
def test_what_people_send_is_clean(lines: bool) -> None:
    """Or it would be read slowly."""
    instances = [
        {"features": ["Zoë", "1.2.3.4"], "id": 17, "when": "2026-01-01T00:00:00Z"},
        {"data": {"features": {"values": ["b", "5.6.7.8"]}}, "agent": {"os": ["x", None, 1.5]}},
        ["c", "9.9.9.9"],
    ]
    for indent in (None, 1):
        if lines and indent:
            continue
        text = "\n".join(map(json.dumps, instances)) if lines else json.dumps({"instances": instances}, indent=indent)
        found = reader.read_instances(text.encode(), lines)
        assert found is not None
        assert found[0][0] == xxhash.xxh64_intdigest("Zoë".encode(), 0)
        assert found[1].tolist() == [0x01020304, 0x05060708, 0x09090909]


def scored(
    entity: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    ip: npt.NDArray[np.float32],
    leaves: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32]:
    """By the kernel, which is there."""
    scores = scoring.score_pairs(entity, rows, ip, leaves)
    assert scores is not None
    return scores


@pytest.mark.parametrize("dim", [1, 7, 16, 128, 500])
def test_scores_are_inner_products_whatever_their_company(dim: int) -> None:
    rng = np.random.default_rng(0)
    entity, ip = rng.standard_normal((50, dim)).astype("f4"), rng.standard_normal((30, dim)).astype("f4")
    rows, leaves = rng.integers(50, size=1000).astype("i4"), rng.integers(30, size=1000).astype("i4")
    scores = scored(entity, rows, ip, leaves)
    exact = (entity[rows].astype("f8") * ip[leaves]).sum(1)
    np.testing.assert_allclose(scores, exact, atol=1e-5 * dim**0.5)
    one_by_one = [scored(entity, rows[i : i + 1], ip, leaves[i : i + 1])[0] for i in range(100)]
    assert one_by_one == scores[:100].tolist()


@pytest.mark.parametrize(("dim", "levels", "count"), [(1, 1, 1), (7, 3, 50), (128, 9, 1000), (64, 12, 0)])
def test_rows_are_summed_in_their_order(dim: int, levels: int, count: int) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, dim)).astype("f4")
    rows = rng.integers(50, size=(count, levels)).astype("i4")
    expected = table[rows[:, 0]]
    for level in range(1, levels):
        expected = expected + table[rows[:, level]]
    sums = scoring.sum_rows(table, rows)
    assert sums is not None
    assert (sums == expected).all()


@pytest.mark.parametrize(("dim", "count"), [(1, 1), (7, 50), (128, 1000), (64, 0)])
@pytest.mark.parametrize("library", [native.library, lambda: None], ids=["kernel", "numpy"])
def test_rows_are_added_in_their_order(
    library: Callable[[], object], dim: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    sums, values = (rng.standard_normal((n, dim)).astype("f4") for n in (9, count))
    rows = rng.integers(9, size=count).astype("i4")
    expected = sums.copy()
    for row, value in zip(rows, values, strict=True):
        expected[row] += value
    monkeypatch.setattr(native, "library", library)
    scoring.add_rows(sums, rows, values)
    assert (sums == expected).all()


def test_rows_in_another_layout_are_left_to_numpy() -> None:
    table, rows = np.ones((9, 2, 5), "f4"), np.zeros((4, 3), "i4")
    for other in (
        (table[:, 0], rows),
        (table[:, 0].astype("f8"), rows),
        (table[0], rows[:, :2]),
        (table[0], rows * 1.0),
    ):
        assert scoring.sum_rows(*other) is None


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2**32 - 1)), max_size=80),
    st.integers(1, 40),
    st.integers(0, 60),
    st.sampled_from([np.uint32, np.uint64]),
    st.integers(1, 40),
)
def test_in_one_call_a_score_is_what_it_is_in_three(
    pairs: list[tuple[int, int]], num_rows: int, known: int, kind: type[np.unsignedinteger], dim: int
) -> None:
    """Of entities with a row, without one, and with one that they share; in more pairs than are scored at once, too."""
    rng = np.random.default_rng(0)
    index = EntityIndex(num_rows)
    index.claim(pa.array([str(i) for i in range(known)], pa.string()))
    entity, ip = (rng.standard_normal((n, dim)).astype("f4") for n in (num_rows + 1, 9))
    starts = np.concatenate([[0], np.sort(rng.integers(1, 2**32, size=8))]).astype(kind)
    values = rng.permutation(9).astype("i4")
    score = scoring.PairScorer(index.tags, PROBES, index.sharing > 0, (starts, values), entity, ip)
    for times in (1, 40):
        digests = hash_names(pa.array([str(name) for name, _ in pairs * times], pa.string()))
        addresses = np.array([address for _, address in pairs * times], dtype=kind)
        leaves = reader.find_intervals(starts, values, addresses)
        assert leaves is not None
        rows = index.find_hashed(digests)
        for found, expected in zip(
            score(digests, addresses), (scored(entity, rows, ip, leaves), rows, leaves), strict=True
        ):
            assert (found == expected).all()


def test_an_array_of_another_type_or_with_gaps_is_refused() -> None:
    for wrong in (np.zeros(4, np.int64), np.zeros((4, 4), np.uint32).T[1:], np.zeros(8, np.uint32)[::2]):
        with pytest.raises(ctypes.ArgumentError, match="without gaps"):
            reader.find_rows(wrong, 8, np.zeros(1, np.uint64))  # type: ignore[arg-type]  # as it must be
