from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data.addresses import Addresses
from ipinsights.evaluation.baselines import LongestPrefix

Pair = tuple[int, int]
WIDTHS = {32: np.uint32, 64: np.uint64}
LEVELS = {32: (4, 8, 16, 24, 32), 64: (1, 20, 48, 64)}


def pairs(width: int, min_size: int = 1) -> st.SearchStrategy[list[Pair]]:
    """Few entities and few distinct octets, so that prefixes repeat; and any address, for the bits within octets."""
    octets = st.lists(st.sampled_from([0, 1, 128, 255]), min_size=width // 8, max_size=width // 8)
    few = octets.map(lambda chosen: int.from_bytes(bytes(chosen), "big"))
    return st.lists(st.tuples(st.integers(-1, 3), few | st.integers(0, 2**width - 1)), min_size=min_size, max_size=40)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[Pair], list[Pair]]:
    """A width, training pairs, and queries: some new, and training pairs with one bit changed at most."""
    width = draw(st.sampled_from(sorted(WIDTHS)))
    training = draw(pairs(width))
    near = st.tuples(st.sampled_from(training), st.integers(0, width)).map(
        lambda found: (found[0][0], found[0][1] ^ (1 << found[1] >> 1))
    )
    return width, training, draw(pairs(width, 0)) + draw(st.lists(near, max_size=10))


def columns(pairs: list[Pair], width: int) -> tuple[npt.NDArray[np.int64], Addresses]:
    return np.array([e for e, _ in pairs], np.int64), np.array([a for _, a in pairs], WIDTHS[width])


def longest_prefix(training: list[Pair], query: Pair, width: int, levels: Sequence[int]) -> int:
    entity, address = query
    own = [a for e, a in training if e == entity]
    return max(
        (level for level in levels for a in own if a >> (width - level) == address >> (width - level)), default=0
    )


@given(cases())
def test_longest_prefix_is_that_of_the_nearest_own_address(case: tuple[int, list[Pair], list[Pair]]) -> None:
    width, training, queries = case
    every = range(1, width + 1)
    for levels in (every, LEVELS[width]):
        fitted = LongestPrefix.fit(*columns(training, width), width=width, levels=levels)
        expected = [longest_prefix(training, query, width, levels) for query in queries]
        assert fitted.score(*columns(queries, width)).tolist() == expected


def test_longest_prefix_by_hand() -> None:
    fitted = LongestPrefix.fit(np.array([7, 7, 8]), np.array([0x0A000001, 0xC0000200, 0x0A0000FF], np.uint32))
    queries = np.array([0x0A000001, 0x0A000000, 0x0A0000FF, 0xC0000300, 0x80000000], np.uint32)
    assert fitted.score(np.full(5, 7), queries).tolist() == [32, 31, 24, 23, 1]
    assert fitted.score(np.array([9]), queries[:1]).tolist() == [0]  # 9 was never seen


def test_longest_prefix_of_ipv6_tells_the_first_36_bits_apart() -> None:
    fitted = LongestPrefix.fit(np.array([1]), np.array([0x20010DB8_12345678], np.uint64), width=64)
    queries = np.array([0x20010DB8_12345678, 0x20010DB8_10000000, 0x20010DB8_20000000], np.uint64)
    assert fitted.score(np.array([1, 1, 1]), queries).tolist() == [36, 36, 34]


def test_longest_prefix_of_ipv6_is_exact_where_a_double_is_not() -> None:
    fitted = LongestPrefix.fit(np.array([1]), np.array([0], np.uint64), width=64, levels=range(1, 65))
    queries = np.array([2**60 - 1, 2**60, 2**33 - 1, 2**32, 2**32 - 1], np.uint64)
    assert fitted.score(np.ones(5, np.int64), queries).tolist() == [4, 3, 31, 31, 32]
