"""After training: what counting knows, written into the trained tables. The score stays an inner product.

Training learns the events of an entity by heart. So it never learns what it is worth to be in a network that the entity
has been in before: all events that could teach it are known. Counting has this in closed form (`counting`), and cannot
see which networks are alike, which training learns. The sum of both log ratios is better than either. Each part of
counting has its place in the tables:

- *popularity* is a sum over the rows of the address's prefixes: one coordinate of the prefix table, 1 in the rows of
  all entities that training saw;
- the *constant* of an entity is another coordinate of its row, 1 in all addresses;
- what each of its *countries* adds to that is one coordinate for each country, 1 in its addresses (`countries`);
- what the entity's own networks add moves its row. The encoder stays as it is. An address in each own network should
  gain what counting says, all addresses of its sites as much, all those of its homes at least what makes them no alarm,
  and the rest of the world nothing. This is ridge regression: a system of as many equations as the entity has networks.
  Whatever is similar to its networks gains too, which counting alone cannot do.

An entity that training never saw has no habits, and nothing that was learnt of others is its own. Its score is a prior,
the third coordinate: how many entities use the address's networks.

Training leaves these coordinates at 0 by itself: what starts at 0 on both sides of a product has no gradient.

The score of an entity that training saw is thus the sum of three parts: popularity, *habit* (the constant, the country
and the move), and *affinity*, the product of what training learnt. The more events an entity has, the less its affinity
weighs (`affinity_weight`): of its own places counting then knows enough, and the sum would have them twice.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import (
    PROVIDER,
    SITE,
    Addresses,
    Family,
    leading,
    mapped_share,
    random_addresses,
)
from ipinsights.data.entities import FORGOTTEN
from ipinsights.distributed.group import ALONE, Group
from ipinsights.model.counting import Counts, Habits
from ipinsights.model.history import History
from ipinsights.model.model import RESERVED, Counted, Encoder, Model, learnt_dim
from ipinsights.native.scoring import add_rows

POPULARITY, CONSTANT, PRIOR = -3, -2, -1
"""The coordinates that are reserved."""
BACKGROUND = 100.0
"""So many own networks weigh as much as the rest of the world, to which nothing should be added."""
AFFINITY_EVENTS = 500.0
"""What was learnt of an entity with n events weighs 1 / sqrt(1 + n / AFFINITY_EVENTS). Chosen on the AWS tutorial's
simulation, as Tor relays have too few events each to tell."""
_STEEP = 1e-3
"""Added to the second moment of the encodings, in units of their mean square."""
_FULL_GAIN = 8.0
"""A network's equation weighs its gain in units of this, within the following limits."""
_LIGHTEST, _HEAVIEST = 0.02, 2.0
_PAIRS = 100_000
"""Pairs, observed and fabricated ones, that the threshold is found by."""
_SAMPLED = 1 << 19
"""Pairs of the entities whose habits and fabricated pairs these are, at most, unless one entity has more."""
_NEARLY = 0.0003
"""How much above the least the sum of the errors may be: the lowest threshold with such a sum is taken."""
_MISS_AT_HOME = 0.1
"""What an event at home counts that scores below the threshold. Both were chosen on `benchmarks.situations` and on the
AWS tutorial's simulation: .2 and .001 meet the same situations, and find .2 % fewer of the tutorial's attacks."""
SETTLED = 0.02
"""The share of entities at least that must have habits, so that the others' lack of them means something."""
_MOST_ALARMS = 0.1
"""The share of ordinary log-ins that may score below the threshold. If what was learnt can hardly tell others' places
from own ones, as with a vector_dim of 4, a threshold above all scores makes as few errors as any other."""
_NEAR = 8
"""A habit's place among the known addresses around it."""
_RANDOM = 0.25
_ONCE = 0.01
"""What an event counts as a habit whose entity was never in its network besides."""
_CHUNK = 1 << 14
_LAST = (1 << 64) - 1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Of a hash of entities (Knuth's multiplicative one)."""
_FLOATS = 1 << 22
"""Of the systems that are solved together."""

Vectors = npt.NDArray[np.float32]
Pairs: TypeAlias = tuple[npt.NDArray[np.int32], Addresses]
"""Rows of entities and as many addresses."""


class Refit:
    """What counting knows, ready to be written into the tables of any epoch."""

    def __init__(self, counts: Counts, group: Group = ALONE) -> None:
        """In a ``group`` the counts are those of all ranks, with the history of this rank's entities."""
        self.counts = counts
        self._group = group
        begins = counts.vocabulary.depth + np.cumsum((0, *counts.vocabulary.sizes))
        self._rows = [slice(begins[column], begins[column + 1]) for column in counts.columns]
        """The rows of the networks that may be habits, level by level."""
        self._longest = counts.vocabulary.chains[:, counts.columns].max(axis=1, initial=0)
        """Of these the longest one of each leaf; the row of an unknown network where none is known."""
        # The rest of the world is what events come from, and what pairs do: one busy account is but half of it.
        weights = counts.leaf_pairs / counts.leaf_pairs.sum() + counts.leaf_events / counts.leaf_events.sum()
        weights = (1 - _RANDOM) * weights / 2 + _RANDOM * counts.leaf_shares
        self._weights = weights.astype(np.float32)

    def encoder(self, encoder: Encoder, threshold: float = 0.0) -> Encoder:
        """The encoder with popularity in it, less what is the ``threshold`` so far, and the other coordinates."""
        table: Vectors = np.array(encoder.prefix)
        coarsest = np.unique(self.counts.vocabulary.chains[:, 0])  # of these, every address has exactly one
        for coordinate, values in ((POPULARITY, self.counts.popularity), (PRIOR, self.counts.prior)):
            table[:, coordinate] = values[:-1]
            table[coarsest, coordinate] += values[-1]
        table[coarsest, POPULARITY] -= threshold
        table[:, CONSTANT] = 0
        table[coarsest, CONSTANT] = 1
        countries = self.counts.vocabulary.country_rows
        learnt = learnt_dim(table.shape[1], self.counts.vocabulary)
        table[:, learnt:-RESERVED] = 0
        table[countries, np.arange(learnt, learnt + len(countries))] = 1
        return dataclasses.replace(encoder, prefix=table)

    def moves(self, encoder: Encoder) -> "Moves":
        """What the encoder makes of habits."""
        learnt = learnt_dim(encoder.prefix.shape[1], self.counts.vocabulary)
        second = np.zeros((learnt, learnt))
        inside, encoded, pulled = (np.zeros((len(self.counts.networks), learnt), dtype=np.float32) for _ in range(3))
        chains = self.counts.vocabulary.chains
        for begin in range(0, len(chains), _CHUNK):
            x = encoder(chains[begin : begin + _CHUNK])[:, :learnt]
            weighted = x * self._weights[begin : begin + _CHUNK, None]
            second += weighted.T @ x
            add_rows(inside, self._longest[begin : begin + _CHUNK], weighted)
        ridge = _STEEP * max(np.trace(second) / learnt, np.finfo(np.float32).tiny)
        inverse = np.linalg.inv(BACKGROUND * (second + ridge * np.eye(learnt))).astype(np.float32)
        for place in range(len(self._rows) - 1, 0, -1):
            rows = self._rows[place]
            around = np.ascontiguousarray(self.counts.networks[rows, self.counts.columns[place - 1]])
            add_rows(inside, around, inside[rows])
        for rows in self._rows:
            for begin in range(rows.start, rows.stop, _CHUNK):
                part = slice(begin, min(begin + _CHUNK, rows.stop))
                encoded[part] = encoder(self.counts.networks[part])[:, :learnt]
                pulled[part] = encoded[part] @ inverse
                inside[part] = np.float32(BACKGROUND) * inside[part] @ inverse
        return Moves(encoded, pulled, inside)

    def kept(self, earlier: Model) -> "Kept":
        """What an earlier model has of the entities that it knows and that have no history."""
        if earlier.counted:
            known = earlier.counted.rows
        else:
            known = np.flatnonzero((earlier.index.tags != 0) & (earlier.index.tags != FORGOTTEN)).astype(np.int32)
        without = ~np.isin(known, self.counts.history.rows)
        rows = known[without]
        if earlier.counted:
            learnt, weights = earlier.counted.learnt[:-1][without], earlier.counted.weights[without]
            return Kept(rows, weights, earlier.entity[rows] - weights[:, None] * learnt)
        added = np.zeros((len(rows), earlier.vector_dim), dtype=np.float32)
        added[:, POPULARITY] = 1
        return Kept(rows, np.ones(len(rows), dtype=np.float32), added)

    def model(
        self,
        learnt: Model,
        seed: int,
        earlier: Model | None = None,
        ordinary: Pairs | None = None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Model | None:
        """The learnt model with counting in it, and with what it was made of. None if ``give_up`` returned True.

        ``ordinary`` are log-ins of known entities that took no part in training; the threshold is found by them, too.
        Of entities without a history, `kept` is kept. In a ``group`` the model is this rank's part: it has the rows of
        its entities, and all else is the same on all ranks. It is None on all ranks if it is on one.
        """
        history, encoder = self.counts.history, learnt.encoder
        moves = self.moves(encoder)
        entity = np.zeros_like(learnt.entity)
        entity[:, PRIOR] = 1
        weights = np.ones(len(entity), dtype=np.float32)
        moved = history.rows
        if earlier:
            kept = self.kept(earlier)
            entity[kept.rows], weights[kept.rows] = kept(learnt.entity[kept.rows]), kept.weights
            moved = np.union1d(moved, kept.rows)
        late = False
        for habits in self.counts.habits():
            late = give_up()
            if late:
                break
            entity[habits.rows] = moves.moved(learnt.entity[habits.rows], habits)
            weights[habits.rows] = affinity_weight(habits.events)
        if self._group.any(late):
            return None
        refitted = dataclasses.replace(learnt, entity=entity, encoder=self.encoder(encoder))
        threshold = self._threshold(refitted, seed, ordinary)
        networks = slice(learnt.vocabulary.depth, learnt.vocabulary.depth + len(learnt.vocabulary.prefixes))
        rows = np.append(moved, -1)
        nothing = History.none(learnt.family)
        counted = Counted(moved, learnt.entity[rows], weights[moved], self.counts.entities[networks], history, nothing)
        return dataclasses.replace(refitted, encoder=self.encoder(encoder, threshold), counted=counted)

    def _threshold(self, refitted: Model, seed: int, ordinary: Pairs | None) -> float:
        """The score that best tells known habits from fabricated pairs: it becomes 0.

        The sum of two log ratios counts twice what both know, so its own 0 says nothing. This is the lowest threshold
        at which three rates of error sum to nearly the least: habits below it, and random addresses and addresses of
        others above it, where these are a stranger's (`_Own.stranger`). All entities count alike. An event is scored as
        if it had not been seen: somewhere in the longest network where its entity has another one. At home, no address
        is strange, and a habit's error counts less: counting has lifted it by itself.

        Where there are ``ordinary`` log-ins, the rate of habits below it is the higher one of that and of theirs. They
        are few, but what will come: they are also at places where their entities were only once, or never. No more than
        `_MOST_ALARMS` of them (or of the habits, if there are none) score below the threshold.
        """
        rng = np.random.default_rng(seed)
        scores = np.zeros(0, dtype=np.float32)
        if ordinary:
            rows, addresses = ordinary
            step = max(1, -(-self._group.total(len(rows)) // _PAIRS))  # a validation channel may be of any size
            scores = refitted.score_rows(rows[::step], addresses[::step])
        if self._group.size > 1:
            return self._threshold_of_all(refitted, scores, rng)
        history = self.counts.history
        if len(history) > _SAMPLED:
            order = rng.permutation(len(history.rows))
            some = max(1, int(np.searchsorted(np.cumsum(np.diff(history.starts)[order]), _SAMPLED, side="right")))
            history = history.of_entities(np.sort(history.rows[order[:some]]))
        return self._best(refitted, history, self.counts.history.addresses, scores, rng)

    def _threshold_of_all(self, refitted: Model, ordinary: Vectors, rng: np.random.Generator) -> float:
        """The threshold of all ranks' entities: the leader finds it by a sample of them.

        A hash of the entities decides which ones, so it does not depend on where they are at home.
        """
        history, group = self.counts.history, self._group
        share = _SAMPLED / max(1, group.total(len(history)))
        names = refitted.index.tags[history.rows].astype(np.uint64) * _FACTOR
        lowest = min(ranks[0] for ranks in group.gather(np.array([names.min(initial=_LAST)], dtype=np.uint64)))
        limit = max(lowest, np.uint64(min(share * 2.0**64, 2.0**64 - 2**11)))  # one entity at least
        chosen = history.rows[names <= limit]
        if share >= 1:
            chosen = history.rows
        some = history.of_entities(chosen)
        sizes, addresses, counts, entity, ordinary = (
            np.concatenate(group.collect(array))
            for array in (np.diff(some.starts), some.addresses, some.counts, refitted.entity[chosen], ordinary)
        )
        threshold = np.zeros(0)
        if group.leads:
            rows = np.arange(len(sizes), dtype=np.int32)
            sample = History(rows, np.append(0, np.cumsum(sizes)), addresses, counts, history.length)
            scored = dataclasses.replace(refitted, entity=entity)
            threshold = np.array([self._best(scored, sample, addresses, ordinary, rng)])
        return float(group.broadcast(threshold).item())

    def _best(
        self, refitted: Model, history: History, every: Addresses, ordinary: Vectors, rng: np.random.Generator
    ) -> float:
        """The threshold of some entities. ``every`` are the addresses of all pairs, ``ordinary`` what log-ins score."""
        own = _Own(self.counts, history)
        habit, at_home = self._habit_scores(refitted, history, every, own, rng)
        strange = [*self._strange_scores(refitted, history, every, own, rng)]
        candidates = np.unique(np.concatenate([habit, *strange]))

        def below(scores: Vectors, of: int) -> npt.NDArray[np.float64]:
            """How many of the scores lie below each candidate, as a share of a number."""
            return np.searchsorted(np.sort(scores), candidates) / max(1, of)

        missed = below(habit[~at_home], len(habit)) + _MISS_AT_HOME * below(habit[at_home], len(habit))
        total = np.maximum(missed, below(ordinary, len(ordinary))) - sum(
            below(scores, len(scores)) for scores in strange
        )
        best = int(np.argmax(total <= total.min() + _NEARLY))
        threshold = float(candidates[max(0, best - 1)] + candidates[best]) / 2
        return min(threshold, float(np.quantile(ordinary if len(ordinary) else habit, _MOST_ALARMS)))

    def _habit_scores(
        self, refitted: Model, history: History, addresses: Addresses, own: "_Own", rng: np.random.Generator
    ) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Of events where their entities have come back to, at places of others there or at unknown ones.

        And whether each is at home.
        """
        counts, leaves = self.counts, self.counts.vocabulary.leaves
        every = np.sort(addresses)
        every = every[np.append(True, every[1:] != every[:-1])]
        scores, at_home = [], []
        for another in (False, True):
            network, habit = counts.come_back(history, another)
            number = np.ones(len(history)) if another else history.counts.astype(np.float64)
            events = np.add.reduceat(number, history.starts[:-1])
            total = np.cumsum(number / np.repeat(events, np.diff(history.starts)) * (habit + _ONCE))
            drawn = np.searchsorted(total, rng.random(_PAIRS // 2) * total[-1], side="right")
            entity, network, where = history.entities[drawn], network[drawn], history.addresses[drawn]
            back = np.flatnonzero(network >= 0)
            first, last = counts.vocabulary.bounds(network[back])
            low, high = np.searchsorted(every, first), np.searchsorted(every, last, side="right")
            moved = rng.integers(1, _NEAR + 1, len(back)) * rng.choice((-1, 1), len(back))
            near = np.searchsorted(every, where[back]) + moved
            where[back] = every[np.clip(near, low, high - 1)]
            chains = counts.vocabulary.chains[leaves(where)]
            theirs = back[own.leaf(entity[back], leaves(where[back]))]
            chains[theirs] = self.counts.networks[network[theirs]]
            scores.append(np.einsum("nd,nd->n", refitted.entity[entity], refitted.encoder(chains)))
            at_home.append(own.home(entity, chains))
        return np.concatenate(scores), np.concatenate(at_home)

    def _strange_scores(
        self, refitted: Model, history: History, every: Addresses, own: "_Own", rng: np.random.Generator
    ) -> list[Vectors]:
        """Of entities with random addresses, and with addresses of others: those that should look suspicious."""
        half = _PAIRS // 2
        scores = []
        for where in (
            random_addresses(half, refitted.family, mapped_share(every), rng),
            every[rng.integers(len(every), size=half)],
        ):
            who = history.rows[rng.integers(len(history.rows), size=half)]
            strange = own.stranger(who, where)
            scores.append(refitted.score_rows(who[strange], where[strange]))
        return scores


class _Own:
    """Where the entities of a history were and are at home, and what is no stranger's place to them."""

    def __init__(self, counts: Counts, history: History) -> None:
        self._vocabulary, self._columns = counts.vocabulary, counts.columns
        family = counts.vocabulary.family
        self._leaves = np.sort(_pairs(history.entities, counts.vocabulary.leaves(history.addresses)))
        homes = [np.zeros(0, dtype=np.int64)]
        for habits in counts.habits(history):
            owner = np.repeat(habits.rows, np.diff(habits.starts))
            homes.append(_pairs(owner[habits.home], habits.network[habits.home]))
        self._homes = np.sort(np.concatenate(homes))
        self._sites = _Places(history, family, SITE)
        settled = np.union1d(self._sites.came_back, self._homes >> 32)
        enough = len(settled) >= SETTLED * len(history.rows)
        others = history.of_entities(np.setdiff1d(history.rows, settled) if enough else history.rows[:0])
        self._providers = _Places(others, family, PROVIDER)

    def leaf(self, entity: npt.NDArray[np.int32], leaf: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Whether the entity has an event in the leaf: [n]."""
        return _among(_pairs(entity, leaf), self._leaves)

    def home(self, entity: npt.NDArray[np.int32], chains: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Whether an address, by its row on every level, is in a home of the entity: [n]."""
        found = np.zeros(len(entity), dtype=np.bool_)
        for column in self._columns:  # no others have homes
            found |= _among(_pairs(entity, chains[:, column]), self._homes)
        return found

    def stranger(self, entity: npt.NDArray[np.int32], address: Addresses) -> npt.NDArray[np.bool_]:
        """Whether an address is a place of strangers, which should look suspicious for the entity: [n].

        It is not in the entity's own leaves and homes. It is not at its sites: where all log-ins are from one, nothing
        tells who sits at which desk. And an entity that has no home and never came back to a site has shown no habit:
        it may be anywhere in networks of a provider's size where it was once. (But if nearly all entities are such,
        there are no others to find the threshold by.)
        """
        leaves = self._vocabulary.leaves(address)
        own = self.leaf(entity, leaves) | self.home(entity, self._vocabulary.chains[leaves])
        return ~(own | self._sites.has(entity, address) | self._providers.has(entity, address))


class _Places:
    """The networks of one size where entities were, whether they are known or not."""

    def __init__(self, history: History, family: Family, eighths: int) -> None:
        """So many eighths of an address (`leading`). If addresses were cut to shorter prefixes, nobody was anywhere."""
        self._family, self._eighths = family, eighths
        network = leading(history.addresses, family, eighths)
        begins = np.ones(len(network), dtype=np.bool_)  # an entity's pairs in a network are neighbours
        entity = history.entities
        begins[1:] = (network[1:] != network[:-1]) | (entity[1:] != entity[:-1])
        first = np.flatnonzero(begins)
        events = np.add.reduceat(history.counts, first, dtype=np.int64)
        self.came_back = np.unique(entity[first[events > 1]])
        """The entities with several events in one of them; if addresses were cut, in one network as long as that."""
        told = first if history.length >= family.width * eighths // 8 else first[:0]
        self._known, place = np.unique(network[told], return_inverse=True)
        self._pairs = np.sort(_pairs(entity[told], place.astype(np.int32)))

    def has(self, entity: npt.NDArray[np.int32], address: Addresses) -> npt.NDArray[np.bool_]:
        """Whether the entity was in the network of each address: [n]."""
        if not len(self._known):
            return np.zeros(len(entity), dtype=np.bool_)
        network = leading(address, self._family, self._eighths)
        place = np.minimum(np.searchsorted(self._known, network), len(self._known) - 1).astype(np.int32)
        found: npt.NDArray[np.bool_] = self._known[place] == network
        return found & _among(_pairs(entity, place), self._pairs)


def affinity_weight(events: npt.NDArray[np.float64]) -> Vectors:
    """What was learnt of entities with so many events weighs in their scores, in (0, 1]: [M]."""
    weights: Vectors = (1 / np.sqrt(1 + events / AFFINITY_EVENTS)).astype(np.float32)
    return weights


@dataclasses.dataclass(frozen=True)
class Kept:
    """What an earlier model has of M entities without a history."""

    rows: npt.NDArray[np.int32]
    """Their rows of the entity table, ascending, [M]."""
    weights: Vectors
    """What their learnt rows weigh, [M]."""
    added: Vectors
    """What counting added to them in that model, [M, D]; popularity alone if it did not count."""

    def of(self, rows: npt.NDArray[np.integer]) -> "Kept":
        """The same of some of the rows."""
        place = np.searchsorted(self.rows, rows)
        return Kept(self.rows[place], self.weights[place], self.added[place])

    def __call__(self, learnt: Vectors) -> Vectors:
        """The rows that are served, of what training has learnt since then: [M, D]."""
        return self.weights[:, None] * learnt + self.added


@dataclasses.dataclass(frozen=True)
class Moves:
    """Moves the rows of entities by their habits, for one state of the encoder."""

    encoded: Vectors
    """An address in each network that is otherwise unknown, by row of the prefix table, [P, `learnt_dim`]: of networks
    that may be habits. Other rows are 0, here and in what follows."""
    pulled: Vectors
    """The same, multiplied by the inverse of what the rest of the world weighs."""
    inside: Vectors
    """What there is of the world in each network, multiplied likewise."""

    def moved(self, learnt: Vectors, habits: Habits) -> Vectors:
        """The rows of the entities that are served, of what training has learnt: [M, D]."""
        return affinity_weight(habits.events)[:, None] * learnt + self(habits)

    def __call__(self, habits: Habits) -> Vectors:
        """What to add to the rows of the entities, [M, D]."""
        dim = self.encoded.shape[1]
        countries = habits.countries.shape[1]
        added = np.zeros((len(habits.rows), dim + countries + RESERVED), dtype=np.float32)
        added[:, dim : dim + countries] = habits.countries
        added[:, POPULARITY] = 1
        added[:, CONSTANT] = habits.constant
        sizes = np.diff(habits.starts)
        for size in np.unique(sizes[sizes > 0]).tolist():
            some = np.flatnonzero(sizes == size)
            for part in np.array_split(some, -(-len(some) * size * dim // _FLOATS)):
                at = habits.starts[part][:, None] + np.arange(size)
                network, gain = habits.network[at], habits.gain[at]
                weight = np.clip(gain / _FULL_GAIN, _LIGHTEST, _HEAVIEST)
                root = np.sqrt(weight)
                own, pulled = self.encoded[network] * root[..., None], self.pulled[network] * root[..., None]
                # What of the world is in its sites and homes is no rest of the world.
                world = np.einsum("ns,nsd->nd", habits.spread[at], self.inside[network])
                wanted = gain * root - np.einsum("nsd,nd->ns", own, world)
                system = pulled @ own.swapaxes(1, 2) + np.eye(size, dtype=np.float32)
                solved = np.linalg.solve(system, wanted[..., None])
                added[part, :dim] = world + (pulled.swapaxes(1, 2) @ solved)[..., 0]
        return added


def _pairs(entity: npt.NDArray[np.int32], leaf: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Each pair as one number."""
    return entity.astype(np.int64) << 32 | leaf


def _among(keys: npt.NDArray[np.int64], ordered: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether each key is among those in ascending order."""
    if not len(ordered):
        return np.zeros(len(keys), dtype=np.bool_)
    found: npt.NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys
    return found
