import numpy as np
import pyarrow as pa

from ipinsights.data.addresses import IPV4, IPV6
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.evaluation import negatives

US, DE = (int.from_bytes(code.encode(), "big") for code in ("US", "DE"))
TABLE = Networks(
    np.array([0, 100, 1000, 5000], np.uint32),
    np.array([9, 189, 1099, 5009], np.uint32),
    np.array([[7, 0, 7, 9], [US, DE, US, DE]], np.uint32),
)
"""Provider 7 has 110 addresses in two ranges, provider 9 has ten, and a range of Germany has no provider."""


def log_ins(entities: list[str], addresses: list[int]) -> Records:
    return Records(pa.array(entities, pa.string()), np.array(addresses, np.uint32))


def test_an_address_of_the_same_provider_is_in_any_of_its_ranges() -> None:
    made = negatives.of_same_network(log_ins(["a"] * 4000, [5] * 4000), TABLE, np.random.default_rng(0))
    assert len(made) == 4000
    assert set(made.addresses.tolist()) == {*range(10), *range(1000, 1100)} - {5}
    assert 0.88 < (made.addresses >= 1000).mean() < 0.94  # as many as there are addresses: 100 of 109
    assert made.addresses.dtype == np.uint32


def test_where_the_provider_is_unknown_the_country_decides() -> None:
    made = negatives.of_same_network(log_ins(["a"] * 2000, [150] * 2000), TABLE, np.random.default_rng(0))
    assert set(made.addresses.tolist()) == {*range(100, 190), *range(5000, 5010)} - {150}


def test_log_ins_that_no_range_has_are_skipped() -> None:
    made = negatives.of_same_network(log_ins(["a", "b", "c"], [5, 50, 1005]), TABLE, np.random.default_rng(0))
    assert made.entities.to_pylist() == ["a", "c"]
    assert not len(negatives.of_same_network(log_ins(["a"], [50]), TABLE, np.random.default_rng(0)))


def test_an_entity_never_gets_an_address_of_its_own() -> None:
    """Provider 9 has ten addresses: who uses nine of them gets the tenth, and who uses all is skipped."""
    nine = [("nine", 5000 + number) for number in range(9)] * 20
    ten = [("ten", 5000 + number) for number in range(10)]
    who, where = zip(*nine, *ten, strict=True)
    made = negatives.of_same_network(log_ins(list(who), list(where)), TABLE, np.random.default_rng(0))
    assert set(zip(made.entities.to_pylist(), made.addresses.tolist(), strict=True)) == {("nine", 5009)}
    assert len(made) > 100


def test_ranges_of_ipv6_are_drawn_whole() -> None:
    first, last = np.array([0, 1 << 63], np.uint64), np.array([3, (1 << 64) - 1], np.uint64)
    table = Networks(first, last, np.array([[1, 2], [US, US]], np.uint32))
    pairs = Records(pa.array(["a"] * 500 + ["b"] * 500), np.repeat(np.array([2, 1 << 63], np.uint64), 500))
    made = negatives.of_same_network(pairs, table, np.random.default_rng(0))
    assert set(made.addresses[:500].tolist()) == {0, 1, 3}
    assert (made.addresses[500:] >= 1 << 63).all()
    assert len(np.unique(made.addresses[500:])) == 500
    assert made.addresses.dtype == IPV6.dtype


def test_random_addresses_go_to_the_same_entities() -> None:
    pairs = log_ins(["a", "b", "b"], [1, 2, 3])
    made = negatives.of_random(pairs, IPV4, np.random.default_rng(0))
    assert made.entities == pairs.entities
