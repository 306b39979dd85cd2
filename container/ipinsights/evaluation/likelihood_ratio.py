"""How much likelier an address is from its entity than in a fabricated pair, by counting prefixes.

After Freeman et al., "Who are you? A statistical approach to measuring user authenticity" (NDSS 2016,
doi 10.14722/ndss.2016.23240), which Wiefling et al. (TOPS 2022, doi 10.1145/3546069) evaluated on a large service:
log p(address | entity) - log p(address), where the networks of an unseen address decide its probability. They use the
provider and the country; here prefixes are used, and the provider if given.

Prefix lengths, the levels, form a tree: the root's children are the prefixes of the first level, their children those
of the second, and so on. The probability of an address is the product, down the tree, of the probability of each prefix
given its parent, and uniform below the last level. With few events, each factor backs off to a less specific one:

    fabricated      p(c | parent)         = (N(c) + prior * share) / (N(parent) + prior)
    any entity      base(c | parent)      = (E(c) + prior * share) / (sum of E over the children of parent + prior)
    one entity      p(c | parent, entity) = (n(c) - discount + (concentration + discount * t) * base(c | parent))
                                            / (n(parent) + concentration),    n(c) - discount being 0 where n(c) is 0

N is the number of events of all entities, E the number of entities seen, n the number of events of the entity, t the
number of the parent's children at which the entity was seen, and share the fraction of the parent's addresses in c.

It differs in three ways from plain hierarchical Dirichlet smoothing of the log ratio. Each of them raised the
validation figure of the Tor relays:

- An entity backs off to counts of entities, not of events. One entity that moves every day through a provider's pool
  makes the pool frequent, but no likelier to be the next place of another. This is the base distribution of the
  hierarchical Pitman-Yor process where every entity opens one table a dish: Kneser-Ney smoothing (Teh, ACL 2006).
- ``discount`` is subtracted from every count that is not 0: after many places seen once, another new one is likely.
- The address of a fabricated pair is uniformly random in ``random_share`` of the cases, and otherwise another event's.
  Without it, a random address in an empty network would score about 0, as unlikely from the entity as from anybody.

`PUBLISHED` is the form without the three, where base(c | parent) is p(c | parent) of the fabricated pairs.

The settings of each form were chosen together on the validation split of the Tor relays, IPv4 and IPv6, for the mean
AUC over random, other and shuffled negatives. The optima are flat: halving or doubling one of them costs .001 at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import IPV4

LEVELS = {32: (4, 8, 12, 16, 20, 24), 64: (8, 16, 24, 32, 40, 48)}
"""Prefix lengths by the width of an address."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Smoothing:
    """How counts become probabilities: the numbers in the formulas above."""

    back_off: Literal["entities", "events"] = "entities"
    """What ``base``, to which an entity backs off, counts."""
    concentration: float = 0.1
    discount: float = 0.75
    prior: float = 3.0
    random_share: float = 0.1


IMPROVED = Smoothing()
PUBLISHED = Smoothing(back_off="events", concentration=2.0, discount=0.0, prior=1.0, random_share=0.0)
"""The form of Freeman et al. and Wiefling et al., on prefixes."""


@dataclass(frozen=True)
class _Level:
    """One level of the tree: V distinct values, K nodes, and P pairs of a node and an entity seen there.

    Look-ups return -1 for what was never seen, so every array of counts ends with its count: 0.
    """

    share: float
    """The fraction of a parent's addresses that is in a node."""
    values: npt.NDArray[np.generic]
    """Prefixes, or groups, ascending, [V]."""
    nodes: Ints
    """Each node as (its parent's number) x V + (place in ``values``), ascending, [K]; a node's number is its place."""
    pairs: Ints
    """Each pair as (node's number) x (number of entities) + (entity's number), ascending, [P]."""
    events: Ints
    """N of each node, [K + 1]."""
    entities: Ints
    """E of each node, [K + 1]."""
    own: Ints
    """n of each pair, [P + 1]."""
    siblings: Ints
    """The sum of E over the children of each node of the level above."""
    branches: Ints
    """t of each pair of the level above."""


@dataclass(frozen=True)
class LikelihoodRatio:
    """The counts, level by level, and their smoothing."""

    width: int
    """Bits of an address."""
    levels: tuple[int, ...]
    """Prefix lengths, ascending."""
    smoothing: Smoothing
    entities: npt.NDArray[np.integer]
    """The distinct entities, ascending; an entity's number is its place."""
    totals: Ints
    """Training events of each entity, and 0 at the end for an entity never seen."""
    tree: tuple[_Level, ...]
    """The levels below the root: one of the groups, if there are groups, and those of the prefixes."""
    grouped: bool

    @classmethod
    def fit(
        cls,
        entity: npt.NDArray[np.integer],
        address: npt.NDArray[np.unsignedinteger],
        *,
        groups: npt.NDArray[np.integer] | None = None,
        width: int = IPV4.width,
        levels: Sequence[int] | None = None,
        smoothing: Smoothing = IMPROVED,
    ) -> "LikelihoodRatio":
        """Count the training pairs (int [n] and uint32 or uint64 [n]).

        ``levels`` defaults to ``LEVELS`` of the width. ``groups`` (int [n]) may give each address a network that is not
        a prefix, such as its provider's number. The groups become the level above all prefixes, as if of equal sizes.
        Addresses without a known group form their own group, such as -1. With providers as groups, levels 16 and 20,
        ``prior`` 100 and ``random_share`` .01 did better on the validation split than the defaults.
        """
        if len(entity) == 0:
            raise ValueError("there are no training pairs")
        levels = LEVELS[width] if levels is None else tuple(sorted(set(levels)))
        entities, row, totals = np.unique(entity, return_inverse=True, return_counts=True)
        tree = []
        node, pair = np.zeros(len(row), dtype=np.int64), row  # of the root, which has all events
        above = 1.0
        for size, value in _path(address, groups, width, levels):
            values, place = np.unique(value, return_inverse=True)
            size = size or 1 / len(values)
            nodes, first, child, events = np.unique(
                node * len(values) + place, return_index=True, return_inverse=True, return_counts=True
            )
            pairs, met, child_pair, own = np.unique(
                child * len(entities) + row, return_index=True, return_inverse=True, return_counts=True
            )
            seen = np.bincount(pairs // len(entities))
            tree.append(
                _Level(
                    share=min(size / above, 1.0),
                    values=values,
                    nodes=nodes,
                    pairs=pairs,
                    events=_with_zero(events),
                    entities=_with_zero(seen),
                    own=_with_zero(own),
                    siblings=_with_zero(np.bincount(node[first], weights=seen)),
                    branches=_with_zero(np.bincount(pair[met])),
                )
            )
            node, pair, above = child, child_pair, size
        return cls(
            width,
            levels,
            smoothing,
            entities,
            _with_zero(totals),
            tuple(tree),
            groups is not None,
        )

    def score(
        self,
        entity: npt.NDArray[np.integer],
        address: npt.NDArray[np.unsignedinteger],
        groups: npt.NDArray[np.integer] | None = None,
    ) -> npt.NDArray[np.float64]:
        """The log likelihood ratio of each pair, float64 [m]. ``groups`` are required if `fit` had them."""
        if (groups is not None) != self.grouped:
            raise ValueError("give groups with both the training pairs and the scored pairs, or with neither")
        row = _find(self.entities, entity)
        node, events = np.zeros(len(row), dtype=np.int64), np.full(len(row), self.totals.sum())
        pair, own = row, self.totals[row]
        theirs, made_up = np.ones((2, len(row)))  # densities, in multiples of the uniform one
        s = self.smoothing
        for level, (_, value) in zip(self.tree, _path(address, groups, self.width, self.levels), strict=True):
            # A node of -1 gives a key below 0, which is never found. A place or row of -1 would give another's key.
            place = _find(level.values, value)
            child = _find(level.nodes, np.where(place >= 0, node * len(level.values) + place, -1))
            child_pair = _find(level.pairs, np.where(row >= 0, child * len(self.entities) + row, -1))

            siblings, branches = level.siblings[node], level.branches[pair]
            below, own_below = level.events[child], level.own[child_pair]
            everybody = base = (below + s.prior * level.share) / (events + s.prior)
            if s.back_off == "entities":
                base = (level.entities[child] + s.prior * level.share) / (siblings + s.prior)
            kept = np.maximum(own_below - s.discount, 0) + (s.concentration + s.discount * branches) * base
            theirs *= kept / (own + s.concentration) / level.share
            made_up *= everybody / level.share
            node, pair, events, own = child, child_pair, below, own_below
        ratio: npt.NDArray[np.float64] = np.log(theirs)
        ratio -= np.log(s.random_share + (1 - s.random_share) * made_up)
        return ratio


def _path(
    address: npt.NDArray[np.unsignedinteger],
    groups: npt.NDArray[np.integer] | None,
    width: int,
    levels: Sequence[int],
) -> Iterator[tuple[float | None, npt.NDArray[np.generic]]]:
    """Each address's values from the root down, with the fraction of all addresses in a node: None for groups."""
    if groups is not None:
        yield None, groups
    for level in levels:
        yield 2.0**-level, address.astype(np.uint64) >> np.uint64(width - level)


def _find(known: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]) -> Ints:
    """The place of each wanted value among the known ones (ascending, at least one); -1 if it is missing."""
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, place, -1)


def _with_zero(counts: npt.NDArray[np.generic]) -> Ints:
    return np.append(counts, 0).astype(np.int64)
