"""Fabricated pairs: the entities of real log-ins with addresses that they did not use.

A botnet on rented machines might use *random addresses*, and the built-in validates with them. *Other entities'
addresses* are harder: all of them are in use, but not by this entity. An address of the *same provider or country* is
what somebody has who knows where the entity lives: it needs a table of networks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.data.addresses import Addresses, Family, mapped_share, random_addresses
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records

RANDOM, OTHERS = "random addresses", "other entities' addresses"
NEAR = "same provider or country"
"""The kinds of addresses of fabricated pairs."""

_DRAWS = 20
"""So often an address is drawn again if the entity itself uses it."""


def of_random(log_ins: Records, family: Family, rng: np.random.Generator) -> Records:
    """Each log-in with a uniformly random address."""
    return Records(log_ins.entities, random_addresses(len(log_ins), family, mapped_share(log_ins.addresses), rng))


def of_others(log_ins: Records, rng: np.random.Generator) -> Records:
    """Each log-in with an address of another one, which its entity does not use anywhere in ``log_ins``.

    If twenty draws find none for a log-in, it is skipped.
    """
    used = _Used.by(log_ins)
    drawn = rng.permutation(used.address)
    own = used.has(used.entity, drawn)
    for _ in range(_DRAWS):
        drawn[own] = rng.choice(used.address, size=int(own.sum()))
        own = used.has(used.entity, drawn)
    return Records(log_ins.entities.filter(pa.array(~own)), used.addresses[drawn[~own]])


def of_same_network(log_ins: Records, networks: Networks, rng: np.random.Generator) -> Records:
    """Each log-in with a uniformly random address of its address's provider, or of its country if that alone is known.

    No entity gets an address that it uses anywhere in ``log_ins``. A log-in is skipped if its address has neither
    label, and if twenty draws find none for it.
    """
    place = networks.find(log_ins.addresses)
    provider, country = np.where(place >= 0, networks.labels[:, place], 0)
    of_provider, of_country = (_Within(networks, labels) for labels in networks.labels)
    used = _Used.by(log_ins)
    drawn = log_ins.addresses.copy()
    open_ = np.flatnonzero(provider | country)
    made = np.zeros(len(drawn), dtype=np.bool_)
    made[open_] = True
    for _ in range(1 + _DRAWS):
        with_provider, without = open_[provider[open_] > 0], open_[provider[open_] == 0]
        drawn[with_provider] = of_provider.draw(provider[with_provider], rng)
        drawn[without] = of_country.draw(country[without], rng)
        open_ = open_[used.has_addresses(used.entity[open_], drawn[open_])]
    made[open_] = False
    return Records(log_ins.entities.filter(pa.array(made)), drawn[made])


@dataclass(frozen=True)
class _Used:
    """Which entity uses which address. A pair is one number: both places among the distinct ones, 32 bits each."""

    entity: npt.NDArray[np.int64]
    """Of each log-in, the number of its entity, shifted to its place, [n]."""
    address: npt.NDArray[np.int64]
    """Of each log-in, the place of its address in ``addresses``, [n]."""
    addresses: Addresses
    """The distinct addresses, ascending."""
    pairs: npt.NDArray[np.int64]
    """The distinct pairs, ascending."""

    @classmethod
    def by(cls, log_ins: Records) -> "_Used":
        entity = log_ins.entities.dictionary_encode().indices.to_numpy().astype(np.int64) << 32
        addresses, address = np.unique(log_ins.addresses, return_inverse=True)
        return cls(entity, address, addresses, np.unique(entity | address))

    def has(self, entity: npt.NDArray[np.int64], address: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether the entity uses the address, for pairs of the numbers above: bool [m]."""
        return np.isin(entity | address, self.pairs)

    def has_addresses(self, entity: npt.NDArray[np.int64], addresses: Addresses) -> npt.NDArray[np.bool_]:
        """`has` for any addresses."""
        place = np.minimum(np.searchsorted(self.addresses, addresses), len(self.addresses) - 1)
        found: npt.NDArray[np.bool_] = (self.addresses[place] == addresses) & self.has(entity, place)
        return found


class _Within:
    """The ranges of a table of networks by one of their labels."""

    def __init__(self, networks: Networks, labels: npt.NDArray[np.uint32]) -> None:
        order = np.argsort(labels, kind="stable")
        self._label = labels[order]
        self._first = networks.first[order].astype(np.uint64)
        self._last = networks.last[order].astype(np.uint64)
        self._type = networks.first.dtype
        sizes = (self._last - self._first).astype(np.float64) + 1
        self._before = np.append(0.0, np.cumsum(sizes))

    def draw(self, labels: npt.NDArray[np.uint32], rng: np.random.Generator) -> Addresses:
        """An address with each of some labels of the table, all with the label equally likely: [n]."""
        begin = np.searchsorted(self._label, labels, side="left")
        end = np.searchsorted(self._label, labels, side="right")
        low, high = self._before[begin], self._before[end]
        at = np.searchsorted(self._before, low + rng.random(len(labels)) * (high - low), side="right") - 1
        at = np.clip(at, begin, end - 1)  # sums of floats may round across an end
        drawn: Addresses = rng.integers(self._first[at], self._last[at], endpoint=True, dtype=np.uint64)
        return drawn.astype(self._type)
