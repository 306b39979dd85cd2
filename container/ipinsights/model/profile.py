"""What the training data looks like, and what in it makes the result doubtful.

A model of a proxy's address, of row ids or of one service account trains without an error and has a high AUC, but says
nothing about accounts. The numbers that give such data away are facts of a `Profile`, and `Profile.doubts` says in
sentences what they mean. The limits are those of a person who reads a log: none was fitted to data.

The facts come from one sorted array of the events, 8 bytes an event. It is ordered by address, so the events of a range
of addresses are found by binary search.
"""

import dataclasses
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import (
    FAMILIES,
    IPV4,
    MAPPED_BITS,
    MAPPED_FIRST,
    MAPPED_SHIFT,
    Addresses,
    Family,
    render,
)
from ipinsights.data.events import Events
from ipinsights.data.homes import buckets, send
from ipinsights.distributed.group import ALONE, Group
from ipinsights.errors import quoted
from ipinsights.model.vocabulary import Vocabulary

FEW_ENTITIES = 10
"""Data of fewer entities raises no doubt: it is a trial or a household, where one address or account may be all."""
MANY_ENTITIES = 50
"""From so many entities on, what nearly all of them have in common is no accident."""
MANY_EVENTS = 100
"""From so many events on, of entities with several, a log without any repetition is no accident."""
NEARLY_ALL = 0.9
"""A share that leaves room for exceptions only. An office that most people share stays below."""
MOST = 0.5
"""A share that outweighs all the rest together."""
WIDESPREAD = 0.05
"""The share of all entities from which on their visits to an address are a doubt. Public networks and shared gateways
see few of many accounts."""
OFTEN = 3
"""If entities have on average so many events, exactly one at a place stands out. In a log of a day it is common, and
says nothing about the place."""

_RESERVED_IPV4 = (
    *("0.0.0.0/8", "127.0.0.0/8"),  # this host, loopback
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # private, RFC 1918
    *("100.64.0.0/10", "169.254.0.0/16"),  # carriers' own networks, link-local
    *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),  # documentation
    *("192.0.0.0/24", "198.18.0.0/15"),  # protocols, measurements
    *("224.0.0.0/4", "240.0.0.0/4"),  # multicast, future use
)
_RESERVED_IPV6 = (
    *("::/64", "100::/64"),  # loopback (::1) and unspecified, discard
    *("fc00::/7", "fe80::/10", "fec0::/10"),  # unique local, link-local, site-local
    *("2001:db8::/32", "3fff::/20"),  # documentation
    "ff00::/8",  # multicast
)
"""The addresses that no host on the Internet has, from the registries of special-purpose addresses (RFC 6890). The
standard library knows most of them, but tells so of single addresses only and differently in its releases."""

_NUMBER_BITS = np.uint64(32)
_ENTITY = np.uint64(0xFFFFFFFF)
"""The bits of a key that hold the entity."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Profile:
    """Facts about n training events. Shares are in [0, 1]. Entities that share a row of the entity table count as one.

    In the IPv6 family an address is a network of 64 bits.
    """

    events: int
    entities: int
    addresses: int
    """Distinct addresses."""
    pairs: int
    """Distinct (entity, address) pairs."""
    busiest_entity_share: float
    """The share of the events that the entity with the most has."""
    busiest_address: str
    """The address with the most events."""
    busiest_address_share: float
    """Its share of the events."""
    one_event_entities_share: float
    """The share of the entities that have one event."""
    one_event_pairs_share: float
    """The share of the pairs that have one event."""
    reserved_address_share: float
    """The share of the events from private, loopback, link-local, multicast, documentation and reserved addresses."""
    unknown_prefix_share: float
    """The share of the events whose address has no known prefix."""
    once_each_address: str | None
    """Of the addresses where `NEARLY_ALL` entities have one event, the one with the most of these; None without any."""
    once_each_entities: int
    """The number of these entities."""

    @classmethod
    def of(cls, train: Events, vocabulary: Vocabulary, group: Group = ALONE) -> "Profile":
        """Compute the facts. The vocabulary is that of the events, or continues an earlier one.

        In a ``group`` the events are those of all ranks, each of which has all events of its entities.
        Raises ValueError if there are no events.
        """
        number = group.total(len(train))
        if not number:
            raise ValueError("there are no events")
        family = vocabulary.family
        events = np.bincount(train.entity, minlength=1)
        entities = group.total(int(np.count_nonzero(events)))
        most = max(found.item() for found in group.gather(events.max(keepdims=True)))
        one = group.total(int(np.count_nonzero(events == 1)))
        del events  # the next step needs the memory
        visits = _Visits.of(_by_address(train, group))
        pairs = visits.pairs().of_all(group)
        starts, ends = _known_ranges(vocabulary)
        reserved, known = (
            group.total(visits.between(*ranges)) for ranges in (_reserved_ranges(family), (starts, ends))
        )
        return cls(
            events=number,
            entities=entities,
            addresses=pairs.addresses,
            pairs=pairs.pairs,
            busiest_entity_share=most / number,
            busiest_address=_text(pairs.busiest, family),
            busiest_address_share=pairs.most / number,
            one_event_entities_share=one / entities,
            one_event_pairs_share=pairs.once / pairs.pairs,
            reserved_address_share=reserved / number,
            unknown_prefix_share=1 - known / number,
            once_each_address=_text(pairs.once_each, family) if pairs.visitors else None,
            once_each_entities=pairs.visitors,
        )

    def facts(self) -> dict[str, Any]:
        """All facts by name, and the doubts as a list, for JSON."""
        return {**dataclasses.asdict(self), "doubts": self.doubts()}

    def doubts(self) -> list[str]:
        """What makes the result doubtful: each says what was seen, why it matters and what to do."""
        if self.entities < FEW_ENTITIES:
            return []
        found = []
        # The address of one entity with most events is its own affair: then the others' events decide, of which these
        # are the shares at least.
        one = self.busiest_entity_share if self.busiest_entity_share >= MOST else 0.0
        at_one_address, reserved = (
            (share - one) / (1 - one) for share in (self.busiest_address_share, self.reserved_address_share)
        )
        if at_one_address >= NEARLY_ALL:
            found.append(
                f"{self.busiest_address_share:.0%} of the events have the address {quoted(self.busiest_address)}. It "
                "is probably the address of a proxy or a load balancer, and then the model learns nothing about where "
                "entities come from. Log the client's address, for example from X-Forwarded-For, and train with that."
            )
        elif reserved > MOST:
            found.append(
                f"{self.reserved_address_share:.0%} of the events have private, loopback or reserved addresses, so the "
                "model learns the inner network. If the log is of a public service, the client's address is missing: "
                "log it, for example from X-Forwarded-For, and train with that."
            )
        if one:
            found.append(
                f"One entity has {self.busiest_entity_share:.0%} of all events. It is probably a service account or a "
                "monitor. The model still learns the other entities, but from the smaller part of its steps. Consider "
                "to train this entity apart, or to keep only a sample of its events."
            )
        row_ids = self.entities >= MANY_ENTITIES and self.one_event_entities_share >= NEARLY_ALL
        of_several = round(self.events - self.one_event_entities_share * self.entities)
        if row_ids:
            found.append(
                f"{self.one_event_entities_share:.0%} of the {self.entities:,} entities have one event, so there is "
                "nothing to learn about them. The entity is probably the id of an event or a session. The first column "
                "must be the entity (an account, a device), and the second its address: look at the column order, and "
                "at the header if the file had one. If these are accounts, train on a longer log."
            )
        elif self.one_event_pairs_share == 1 and of_several >= MANY_EVENTS:
            found.append(
                f"Each of the {self.pairs:,} (entity, address) pairs occurs once, although entities have several "
                "events. The data is probably a list of distinct pairs. The model learns how often a pair occurs, and "
                "this is lost there. Train on the log itself, with its repetitions."
            )
        elif (
            self.once_each_entities >= max(MANY_ENTITIES, WIDESPREAD * self.entities)
            and self.events * (1 - self.busiest_entity_share) >= OFTEN * self.entities
        ):
            found.append(
                f"{self.once_each_entities:,} entities ({self.once_each_entities / self.entities:.0%}) have exactly "
                f"one event with the address {quoted(str(self.once_each_address))}. This may be an attack on many "
                "accounts (password spraying), which the model then learns as normal. If it is one, remove the "
                "events with this address and train again."
            )
        return found


@dataclass
class _Pairs:
    """Sums and maxima over the pairs."""

    pairs: int = 0
    once: int = 0
    """Pairs with one event."""
    addresses: int = 0
    busiest: int = 0
    """The address with the most events, the lowest of several."""
    most: int = 0
    """Its events."""
    once_each: int = 0
    """The address with the most visitors, the lowest of several."""
    visitors: int = 0
    """Its entities with one event there, if these are `NEARLY_ALL` of its entities."""

    def of_all(self, group: Group) -> "_Pairs":
        """Those of all ranks, each of which has all pairs of its addresses."""
        own = np.array([dataclasses.astuple(self)], dtype=np.uint64)
        ranks = [_Pairs(*row.tolist()) for row in np.concatenate(group.gather(own))]
        busy = max(ranks, key=lambda pairs: (pairs.most, -pairs.busiest))
        visited = max(ranks, key=lambda pairs: (pairs.visitors, -pairs.once_each))
        return _Pairs(
            pairs=sum(pairs.pairs for pairs in ranks),
            once=sum(pairs.once for pairs in ranks),
            addresses=sum(pairs.addresses for pairs in ranks),
            busiest=busy.busiest,
            most=busy.most,
            once_each=visited.once_each,
            visitors=visited.visitors,
        )


@dataclass(frozen=True)
class _Visits:
    """The events, ordered by address and then by entity."""

    keys: npt.NDArray[np.uint64]
    """(The number of the address) * 2**32 + entity, ascending, [n]."""
    distinct: Addresses | None
    """In the IPv6 family, the address of each number from 1 on, ascending. An IPv4 address is its own number."""

    @classmethod
    def of(cls, train: Events) -> "_Visits":
        """Sort the events."""
        distinct, entity = None, train.entity.view(np.uint32)
        keys = train.address.astype(np.uint64)
        if train.address.dtype != IPV4.dtype:
            keys.sort()
            distinct = keys[_changes(keys)]
            for begin in range(0, len(keys), _CHUNK):
                part = train.address[begin : begin + _CHUNK]
                order = np.argsort(part)  # an ascending search stays in the cache: twice as fast, sort included
                keys[begin + order] = np.searchsorted(distinct, part[order], side="right")
        keys <<= _NUMBER_BITS
        keys |= entity
        keys.sort()
        return cls(keys, distinct)

    def address(self, number: int) -> int:
        """The address of a number."""
        return number if self.distinct is None else int(self.distinct[number - 1])

    def between(self, first: npt.NDArray[np.uint64], last: npt.NDArray[np.uint64]) -> int:
        """The number of events in disjoint ranges of addresses, ends included: uint64 [ranges] each."""
        if self.distinct is not None:
            first = np.searchsorted(self.distinct, first, side="left").astype(np.uint64) + np.uint64(1)
            last = np.searchsorted(self.distinct, last, side="right").astype(np.uint64)
        begin = np.searchsorted(self.keys, first << _NUMBER_BITS, side="left")
        end = np.searchsorted(self.keys, last << _NUMBER_BITS | _ENTITY, side="right")
        return int((end - begin).sum())

    def pairs(self) -> _Pairs:
        """Go through the pairs, address by address."""
        found = _Pairs()
        for keys in self._parts():
            starts = np.flatnonzero(_changes(keys))
            events = np.diff(starts, append=len(keys))
            number = keys[starts] >> _NUMBER_BITS
            first = np.flatnonzero(_changes(number))  # of each address, its first pair
            once = (events == 1).astype(np.int64)
            found.pairs += len(starts)
            found.once += int(once.sum())
            found.addresses += len(first)
            of_address = np.add.reduceat(events, first)
            at = int(of_address.argmax())
            if of_address[at] > found.most:
                found.busiest, found.most = self.address(int(number[first[at]])), int(of_address[at])
            visitors = np.add.reduceat(once, first)
            visitors[visitors < NEARLY_ALL * np.diff(first, append=len(starts))] = 0
            at = int(visitors.argmax())
            if visitors[at] > found.visitors:
                found.once_each, found.visitors = self.address(int(number[first[at]])), int(visitors[at])
        return found

    def _parts(self) -> Iterator[npt.NDArray[np.uint64]]:
        """The keys, in parts of whole addresses: so the memory for the pairs is that of one part."""
        begin = 0
        while begin < len(self.keys):
            last = self.keys[min(begin + _CHUNK, len(self.keys)) - 1] | _ENTITY
            end = int(np.searchsorted(self.keys, last, side="right"))
            yield self.keys[begin:end]
            begin = end


def _by_address(train: Events, group: Group) -> Events:
    """All ranks' events of some addresses, so that each address is on one rank."""
    if group.size == 1:
        return train
    to = buckets(train.address) % group.size
    # Rows count from 0 on each rank.
    before = sum(rows.item() for rows in group.gather(np.array([train.index.num_rows]))[: group.rank])
    entity = train.entity + np.int32(before)
    entity, address = send(entity, to, group), send(train.address, to, group)
    return dataclasses.replace(train, entity=entity, address=address)


def _changes(ascending: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Where a new value begins, [n]."""
    changes = np.ones(len(ascending), dtype=np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=changes[1:])
    return changes


def _known_ranges(vocabulary: Vocabulary) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The first and the last address of each known prefix of the coarsest level, which contain all the others."""
    prefixes, _ = vocabulary.counted(0)
    bits = np.uint64(vocabulary.family.width - vocabulary.levels[0])
    first = prefixes.astype(np.uint64) << bits
    return first, first | ((np.uint64(1) << bits) - np.uint64(1))


def _reserved_ranges(family: Family) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The first and the last address of each reserved range of a family; in IPv6, those of IPv4 too."""
    ranges = []
    for network in map(ipaddress.IPv4Network, _RESERVED_IPV4):
        first, last = int(network[0]), int(network[-1])
        if family.version == 6:
            first, last = MAPPED_FIRST + (first << MAPPED_SHIFT), MAPPED_FIRST + ((last + 1) << MAPPED_SHIFT) - 1
        ranges.append((first, last))
    if family.version == 6:
        cut = 128 - family.width
        ranges += [(int(n[0]) >> cut, int(n[-1]) >> cut) for n in map(ipaddress.IPv6Network, _RESERVED_IPV6)]
    first_of, last_of = np.array(ranges, dtype=np.uint64).T
    return first_of, last_of


def _text(address: int, family: Family) -> str:
    """An address as a person knows it: an IPv4 address as a dotted quad in either family, else a network."""
    if family.version == 6:
        quad, rest = divmod(address - MAPPED_FIRST, 1 << MAPPED_SHIFT)
        if rest or not 0 <= quad < 1 << MAPPED_BITS:
            return f"{render(np.array([address], FAMILIES[6].dtype), family)[0]}/{family.width}"
        address, family = quad, IPV4
    return render(np.array([address], family.dtype), family)[0]
