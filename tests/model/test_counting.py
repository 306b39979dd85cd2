"""Counting against a slow tree of plain numbers, written from the formulas in `counting`'s docstring alone."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ipinsights.data.addresses import FAMILIES, IPV4, IPV6, Family, mapped_share
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.model import counting
from ipinsights.model.counting import AT_HOME, HOME_EVENTS, HOME_RATIO, HOME_SHARE, Counts
from ipinsights.model.history import History
from ipinsights.model.smoothing import CONCENTRATION, DISCOUNT, PRIOR, RANDOM_SHARE
from ipinsights.model.vocabulary import Vocabulary

Path = tuple[int, ...]
"""The known networks of an address, from the coarsest counted level down, each as its first bits."""


@dataclass(frozen=True)
class Case:
    """A history in a vocabulary, which may lack networks of the history and have others."""

    family: Family
    vocabulary: Vocabulary
    history: History
    queries: list[int]

    @property
    def plain(self) -> dict[tuple[int, int], int]:
        """Events of each pair of an entity and an address."""
        history = self.history
        pairs = zip(history.entities.tolist(), history.addresses.tolist(), strict=True)
        return dict(zip(pairs, history.counts.tolist(), strict=True))


def weight(events: int) -> float:
    """How likely a pair is to give a fabricated one its address: the root of its events, in steps of 1 / 1024."""
    return round(math.sqrt(events) * 1024) / 1024


ELSEWHERE = 0
"""The label of all places that are counted as one country."""


class Places:
    """The probabilities of countries."""

    def __init__(self, case: Case) -> None:
        vocabulary, self.table = case.vocabulary, case.vocabulary.networks
        self.labels = vocabulary.countries
        self.counted = bool(self.labels) and case.history.length >= (24 if case.family is IPV4 else 48)
        self.anywhere = 0.5
        self.share = collections.defaultdict[int, float](lambda: 1e-9)
        self.drawn = collections.defaultdict[int, float](float)
        users = collections.defaultdict[int, set[int]](set)
        self.events = collections.defaultdict[int, collections.Counter[int]](collections.Counter)
        mapped = mapped_share(case.history.addresses)
        first = {leaf: int(start) for start, leaf in zip(*vocabulary.intervals, strict=True)}
        for leaf, share in enumerate(vocabulary.leaf_shares(mapped)):
            if leaf in first:
                self.share[self.of(first[leaf])] += share
        for (entity, address), count in case.plain.items():
            place = self.of(address)
            self.drawn[place] += weight(count)
            users[place].add(entity)
            self.events[entity][place] += count
        self.users = collections.Counter({place: len(entities) for place, entities in users.items()})

    def of(self, address: int) -> int:
        """The label of an address."""
        if self.table is not None:
            for first, last, label in zip(self.table.first, self.table.last, self.table.labels[1], strict=True):
                if first <= address <= last and label in self.labels:
                    return int(label)
        return ELSEWHERE

    def base(self, place: int) -> float:
        return (self.users[place] + PRIOR * self.share[place]) / (self.users.total() + PRIOR)

    def popularity(self, place: int) -> float:
        if not self.counted:
            return 0
        fabricated = (self.drawn[place] + PRIOR * self.share[place]) / (sum(self.drawn.values()) + PRIOR)
        return math.log(self.base(place) / (RANDOM_SHARE * self.share[place] + (1 - RANDOM_SHARE) * fabricated))

    def ratio(self, events: collections.Counter[int], place: int, anywhere: float) -> float:
        """How much likelier a place is for an entity with some events than for any: its logarithm."""
        rest = CONCENTRATION + DISCOUNT * sum(number > 0 for number in events.values())
        own = max(0, events[place] - DISCOUNT) + rest * self.base(place)
        ratio = own / (events.total() + CONCENTRATION) / self.base(place)
        return math.log((1 - anywhere) * ratio + anywhere)

    def habit(self, entity: int, place: int) -> float:
        return self.ratio(self.events[entity], place, self.anywhere) if self.counted else 0

    def likelihood(self, tree: "Tree", case: Case, anywhere: float) -> float:
        """The logarithm of that of places where entities were once, each by its other events."""
        once = collections.defaultdict[int, list[float]](list)
        for (entity, address), count in case.plain.items():
            coarsest = tree.path(address)[:1]
            others = self.events[entity] - collections.Counter({self.of(address): 1})
            if coarsest and count == tree.events[entity][coarsest] == 1:
                once[entity].append(self.ratio(others, self.of(address), anywhere) if others else 0)
        known = sum(statistics.fmean(each) for each in once.values())
        return known + math.log(anywhere) + math.log(1 - anywhere)


class Tree:
    """The probabilities of addresses, each as a multiple of the uniform one."""

    def __init__(self, case: Case, counted: list[int]) -> None:
        """With the counted prefix lengths, ascending."""
        self.levels, self.width = counted, case.family.width
        levels = case.vocabulary.levels
        self.known = {level: set(case.vocabulary.counted(levels.index(level))[0].tolist()) for level in counted}
        self.at_home = AT_HOME
        self.longest, self.everybody = case.family.levels[-1], len({entity for entity, _ in case.plain})
        self.everywhere = sum(weight(count) for count in case.plain.values())
        self.drawn = collections.defaultdict[Path, float](float)
        users = collections.defaultdict[Path, set[int]](set)
        self.events = collections.defaultdict[int, collections.Counter[Path]](collections.Counter)
        self.own_pairs = collections.defaultdict[int, collections.Counter[Path]](collections.Counter)
        for (entity, address), count in case.plain.items():
            path = self.path(address)
            for node in (path[:depth] for depth in range(len(path) + 1)):
                self.drawn[node] += weight(count)
                users[node].add(entity)
                self.events[entity][node] += count
                self.own_pairs[entity][node] += 1
        self.users = {node: len(entities) for node, entities in users.items()}
        self.places = Places(case)
        self.place = dict[Path, int]()
        """The label of the country of most pairs in each network."""

    def path(self, address: int) -> Path:
        """The known networks in which an address is."""
        found: list[int] = []
        for level in self.levels:
            prefix = address >> (self.width - level)
            if prefix not in self.known[level]:
                break
            found.append(prefix)
        return tuple(found)

    def steps(self, path: Path) -> Iterator[tuple[Path | None, Path | None, float]]:
        """Each network and the one above it, with the share of addresses; None for unknown networks."""
        before = 0
        for depth, level in enumerate(self.levels):
            above = path[:depth] if depth <= len(path) else None
            yield above, (path[: depth + 1] if depth < len(path) else None), 2.0 ** (before - level)
            before = level

    def children(self, node: Path | None) -> list[Path]:
        """The networks of the history that are known just below one."""
        return [child for child in self.users if child and node == child[:-1]]

    def fabricated(self, path: Path) -> float:
        density = 1.0
        for above, node, share in self.steps(path):
            everywhere = 0 if above is None else self.drawn.get(above, 0)
            seen = 0 if node is None else self.drawn.get(node, 0)
            density *= (seen + PRIOR * share) / (everywhere + PRIOR) / share
        return RANDOM_SHARE + (1 - RANDOM_SHARE) * density

    def base(self, above: Path | None, node: Path | None, share: float) -> float:
        others = sum(self.users[child] for child in self.children(above))
        seen = 0 if node is None else self.users.get(node, 0)
        return (seen + PRIOR * share) / (others + PRIOR)

    def anybody(self, path: Path) -> float:
        return math.prod(self.base(*step) / step[2] for step in self.steps(path))

    def one(self, entity: int, path: Path) -> float:
        events, density = self.events[entity], 1.0
        for above, node, share in self.steps(path):
            seen = events[above] if above is not None else 0
            below = [child for child in self.children(above) if events[child]]
            rest = CONCENTRATION + DISCOUNT * len(below) + seen - sum(events[child] for child in below)
            kept = events[node] - DISCOUNT if node is not None and events[node] else 0.0
            density *= (kept + rest * self.base(above, node, share)) / (seen + CONCENTRATION) / share
        return density

    def popularity(self, path: Path) -> float:
        return math.log(self.anybody(path) / self.fabricated(path))

    def prior(self, path: Path) -> float:
        density = self.anybody(path)
        return math.log(density / (RANDOM_SHARE + (1 - RANDOM_SHARE) * math.sqrt(density)))

    def above_popularity(self, entity: int, path: Path) -> float:
        """What the entity's log ratio has beyond popularity."""
        return math.log(self.one(entity, path) / self.anybody(path))

    def constant(self, entity: int) -> float:
        return self.above_popularity(entity, ())

    def far(self, entity: int, node: Path) -> float:
        """What the log ratio has beyond popularity in the country of a network, far from all own networks."""
        return self.constant(entity) + self.places.habit(entity, self.place[node])

    def rest(self, entity: int, node: Path) -> float:
        below = [child for child in self.children(node) if self.events[entity][child]]
        elsewhere = self.events[entity][node] - sum(self.events[entity][child] for child in below)
        return CONCENTRATION + DISCOUNT * len(below) + elsewhere

    def home(self, entity: int, node: Path) -> bool:
        """Whether the entity comes back to unknown places there, more often than by chance, or is in such a network."""
        if len(node) > 1 and self.home(entity, node[:-1]):
            return True
        wide = self.levels[len(node) - 1] < self.longest
        if wide and self.users[node] > HOME_SHARE * self.everybody:
            return False
        ratio = self.popularity(node) + self.places.popularity(self.place[node]) + self.above_popularity(entity, node)
        return self.rest(entity, node) >= HOME_EVENTS and ratio >= HOME_RATIO

    def spread(self, entity: int, node: Path) -> float:
        """What all places gain, in a home so that the ratio is at least AT_HOME, in a site as much as unknown ones."""
        known = self.popularity(node) + self.places.popularity(self.place[node]) + self.far(entity, node)
        least = self.at_home - known if self.home(entity, node) else 0.0
        return max(0.0, least, self.gain(entity, node) if self.is_site(node) else 0.0)

    def is_site(self, node: Path) -> bool:
        """A /24, and a /48 of IPv6, where an IPv4 address begins after 16 bits."""
        level = self.levels[len(node) - 1]
        mapped = self.width == 64 and level >= 16 and node[-1] >> level - 16 == 0x2002
        return level == (40 if mapped else self.width * 3 // 4)

    def gain(self, entity: int, node: Path) -> float:
        """Of an address that is in no known network below."""
        return self.above_popularity(entity, node) - self.far(entity, node)

    def gains(self, entity: int) -> dict[Path, float]:
        """Of each own network, but at least what all places there gain."""
        own = [node for node in self.events[entity] if node]
        return {node: max(self.gain(entity, node), self.spread(entity, node)) for node in own}


def in_two_countries(travels: int = 0, abroad: int = 0, family: Family = IPV4) -> Case:
    """Ten entities in each of two countries, with two networks there; the countries take turns in the address space.

    Each was at some more networks once, some of them in the other country.
    """
    entity = np.repeat(np.arange(20, dtype=np.int32), 40)
    network = np.arange(len(entity)) % 2 * 100 + entity % 10 * 2 + (entity >= 10) + 1
    once = np.repeat(np.arange(20, dtype=np.int32), travels)
    there = (once >= 10) != (np.tile(np.arange(travels), 20) < abroad)
    place = 40 + np.arange(len(once)) % 25 * 2 + there + 1
    entity, network = np.append(entity, once), np.append(network, place)
    begin = family.dtype.type(family.width - 8)
    address = (network.astype(family.dtype) << begin) + (np.arange(len(entity)) % 7).astype(family.dtype)
    first = np.arange(1, 250).astype(family.dtype) << begin
    country = (np.arange(1, 250) + 1) % 2 + 1
    last = first + ((family.dtype.type(1) << begin) - family.dtype.type(1))
    table = Networks(first, last, np.stack([country, country]).astype(np.uint32))
    vocabulary = Vocabulary.build(address, family, table, countries=2)
    history = History.of(Events(entity, address, EntityIndex(20)), family)
    return Case(family, vocabulary, history, [*address[:50].tolist(), *(first[:50] + 5).tolist()])


@st.composite
def cases(draw: st.DrawFn, family: Family | None = None, whole: bool = False) -> Case:
    """Few networks, so that they nest and are shared. With ``whole`` the vocabulary counts the history, too."""
    family = family or draw(st.sampled_from([IPV4, IPV6]))
    octet = st.sampled_from([0, 1, 15, 16, 255])
    width = family.width
    address = st.lists(octet, min_size=width // 8, max_size=width // 8).map(lambda o: int.from_bytes(bytes(o), "big"))
    near = st.tuples(address, st.integers(0, width)).map(lambda a: a[0] >> a[1] << a[1])  # mostly of one network
    some = address | near
    if family is IPV6:  # IPv4 addresses among those of IPv6
        some |= near.map(lambda a: (0x2002 << 48) + (a >> 32 << 16))
    levels = draw(
        st.sampled_from([family.levels, family.levels + family.finest, family.levels[2:5], (9, 11), (8,), (width,)])
    )
    seen = draw(st.lists(some, min_size=1, max_size=12))
    max_rows = draw(st.sampled_from([0, 4, 12, 10_000]))
    table = None
    if draw(st.booleans()):
        first = np.array([0, 1 << (width - 4)], family.dtype)
        labels = np.array([[1, 2], [1, draw(st.sampled_from([1, 2]))]], np.uint32)
        table = Networks(first, first + family.dtype.type((1 << (width - 8)) - 1), labels)
    entity = st.sampled_from([0, 1, 2, 5])
    pairs = draw(st.lists(st.tuples(entity, st.sampled_from(seen) | some), max_size=40))
    every = [*seen, *(a for _, a in pairs)] if whole else seen
    countries = draw(st.integers(0, 2))
    vocabulary = Vocabulary.build(np.array(every, family.dtype), family, table, levels, max_rows, countries=countries)
    length = draw(st.integers(0, width) | st.just(width))
    events = Events(
        np.array([e for e, _ in pairs], np.int32), np.array([a for _, a in pairs], family.dtype), EntityIndex(1)
    )
    history = History.of(events, family, length)
    return Case(family, vocabulary, history, [*seen, *(a for _, a in pairs), *draw(st.lists(some, max_size=10))])


def counted(case: Case) -> tuple[Counts, Tree]:
    counts = Counts(case.vocabulary, case.history)
    tree = Tree(case, [case.vocabulary.levels[column] for column in counts.columns])
    labels = dict(zip(case.vocabulary.country_rows.tolist(), case.vocabulary.countries, strict=True))
    for row, node in nodes(tree, case).items():
        tree.place[node] = labels.get(int(counts.networks[row, -1]), ELSEWHERE)
    tree.places.anywhere = counts._countries.anywhere
    return counts, tree


def nodes(tree: Tree, case: Case) -> dict[int, Path]:
    """The path of each row of the prefix table that is on a counted level."""
    found, row = {}, case.vocabulary.depth
    for column, level in enumerate(case.vocabulary.levels):
        for prefix in case.vocabulary.counted(column)[0].tolist():
            if level in tree.levels:
                path = tree.path(prefix << (case.family.width - level))
                found[row] = path[: tree.levels.index(level) + 1]
                assert found[row][-1] == prefix
            row += 1
    return found


def habits_of(counts: Counts, history: History | None = None) -> dict[int, tuple[float, dict[int, float]]]:
    """The constant of each entity and the gain of each of its networks."""
    found: dict[int, tuple[float, dict[int, float]]] = {}
    for habits in counts.habits(history):
        for i, row in enumerate(habits.rows.tolist()):
            own = slice(*habits.starts[i : i + 2].tolist())
            networks, gains = habits.network[own].tolist(), habits.gain[own].tolist()
            found[row] = float(habits.constant[i]), dict(zip(networks, gains, strict=True))
            assert len(found[row][1]) == len(networks)
    return found


def many_networks() -> Case:
    """A history of three entities with dozens of networks, some of which they share."""
    rng = np.random.default_rng(0)
    address = (rng.integers(0, 40, 300) << 24 | rng.integers(0, 2, 300) << 16).astype(np.uint32)
    history = History.of(Events(rng.integers(0, 3, 300).astype(np.int32), address, EntityIndex(3)), IPV4)
    return Case(IPV4, Vocabulary.build(address), history, address[:50].tolist())


def crowded() -> Case:
    """One of two networks of an entity is everybody's: elsewhere in it, the entity is rarer than the others are."""
    address = np.array([10 << 24] * 50 + [20 << 24] * 50 + [10 << 24 | number << 16 for number in range(1, 21)])
    entity = np.array([0] * 100 + list(range(1, 21)))
    events = Events(entity.astype(np.int32), address.astype(np.uint32), EntityIndex(30))
    return Case(IPV4, Vocabulary.build(events.address), History.of(events, IPV4), [])


def at_desks(family: Family) -> Case:
    """Twelve entities with a /24 each: six were at four addresses there, six at one. In IPv6 they are those of IPv4."""
    desk = np.concatenate([np.tile(np.arange(4), 6), np.zeros(6, np.int64)])
    entity = np.concatenate([np.repeat(np.arange(6), 4), np.arange(6, 12)])
    address = (10 << 24) + (entity << 16) + desk
    if family is IPV6:
        address = (0x2002 << 48) + (address << 16)
    events = Events(entity.astype(np.int32), address.astype(family.dtype), EntityIndex(12))
    return Case(family, Vocabulary.build(events.address, family), History.of(events, family), [])


@example(many_networks())
@given(cases())
def test_what_is_counted_in_each_network_and_leaf(case: Case) -> None:
    vocabulary, family = case.vocabulary, case.family
    counts, _ = counted(case)
    row = vocabulary.depth
    for column, level in enumerate(vocabulary.levels):
        for prefix in vocabulary.counted(column)[0].tolist():
            inside = [pair for pair in case.plain if pair[1] >> (family.width - level) == prefix]
            kept = level <= case.history.length
            assert counts.fabricated[row] == (sum(weight(case.plain[pair]) for pair in inside) if kept else 0)
            assert counts.entities[row] == (len({entity for entity, _ in inside}) if kept else 0)
            row += 1
    others = np.r_[: vocabulary.depth, row : vocabulary.num_rows]  # unknown rows, providers and countries
    assert not counts.fabricated[others].any()
    assert not counts.entities[others].any()
    pairs, events = collections.Counter[int](), collections.Counter[int]()
    for (_, address), count in case.plain.items():
        [leaf] = vocabulary.leaves(np.array([address], family.dtype)).tolist()
        pairs[leaf] += 1
        events[leaf] += count
    for network in range(vocabulary.depth, row):
        inside = (vocabulary.chains == network).any(axis=1)
        for label in range(len(vocabulary.levels), vocabulary.depth):
            by_label = np.bincount(vocabulary.chains[inside, label], counts.leaf_pairs[inside], vocabulary.num_rows)
            assert by_label[counts.networks[network, label]] == by_label.max()
            assert counts.networks[network, label] in vocabulary.chains[inside, label]
    assert counts.leaf_pairs.tolist() == [pairs[leaf] for leaf in range(len(vocabulary.chains))]
    assert counts.leaf_events.tolist() == [events[leaf] for leaf in range(len(vocabulary.chains))]


@given(cases())
def test_counted_levels_ascend_and_are_kept_in_the_history(case: Case) -> None:
    _, tree = counted(case)
    kept = [level for level in case.vocabulary.levels if level <= case.history.length]
    assert tree.levels == [level for level in kept if level in tree.levels]
    if case.vocabulary.levels[: len(case.family.levels)] == case.family.levels:  # and no network is far from one
        assert all(any(level - step in tree.levels for step in range(case.family.width // 8)) for level in kept[1:])


@example(many_networks())
@example(in_two_countries())
@given(cases())
def test_popularity_and_prior_are_those_of_the_formulas(case: Case) -> None:
    """Each is a sum over the rows of the address, with the root's. Countries are in popularity alone."""
    counts, tree = counted(case)
    vocabulary, places = case.vocabulary, tree.places
    chains = vocabulary.chains[vocabulary.leaves(np.array(case.queries, case.family.dtype))]
    popularity = [tree.popularity(tree.path(query)) + places.popularity(places.of(query)) for query in case.queries]
    prior = [tree.prior(tree.path(query)) for query in case.queries]
    for values, expected in ((counts.popularity, popularity), (counts.prior, prior)):
        assert values.shape == (vocabulary.num_rows + 1,)
        np.testing.assert_allclose(values[chains].sum(1) + values[-1], expected, atol=1e-6)
        assert not values[: len(vocabulary.levels)].any()


@example(many_networks(), {0, 2})
@example(crowded(), {0})
@example(in_two_countries(), {0, 12})
@given(cases(), st.sets(st.sampled_from([0, 1, 2, 5])))
def test_habits_are_those_of_the_formulas(case: Case, some: set[int]) -> None:
    counts, tree = counted(case)
    rows = nodes(tree, case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MOVES", 10_000)
        found = habits_of(counts)
        part = case.history.of_entities(np.array(sorted(some), np.int32))
        assert habits_of(counts, part) == {entity: habits for entity, habits in found.items() if entity in some}
    assert sorted(found) == case.history.rows.tolist()
    for entity, (constant, gains) in found.items():
        assert constant == pytest.approx(tree.constant(entity) + tree.places.habit(entity, ELSEWHERE), abs=1e-5)
        assert {rows[row]: gain for row, gain in gains.items()} == pytest.approx(tree.gains(entity), abs=1e-5)


@example(in_two_countries())
@example(in_two_countries(travels=2))
@example(in_two_countries(travels=9))
@given(cases())
def test_how_much_countries_matter_is_measured_at_places_where_an_entity_was_once(case: Case) -> None:
    counts, tree = counted(case)
    shares = [share / 32 for share in range(1, 32)]
    assert counts._countries.anywhere in shares
    if not tree.places.counted:
        assert counts._countries.anywhere == 0.5
        return
    likelihood = {share: tree.places.likelihood(tree, case, share) for share in shares}
    assert likelihood[counts._countries.anywhere] == pytest.approx(max(likelihood.values()), abs=1e-9)


@pytest.mark.parametrize(("abroad", "low", "high"), [(0, 0, 0.15), (3, 0.6, 0.9), (6, 0.9, 1)])
def test_the_less_entities_stay_in_their_countries_the_less_these_say(abroad: int, low: float, high: float) -> None:
    """Six travels of each entity, of which some are in the other country."""
    counts, _ = counted(in_two_countries(travels=6, abroad=abroad))
    assert low < counts._countries.anywhere < high


@pytest.mark.parametrize(("version", "bits", "told"), [(4, 24, True), (4, 23, False), (6, 48, True), (6, 47, False)])
def test_of_addresses_cut_to_few_bits_nobody_knows_the_country(version: int, bits: int, told: bool) -> None:
    case = in_two_countries(family=FAMILIES[version])
    counts = Counts(case.vocabulary, case.history.cut(case.family, bits))
    assert len(case.vocabulary.countries) == 2
    for habits in counts.habits():
        assert habits.countries.any(axis=1).all() == told
        assert habits.countries.any() == told


@example(in_two_countries())
@given(cases())
def test_each_country_adds_its_own_ratio_in_place_of_that_of_elsewhere(case: Case) -> None:
    counts, tree = counted(case)
    for habits in counts.habits():
        for row, added in zip(habits.rows.tolist(), habits.countries.tolist(), strict=True):
            elsewhere = tree.places.habit(row, ELSEWHERE)
            expected = [tree.places.habit(row, place) - elsewhere for place in case.vocabulary.countries]
            assert added == pytest.approx(expected, abs=1e-5)


def test_an_entity_is_likelier_in_its_own_country_and_its_own_networks_add_less_there() -> None:
    case = in_two_countries()
    with_countries, _ = counted(case)
    without, _ = counted(dataclasses.replace(case, vocabulary=dataclasses.replace(case.vocabulary, countries=())))
    [told], [untold] = with_countries.habits(), without.habits()
    assert case.vocabulary.countries == (1, 2)
    of_one, of_two = told.rows < 10, told.rows >= 10
    assert (told.countries[of_one, 0] - told.countries[of_one, 1] > 1).all()
    assert (told.countries[of_two, 1] - told.countries[of_two, 0] > 1).all()
    assert (told.gain < untold.gain).all()
    own = np.where(of_one, told.countries[:, 0], told.countries[:, 1])
    entity = np.repeat(np.arange(len(told.rows)), np.diff(told.starts))
    known, before = told.gain + (told.constant + own)[entity], untold.gain + untold.constant[entity]
    np.testing.assert_allclose(known, before, atol=0.01)  # but for the popularity of countries, which are alike


@example(many_networks(), 3, AT_HOME)
@example(many_networks(), 10_000, AT_HOME)
@example(crowded(), 10_000, AT_HOME)
@example(at_desks(IPV4), 10_000, AT_HOME)
@example(at_desks(IPV4), 10_000, -5.0)
@example(at_desks(IPV6), 10_000, AT_HOME)
@given(cases(), st.sampled_from([1, 2, 10_000]), st.sampled_from([AT_HOME, 0.0]))
def test_sites_and_homes_gain_everywhere_and_each_adds_what_the_one_around_it_does_not(
    case: Case, most: int, at_home: float
) -> None:
    counts, tree = counted(case)
    rows, tree.at_home = nodes(tree, case), at_home
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MOVES", most)
        patch.setattr(counting, "AT_HOME", at_home)
        every = list(counts.habits())
    for habits in every:
        for i, entity in enumerate(habits.rows.tolist()):
            own = slice(*habits.starts[i : i + 2].tolist())
            kept = [rows[row] for row in habits.network[own].tolist()]
            added = dict(zip(kept, habits.spread[own].tolist(), strict=True))
            assert habits.home[own].tolist() == [tree.home(entity, node) for node in kept]
            for node in kept:
                inside = sum(added.get(node[:depth], 0) for depth in range(1, len(node) + 1))
                assert inside == pytest.approx(tree.spread(entity, node), abs=1e-4)


@example(many_networks(), 0)
@example(many_networks(), 1)
@example(many_networks(), 20)
@given(cases(), st.integers(0, 3))
def test_of_many_networks_those_stay_from_which_the_events_gain_most(case: Case, most: int) -> None:
    counts, tree = counted(case)
    rows, every = nodes(tree, case), habits_of(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MOVES", most)
        few = habits_of(counts)
    for entity, (constant, gains) in every.items():
        kept = few[entity][1]
        assert few[entity][0] == constant
        assert len(kept) == min(most, len(gains))
        assert kept.items() <= gains.items()
        telling = {row: gain * tree.events[entity][rows[row]] for row, gain in gains.items()}
        others = [value for row, value in telling.items() if row not in kept]
        assert not kept or not others or min(telling[row] for row in kept) >= max(others) * (1 - 1e-6)


@example(many_networks(), False, {0, 1})
@example(many_networks(), True, {0, 1})
@given(cases(), st.booleans(), st.sets(st.sampled_from([0, 1, 2, 5])))
def test_where_an_event_comes_back_to(case: Case, another: bool, some: set[int]) -> None:
    counts, tree = counted(case)
    rows = nodes(tree, case)
    part = case.history.of_entities(np.array(sorted(some), np.int32))
    network, habit = counts.come_back(part, another)
    assert len(network) == len(habit) == len(part)
    for at, (entity, address) in enumerate(zip(part.entities.tolist(), part.addresses.tolist(), strict=True)):
        seen = (tree.own_pairs if another else tree.events)[entity]
        path = tree.path(address)
        back = [path[:depth] for depth in range(1, len(path) + 1) if seen[path[:depth]] > 1]
        assert rows.get(int(network[at])) == (back[-1] if back else None)
        assert (network[at] == -1) == (not back)
        # By which share its other events in a network are more than all pairs' there would be.
        share = {node: (seen[node] - 1) / (seen[()] - 1) for node in back}
        beyond = [(share[node] - tree.drawn[node] / tree.everywhere) / share[node] for node in back]
        assert habit[at] == pytest.approx(max([0.0, *beyond]))


@given(cases(), st.integers(1, 5))
def test_how_many_are_counted_at_a_time_changes_nothing(case: Case, size: int) -> None:
    at_once = Counts(case.vocabulary, case.history)
    whole = habits_of(at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_PAIRS", size)
        in_parts = Counts(case.vocabulary, case.history)
        parts = list(in_parts.habits())
        assert habits_of(in_parts) == whole
    assert sum(len(part.rows) for part in parts) == len(case.history.rows)
    pairs = np.diff(case.history.starts)
    for part in parts:  # as few entities at a time as the limit says
        assert len(part.rows) == 1 or pairs[np.isin(case.history.rows, part.rows)].sum() <= size
    for name in ("entities", "fabricated", "leaf_pairs", "leaf_events", "popularity", "prior"):
        assert (getattr(in_parts, name) == getattr(at_once, name)).all()


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_without_a_history_nothing_is_known(family: Family) -> None:
    vocabulary = Vocabulary.build(np.array([0, 0, 1 << 20], family.dtype), family)
    counts = Counts(vocabulary, History.none(family))
    assert not list(counts.habits())
    assert not counts.fabricated.any()
    assert not counts.entities.any()
    for values in (counts.popularity, counts.prior):
        assert values == pytest.approx(np.zeros(vocabulary.num_rows + 1))


@pytest.mark.parametrize(("levels", "length"), [((9, 11), 32), (IPV4.levels, 7), (IPV4.levels, 0)])
def test_where_no_level_is_counted_all_addresses_are_alike(levels: tuple[int, ...], length: int) -> None:
    address = np.array([0, 1 << 24, 1 << 24], np.uint32)
    history = History.of(Events(np.array([0, 0, 1], np.int32), address, EntityIndex(2)), IPV4, length)
    counts = Counts(Vocabulary.build(address, levels=levels), history)
    assert not counts.popularity.any()
    assert not counts.prior.any()
    assert habits_of(counts) == {0: (0.0, {}), 1: (0.0, {})}
    network, habit = counts.come_back(history, another=False)
    assert network.tolist() == [-1] * len(history)
    assert not habit.any()


def test_the_more_regular_an_entity_is_the_lower_it_is_elsewhere() -> None:
    """And each of two networks gains the more, the more of the entity's events come from it."""
    home, away = 10 << 24, 20 << 24
    visits = [(0, 30 << 24)] * 20 + [(1, home)] * 15 + [(1, away)] * 5 + [(2, n << 24) for n in range(100, 120)]
    entity, address = (np.array(column) for column in zip(*visits, strict=True))
    history = History.of(Events(entity.astype(np.int32), address.astype(np.uint32), EntityIndex(3)), IPV4)
    vocabulary = Vocabulary.build(address.astype(np.uint32))
    found = habits_of(Counts(vocabulary, history))
    constants = [found[entity][0] for entity in range(3)]
    assert constants[0] < constants[1] < constants[2] < 0
    at_home, at_away = (vocabulary.depth + vocabulary.counted(0)[0].tolist().index(n) for n in (10, 20))
    assert found[1][1][at_home] > found[1][1][at_away] > 0


@given(cases(whole=True), st.integers(0, 10))
def test_the_prior_without_an_entity_is_that_of_a_history_without_it(case: Case, which: int) -> None:
    """Whose network would not have been known without it comes from an unknown one."""
    history, vocabulary, family = case.history, case.vocabulary, case.family
    assume(len(history.rows))
    row = history.rows[which % len(history.rows)]
    part, rest = history.of_entities(np.array([row])), history.without(np.array([row]))
    fewest = int(vocabulary.counts.min(initial=vocabulary.events))
    found = Counts(vocabulary, history).prior_without(part)
    # The vocabulary of the others: a prefix needs as many events without it.
    left = vocabulary.row_counts[vocabulary.depth :][: len(vocabulary.prefixes)].copy()
    for address, count in zip(part.addresses.tolist(), part.counts.tolist(), strict=True):
        chain = vocabulary.chains[vocabulary.leaves(np.array([address], family.dtype))[0], : len(vocabulary.levels)]
        left[chain[chain >= vocabulary.depth] - vocabulary.depth] -= count
    kept, begin, prefixes, sizes = left >= fewest, 0, [], []
    for size in vocabulary.sizes:
        chosen = kept[begin : begin + size]
        prefixes.append(vocabulary.prefixes[begin : begin + size][chosen])
        sizes.append(int(chosen.sum()))
        begin += size
    others = dataclasses.replace(
        vocabulary,
        prefixes=np.concatenate(prefixes),
        counts=left[kept],
        sizes=tuple(sizes),
        networks=None,
        labels=(),
        countries=(),
    )
    prior = Counts(others, rest).prior
    rows = others.chains[others.leaves(part.addresses)]
    assert found == pytest.approx(prior[rows].sum(axis=1) + prior[-1])
