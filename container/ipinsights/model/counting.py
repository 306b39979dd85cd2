"""What counting knows of pairs: how much likelier an address is from its entity than in a fabricated pair.

After Freeman et al., "Who are you? A statistical approach to measuring user authenticity" (NDSS 2016,
doi 10.14722/ndss.2016.23240): log p(address | entity) - log p(address), where the networks of an unseen address decide
its probability. Here the networks are prefixes of the vocabulary that training found. They form a tree, and the
probability of an address is the product, down the tree, of the probability of each prefix given the one above it, and
uniform below the longest known one. With few events, each factor backs off to a less specific one (`smoothing`, whose
symbols are used here: N of fabricated pairs, E of entities, n of the events of one).

The log ratio has three parts. `popularity` is the ratio of an entity never seen; it depends on the address alone. A
`Habits.constant` is what the ratio of an entity far from all its places differs from that: the more regular its events,
the lower. A `Habits.gain` is what one of its own networks adds, for an address in it that neither it nor anybody else
ever used. Of the addresses of others there it says nothing, but in two cases. In a *site*, an own network as long as
one place has as a rule (`SITE`), those outside of longer own networks gain as much: who was at a school is no
stranger at its other desks. In a *home*, a network to whose unknown places the entity keeps coming, all gain enough to
be no alarm, however many share the network. With a table of networks, countries add to popularity and to the constant
(`countries`), and own networks add less by that amount.

`evaluation.likelihood_ratio` counts the same on all prefixes and looks up exact pairs: a baseline.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import SITE, leading_bits, mapped_share
from ipinsights.distributed.group import ALONE, Group
from ipinsights.model import smoothing
from ipinsights.model.countries import Countries
from ipinsights.model.history import History
from ipinsights.model.smoothing import Floats, Ints
from ipinsights.model.vocabulary import Vocabulary

MOVES = 128
"""Own networks of an entity at most that its habits have: those from which its events gain most."""
HOME_EVENTS = 1.5
HOME_RATIO = -2.0
HOME_SHARE = 0.5
AT_HOME = 8.0
"""An entity is at *home* in a network where it keeps coming to otherwise unknown places: `rest` is at least
HOME_EVENTS, which tells two events from one, and the log ratio at least HOME_RATIO, which tells a habit from visits by
chance. A network that more than HOME_SHARE of all entities use is nobody's home, unless it is as long as the family's
longest level. At home the ratio counts as at least AT_HOME, so that a regular place is no alarm, however many share it.
Chosen on `benchmarks.situations`."""
_PAIRS = 1 << 20
"""Pairs of a history that are counted at a time, unless one entity has more."""


@dataclass(frozen=True)
class Habits:
    """What counting says of M entities."""

    rows: npt.NDArray[np.int32]
    """Their rows of the model's table, ascending, [M]."""
    events: Floats
    """Their events, [M]."""
    constant: npt.NDArray[np.float32]
    """The log ratio far from all its places, in none of the vocabulary's countries, less the popularity there: [M]."""
    countries: npt.NDArray[np.float32]
    """What each of the vocabulary's countries adds to it, [M, C]."""
    starts: Ints
    """Where each entity's own networks start; at the end their number, m: [M + 1]."""
    network: npt.NDArray[np.int32]
    """Rows of the prefix table, [m]."""
    gain: npt.NDArray[np.float32]
    """What an address in the network, otherwise unknown, adds to that: at least 0, [m]."""
    home: npt.NDArray[np.bool_]
    """Whether the entity is at home there, [m]."""
    spread: npt.NDArray[np.float32]
    """What all places in a home have to gain at least, and those in a site that are in no longer own network, less the
    same of the longest other own network that it is in: [m]."""


@dataclass(frozen=True)
class _Level:
    """An entity with a network of one level, where it was seen: G groups of pairs, in the order of the history."""

    node: npt.NDArray[np.int32]
    """The row of the network, [G]."""
    parent: Ints
    """The group of the level above, on the first level the entity's number, [G]."""
    events: Floats
    """n, [G]."""
    pairs: Ints
    """Pairs of the history, [G]."""
    inside: Ints
    """The pairs in any group, by their places in the history, [I]."""
    group: Ints
    """The group of each, [I]."""


class Counts:
    """The counts of a history in the networks of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, history: History, group: Group = ALONE) -> None:
        """In a ``group`` the history is that of this rank's entities, and the counts are those of all."""
        self.vocabulary = vocabulary
        self.history = history
        lengths = vocabulary.levels
        step = vocabulary.family.width // 8
        self.columns = [c for c, length in enumerate(lengths) if length % step == 0 and length <= history.length]
        """Every second level, about: more make no difference."""
        rows = vocabulary.num_rows
        self.entities = np.zeros(rows, dtype=np.int64)
        """E of each row of the prefix table, [num_rows]; 0 for an unknown row."""
        self.fabricated = np.zeros(rows)
        """N of each row, [num_rows]."""
        self._everywhere = 0.0
        self.leaf_pairs = np.zeros(len(vocabulary.chains), dtype=np.int64)
        """Pairs of each leaf, [leaves]."""
        self.leaf_events = np.zeros(len(vocabulary.chains))
        """Events of each leaf, [leaves]."""
        self.leaf_shares = vocabulary.leaf_shares(mapped_share(history.addresses, group))
        """The probability of each leaf for a random address, [leaves]."""
        # A site is in one country; of addresses that were cut to shorter prefixes nobody knows it.
        self._countries = Countries(vocabulary, counted=history.length >= vocabulary.family.width * SITE // 8)
        columns = [c for c, length in enumerate(lengths) if length <= history.length]
        for part in self.parts(history):
            leaves = vocabulary.leaves(part.addresses)
            self.leaf_pairs += np.bincount(leaves, minlength=len(self.leaf_pairs))
            self.leaf_events += np.bincount(leaves, part.counts, minlength=len(self.leaf_pairs))
            weight = smoothing.of_fabricated(part.counts)
            self._everywhere += weight.sum()
            self._countries.add(part, leaves, weight)
            for level in _levels(vocabulary, part, leaves, columns):
                self.entities += np.bincount(level.node, minlength=rows)
                self.fabricated += np.bincount(level.node[level.group], weight[level.inside], minlength=rows)
        for name in ("entities", "fabricated", "leaf_pairs", "leaf_events"):
            setattr(self, name, group.sum(getattr(self, name)))
        self._everywhere = group.total(self._everywhere)
        self._countries.end(self.leaf_shares, group)
        self._countries.settle(self._once(), group)
        wide = [c for c, length in enumerate(lengths) if length < vocabulary.family.levels[-1]]
        self._may_be_home = self.entities <= HOME_SHARE * group.total(len(history.rows))
        self._may_be_home[vocabulary.depth + sum(len(vocabulary.counted(c)[0]) for c in wide) :] = True
        lengths_of = np.repeat(lengths, vocabulary.sizes)
        prefixes = vocabulary.depth + np.arange(len(lengths_of))
        self._is_site = np.zeros(rows, dtype=np.bool_)
        self._is_site[prefixes] = lengths_of == leading_bits(vocabulary.bounds(prefixes)[0], vocabulary.family, SITE)
        self._parent = self._parents()
        self._siblings = np.zeros(rows + 1)
        """The sum of E over the children of each row; of the root's, last."""
        counted = np.unique(vocabulary.chains[:, self.columns]) if self.columns else np.zeros(0, dtype=np.int64)
        self._counted = counted[counted >= vocabulary.depth]
        np.add.at(self._siblings, self._parent[self._counted], self.entities[self._counted])
        self.networks = self._chains_of_networks()
        """The row on every level of an address in each network that is otherwise unknown, by row: int32 [num_rows, L].
        Its provider and country are those of most pairs in the network."""
        self._spread()

    def _once(self) -> Iterator[tuple[History, npt.NDArray[np.int32], Ints]]:
        """The parts of the history with all leaves, and the pairs that are their entity's only event in a network.

        That is the coarsest one.
        """
        for part in self.parts(self.history):
            leaves, once = self.vocabulary.leaves(part.addresses), np.zeros(0, dtype=np.int64)
            for level in _levels(self.vocabulary, part, leaves, self.columns[:1]):
                once = level.inside[level.events[level.group] == 1]
            yield part, leaves, once

    def _chains_of_networks(self) -> npt.NDArray[np.int32]:
        vocabulary = self.vocabulary
        chains = np.tile(np.arange(vocabulary.depth, dtype=np.int32), (vocabulary.num_rows, 1))
        for level in range(len(vocabulary.levels)):
            inside = vocabulary.chains[:, level] >= vocabulary.depth
            known, pairs = vocabulary.chains[inside], self.leaf_pairs[inside]
            chains[known[:, level], : level + 1] = known[:, : level + 1]
            for label in range(len(vocabulary.levels), vocabulary.depth):
                cell, place = np.unique(known[:, level].astype(np.int64) << 32 | known[:, label], return_inverse=True)
                cell = cell[np.argsort(np.bincount(place, pairs), kind="stable")]  # the last one of a network stays
                chains[cell >> 32, label] = cell & 0xFFFFFFFF
        return chains

    def _parents(self) -> Ints:
        """The row of the next counted network above each counted one; -1, the root, above the first: [num_rows]."""
        vocabulary = self.vocabulary
        parent = np.full(vocabulary.num_rows, -1, dtype=np.int64)
        for above, column in zip(self.columns, self.columns[1:], strict=False):
            chains = vocabulary.chains[vocabulary.chains[:, column] >= vocabulary.depth]
            parent[chains[:, column]] = chains[:, above]
        return parent

    def _spread(self) -> None:
        """Go down the tree: the densities at each network, in multiples of the uniform one, as logarithms."""
        vocabulary = self.vocabulary
        rows = vocabulary.num_rows
        self._anybody = np.zeros(rows + 1)
        """Of an entity never seen, within each network; the root's, 0, is last."""
        self._base = np.zeros(rows)
        """`base` of each network."""
        made_up = np.zeros(rows + 1)
        fabricated = np.append(self.fabricated, self._everywhere)
        inside = np.full(rows + 1, bool(self.columns))
        """Whether there is a counted level below."""
        before = 0
        for column in self.columns:
            node = np.unique(vocabulary.chains[:, column])
            node, length = node[node >= vocabulary.depth], vocabulary.levels[column]
            share, before, above = 2.0 ** (before - length), length, self._parent[node]
            self._base[node] = smoothing.of_all(self.entities[node], self._siblings[above], share)
            self._anybody[node] = self._anybody[above] + np.log(self._base[node] / share)
            made_up[node] = made_up[above] + np.log(
                smoothing.of_all(fabricated[node], fabricated[above], share) / share
            )
            inside[node] = column != self.columns[-1]
        # An address in the network, but in no known one below it.
        anybody = self._anybody + np.where(inside, np.log(smoothing.of_all(0, self._siblings, 1)), 0)
        made_up += np.where(inside, np.log(smoothing.of_all(0, fabricated, 1)), 0)
        self._unknown = anybody - np.log(smoothing.against_fabricated(np.exp(made_up)))
        self.popularity = self._telescoped(self._unknown)
        """The log ratio of an entity never seen, as what each network adds to the one above: those of an address sum
        to its own, with its country's. The root's, which all addresses have, is last: [num_rows + 1]."""
        if len(vocabulary.countries):
            last = np.unique(vocabulary.chains[:, -1])
            self.popularity[last] = self._countries.popularity[self._countries.of_row[last]]
        self.prior = self._telescoped(_prior(anybody))
        """The same where fabricated addresses are but half as concentrated as those of entities. So a network that many
        use is above one that few use, and that above one that nobody used."""

    def _telescoped(self, values: Floats) -> Floats:
        added = np.zeros(len(values))
        added[self._counted] = values[self._counted] - values[self._parent[self._counted]]
        added[-1] = values[-1]
        return added

    def habits(self, history: History | None = None) -> Iterator[Habits]:
        """The habits of all entities, or of those of a part of the history, some entities at a time."""
        for part in self.parts(self.history if history is None else history):
            yield self._habits(part)

    def come_back(self, history: History, another: bool) -> tuple[npt.NDArray[np.int32], Floats]:
        """Where an event of each pair of a part of the history would be at home if it had not been seen itself.

        First the longest known network where its entity has another event (with ``another``: from another address), as
        its row of the prefix table, -1 for none: int32 [P]. Then whether to go there is a habit: by which share the
        entity's other events are in a network beyond what fabricated pairs are, the largest of all its networks:
        float64 [P].
        """
        network = np.full(len(history), -1, dtype=np.int32)
        habit = np.zeros(len(history))
        counts = np.ones(len(history)) if another else history.counts.astype(np.float64)
        others = np.repeat(np.add.reduceat(counts, history.starts[:-1]) - 1, np.diff(history.starts))
        leaves = self.vocabulary.leaves(history.addresses)
        for level in _levels(self.vocabulary, history, leaves, self.columns):
            seen = (level.pairs if another else level.events)[level.group]
            pair, group = level.inside[seen > 1], level.group[seen > 1]
            network[pair] = level.node[group]
            anybody = self.fabricated[level.node[group]] / self._everywhere
            habit[pair] = np.maximum(habit[pair], 1 - anybody * others[pair] / (seen[seen > 1] - 1))
        return network, habit

    def prior_without(self, history: History) -> Floats:
        """`prior` of the address of each pair of a part of the history, had its entity never been seen: float64 [P].

        Without the entity's own events some networks would not have been frequent enough to be known.
        """
        fewest = self.vocabulary.counts.min(initial=self.vocabulary.events)
        every = np.arange(len(history.rows))
        node, group, inside = (
            np.full(len(every), -1),
            history.owners,
            np.arange(len(history)),
        )
        known = np.ones(len(every), dtype=np.bool_)
        anybody = np.zeros(len(every))  # within each network, as in `_spread`
        density = np.zeros(len(history))
        before = 0
        leaves = self.vocabulary.leaves(history.addresses)
        for column, level in zip(self.columns, _levels(self.vocabulary, history, leaves, self.columns), strict=True):
            kept = known[level.parent] & (self.vocabulary.row_counts[level.node] - level.events >= fewest)
            less = np.bincount(level.parent, np.where(kept, 1, self.entities[level.node]), len(node))
            siblings = self._siblings[node] - less
            reached = known[group]
            density[inside[reached]] = (anybody + np.log(smoothing.of_all(0, siblings, 1)))[group[reached]]
            length = self.vocabulary.levels[column]
            share, before = 2.0 ** (before - length), length
            base = smoothing.of_all(self.entities[level.node] - 1, siblings[level.parent], share)
            anybody = anybody[level.parent] + np.log(base / share)
            node, group, inside, known = level.node.astype(np.int64), level.group, level.inside, kept
        reached = known[group]
        if self.columns:
            density[inside[reached]] = anybody[group[reached]]
        return _prior(density)

    def _habits(self, history: History) -> Habits:
        entities = len(history.rows)
        events: Floats = np.bincount(history.owners, history.counts, entities).astype(np.float64)
        density = np.zeros(entities)  # of the entity itself, at the group of the level above
        every = np.arange(entities)
        above = _Groups(every, every.astype(np.int32), every, events, np.zeros(entities, dtype=np.bool_))
        found: list[_Found] = []
        constant = np.zeros(entities)
        leaves = self.vocabulary.leaves(history.addresses)
        country = self._countries.habits(history, leaves, events)
        before = 0
        for number, level in enumerate(_levels(self.vocabulary, history, leaves, self.columns)):
            # What the networks of the level above add depends on what is known below them.
            groups = len(above.events)
            known = np.bincount(level.parent, minlength=groups)
            elsewhere = above.events - np.bincount(level.parent, level.events, minlength=groups)
            rest = smoothing.rest_of(known, elsewhere)
            new_place = np.log(smoothing.of_one(0, above.events, rest, 1))
            if not number:
                constant = new_place
            else:
                found.append(self._found(above, density + new_place, rest, constant, country))
                above = found[-1].groups
            length = self.vocabulary.levels[self.columns[number]]
            around, left = above.events[level.parent], rest[level.parent]
            kept = smoothing.of_one(level.events, around, left, self._base[level.node])
            density = density[level.parent] + np.log(kept) + (length - before) * np.log(2)
            owner, home = above.owner[level.parent], above.home[level.parent]
            above, before = _Groups(owner, level.node, level.parent, level.events, home), length
        if self.columns:
            found.append(self._found(above, density, smoothing.rest_of(0, above.events), constant, country))
        return _most_telling(history.rows, events, constant, country, found)

    def _found(self, groups: "_Groups", density: Floats, rest: Floats, constant: Floats, country: Floats) -> "_Found":
        """What networks of one level add, by the entity's density at an otherwise unknown place in each.

        A network in a home is one, too.
        """
        there = self._countries.of_row[self.networks[groups.network, -1]]
        without = constant[groups.owner] + country[groups.owner, there]
        gain = density - self._anybody[groups.network] - without
        far = self._unknown[groups.network] + self._countries.popularity[there] + without
        home = groups.home | (rest >= HOME_EVENTS) & (far + gain >= HOME_RATIO) & self._may_be_home[groups.network]
        spread = np.maximum(np.where(home, AT_HOME - far, 0), np.where(self._is_site[groups.network], gain, 0))
        return _Found(groups._replace(home=home), np.maximum(gain, spread), spread)

    def parts(self, history: History) -> Iterator[History]:
        """The history, some entities at a time."""
        begin = 0
        while begin < len(history.rows):
            end = int(np.searchsorted(history.starts, history.starts[begin] + _PAIRS, side="right")) - 1
            end = min(max(end, begin + 1), len(history.rows))
            pairs = slice(history.starts[begin], history.starts[end])
            yield History(
                history.rows[begin:end],
                history.starts[begin : end + 1] - history.starts[begin],
                history.addresses[pairs],
                history.counts[pairs],
                history.length,
            )
            begin = end


def _prior(anybody: Floats) -> Floats:
    return anybody - np.log(smoothing.against_fabricated(np.exp(anybody / 2)))


def _levels(
    vocabulary: Vocabulary, history: History, leaves: npt.NDArray[np.int32], columns: list[int]
) -> Iterator[_Level]:
    """The groups of each level of the columns, from the coarsest down.

    The pairs of an entity are in the order of their addresses, so those of one network are neighbours.
    """
    above: Ints = history.owners
    entity = above.astype(np.int32)
    inside: Ints = np.arange(len(leaves))
    counts = history.counts
    for column in columns:
        row = vocabulary.chains[leaves, column]
        known = row >= vocabulary.depth  # and so is every network above
        if not known.all():
            row, entity, above, leaves, counts = row[known], entity[known], above[known], leaves[known], counts[known]
            inside = inside[known]
        if not len(row):
            yield _Level(row, above, np.zeros(0), above, inside, above)
            continue
        begins = np.ones(len(row), dtype=np.bool_)
        begins[1:] = (row[1:] != row[:-1]) | (entity[1:] != entity[:-1])
        first = np.flatnonzero(begins)
        pairs = np.diff(np.append(first, len(row)))
        events = np.add.reduceat(counts, first, dtype=np.float64)
        group = np.cumsum(begins) - 1
        yield _Level(row[first], above[first], events, pairs, inside, group)
        above = group


class _Groups(NamedTuple):
    """The entities' own networks of one level."""

    owner: Ints
    network: npt.NDArray[np.int32]
    inside: Ints
    """Which of the level above each is in."""
    events: Floats
    home: npt.NDArray[np.bool_]
    """Whether it is a home; at first whether it is in one."""


class _Found(NamedTuple):
    """What these add."""

    groups: _Groups
    gain: Floats
    spread: Floats


def _most_telling(
    rows: npt.NDArray[np.int32], events: Floats, constant: Floats, country: Floats, found: list[_Found]
) -> Habits:
    """The networks of each entity from which its events gain most."""
    if not found:
        none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
        found = [_Found(_Groups(none, none.astype(np.int32), none, nothing, none > 0), nothing, nothing)]
    owner = np.concatenate([level.groups.owner for level in found])
    gain = np.concatenate([level.gain for level in found]).astype(np.float32)
    telling = gain * np.concatenate([level.groups.events for level in found]).astype(np.float32)
    # One number: the entity, then what is gained from the largest down (floats of one sign order as integers do).
    keys = owner.astype(np.uint64) << np.uint64(32) | ~telling.view(np.uint32)
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(owner[order], np.arange(len(rows) + 1))
    order = order[np.arange(len(order)) - first[owner[order]] < MOVES]
    kept = np.zeros(len(owner), dtype=np.bool_)
    kept[order] = True

    spread, begin = [], 0
    around = np.zeros(len(rows))  # the spread of the longest kept network, at the groups of the level above
    for level in found:
        around = around[level.groups.inside]
        spread.append(level.spread - around)
        around = np.where(kept[begin : begin + len(around)], level.spread, around)
        begin += len(around)
    return Habits(
        rows,
        events,
        (constant + country[:, -1]).astype(np.float32),
        (country[:, :-1] - country[:, -1:]).astype(np.float32),
        np.append(0, np.cumsum(np.minimum(np.diff(first), MOVES))),
        np.concatenate([level.groups.network for level in found])[order],
        gain[order],
        np.concatenate([level.groups.home for level in found])[order],
        np.concatenate(spread).astype(np.float32)[order],
    )
