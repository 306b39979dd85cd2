from random import Random

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data.entities import FORGOTTEN, SHARING, UNKNOWN, EntityIndex, hash_names

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


NAMES = st.lists(st.text(), unique=True, max_size=60)
SIZES = st.sampled_from([60, 61, 256, 257, 5000])
"""Tables in which each entity tries every row, and larger ones."""


def rows_of(index: EntityIndex, names: list[str]) -> dict[str, int]:
    return dict(zip(names, index.find(column(names)).tolist(), strict=True))


@given(NAMES, SIZES, st.data())
def test_a_forgotten_entity_is_unknown_and_every_other_keeps_its_row(
    names: list[str], size: int, data: st.DataObject
) -> None:
    index = EntityIndex(size)
    rows = dict(zip(names, index.claim(column(names)).tolist(), strict=True))
    gone = data.draw(st.lists(st.sampled_from(names), unique=True) if names else st.just([]))
    before = index.tags.copy()
    later = index.without(index.own_rows(column(gone)))
    assert (index.tags == before).all()
    assert rows_of(later, names) == {name: size if name in gone else row for name, row in rows.items()}
    assert (later.owned, later.forgotten, later.sharing) == (len(names) - len(gone), len(gone), 0)
    assert set(later.own_rows(column(gone)).tolist()) <= {UNKNOWN}
    again = EntityIndex(size, later.tags, later.sharing)
    assert rows_of(again, names) == rows_of(later, names)


@given(NAMES, SIZES, st.data())
def test_forgetting_moves_nobody_who_comes_later(names: list[str], size: int, data: st.DataObject) -> None:
    """Whether the later ones claim their rows before or after, and in whatever order."""
    first = data.draw(st.integers(0, len(names)))
    known, new = names[:first], names[first:]
    gone = data.draw(st.lists(st.sampled_from(known), unique=True) if known else st.just([]))
    index = EntityIndex(size)
    index.claim(column(known))
    before = index.without(index.own_rows(column(gone)))
    before.claim(column(data.draw(st.permutations(new))))
    index.claim(column(new))
    after = index.without(index.own_rows(column(gone)))
    assert (before.tags == after.tags).all()
    assert rows_of(before, names) == rows_of(after, names)


@given(NAMES, st.sampled_from([120, 121, 257, 5000]), st.data())
def test_a_forgotten_entity_may_come_back_to_another_row(names: list[str], size: int, data: st.DataObject) -> None:
    index = EntityIndex(size)
    index.claim(column(names))
    gone = data.draw(st.lists(st.sampled_from(names), unique=True) if names else st.just([]))
    kept = [name for name in names if name not in gone]
    forgotten = index.own_rows(column(gone))
    one, other = (index.without(forgotten) for _ in range(2))
    back = dict(zip(gone, one.claim(column(gone)).tolist(), strict=True))
    other.claim(column(data.draw(st.permutations(names))))
    assert (one.tags == other.tags).all()
    assert rows_of(one, kept) == rows_of(index, kept)
    assert rows_of(one, gone) == back
    assert len({*back.values(), *rows_of(one, kept).values(), *forgotten.tolist()}) == len(names) + len(gone)
    assert (one.owned, one.forgotten, one.sharing) == (len(names), len(gone), 0)


def test_who_shares_keeps_sharing_after_others_are_forgotten() -> None:
    """Its row of its own would be new to it. And whether it is known at all cannot be told."""
    names = [f"user_{i}" for i in range(150)]
    index = EntityIndex(100)
    index.claim(column(names))
    own = index.own_rows(column(names))
    homeless = [name for name, row in zip(names, own.tolist(), strict=True) if row == SHARING]
    assert len(homeless) == 50
    assert index.own_rows(column(["nobody has seen me"])).tolist() == [SHARING]
    later = index.without(own[own >= 0][:30])
    assert (later.owned, later.forgotten, later.sharing) == (70, 30, 50)
    assert rows_of(later, homeless) == rows_of(index, homeless)
    assert later.claim(column(homeless)).tolist() == list(rows_of(index, homeless).values())
    assert later.forgotten == 30


def test_in_a_full_table_an_unknown_entity_is_known_to_be_unknown() -> None:
    index = EntityIndex(2)
    index.claim(column(["a", "b"]))
    assert index.own_rows(column(["c"])).tolist() == [UNKNOWN]


@pytest.mark.parametrize("size", [10, 1000])
def test_no_entity_has_the_tag_of_the_forgotten(size: int) -> None:
    highest = np.array([tag << 32 | 7 for tag in (FORGOTTEN, FORGOTTEN - 1, FORGOTTEN - 2)], np.uint64)
    index = EntityIndex(size)
    rows: npt.NDArray[np.int32] = index.claim_hashed(highest[[0, 2]])
    assert sorted(index.tags[index.tags > 0].tolist()) == [FORGOTTEN - 2, FORGOTTEN - 1]
    assert (index.find_hashed(highest[[0, 2]]) == rows).all()
    later = index.without(rows[:1])
    assert later.tags[rows[0]] == FORGOTTEN
    assert later.find_hashed(highest[[0, 2]]).tolist() == [size, rows[1]]
