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
