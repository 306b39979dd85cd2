"""Histories against plain dictionaries from (entity, address) to a count."""

import collections
import functools
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.model.history import History, cut

Pairs = list[tuple[int, int]]
Plain = Mapping[tuple[int, int], int]

families = st.sampled_from([IPV4, IPV6])
ROWS = (0, 1, 2, 7, 2**31 - 2)


@st.composite
def pairs_of(draw: st.DrawFn, family: Family, least: int = 0) -> Pairs:
    """Events of few entities at few addresses, so that they repeat, the extreme ones among them."""
    last = (1 << family.width) - 1
    address = st.sampled_from([0, 1, 2, 255, 256, last // 2, last // 2 + 1, last - 1, last]) | st.integers(0, last)
    return draw(st.lists(st.tuples(st.sampled_from(ROWS), address), min_size=least, max_size=30))


with_pairs = families.flatmap(lambda family: st.tuples(st.just(family), pairs_of(family)))
with_two = families.flatmap(lambda family: st.tuples(st.just(family), pairs_of(family), pairs_of(family)))


def history_of(pairs: Pairs, family: Family, length: int | None = None) -> History:
    entity = np.array([entity for entity, _ in pairs], np.int32)
    address = np.array([address for _, address in pairs], family.dtype)
    return History.of(Events(entity, address, EntityIndex(1)), family, length)


def short(address: int, family: Family, length: int) -> int:
    """With all bits beyond the first ones 0, as text would say it."""
    return int(f"{address:0{family.width}b}"[:length].ljust(family.width, "0"), 2)


def plain(pairs: Iterable[tuple[int, int]], family: Family, length: int) -> Plain:
    return collections.Counter((entity, short(address, family, length)) for entity, address in pairs)


def check(history: History, expected: Plain, family: Family, length: int) -> None:
    """All that a history says is what the dictionary says, in the promised order and types."""
    ordered = sorted(expected)
    assert len(history) == len(expected)
    assert history.length == length
    assert list(zip(history.entities.tolist(), history.addresses.tolist(), strict=True)) == ordered
    assert history.counts.tolist() == [expected[pair] for pair in ordered]
    assert history.rows.tolist() == sorted({entity for entity, _ in expected})
    assert history.starts.tolist() == [
        *(next(i for i, (entity, _) in enumerate(ordered) if entity == row) for row in history.rows.tolist()),
        len(ordered),
    ]
    types = [array.dtype for array in (history.rows, history.starts, history.addresses, history.counts)]
    assert types == [np.int32, np.int64, family.dtype, np.uint32]
    assert history.events == sum(expected.values())
    assert history.distinct_addresses == len({address for _, address in expected})
    if expected:
        again = history.events - len(expected)  # events whose pair had occurred before
        assert history.recurring == pytest.approx(again / history.events)
    assert history.nbytes == 4 * len(history.rows) + 8 * len(history.starts) + (family.width // 8 + 4) * len(expected)
    for row in (*ROWS, 3):
        own = history.place(row)
        found = dict(zip(history.addresses[own].tolist(), history.counts[own].tolist(), strict=True))
        assert found == {address: count for (entity, address), count in expected.items() if entity == row}


@given(with_pairs, st.data())
def test_it_is_the_count_of_every_pair(chosen: tuple[Family, Pairs], data: st.DataObject) -> None:
    family, pairs = chosen
    check(history_of(pairs, family), plain(pairs, family, family.width), family, family.width)
    length = data.draw(st.integers(0, family.width))
    check(history_of(pairs, family, length), plain(pairs, family, length), family, length)


@given(with_pairs, st.integers(0, 64), st.integers(0, 64))
def test_cut_is_as_if_no_more_had_been_kept(chosen: tuple[Family, Pairs], before: int, length: int) -> None:
    family, pairs = chosen
    before = min(before, family.width)
    least = min(before, length)
    check(history_of(pairs, family, before).cut(family, length), plain(pairs, family, least), family, least)
    addresses = np.array([address for _, address in pairs], family.dtype)
    shortened = cut(addresses, family, length)
    assert shortened.dtype == family.dtype
    assert shortened.tolist() == [short(address, family, min(length, family.width)) for _, address in pairs]


@given(with_two, st.integers(0, 64), st.integers(0, 64))
def test_plus_is_as_if_all_events_had_been_seen_at_once(
    chosen: tuple[Family, Pairs, Pairs], length: int, other: int
) -> None:
    family, first, second = chosen
    length, other = min(length, family.width), min(other, family.width)
    least = min(length, other)
    both = history_of(first, family, length).plus(history_of(second, family, other), family)
    check(both, plain(first + second, family, least), family, least)


@given(with_pairs, st.sets(st.sampled_from([*ROWS, 3])))
def test_entities_can_be_taken_out(chosen: tuple[Family, Pairs], rows: set[int]) -> None:
    family, pairs = chosen
    history = history_of(pairs, family)
    ascending = np.array(sorted(rows), np.int32)
    inside = [(entity, address) for entity, address in pairs if entity in rows]
    outside = [(entity, address) for entity, address in pairs if entity not in rows]
    check(history.of_entities(ascending), plain(inside, family, family.width), family, family.width)
    check(history.without(ascending[::-1]), plain(outside, family, family.width), family, family.width)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_nobody_has_none(family: Family) -> None:
    check(History.none(family), {}, family, family.width)
    some = history_of([(1, 5), (1, 5)], family)
    for both in (some.plus(History.none(family), family), History.none(family).plus(some, family)):
        check(both, {(1, 5): 2}, family, family.width)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_a_count_beyond_32_bits_stays_the_largest(family: Family) -> None:
    """It neither wraps around nor spills into another pair."""
    some = history_of([(1, 4), (1, 5), (2, 5)], family)
    most = 2**32 - 1
    doubled = functools.reduce(lambda history, _: history.plus(history, family), range(31), some)
    check(doubled, dict.fromkeys([(1, 4), (1, 5), (2, 5)], 2**31), family, family.width)
    for _ in range(2):
        doubled = doubled.plus(doubled.of_entities(np.array([1], np.int32)), family)
        check(doubled, {(1, 4): most, (1, 5): most, (2, 5): 2**31}, family, family.width)
    merged = doubled.cut(family, family.width - 1)
    check(merged, {(1, 4): most, (2, 4): 2**31}, family, family.width - 1)
