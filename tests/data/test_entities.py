from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data.entities import EntityIndex, hash_names

pytestmark = pytest.mark.usefixtures("either_way")


def column(names: list[str]) -> pa.StringArray:
    return pa.array(names, pa.string())


def test_homes_never_change_between_releases() -> None:
    names = column(["user_1", "00123", "NA", "Zoë", "", "用户"])
    assert (hash_names(names) % 20_000).tolist() == GOLDEN
    assert EntityIndex(20_000).claim(names).tolist() == GOLDEN  # nobody is in the way


GOLDEN = [
    12482,
    787,
    11745,
    9521,
    16921,
    18282,
]  # xxh64("") is 0xef46db3751d8e999 in the specification: 16921 modulo 20000


@given(st.lists(st.lists(st.text(), max_size=20), max_size=5), st.integers(1, 200))
def test_every_entity_has_a_row_of_its_own_while_there_are_rows(blocks: list[list[str]], size: int) -> None:
    index = EntityIndex(size)
    given_rows = [index.claim(column(block)).tolist() for block in blocks]
    rows: dict[str, int] = {}
    for block, found in zip(blocks, given_rows, strict=True):
        for name, row in zip(block, found, strict=True):
            assert 0 <= row < size
            assert rows.setdefault(name, row) == row
    names = list(rows)
    assert index.find(column(names)).tolist() == list(rows.values())
    if len(names) <= size:
        assert len(set(rows.values())) == len(names) == index.owned
        assert index.sharing == 0
        assert index.find(column(["nobody has seen me"])).tolist() == [size]
    else:
        assert index.owned == size
        assert index.sharing == len(names) - size
        assert index.find(column(["nobody has seen me"]))[0] < size  # it might be one of those who share


@given(st.lists(st.text(), unique=True, max_size=50), st.randoms(use_true_random=False))
def test_the_order_within_a_block_does_not_matter(names: list[str], random: Random) -> None:
    shuffled = names.copy()
    random.shuffle(shuffled)
    one, other = EntityIndex(60), EntityIndex(60)
    assert dict(zip(names, one.claim(column(names)).tolist(), strict=True)) == dict(
        zip(shuffled, other.claim(column(shuffled)).tolist(), strict=True)
    )


def test_an_index_is_its_tags() -> None:
    names = column([f"user_{i}" for i in range(150)])
    index = EntityIndex(100)
    rows = index.claim(names)
    again = EntityIndex(100, index.tags, index.sharing)
    assert (again.find(names) == rows).all()
    assert (again.owned, again.sharing) == (100, 50)


def test_entities_that_share_are_counted_once() -> None:
    index = EntityIndex(10)
    for _ in range(3):
        index.claim(column([f"user_{i}" for i in range(25)]))
    assert index.sharing == 15


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_ten_thousand_entities_find_rows(load: float) -> None:
    index = EntityIndex(int(10_000 / load))
    rows = index.claim(column([f"user_{i}" for i in range(10_000)]))
    assert len(set(rows.tolist())) == 10_000


def test_no_entity_goes_round_in_a_circle_of_few_rows() -> None:
    """A step of half the table, say, would lead back at once."""
    for batch in range(20):
        index = EntityIndex(40_000)
        index.claim(column([f"{batch} user_{i}" for i in range(20_000)]))
        assert index.sharing == 0
