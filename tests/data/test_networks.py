import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6
from ipinsights.data.networks import Networks
from ipinsights.errors import UserError
from ipinsights.model.vocabulary import Vocabulary

TABLE = (
    "1.0.0.0\t1.0.0.255\t13335\tUS\tCLOUDFLARENET\n"
    "1.0.1.0\t1.0.3.255\t0\tNone\tNot routed\n"
    "1.0.4.0\t1.0.7.255\t56203\tNA\tNamibia is no missing value\n"
)
IPV6_TABLE = "2001:200::\t2001:200:5ff:ffff:ffff:ffff:ffff:ffff\t2500\tJP\tWIDE\n"


def write(folder: Path, **files: str) -> list[Path]:
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def test_text_and_integers_and_gzip_read_the_same(tmp_path: Path) -> None:
    numbers = "16777216\t16777471\t13335\tUS\tA\n16777472\t16778239\t0\t-\tB\n16778240\t16779263\t56203\tNA\tC\n"
    (tmp_path / "u32.tsv.gz").write_bytes(gzip.compress(numbers.encode()))
    for path in [*write(tmp_path, text=TABLE), tmp_path / "u32.tsv.gz"]:
        table = Networks.read([path], IPV4)
        assert addresses.render(table.first) == ["1.0.0.0", "1.0.1.0", "1.0.4.0"]
        assert addresses.render(table.last) == ["1.0.0.255", "1.0.3.255", "1.0.7.255"]
        provider, country = table.labels
        assert provider.tolist() == [13335, 0, 56203]
        names = [code.to_bytes(2, "big").decode() for code in country.tolist()]
        assert names == ["US", "\0\0", "NA"]


def test_a_family_takes_its_ranges_of_several_tables(tmp_path: Path) -> None:
    files = write(tmp_path, v4=TABLE, v6=IPV6_TABLE)
    assert len(Networks.read(files, IPV4)) == 3
    both = Networks.read(files, IPV6)
    assert len(both) == 4
    inside = np.array([0x2001_0200_05FF_FFFF, 0x2001_0200_0600_0000, 0x2002_0100_00FF_0000], np.uint64)
    assert [both.labels[0, i] if i >= 0 else None for i in both.find(inside)] == [2500, None, 13335]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a table of networks"),
        ("1.0.0.0,1.0.0.255,1,US\n", "not a table of networks"),
        ("1.0.0.9\t1.0.0.0\t1\tUS\n", "a range ends before it begins"),
        ("1.0.0.0\t1.0.0.256\t1\tUS\n", r"line 1: '1\.0\.0\.256' is not an address"),
        (TABLE + "1.0.9.0\t1.0.9.9\tAS5\tUS\n", "line 4: 'AS5' is not an AS number"),
        (TABLE + "1.0.7.0\t1.0.9.9\t5\tUS\n", r"from 1\.0\.4\.0 and from 1\.0\.7\.0 overlap"),
        (IPV6_TABLE, "the table has no IPv4 range"),
        ("4294967296\t4294967297\t5\tUS\n", "must be IPv4"),
    ],
)
def test_what_is_no_table_is_told_with_its_file(tmp_path: Path, text: str, complaint: str) -> None:
    files = write(tmp_path, table=text)
    with pytest.raises(UserError, match=complaint) as caught:
        Networks.read(files, IPV4)
    assert str(files[0]) in str(caught.value)


def test_ranges_that_meet_inside_a_64_are_parted(tmp_path: Path) -> None:
    table = "2001:1::\t2001:1::7\t1\tUS\n2001:1::8\t2001:1::f\t2\tUS\n2001:1::10\t2001:1:0:5::\t3\tUS\n"
    read = Networks.read(write(tmp_path, table=table), IPV6)
    assert addresses.render(read.first, IPV6) == ["2001:1::", "2001:1:0:1::"]
    assert read.labels[0].tolist() == [1, 3]


ranges = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12
)  # length, provider, country


@given(ranges, st.lists(st.integers(0, 400), min_size=1, max_size=40), st.lists(st.integers(0, 600), max_size=40))
def test_an_address_has_the_rows_of_its_provider_and_country(
    drawn: list[tuple[int, int, int]], training: list[int], queries: list[int]
) -> None:
    """Whatever the ranges are, and with the prefixes' rows unchanged; a label met twice is known."""
    table: dict[int, tuple[int, int]] = {}
    first, last, labels, start = [], [], [], 0
    for length, provider, country in drawn:
        first.append(start)
        last.append(start + length)
        labels.append((provider, country))
        table |= dict.fromkeys(range(start, start + length + 1), (provider, country))
        start += length + 1 + provider  # gaps, too
    given_table = Networks(np.array(first, np.uint32), np.array(last, np.uint32), np.array(labels, np.uint32).T)
    trained, asked = np.array(training, np.uint32), np.array(queries + training, np.uint32)
    plain = Vocabulary.build(trained, levels=(8, 24, 28))
    vocabulary = Vocabulary.build(trained, networks=given_table, levels=(8, 24, 28))
    chains = vocabulary.chains[vocabulary.leaves(asked)]
    plain_chains = plain.chains[plain.leaves(asked)]
    assert np.where(chains[:, :3] >= 5, chains[:, :3] - 2, chains[:, :3]).tolist() == plain_chains.tolist()
    row = 5 + len(plain.prefixes)
    for kind in range(2):
        met = [table.get(address, (0, 0))[kind] for address in training]
        known = sorted({label for label in met if label and met.count(label) >= 2})
        rows = {label: row + i for i, label in enumerate(known)}
        expected = [rows.get(table.get(address, (0, 0))[kind], 3 + kind) for address in asked.tolist()]
        assert chains[:, 3 + kind].tolist() == expected
        assert vocabulary.row_counts[row : row + len(known)].tolist() == [met.count(label) for label in known]
        row += len(known)
    assert vocabulary.num_rows == row


def test_what_travels_is_what_is_needed() -> None:
    first = np.arange(0, 100, 10, dtype=np.uint32)
    labels = np.array([[1, 1, 2, 2, 3, 3, 4, 4, 5, 5], [9] * 5 + [8] * 5], np.uint32)
    kept = Networks(first, first + np.uint32(9), labels).restrict(
        [np.array([1, 3], np.uint32), np.array([8], np.uint32)]
    )
    assert kept.first.tolist() == [0, 40, 50, 60]
    assert kept.last.tolist() == [19, 49, 59, 99]
    assert kept.labels.tolist() == [[1, 3, 3, 0], [0, 0, 8, 8]]
