import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.model import vocabulary as module
from ipinsights.model.vocabulary import Vocabulary, levels_for

pytestmark = pytest.mark.usefixtures("either_way")

LEVELS = (8, 12, 16, 24)
# Few distinct octets, so that prefixes repeat.
address = st.lists(st.sampled_from([0, 1, 15, 16, 127, 255]), min_size=4, max_size=4).map(
    lambda octets: int.from_bytes(bytes(octets), "big")
)
several = st.lists(address, min_size=1, max_size=60)


def known(training: list[int], level: int, min_count: int) -> dict[int, int]:
    counts = collections.Counter(value >> (32 - level) for value in training)
    return {prefix: count for prefix, count in counts.items() if count >= min_count}


@given(several, several)
def test_an_address_has_the_rows_of_its_known_prefixes(training: list[int], queries: list[int]) -> None:
    vocabulary = Vocabulary.build(np.array(training, np.uint32), levels=LEVELS)
    rows = vocabulary.chains[vocabulary.leaves(np.array(queries, np.uint32))]
    counts = vocabulary.chain_counts[vocabulary.leaves(np.array(queries, np.uint32))]
    first = len(LEVELS)
    for depth, level in enumerate(LEVELS):
        table = known(training, level, 1)
        numbers = {prefix: first + i for i, prefix in enumerate(sorted(table))}
        assert rows[:, depth].tolist() == [numbers.get(query >> (32 - level), depth) for query in queries]
        assert counts[:, depth].tolist() == [table.get(query >> (32 - level), 0) for query in queries]
        first += len(table)
    assert vocabulary.num_rows == first
    assert (vocabulary.level_of_row[rows] == np.arange(len(LEVELS))).all()


@given(several)
def test_the_order_of_the_events_does_not_matter(training: list[int]) -> None:
    one, other = (Vocabulary.build(np.array(t, np.uint32), levels=LEVELS) for t in (training, sorted(training)))
    assert one.sizes == other.sizes
    assert (one.prefixes == other.prefixes).all()
    assert (one.counts == other.counts).all()


@given(several, st.integers(0, 40))
def test_the_cap_holds_and_the_smallest_count_that_fits_is_taken(training: list[int], cap: int) -> None:
    vocabulary = Vocabulary.build(np.array(training, np.uint32), levels=LEVELS, max_rows=cap)
    assert len(vocabulary.prefixes) <= cap
    by_count = {c: sum(len(known(training, level, c)) for level in LEVELS) for c in range(1, len(training) + 2)}
    expected = next(size for size in by_count.values() if size <= cap)
    assert len(vocabulary.prefixes) == expected


@given(several, st.sampled_from([IPV4, IPV6]))
def test_the_bounds_of_a_prefix_are_its_first_and_last_address(training: list[int], family: Family) -> None:
    levels = (8, 24, family.width)
    addresses = np.array(training, family.dtype) << family.dtype.type(family.width - 32)
    vocabulary = Vocabulary.build(addresses, family, levels=levels)
    rows = np.arange(vocabulary.depth, vocabulary.num_rows)
    first, last = vocabulary.bounds(rows)
    assert first.dtype == last.dtype == family.dtype
    expected = [
        (prefix << family.width - level, (prefix + 1 << family.width - level) - 1)
        for column, level in enumerate(levels)
        for prefix in vocabulary.counted(column)[0].tolist()
    ]
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == expected
    backwards = vocabulary.bounds(rows[::-1])
    assert (backwards[0] == first[::-1]).all()
    assert (backwards[1] == last[::-1]).all()


def test_whole_addresses_are_levels_where_addresses_recur_or_all_have_room() -> None:
    longer = IPV4.levels + IPV4.finest
    assert longer[-1] == 32
    all_have_room = module.MAX_ROWS // len(longer)
    for recurring, distinct, levels in (
        (module.RECURRING, 10**6, longer),
        (module.RECURRING - 0.01, 10**6, IPV4.levels),
        (0.0, all_have_room, longer),
        (0.0, all_have_room + 1, IPV4.levels),
    ):
        assert levels_for(IPV4, recurring, distinct) == levels
    assert levels_for(IPV6, 1.0, 10) == IPV6.levels  # which end with the whole network half
