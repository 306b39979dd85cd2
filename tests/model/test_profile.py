import collections
import ipaddress
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Traffic, no_events, to_events
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.model import profile as module
from ipinsights.model.profile import NEARLY_ALL, Profile
from ipinsights.model.vocabulary import Vocabulary

# Few values, so that pairs and prefixes repeat, and some on both sides of where reserved ranges begin and end.
quads = st.sampled_from(
    ["8.8.8.8", "8.8.8.9", "9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0", "100.64.0.1", "224.0.0.1"]
)
sixes = quads | st.sampled_from(
    ["::1", "2001:db8:0:1::", "2001:db9::1", "2a01:1::", "2a01:1:2::", "fc00::1", "fe80::1", "2002:808:808:1::"]
)
Logins = Sequence[tuple[int | str, str]]


caps = st.integers(0, 60) | st.just(10_000)
"""Rows of the vocabulary: room for none of its prefixes, for some, or for all."""


def profile_of(log_ins: Logins, family: Family = IPV4, max_rows: int = 10_000) -> Profile:
    entities, texts = zip(*log_ins, strict=True)
    parsed, valid = addresses.parse(pa.array(texts), family)
    assert valid.all()
    index = EntityIndex(10_000)
    entity = index.claim(pa.array([str(entity) for entity in entities]))
    events = Events(entity, parsed, index)
    return Profile.of(events, Vocabulary.build(parsed, family, max_rows=max_rows))


def is_special(text: str) -> bool:
    """Whether the standard library takes an address for one that no host on the Internet has."""
    address = ipaddress.ip_address(text)
    address = getattr(address, "sixtofour", None) or address  # as which an IPv4 address is kept
    return not address.is_global or address.is_multicast


def network_of(text: str, family: Family) -> str:
    """The address as a profile calls it."""
    if ":" not in text or family.version == 4:
        return text
    return str(ipaddress.ip_network(f"{text}/64", strict=False))


def check(log_ins: Logins, family: Family, max_rows: int = 10_000) -> None:
    """Compare each fact with a plain computation."""
    profile = profile_of(log_ins, family, max_rows)
    value = {
        text: int(number)
        for _, text in log_ins
        for number in addresses.parse(pa.array([text]), family)[0]  # in whose order the first of several is named
    }
    own = [(entity, value[text]) for entity, text in log_ins]
    name = {value[text]: network_of(text, family) for text in value}
    total = len(own)
    entities = collections.Counter(entity for entity, _ in own)
    places = collections.Counter(address for _, address in own)
    pairs = collections.Counter(own)
    accounts = collections.Counter(address for _, address in pairs)
    once = collections.Counter(address for (_, address), count in pairs.items() if count == 1)
    visited = {address: count for address, count in once.items() if count >= NEARLY_ALL * accounts[address]}
    busiest = min(places, key=lambda address: (-places[address], address))
    prefixes = [collections.Counter(address >> family.width - level for _, address in own) for level in family.levels]
    every = sorted((count for level in prefixes for count in level.values()), reverse=True)
    least = 1 if len(every) <= max_rows else every[max_rows] + 1  # above the most frequent one without room
    widest = min(visited, key=lambda address: (-visited[address], address)) if visited else None
    assert profile == Profile(
        events=total,
        entities=len(entities),
        addresses=len(places),
        pairs=len(pairs),
        busiest_entity_share=max(entities.values()) / total,
        busiest_address=name[busiest],
        busiest_address_share=places[busiest] / total,
        one_event_entities_share=sum(count == 1 for count in entities.values()) / len(entities),
        one_event_pairs_share=sum(count == 1 for count in pairs.values()) / len(pairs),
        reserved_address_share=sum(is_special(text) for _, text in log_ins) / total,
        unknown_prefix_share=1 - sum(count for count in prefixes[0].values() if count >= least) / total,
        once_each_address=name[widest] if widest is not None else None,
        once_each_entities=visited[widest] if widest is not None else 0,
    )


@given(st.lists(st.tuples(st.integers(0, 5), quads), min_size=1, max_size=40), caps)
def test_the_facts_are_those_of_a_plain_computation(log_ins: Logins, max_rows: int) -> None:
    check(log_ins, IPV4, max_rows)


@given(st.lists(st.tuples(st.integers(0, 5), sixes), min_size=1, max_size=40), caps)
def test_and_in_ipv6(log_ins: Logins, max_rows: int) -> None:
    check(log_ins, IPV6, max_rows)


@given(st.lists(st.tuples(st.integers(0, 5), sixes), min_size=1, max_size=40), st.integers(1, 5))
def test_long_data_is_computed_in_parts(log_ins: Logins, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", size)
        check(log_ins, IPV6)
        check([(entity, text) for entity, text in log_ins if ":" not in text] or [(0, "1.2.3.4")], IPV4)


def test_the_highest_rows_and_addresses_fit() -> None:
    entity = np.array([2**31 - 2, 2**31 - 2, 0], dtype=np.int32)
    address = np.array([2**32 - 1, 2**32 - 1, 0], dtype=np.uint32)
    visits = module._Visits.of(Events(entity, address, EntityIndex(1)))
    found = visits.pairs()
    assert (found.pairs, found.once, visits.address(found.busiest), found.most) == (2, 1, 2**32 - 1, 2)
    assert visits.between(*module._reserved_ranges(IPV4)) == 3


def test_the_reserved_ranges_of_ipv4_are_those_of_the_standard_library() -> None:
    """On both sides of each end."""
    first, last = module._reserved_ranges(IPV4)
    edges = {int(edge) + step for edge in np.concatenate([first, last]) for step in (-1, 0, 1)}
    near = np.array(sorted(edge for edge in edges if 0 <= edge < 1 << 32), dtype=np.uint32)
    protocols = ipaddress.ip_network("192.0.0.0/24")  # of which the library calls a few global, in newer releases
    for number, text in zip(near, addresses.render(near), strict=True):
        assert (((first <= number) & (number <= last)).sum() == 1) == is_special(text) or (
            ipaddress.ip_address(text) in protocols
        ), text


@pytest.mark.parametrize(
    ("text", "special"),
    [
        *((text, True) for text in ("::1", "fc00::", "fdff:ffff::1", "fe80::1", "febf:ffff::", "ff02::1", "100::1")),
        *((text, True) for text in ("2001:db8::", "2001:db8:ffff:ffff::", "3fff:fff::1")),
        *((text, True) for text in ("10.1.2.3", "::ffff:127.0.0.1")),
        *((text, False) for text in ("2001:db7:ffff:ffff::", "2001:db9::", "2a01::1", "64:ff9b::808:808", "8.8.8.8")),
    ],
)
def test_the_reserved_ranges_of_ipv6(text: str, special: bool) -> None:
    assert profile_of([("u", text)], IPV6).reserved_address_share == special


def test_an_entitys_events_of_an_earlier_training_do_not_count(traffic: Traffic) -> None:
    earlier = Vocabulary.build(np.full(5, 0x01020304, np.uint32))
    now = to_events(traffic.train, 200)
    vocabulary = Vocabulary.build(now.address, earlier=earlier)
    assert Profile.of(now, vocabulary).events == len(now)
    new = Events(np.zeros(4, np.int32), np.array([1 << 24, 1 << 24, 2 << 24, 3 << 24], np.uint32), EntityIndex(1))
    assert Profile.of(new, Vocabulary.build(new.address, earlier=earlier)).unknown_prefix_share == 0
    room_for_two = Vocabulary.build(new.address, earlier=earlier, max_rows=2 * len(IPV4.levels))
    # The earlier prefix and that of the first two are known, the others have one event.
    assert Profile.of(new, room_for_two).unknown_prefix_share == 0.5


def test_without_events_there_is_no_profile() -> None:
    with pytest.raises(ValueError, match="there are no events"):
        Profile.of(no_events(), Vocabulary.blank(IPV4))


def test_facts_and_doubts_are_json(traffic: Traffic) -> None:
    events = to_events(traffic.train, 200)
    facts = Profile.of(events, Vocabulary.build(events.address)).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["events"] == len(traffic.train)
    assert facts["doubts"] == []


# Doubts. Accounts log in from two places of their own, most often from the first.


def places(user: int) -> tuple[str, str]:
    return f"81.{user // 200}.{user % 200}.1", f"82.{user // 200}.{user % 200}.1"


def ordinary(users: int, events: int = 12) -> list[tuple[int | str, str]]:
    """So many events of each user, one in four of them from the second place."""
    return [(user, places(user)[number % 4 == 3]) for user in range(users) for number in range(events)]


def shared(share: float, users: int = 60, address: str = "91.1.1.1") -> list[tuple[int | str, str]]:
    """The share of the log-ins of each user has one address."""
    return [
        (user, address if number < 20 * share else places(user)[0]) for user in range(users) for number in range(20)
    ]


SPRAYED: list[tuple[int | str, str]] = [(user, "93.1.1.1") for user in range(50)]

DOUBTFUL: dict[str, tuple[Logins, str]] = {
    "one address": (shared(0.9), "90% of the events have the address 91.1.1.1. It is probably the address of a proxy"),
    "loopback": (shared(1.0, address="127.0.0.1"), "100% of the events have the address 127.0.0.1."),
    "inner network": (
        [(user, f"10.0.{user}.{number % 2}") for user in range(60) for number in range(9)],
        "100% of the events have private, loopback or reserved addresses",
    ),
    "a monitor": (
        ordinary(60) + [("monitor", "91.1.1.1")] * 800,
        "One entity has 53% of all events. It is probably a service account",
    ),
    "a monitor inside": (ordinary(60) + [("monitor", "10.0.0.1")] * 9000, "One entity has 93% of all events."),
    "row ids": (
        [(row, places(row % 20)[0]) for row in range(200)],
        "100% of the 200 entities have one event, so there is nothing to learn about them.",
    ),
    "distinct pairs": (
        [(user, place) for user in range(60) for place in places(user)],
        "Each of the 120 (entity, address) pairs occurs once, although entities have several events.",
    ),
    "an attack": (
        ordinary(60) + SPRAYED,
        "50 entities (83%) have exactly one event with the address 93.1.1.1. This may be an attack on many accounts",
    ),
}
ORDINARY: dict[str, Logins] = {
    "two places each": ordinary(60),
    "an office of most": shared(0.7),
    "an office of most, in another network": shared(0.5, address="10.0.0.1"),
    "three users on one address": shared(1.0, users=3),
    "three users in the inner network": [(user, f"10.0.0.{user}") for user in range(3) for _ in range(50)],
    "one of three users has most": ordinary(3) + [(0, "81.0.0.1")] * 100,
    "a busy account": ordinary(60) + [("monitor", "91.1.1.1")] * 700,
    "most came once": [(user, places(user)[0]) for user in range(170)] + ordinary(30),
    "a few users, each once": [(user, places(user)[0]) for user in range(40)],
    "one pair is repeated": [(user, place) for user in range(60) for place in places(user)] + [(0, "81.0.0.1")],
    "few distinct pairs": [(user, place) for user in range(40) for place in places(user)],
    "an address of few": ordinary(60) + SPRAYED[:49],
    "an address of a small part": ordinary(1100) + SPRAYED,
    "an address where people return": ordinary(60) + SPRAYED + SPRAYED[:6],
    "a day's log of an office": ordinary(60, events=1) + SPRAYED + ordinary(1, events=1),
}


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_doubt_says_what_was_seen(name: str, family: Family) -> None:
    log_ins, sentence = DOUBTFUL[name]
    (doubt,) = profile_of(log_ins, family).doubts()
    assert doubt.startswith(sentence)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_data_raises_no_doubt(name: str) -> None:
    assert profile_of(ORDINARY[name]).doubts() == []


def test_several_doubts_are_told_together() -> None:
    log_ins = [("monitor", "10.0.0.1")] * 200 + [(row, f"10.1.0.{row}") for row in range(150)]
    about_addresses, about_one, about_ids = profile_of(log_ins).doubts()
    assert "inner network" in about_addresses
    assert about_one.startswith("One entity has 57%")
    assert about_ids.startswith("99% of the 151 entities")


def test_a_doubt_names_a_network_in_ipv6() -> None:
    log_ins = [(user, f"2a01:1:2:3::{user:x}") for user in range(20) for _ in range(3)]
    (doubt,) = profile_of(log_ins, IPV6).doubts()
    assert "have the address 2a01:1:2:3::/64." in doubt
