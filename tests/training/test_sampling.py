import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ipinsights.data import addresses
from ipinsights.data.addresses import FAMILIES, IPV6
from ipinsights.data.networks import Networks
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import sampling


def chi_square(drawn: npt.NDArray[np.integer], expected: npt.NDArray[np.float64]) -> float:
    """Pearson's, over outcomes expected five times or more, as a share of what it is on average."""
    often = expected >= 5
    return float(((drawn - expected)[often] ** 2 / expected[often]).mean())


@given(st.integers(0, 500), st.integers(0, 500), st.integers(4, 4096))
def test_tiles_hold_whole_groups_and_partners_enough(random_rate: int, shuffled_rate: int, dim: int) -> None:
    group, tile = sampling.group_size(random_rate), sampling.tile_size(random_rate, shuffled_rate, dim)
    assert group >= 1
    assert tile % group == 0
    assert tile > shuffled_rate


weights_of_outcomes = hnp.arrays(
    np.float64,
    st.integers(1, 300),
    elements=st.one_of(st.just(0.0), st.floats(1e-9, 1.0), st.floats(1.0, 1e6)),
).filter(lambda weights: weights.sum() > 0)


def drawn_by(monkeypatch: pytest.MonkeyPatch, numbers: npt.NDArray[np.float64]) -> None:
    """Let the generator give these."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.from_numpy(numbers))


@given(weights_of_outcomes)
def test_outcomes_have_the_shares_of_their_weights(weights: npt.NDArray[np.float64]) -> None:
    """Of numbers at even distances, each outcome gets its share, give or take one at either end of it."""
    discrete, count = sampling.Discrete(weights, torch.device("cpu")), 20_000
    with pytest.MonkeyPatch.context() as patch:
        drawn_by(patch, (np.arange(count) + 0.5) / count)
        drawn = discrete.draw(count, torch.Generator()).numpy()
    expected = weights / weights.sum() * count
    assert np.abs(np.bincount(drawn, minlength=len(weights)) - expected).max() <= 1 + 1e-6
    assert weights[drawn].all()


@given(weights_of_outcomes)
def test_the_ends_draw_the_first_and_the_last_outcome_that_can_be(weights: npt.NDArray[np.float64]) -> None:
    discrete = sampling.Discrete(weights, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        drawn_by(patch, np.array([0.0, 1 - 2.0**-53, 1.0]))
        drawn = discrete.draw(3, torch.Generator()).tolist()
    possible = np.flatnonzero(np.diff(np.cumsum(weights), prepend=0))  # what is lost in a sum cannot be drawn
    assert drawn == [possible[0], possible[-1], possible[-1]]


def test_draws_follow_the_weights() -> None:
    weights = np.random.default_rng(0).pareto(1.0, 5000)
    drawn = sampling.Discrete(weights, torch.device("cpu")).draw(1_000_000, torch.Generator().manual_seed(0)).numpy()
    assert drawn.dtype == np.int32
    assert 0.9 < chi_square(np.bincount(drawn, minlength=5000), weights / weights.sum() * 1e6) < 1.1


def test_the_generator_decides() -> None:
    discrete = sampling.Discrete(np.arange(1.0, 100.0), torch.device("cpu"))
    one, same, other = (discrete.draw(50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("with_networks", [False, True])
def test_leaves_are_drawn_as_uniform_addresses_have_them(version: int, with_networks: bool) -> None:
    family, rng = FAMILIES[version], np.random.default_rng(1)
    share = 0.3 if version == 6 else 0.0
    seen = addresses.random_addresses(3000, family, share, rng)
    seen = np.repeat(seen, rng.integers(1, 4, len(seen)))
    networks = None
    if with_networks:
        first = np.sort(seen[::40])
        first = first[np.concatenate([[True], np.diff(first) > 1000])]
        labels = rng.integers(0, 5, (2, len(first))).astype(np.uint32)
        networks = Networks(first, first + first.dtype.type(900), labels)
    vocabulary = Vocabulary.build(seen, family, networks)
    shares = vocabulary.leaf_shares(share)
    assert shares.sum() == pytest.approx(1)
    random = addresses.random_addresses(400_000, family, share, rng)
    drawn = np.bincount(vocabulary.leaves(random), minlength=len(shares))
    assert not drawn[shares == 0].any()
    assert 0.7 < chi_square(drawn, shares * len(random)) < 1.3


def test_without_ipv4_among_ipv6_none_is_drawn() -> None:
    mapped = np.full(10, addresses.MAPPED_FIRST + (1 << 40), np.uint64)
    vocabulary = Vocabulary.build(mapped, IPV6)
    leaf = vocabulary.leaves(mapped)[0]
    assert vocabulary.leaf_shares(0.0)[leaf] < 1e-15
    assert vocabulary.leaf_shares(0.5)[leaf] == pytest.approx(0.5 * 2.0**-32 * 1, rel=1)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_pair_is_a_partner_by_its_count_to_the_power(
    power: float, either_way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "POWER", power)
    monkeypatch.setattr(sampling, "_CHUNK", 100)
    rng = np.random.default_rng(0)
    counts = np.array([1, 2, 5, 30, 700])
    entity, leaf = np.array([3, 1, 2**31 - 2, 1, 3], np.int32), np.array([0, 2**31 - 1, 7, 8, 9], np.int32)
    pair = rng.permutation(np.repeat(np.arange(5), counts))
    weight = sampling.Pairs(entity[pair], leaf[pair], torch.device("cpu")).weight
    assert weight.dtype == torch.float32
    assert weight.numpy() == pytest.approx((counts.astype(float) ** (power - 1))[pair])
    assert np.bincount(pair, weight) == pytest.approx(counts.astype(float) ** power, rel=1e-5)


def test_weights_of_a_hundred_million_events_add_up_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, as a GPU may add them; and the rarest are still there."""
    monkeypatch.setattr(sampling, "POWER", 0.0)
    monkeypatch.setattr(np, "diff", lambda *_, **__: np.array([1, 3, 100_000_000, 6_000_000_000]))
    pairs = np.arange(4, dtype=np.int32)
    weight = sampling.Pairs(pairs, pairs, torch.device("cpu")).weight.double()
    grains = weight * 2.0**32
    assert torch.equal(grains, grains.round())
    assert grains.tolist() == [2**32, pytest.approx(2**32 / 3), 43, 1]


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 40),
    tile=st.integers(1, 12),
    rate=st.integers(0, 4),
    seed=st.integers(0, 1000),
    end=st.sampled_from([None, 0.0, 1 - 2.0**-53]),
)
def test_each_of_a_tile_is_a_partner_as_often_as_its_weight_says(
    n: int, size: int, tile: int, rate: int, seed: int, end: float | None
) -> None:
    """Give or take one, and whatever is drawn: so even by the numbers at both ends."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(n, generator=generator).clamp(min=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        if end is not None:
            patch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, end, dtype=torch.float64))
        partner = sampling.partners(weight, rate, size, tile, generator)
    assert partner.dtype == torch.int32
    assert partner.shape == (n, rate)
    edges = {*range(0, n, size), n} | {
        at for begin in range(0, n, size) for at in range(begin, min(n, begin + size), tile)
    }
    for first, last in itertools.pairwise(sorted(edges)):
        own = partner[first:last]
        assert ((own >= first) & (own < last)).all()
        share = weight[first:last].double() / weight[first:last].double().sum()
        for k in range(rate):
            times = torch.bincount(own[:, k] - first, minlength=last - first)
            assert ((times - share * (last - first)).abs() <= 1 + 1e-6).all()


def test_with_equal_weights_each_is_the_partner_of_one_other() -> None:
    place = torch.arange(1000)
    for seed in range(20):
        partner = sampling.partners(torch.ones(1000), 2, 300, 70, torch.Generator().manual_seed(seed))
        for own in partner.T:
            assert torch.equal(own.sort().values, place)
            assert not (own == place).any()


def test_on_average_partners_follow_the_weights() -> None:
    """With other starts, and with the positives in another order each time."""
    generator, tiles = torch.Generator().manual_seed(0), 50_000
    weight = torch.tensor([1.0, 0.5, 0.25, 2.0])
    order = torch.rand(tiles, 4, generator=generator).argsort(1)
    partner = sampling.partners(weight[order].view(-1), 3, 4, 4, generator) % 4
    for k in range(3):
        who = order.gather(1, partner[:, k].view(tiles, 4).long())
        times = torch.bincount(who.view(-1), minlength=4) / who.numel()
        assert times.numpy() == pytest.approx((weight / weight.sum()).numpy(), abs=0.005)


def test_a_service_account_with_most_events_does_not_take_over_the_partners() -> None:
    """It has 99 % of the events, of two pairs; ninety others have a pair each."""
    rng = np.random.default_rng(0)
    entity = np.where(rng.random(200_000) < 0.99, 0, rng.integers(1, 91, size=200_000)).astype(np.int32)
    leaf = np.where(entity > 0, entity, rng.integers(2, size=200_000)).astype(np.int32) + 5
    weight = sampling.Pairs(entity, leaf, torch.device("cpu")).weight
    partner = sampling.partners(weight, 1, 1000, 1000, torch.Generator().manual_seed(0)).numpy()
    shares = np.array([2 * 99_000**0.5, 90 * 22**0.5])
    assert (entity[partner] == 0).mean() == pytest.approx(shares[0] / shares.sum(), abs=0.03)


def test_pairs_are_known_by_their_entity_and_their_leaf(either_way: None) -> None:
    entity, leaf = np.array([4, 1, 4, 1, 2**31 - 2], np.int32), np.array([7, 2**31 - 1, 0, 2**31 - 1, 3], np.int32)
    pairs = sampling.Pairs(entity, leaf, torch.device("cpu"))
    queries = [(a, b) for a in (0, 1, 4, 5, 2**31 - 2, 2**31 - 1) for b in (0, 3, 7, 8, 2**31 - 1)]
    found = pairs.known(*torch.tensor(queries, dtype=torch.int32).T.contiguous())
    seen = set(zip(entity.tolist(), leaf.tolist(), strict=True))
    assert found.tolist() == [pair in seen for pair in queries]
    assert pairs.known(torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)).tolist() == []
