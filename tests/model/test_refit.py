"""What counting writes into trained tables: the parts of a score, and who gets which."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import Traffic, to_events
from ipinsights import metrics
from ipinsights.data.addresses import FAMILIES, IPV4, IPV6, Addresses, Family, random_addresses
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import counting
from ipinsights.model import refit as module
from ipinsights.model.counting import Counts, Habits
from ipinsights.model.history import History
from ipinsights.model.model import RESERVED, Counted, Encoder, Model
from ipinsights.model.refit import (
    AFFINITY_EVENTS,
    CONSTANT,
    POPULARITY,
    PRIOR,
    Moves,
    Pairs,
    Refit,
    affinity_weight,
)
from ipinsights.model.scoring import Scorer
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training.fit import fit

DIM, ROWS = 8, 12
NAMES = [f"user {number}" for number in range(8)]
STRANGER = ROWS
"""The row of every entity that no row belongs to."""


PAIRS = module._PAIRS


@pytest.fixture(scope="module", autouse=True)
def _few_pairs_for_the_threshold() -> Iterator[None]:
    """Where it is does not matter to most tests, and drawing takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", 1000)
        yield


@dataclass(frozen=True)
class World:
    """Events, and what a training of any kind might have learnt of them."""

    events: Events
    learnt: Model
    history: History

    @classmethod
    def of(cls, pairs: list[tuple[int, int]], family: Family, seed: int, countries: int = 0) -> "World":
        """With so many of two countries: the halves of the lower quarter of all addresses."""
        rng = np.random.default_rng(seed)
        index = EntityIndex(ROWS)
        entity = index.claim(pa.array([NAMES[entity] for entity, _ in pairs], pa.string()))
        events = Events(entity, np.array([address for _, address in pairs], family.dtype), index)
        ends = np.array([0, 1 << (family.width - 3), 1 << (family.width - 2)], family.dtype)
        networks = Networks(ends[:-1], ends[1:] - family.dtype.type(1), np.array([[1, 2], [1, 2]], np.uint32))
        vocabulary = Vocabulary.build(events.address, family, networks if countries else None, countries=countries)
        learnt_dim = DIM - RESERVED - len(vocabulary.countries)

        def table(*shape: int) -> npt.NDArray[np.float32]:
            values = rng.normal(0, 0.4, shape).astype(np.float32)
            values[..., learnt_dim:] = 0
            return values

        w = table(1, DIM, DIM)
        w[:, learnt_dim:] = 0
        encoder = Encoder(table(vocabulary.num_rows, DIM), w, table(1, DIM))
        met = np.unique(entity).astype(np.intp)
        learnt = Model.learnt(vocabulary, index, met, table(len(met) + 1, DIM), encoder)
        return cls(events, learnt, History.of(events, family))

    @property
    def counts(self) -> Counts:
        return Counts(self.learnt.vocabulary, self.history)

    def refitted(self, seed: int = 0, earlier: Model | None = None) -> Model:
        model = Refit(self.counts).model(self.learnt, seed, earlier)
        assert model is not None
        return model

    @property
    def queries(self) -> Addresses:
        """Addresses of the events, their neighbours, and others."""
        own, family = np.unique(self.events.address), self.learnt.family
        random = random_addresses(50, family, 0.0, np.random.default_rng(0))
        return np.concatenate([own, own ^ family.dtype.type(1), random])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    family = draw(st.sampled_from([IPV4, IPV6]))
    octet = st.sampled_from([1, 2, 32, 200])
    address = st.lists(octet, min_size=family.width // 8, max_size=family.width // 8)
    pairs = st.tuples(st.integers(0, len(NAMES) - 1), address.map(lambda octets: int.from_bytes(bytes(octets), "big")))
    chosen = draw(st.lists(pairs, min_size=1, max_size=12))
    often = draw(st.lists(st.integers(1, 6), min_size=len(chosen), max_size=len(chosen)))
    log = [pair for pair, times in zip(chosen, often, strict=True) for _ in range(times)]
    return World.of(log, family, draw(st.integers(0, 3)), draw(st.integers(0, 2)))


def pairwise(model: Model, rows: npt.NDArray[np.integer], addresses: Addresses) -> npt.NDArray[np.float32]:
    """The scores of all pairs: [rows, addresses]."""
    scores = model.score_rows(np.repeat(rows, len(addresses)), np.tile(addresses, len(rows)))
    return scores.reshape(len(rows), len(addresses))


def sums(values: npt.NDArray[np.float64], world: World) -> npt.NDArray[np.float64]:
    """What the networks of each query sum to."""
    vocabulary = world.learnt.vocabulary
    summed: npt.NDArray[np.float64] = values[vocabulary.chains[vocabulary.leaves(world.queries)]].sum(1) + values[-1]
    return summed


def only(habits: list[Habits]) -> Habits:
    [one] = habits
    return one


@given(worlds())
def test_the_score_of_a_trained_entity_is_popularity_habit_and_affinity(world: World) -> None:
    model, counts, learnt = world.refitted(), world.counts, world.learnt
    habits = only(list(counts.habits()))
    move = Refit(counts).moves(learnt.encoder)(habits)[:, :-RESERVED]
    assert habits.events.tolist() == np.bincount(world.events.entity)[habits.rows].tolist()
    weights = 1 / np.sqrt(1 + habits.events / AFFINITY_EVENTS)
    affinity = weights[:, None] * pairwise(learnt, habits.rows, world.queries)
    moved = move @ model.encode(world.queries)[:, :-RESERVED].T
    parts = sums(counts.popularity, world) + habits.constant[:, None] + moved + affinity
    threshold = parts - pairwise(model, habits.rows, world.queries)
    np.testing.assert_allclose(threshold, threshold.mean(), atol=1e-3)  # one number for all pairs


@given(worlds())
def test_an_entity_never_seen_has_the_prior_alone(world: World) -> None:
    """Whatever was learnt of others, and wherever the threshold is."""
    model, prior = world.refitted(), sums(world.counts.prior, world)
    strangers = np.setdiff1d(np.arange(ROWS + 1), world.events.entity)
    np.testing.assert_allclose(
        pairwise(model, strangers, world.queries), np.tile(prior, (len(strangers), 1)), atol=1e-4
    )


@given(worlds())
def test_the_parts_have_coordinates_of_their_own(world: World) -> None:
    model, counts = world.refitted(), world.counts
    trained, habits = np.unique(world.events.entity), only(list(counts.habits()))
    reserved = np.zeros((ROWS + 1, RESERVED), np.float32)
    reserved[:, PRIOR] = 1
    reserved[trained] = 0
    reserved[trained, POPULARITY] = 1
    reserved[trained, CONSTANT] = habits.constant
    assert (model.entity[:, -RESERVED:] == reserved).all()
    strangers = np.setdiff1d(np.arange(ROWS + 1), trained)
    assert not model.entity[strangers, :-RESERVED].any()
    encoded, before = model.encode(world.queries), world.learnt.encode(world.queries)
    np.testing.assert_allclose(encoded[:, CONSTANT], 1, atol=1e-6)
    np.testing.assert_allclose(encoded[:, PRIOR], sums(counts.prior, world), atol=1e-4)
    shifted = sums(counts.popularity, world) - encoded[:, POPULARITY]
    np.testing.assert_allclose(shifted, shifted.mean(), atol=1e-4)
    vocabulary = world.learnt.vocabulary
    learnt = slice(0, DIM - RESERVED - len(vocabulary.countries))
    np.testing.assert_allclose(encoded[:, learnt], before[:, learnt], atol=1e-6)  # the encoder stays as it is
    for place, label in enumerate(vocabulary.countries, start=learnt.stop):
        assert model.entity[habits.rows, place].tolist() == habits.countries[:, place - learnt.stop].tolist()
        there = vocabulary.networks is not None and vocabulary.networks.labels_of(world.queries)[1] == label
        np.testing.assert_allclose(encoded[:, place], there, atol=1e-6)


@given(worlds())
def test_what_was_learnt_and_counted_stays_in_the_model(world: World) -> None:
    model, learnt = world.refitted(), world.learnt
    counted = model.counted
    assert counted is not None
    assert counted.rows.tolist() == np.unique(world.events.entity).tolist()
    alone = model.learnt_alone()
    assert alone.counted is None
    assert (alone.entity == learnt.entity).all()
    for name in ("prefix", "w", "b"):
        assert (getattr(alone.encoder, name) == getattr(learnt.encoder, name)).all()
    assert learnt.learnt_alone() is learnt
    assert_same_history(counted.history, world.history)
    depth = learnt.vocabulary.depth
    assert counted.entities.tolist() == world.counts.entities[depth : depth + len(learnt.vocabulary.prefixes)].tolist()


def assert_same_history(one: History, other: History) -> None:
    assert one.length == other.length
    for name in ("rows", "starts", "addresses", "counts"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        assert mine.tolist() == theirs.tolist()


@given(worlds(), st.integers(0, 3))
def test_the_seed_has_a_part_in_the_threshold_alone(world: World, seed: int) -> None:
    one, same, other = (world.refitted(number) for number in (seed, seed, seed + 1))
    assert (one.entity == same.entity).all()
    assert (one.encoder.prefix == same.encoder.prefix).all()
    assert (one.entity == other.entity).all()
    difference = one.encoder.prefix - other.encoder.prefix
    assert not np.delete(difference, DIM + POPULARITY, axis=1).any()
    shifts = one.encode(world.queries)[:, POPULARITY] - other.encode(world.queries)[:, POPULARITY]
    np.testing.assert_allclose(shifts, shifts[0], atol=1e-4)


@given(worlds(), st.integers(1, 3))
def test_how_much_is_done_at_a_time_changes_nothing(world: World, size: int) -> None:
    whole = world.refitted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_PAIRS", size)
        patch.setattr(module, "_CHUNK", size)
        patch.setattr(module, "_FLOATS", size)
        parts = world.refitted()
    # The second moment is a sum of float32, in which directions that nothing is in are hardly known.
    np.testing.assert_allclose(parts.entity, whole.entity, atol=0.01 * (1 + np.abs(whole.entity).max()))
    rows = np.unique(world.events.entity)
    difference = pairwise(parts, rows, world.queries) - pairwise(whole, rows, world.queries)
    np.testing.assert_allclose(difference, difference.mean(), atol=0.05)  # the threshold may be another of many alike


@given(worlds(), st.integers(0, 3))
def test_it_gives_up_when_it_is_told_to(world: World, after: int) -> None:
    asked = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_PAIRS", 1)  # so that it asks for each entity
        model = Refit(world.counts).model(world.learnt, 0, give_up=lambda: next(asked) >= after)
    assert (model is None) == (len(world.history.rows) > after)


@given(worlds(), worlds(), st.sampled_from([0, 16, 64]))
def test_entities_without_a_history_keep_their_habits(world: World, others: World, bits: int) -> None:
    """From an earlier model that kept nothing, or whose entities have all been cut from its history."""
    earlier = world.refitted().keeping(bits)
    later = dataclasses.replace(others, learnt=dataclasses.replace(others.learnt, entity=world.learnt.entity * 2))
    model = later.refitted(earlier=earlier)
    now, before = np.unique(later.events.entity), np.unique(world.events.entity)
    kept = np.setdiff1d(before, now)
    weights = affinity_weight(np.bincount(world.events.entity, minlength=ROWS)[kept].astype(np.float64))[:, None]
    added = earlier.entity[kept] - weights * world.learnt.entity[kept]
    np.testing.assert_allclose(model.entity[kept], weights * later.learnt.entity[kept] + added, atol=1e-5)
    assert (model.entity[now] == later.refitted().entity[now]).all()
    neither = np.setdiff1d(np.arange(ROWS + 1), np.union1d(before, now))
    assert (model.entity[neither] == model.entity[STRANGER]).all()
    assert model.counted is not None
    assert model.counted.rows.tolist() == np.union1d(before, now).tolist()
    assert (model.learnt_alone().entity[model.counted.rows] == later.learnt.entity[model.counted.rows]).all()


@given(worlds(), worlds())
def test_entities_that_an_uncounted_model_knew_keep_what_it_had_learnt(world: World, others: World) -> None:
    forgotten = np.unique(world.events.entity)[:1]
    earlier = world.learnt.without(forgotten)
    later = dataclasses.replace(others, learnt=dataclasses.replace(others.learnt, entity=world.learnt.entity * 2))
    model = later.refitted(earlier=earlier)
    now = np.unique(later.events.entity)
    kept = np.setdiff1d(np.setdiff1d(world.events.entity, now), forgotten)
    assert (model.entity[kept, :-RESERVED] == later.learnt.entity[kept, :-RESERVED]).all()
    assert (model.entity[kept, -RESERVED:] == np.eye(RESERVED)[POPULARITY]).all()
    for row in np.setdiff1d(forgotten, now):
        assert (model.entity[row] == model.entity[STRANGER]).all()


@given(worlds(), st.sets(st.integers(0, len(NAMES) - 1)))
def test_of_a_forgotten_entity_nothing_stays(world: World, forgotten: set[int]) -> None:
    """And all that others have stays, to the bit."""
    model = world.refitted()
    names = pa.array([NAMES[number] for number in sorted(forgotten)], pa.string())
    rows = model.index.own_rows(names)
    rows = rows[rows >= 0]
    later = model.without(rows)
    assert later.counted is not None
    assert (later.entity[rows] == model.entity[STRANGER]).all()
    assert not np.isin(later.counted.rows, rows).any()
    assert not np.isin(later.counted.history.rows, rows).any()
    assert all(later.counted.history.place(row) == slice(0, 0) for row in rows)
    others = np.setdiff1d(np.arange(ROWS + 1), rows)
    assert (pairwise(later, others, world.queries) == pairwise(model, others, world.queries)).all()
    assert_same_history(later.counted.history, world.history.without(rows))
    alone, before = later.learnt_alone(), model.learnt_alone()
    assert (alone.entity[others] == before.entity[others]).all()
    assert (alone.entity[rows] == before.entity[STRANGER]).all()
    assert (later.counted.entities == Counted.without(later.counted, rows).entities).all()


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_a_network_that_many_use_is_likelier_for_a_stranger_than_one_that_few_use(family: Family) -> None:
    """And one that few use is likelier than one that nobody used, whatever a busy entity does."""
    many, few, none, busy = (number << (family.width - 8) for number in (0x21, 0x22, 0x23, 0x24))
    visits = [(user, many + user) for user in range(8)] + [(user, few + user) for user in range(3)]
    pairs = visits + [(7, few + 1000 + number) for number in range(100)] + [(7, busy + n) for n in range(100)]
    model = World.of(pairs, family, 0).refitted()
    asked = np.array([many + 99, few + 99, busy + 99, none + 99], family.dtype)
    scores = pairwise(model, np.array([STRANGER]), asked)[0]
    assert (np.diff(scores) < 0).all()


systems = st.tuples(st.integers(0, 10**6), st.integers(2, 6), st.integers(0, 9), st.booleans())


@given(systems)
def test_a_move_solves_its_ridge_regression(chosen: tuple[int, int, int, bool]) -> None:
    """The least sum of the weighted squared errors at the own networks and of what the rest of the world gains."""
    seed, dim, size, alike = chosen
    rng = np.random.default_rng(seed)
    encoded = rng.normal(size=(12, dim))
    if alike:
        encoded[6:] = encoded[:6]  # as of networks of which training has learnt nothing
    root = rng.normal(size=(dim, dim))
    world = 10 * (root @ root.T + 0.1 * np.eye(dim))
    inside, inverse = rng.normal(size=(12, dim)), np.linalg.inv(world)
    moves = Moves(*(array.astype(np.float32) for array in (encoded, encoded @ inverse, inside @ inverse)))
    network = rng.choice(12, size, replace=False).astype(np.int32)
    gain = rng.exponential(6, size).astype(np.float32)
    spread = np.where(rng.random(size) < 0.5, rng.normal(size=size), 0).astype(np.float32)
    habits = Habits(
        np.array([3, 5], np.int32),
        np.array([1.0, size]),
        np.array([-1, -2], np.float32),
        np.array([[5], [6]], np.float32),
        np.array([0, 0, size]),
        network,
        gain.copy(),
        spread != 0,
        spread,
    )
    added = moves(habits)
    assert added.shape == (2, dim + 1 + RESERVED)
    assert added[:, dim].tolist() == [5, 6]
    assert not added[0, :dim].any()  # without a network there is no move
    assert added[:, -RESERVED:].tolist() == [[1, -1, 0], [1, -2, 0]]
    weight = np.clip(gain.astype(np.float64) / module._FULL_GAIN, module._LIGHTEST, module._HEAVIEST)
    own = encoded[network]
    wanted = own.T @ (weight * gain) + spread @ inside[network]  # what is in its homes is no rest of the world
    exact = np.linalg.solve((own.T * weight) @ own + world, wanted)
    np.testing.assert_allclose(added[1, :dim], exact, atol=1e-3 * (1 + np.abs(exact).max()))
    assert (habits.gain == gain).all()


@given(worlds())
def test_a_network_has_the_part_of_the_world_that_is_in_it(world: World) -> None:
    counts, encoder = world.counts, world.learnt.encoder
    refit, chains = Refit(counts), world.learnt.vocabulary.chains
    moves, learnt = refit.moves(encoder), slice(0, DIM - RESERVED - len(world.learnt.vocabulary.countries))
    x = encoder(chains)[:, learnt].astype(np.float64)
    weighted = x * refit._weights[:, None]
    second = weighted.T @ x
    ridge = module._STEEP * np.trace(second) / x.shape[1]
    inverse = np.linalg.inv(module.BACKGROUND * (second + ridge * np.eye(x.shape[1])))
    columns = chains[:, counts.columns]
    for network in np.unique(columns[columns >= world.learnt.vocabulary.depth]):
        inside = module.BACKGROUND * weighted[(columns == network).any(axis=1)].sum(axis=0) @ inverse
        np.testing.assert_allclose(moves.inside[network], inside, rtol=1e-2, atol=1e-3)
        expected = encoder(counts.networks[[network]])[0, learnt] @ inverse
        np.testing.assert_allclose(moves.pulled[network], expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("version", [4, 6])
def test_own_networks_gain_and_the_rest_of_the_world_about_nothing(version: int) -> None:
    """Where the encoder tells networks apart."""
    family, rng = FAMILIES[version], np.random.default_rng(0)
    home = rng.permutation(np.arange(0x21, 0x31)).astype(np.uint64) << np.uint64(family.width - 8)
    pairs = [(user, int(home[user * 2 + (n % 3 == 0)]) + n % 4) for user in range(8) for n in range(20)]
    world = World.of(pairs, family, 0)
    rows = world.learnt.vocabulary.num_rows
    wide = np.zeros((rows, 128 + RESERVED), np.float32)
    wide[:, :128] = rng.normal(0, 1, (rows, 128))
    encoder = Encoder(wide, np.zeros((0, *wide.shape[1:] * 2), np.float32), np.zeros((0, wide.shape[1]), np.float32))
    learnt = dataclasses.replace(world.learnt, encoder=encoder, entity=np.zeros((ROWS + 1, 131), np.float32))
    world = dataclasses.replace(world, learnt=learnt)
    model, counts = world.refitted(), world.counts
    habits = only(list(counts.habits()))
    addresses = (home + np.uint64(2)).astype(family.dtype)
    moved = model.entity[habits.rows, :-RESERVED] @ model.encode(addresses)[:, :-RESERVED].T
    user_rows = world.events.index.find(pa.array(NAMES))
    own = np.zeros(moved.shape, np.bool_)
    for user, row in enumerate(user_rows.tolist()):
        own[habits.rows.tolist().index(row), 2 * user : 2 * user + 2] = True
    assert moved[own].min() > 4 * np.abs(moved[~own]).max()
    longest = [habits.gain[a:b].max() for a, b in zip(habits.starts, habits.starts[1:], strict=False)]
    assert moved[own].reshape(len(longest), 2).max(1) == pytest.approx(np.array(longest), rel=0.35)


@pytest.fixture(scope="module")
def trained(traffic: Traffic) -> Model:
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=32, epochs=6, mini_batch_size=500, learning_rate=0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", PAIRS)
        return fit(to_events(traffic.train, 200), hp, device="cpu")


def test_zero_lies_between_habits_and_fabricated_pairs(trained: Model, traffic: Traffic) -> None:
    """No other threshold would do much better on later log-ins and attacks."""
    scorer = Scorer(trained)
    normal, attacks = scorer.score(traffic.normal), scorer.score(traffic.attacks)
    assert np.median(normal) > 0 > np.median(attacks)
    thresholds = np.concatenate([normal, attacks])
    errors = [(normal < t).mean() + (attacks >= t).mean() for t in thresholds]
    assert (normal < 0).mean() + (attacks >= 0).mean() < min(errors) + 0.05


ONCE_EACH = [(0, 0x0A010101), (1, 0x0A020909), (2, 0x0A030303)]
"""In three /24s of one /12."""
CAME_BACK = [*ONCE_EACH, (0, 0x0A010102)]


def mapped(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same in the IPv6 family."""
    return [(entity, (0x2002 << 48) + (address << 16)) for entity, address in pairs]


def network(address: int, family: Family, eighths: int) -> int:
    """What so many eighths of an address are; of an IPv4 address among those of IPv6, of that."""
    if family is IPV6 and address >> 48 == 0x2002:
        return 1 << 64 | (address >> 16 & 0xFFFFFFFF) >> 32 - 4 * eighths
    return address >> family.width - family.width * eighths // 8


@example(World.of(ONCE_EACH, IPV4, 0), 0, 0.0)
@example(World.of(ONCE_EACH, IPV4, 0), 0, 0.1)
@example(World.of(CAME_BACK, IPV4, 0), 0, 0.3)
@example(World.of(CAME_BACK, IPV4, 0), 0, 0.4)
@example(World.of(CAME_BACK, IPV4, 0), 12, 0.1)
@example(World.of(CAME_BACK, IPV4, 0), 8, 0.1)
@example(World.of([*ONCE_EACH, (0, 0x0A010101)], IPV4, 0), 0, 0.1)
@example(World.of(mapped(CAME_BACK), IPV6, 0), 0, 0.1)
@given(worlds(), st.sampled_from([0, 8, 12, 16, 32]), st.sampled_from([0.0, 0.3, 1.0]))
def test_which_places_are_a_strangers(world: World, length: int, share: float) -> None:
    """Not own leaves, homes and sites; of those without habits, if enough have some, no provider's where they were."""
    family, vocabulary = world.learnt.family, world.learnt.vocabulary
    history = world.history.cut(family, length) if length else world.history
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SETTLED", share)
        own = module._Own(Counts(vocabulary, history), history)
    been: dict[int, list[int]] = {}
    pairs = zip(history.entities.tolist(), history.addresses.tolist(), history.counts.tolist(), strict=True)
    for row, address, count in pairs:
        been.setdefault(row, []).extend([address] * count)
    leaves = vocabulary.leaves(world.queries)
    home = {row: own.home(np.full(len(leaves), row, np.int32), vocabulary.chains[leaves]).tolist() for row in been}
    with_home = {row for habits in Counts(vocabulary, history).habits() for row in at_home(habits)}
    sites = {row: [network(address, family, 6) for address in addresses] for row, addresses in been.items()}
    settled = with_home | {row for row, places in sites.items() if len(set(places)) < len(places)}
    enough = len(settled) >= share * len(been)
    for row, addresses in been.items():
        ours = set(vocabulary.leaves(np.array(addresses, family.dtype)).tolist())
        found = own.stranger(np.full(len(leaves), row, np.int32), world.queries).tolist()
        for address, leaf, at_home_there, stranger in zip(
            world.queries.tolist(), leaves.tolist(), home[row], found, strict=True
        ):
            near = leaf in ours or at_home_there
            for eighths in (6, 3) if enough and row not in settled else (6,):
                around = {network(one, family, eighths) for one in addresses}
                told = history.length >= family.width * eighths // 8
                near |= told and network(address, family, eighths) in around
            assert stranger == (not near)


def at_home(habits: Habits) -> list[int]:
    """The entities that have a home."""
    rows: list[int] = np.repeat(habits.rows, np.diff(habits.starts))[habits.home].tolist()
    return rows


def test_who_was_at_the_only_site_is_no_stranger_at_its_other_desks() -> None:
    """All are at one /24, twice each: no place there scores below 0, and none elsewhere above."""
    rng = np.random.default_rng(0)
    index = EntityIndex(200)
    entity = index.claim(pa.array([f"pupil {number % 100}" for number in range(200)], pa.string()))
    desks = (10 << 24) + rng.integers(256, size=200, dtype=np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", PAIRS)
        model = fit(Events(entity, desks, index), Hyperparameters(num_entity_vectors=200, vector_dim=32))
    here = model.score_rows(entity, (10 << 24) + rng.integers(256, size=200, dtype=np.uint32))
    elsewhere = model.score_rows(entity, (77 << 24) + rng.integers(1 << 24, size=200, dtype=np.uint32))
    assert (here > 0).mean() > 0.98
    assert (elsewhere < 0).all()


def test_zero_is_no_higher_than_ordinary_log_ins_allow(trained: Model, traffic: Traffic) -> None:
    """Those that score well have no part in it. Those that would be false alarms lower it."""
    events = to_events(traffic.train, 200)
    address = np.concatenate([events.address, np.roll(events.address, 1)])
    entity = np.tile(events.entity, 2)
    counted = trained.counted
    assert counted is not None
    refit, learnt = Refit(Counts(trained.vocabulary, counted.history)), trained.learnt_alone()

    def scores(ordinary: Pairs | None) -> npt.NDArray[np.float32]:
        model = refit.model(learnt, 0, ordinary=ordinary)
        assert model is not None
        return model.score_rows(entity, address)

    usual = scores(None)
    well, badly = usual > np.median(usual), (usual < 0) & (usual > np.quantile(usual[usual < 0], 0.95))
    np.testing.assert_array_equal(scores((entity[well], address[well])), usual)
    lowered = scores((entity[badly], address[badly]))
    assert (lowered > usual).all()
    assert (lowered[badly] < 0).mean() < 0.5


def test_what_was_learnt_sees_what_counting_does_not(trained: Model, traffic: Traffic) -> None:
    counted_alone = dataclasses.replace(trained, entity=trained.entity - trained.learnt_alone().entity)

    def auc(model: Model) -> float:
        return metrics.auc(Scorer(model).score(traffic.normal), Scorer(model).score(traffic.attacks))

    assert auc(trained) > 0.95
    assert auc(trained) > auc(counted_alone)
