"""What counting knows of countries. The tree of networks does not know them: a country's networks lie all over it.

A log-in from another network of the country where the entity lives is likelier than one from abroad. So with a table of
networks, countries are counted as if they were a level above the tree (`smoothing`). The vocabulary's countries, the
most frequent ones, are counted each; *elsewhere* is all other places, as if they were one.

How much a country says differs from log to log. So it is measured at the places where an entity was once: are they in
the countries of its other events, or anywhere? A new place is in the country c with the probability

    (1 - ANYWHERE) * p(c | entity) + ANYWHERE * base(c)

ANYWHERE is the share with which those places are likeliest, each by the other events of its entity. All entities count
alike.

Every country has a coordinate of its own, in which an address has 1 if it lies there, and an entity its ratio
(`refit`). A move of its row could not tell countries from networks.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ipinsights.distributed.group import Group
from ipinsights.model import smoothing
from ipinsights.model.history import History
from ipinsights.model.smoothing import Floats, Ints
from ipinsights.model.vocabulary import Vocabulary

COORDINATES_A_COUNTRY = 8
"""One of so many coordinates of an embedding is kept for a country. On the Tor relays, with 64 coordinates, 4 to 16
countries are alike."""
_LEAST_SHARE = 1e-9
"""The least share of random addresses that a country counts as having."""
_SHARES = np.arange(1, 32) / 32
"""The values that ANYWHERE may have."""


class Countries:
    """The counts of a history in C countries, and elsewhere, which is last."""

    def __init__(self, vocabulary: Vocabulary, counted: bool) -> None:
        """Without any event. If they are not ``counted``, they never add anything."""
        self._number = len(vocabulary.countries)
        self._counted = counted and self._number > 0
        rows = np.full(vocabulary.num_rows, self._number)
        rows[vocabulary.country_rows] = np.arange(self._number)
        self.of_row = rows
        """The country of each row of the prefix table on the last level: [num_rows]."""
        self._of_leaf = rows[vocabulary.chains[:, -1]]
        self._entities = np.zeros(self._number + 1)
        """E"""
        self._fabricated = np.zeros(self._number + 1)
        """N"""
        self._base = np.ones(self._number + 1)
        self.popularity = np.zeros(self._number + 1)
        """What each adds to the log ratio of an entity never seen, [C + 1]."""
        self.anywhere = 0.5
        """ANYWHERE"""

    def add(self, part: History, leaves: npt.NDArray[np.int32], weight: Floats) -> None:
        """Count some entities' pairs, each with its leaf and with what it counts in N."""
        if self._counted:
            self._entities += np.count_nonzero(self._events(part, leaves), axis=0)
            self._fabricated += np.bincount(self._of_leaf[leaves], weight, self._number + 1)

    def end(self, leaf_shares: Floats, group: Group) -> None:
        """All have been added. The shares are those of the leaves in random addresses."""
        if not self._counted:
            return
        self._entities, self._fabricated = group.sum(self._entities), group.sum(self._fabricated)
        share = np.bincount(self._of_leaf, leaf_shares, self._number + 1) + _LEAST_SHARE
        self._base = smoothing.of_all(self._entities, self._entities.sum(), share)
        made_up = smoothing.of_all(self._fabricated, self._fabricated.sum(), share)
        self.popularity = np.log(self._base / smoothing.against_fabricated(made_up, share))

    def habits(self, part: History, leaves: npt.NDArray[np.int32], events: Floats) -> Floats:
        """What each country adds to the log ratio of each of some entities, with so many events: [M, C + 1]."""
        if not self._counted:
            return np.zeros((len(events), self._number + 1))
        own = self._events(part, leaves)
        rest = smoothing.rest_of(np.count_nonzero(own, axis=1, keepdims=True), 0)
        ratio = smoothing.of_one(own, events[:, None], rest, self._base) / self._base
        added: Floats = np.log((1 - self.anywhere) * ratio + self.anywhere)
        return added

    def settle(self, places: Iterable[tuple[History, npt.NDArray[np.int32], Ints]], group: Group) -> None:
        """Find ANYWHERE by places where entities were once: some pairs of each part of the history, with all leaves."""
        if not self._counted:
            return
        likelihood = np.zeros(len(_SHARES))
        for part, leaves, once in places:
            own = self._events(part, leaves)
            owner, country = part.owners[once], self._of_leaf[leaves[once]]
            others = own.sum(axis=1)[owner] - 1
            there = own[owner, country] - 1
            rest = smoothing.rest_of(np.count_nonzero(own, axis=1)[owner] - (there == 0), 0)
            base = self._base[country]
            ratio = smoothing.of_one(there, others, rest, base) / base
            weight = (others > 0) / np.bincount(owner, minlength=len(own))[owner]
            likelihood += [np.log((1 - share) * ratio + share) @ weight for share in _SHARES]
        unknown = np.log(_SHARES) + np.log(1 - _SHARES)  # as if of one entity nothing were known
        self.anywhere = float(_SHARES[np.argmax(group.sum(likelihood) + unknown)])

    def _events(self, part: History, leaves: npt.NDArray[np.int32]) -> Floats:
        """The events of each entity in each country: [M, C + 1]."""
        entities, countries = len(part.rows), self._number + 1
        cell = part.owners * countries + self._of_leaf[leaves]
        events: Floats = np.bincount(cell, part.counts, entities * countries).astype(np.float64, copy=False)
        return events.reshape(entities, countries)
