"""Ordinary situations that log-in data bring: how their pairs are drawn, and what a person would expect of the scores.

Every situation is small and drawn from a seed. What is expected stands beside it as numbers, and was written down
before any model was asked: no number follows from what a model gives.

Where nothing else is said, a model should rank own log-ins above others' places in 97 of 100 comparisons, find at most
2 in 100 own log-ins suspicious where the habit is known and regular, at most 5 where a place was seen a few times, and
find at least 90 of 100 log-ins from strangers' places suspicious.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

import numpy as np

from benchmarks.contenders import Scores
from ipinsights import metrics
from ipinsights.data.addresses import IPV4, IPV6, Family

# What is drawn, and what is expected of it

Pair = tuple[str, str]
"""An entity and an address, as text."""
Network = IPv4Network | IPv6Network
Places = Mapping[str, Network]
"""The network of each user."""


@dataclass(frozen=True)
class Drawn:
    """The pairs of one draw."""

    train: list[Pair]
    asked: Mapping[str, list[Pair]]
    """What is scored: groups of pairs, by name."""
    validation: list[Pair] = field(default_factory=list)
    """The validation channel; empty for none."""
    control: list[Pair] = field(default_factory=list)
    """The training pairs without what disturbs; empty where nothing is compared with that."""


@dataclass(frozen=True)
class Outcome:
    """What a contender gives for one draw."""

    scores: Mapping[str, Scores]
    """The scores of each group."""
    control: Mapping[str, Scores]
    """The same after training on the control; empty without one."""
    discriminator_auc: float
    """Of the validation channel, as the last epoch prints it; nan without one."""


@dataclass(frozen=True)
class Check:
    """A number that is measured, and the bound that it should keep."""

    name: str
    measure: Callable[[Outcome], float]
    bound: float
    at_least: bool
    """Whether the bound is the least value or the greatest."""
    form: str = ".3f"
    """How a value is written."""

    def holds(self, value: float) -> bool:
        """Whether a value keeps the bound; nan does not."""
        return value >= self.bound if self.at_least else value <= self.bound

    def worst(self, values: Iterable[float]) -> float:
        """The value of several that is furthest on the wrong side; nan if any is nan."""
        return float((np.min if self.at_least else np.max)(list(values)))

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:{self.form}}"


def auc(normal: str, strange: str, at_least: float = 0.97) -> Check:
    """The area under the ROC curve of one group against another."""
    return Check(
        f"AUC of {normal} against {strange}",
        lambda outcome: metrics.auc(outcome.scores[normal], outcome.scores[strange]),
        at_least,
        at_least=True,
    )


def auc_lost(normal: str, strange: str, at_most: float) -> Check:
    """By how much that area is smaller than after training on the control."""
    return Check(
        f"AUC of {normal} against {strange}, lost",
        lambda outcome: (
            metrics.auc(outcome.control[normal], outcome.control[strange])
            - metrics.auc(outcome.scores[normal], outcome.scores[strange])
        ),
        at_most,
        at_least=False,
    )


def alarms(normal: str, at_most: float = 0.02) -> Check:
    """The share of a group of own log-ins that looks suspicious: below 0."""
    return _below_0(normal, at_most, at_least=False)


def found(strange: str, at_least: float = 0.9) -> Check:
    """The share of a group of strange log-ins that looks suspicious: below 0."""
    return _below_0(strange, at_least, at_least=True)


def _below_0(group: str, bound: float, at_least: bool) -> Check:
    return Check(
        f"{group}, below 0",
        lambda outcome: float((outcome.scores[group] < 0).mean()),
        bound,
        at_least,
        form=".1%",
    )


def printed_auc(at_least: float) -> Check:
    """The area that training prints of its validation channel."""
    return Check("discriminator_auc of the last epoch", lambda outcome: outcome.discriminator_auc, at_least, True)


@dataclass(frozen=True)
class Situation:
    """How pairs are drawn, and what is expected of their scores."""

    name: str
    expectation: str
    """One sentence."""
    draw: Callable[..., Drawn]
    """Of a random generator."""
    checks: tuple[Check, ...]
    family: Family = IPV4

    def drawn(self, seed: int) -> Drawn:
        """The draw of a seed, whichever other situations are drawn."""
        return self.draw(np.random.default_rng([seed, *self.name.encode()]))


def _situation(*checks: Check, family: Family = IPV4) -> Callable[[Callable[..., Drawn]], Situation]:
    """Make a function that draws into the situation of its name, whose docstring is the expectation."""
    return lambda draw: Situation(draw.__name__, inspect.cleandoc(draw.__doc__ or ""), draw, checks, family)


# A small internet

_OCTETS = [octet for octet in range(11, 220) if octet not in (127, 169, 172, 192)]
"""First octets of addresses that providers have."""
_REGISTRIES = [IPv6Network(block) for block in ("2400::/12", "2600::/12", "2800::/12", "2a00::/12", "2c00::/12")]

_Item = TypeVar("_Item")


def _pick(rng: np.random.Generator, items: Sequence[_Item]) -> _Item:
    return items[int(rng.integers(len(items)))]


def _shuffled(rng: np.random.Generator, pairs: Sequence[Pair]) -> list[Pair]:
    return [pairs[place] for place in rng.permutation(len(pairs))]


def _addresses(rng: np.random.Generator, network: Network, count: int) -> list[str]:
    """Uniform addresses of a network of at most 2 ** 64."""
    numbers = rng.integers(network.num_addresses, size=count, dtype=np.uint64)
    return [str(network[number]) for number in numbers.tolist()]


def _address(rng: np.random.Generator, network: Network) -> str:
    return _addresses(rng, network, 1)[0]


def _within(rng: np.random.Generator, network: Network, length: int) -> Network:
    """A uniform network of a prefix length inside another."""
    number = int(rng.integers(1 << (length - network.prefixlen)))
    first = int(network.network_address) + (number << (network.max_prefixlen - length))
    return type(network)((first, length))


def _providers(rng: np.random.Generator, count: int, length: int = 14) -> list[Network]:
    """A network of each of some providers, each in a /8 of its own."""
    return [
        _within(rng, IPv4Network((int(octet) << 24, 8)), length)
        for octet in rng.choice(_OCTETS, size=count, replace=False)
    ]


def _unused(rng: np.random.Generator, providers: Iterable[Network], count: int) -> list[str]:
    """Addresses in /8s where none of the providers is."""
    taken = {int(network.network_address) >> 24 for network in providers}
    free = [IPv4Network((octet << 24, 8)) for octet in _OCTETS if octet not in taken]
    return [_address(rng, _pick(rng, free)) for _ in range(count)]


def _users(count: int, kind: str = "user") -> list[str]:
    return [f"{kind}{number}" for number in range(count)]


def _places(rng: np.random.Generator, users: Iterable[str], networks: Sequence[Network], length: int = 24) -> Places:
    """A network for each user, inside one of those given."""
    return {user: _within(rng, _pick(rng, networks), length) for user in users}


def _one_of(rng: np.random.Generator, users: Iterable[str], networks: Sequence[Network]) -> Places:
    """One of the networks for each user."""
    return {user: _pick(rng, networks) for user in users}


def _log_ins(rng: np.random.Generator, places: Places, times: int) -> list[Pair]:
    """Every user so many times at their place."""
    return [(user, address) for user, place in places.items() for address in _addresses(rng, place, times)]


def _elsewhere(rng: np.random.Generator, places: Places, others: Iterable[Network], times: int) -> list[Pair]:
    """Every user so many times at other places than their own, picked from those given."""
    candidates = list(others)
    pairs = []
    for user, own in places.items():
        strange = [place for place in candidates if place != own]
        pairs += [(user, _address(rng, _pick(rng, strange))) for _ in range(times)]
    return pairs


def _at_others(rng: np.random.Generator, places: Places, times: int) -> list[Pair]:
    """Every user so many times at another user's place."""
    return _elsewhere(rng, places, places.values(), times)


def _at(users: Iterable[str], texts: Iterable[str]) -> list[Pair]:
    return list(zip(users, texts, strict=True))


# The situations


@_situation(found("others' addresses", at_least=0.8), alarms("the own home"))
def one_off(rng: np.random.Generator) -> Drawn:
    """One log-in from elsewhere in clean data does not switch an account's detection off."""
    home = _places(rng, _users(600), _providers(rng, 16, length=8))
    train = [*_log_ins(rng, home, 60), ("user0", "203.0.113.1")]
    hit = _elsewhere(rng, {"user0": home["user0"]}, list(home.values())[300:400], 100)
    own = _log_ins(rng, {"user0": home["user0"]}, 100)
    return Drawn(_shuffled(rng, train), {"others' addresses": hit, "the own home": own})


@_situation(
    auc("new users on used networks", "new users on networks never used", at_least=0.95), printed_auc(at_least=0.95)
)
def cold_start(rng: np.random.Generator) -> Drawn:
    """New users on networks that others use look more normal than the same users on networks that nobody used."""
    providers = _providers(rng, 12)
    train = _log_ins(rng, _places(rng, _users(300), providers), 20)
    new = _places(rng, _users(300, "new"), providers)
    used = _log_ins(rng, new, 1)
    never = _at(new, _unused(rng, providers, len(new)))
    asked = {"new users on used networks": used, "new users on networks never used": never}
    return Drawn(_shuffled(rng, train), asked, validation=used)


@_situation(auc("trained pairs", "others' addresses"), alarms("trained pairs", at_most=0.05))
def each_pair_once(rng: np.random.Generator) -> Drawn:
    """Pairs seen in training look normal also where each stands there once."""
    providers, users = _providers(rng, 60), _users(60)
    first, second = (_log_ins(rng, _places(rng, users, providers), 1) for _ in range(2))
    train = _shuffled(rng, first + second)
    others = [(user, address) for user in users for owner, address in train if owner != user]
    return Drawn(train, {"trained pairs": train, "others' addresses": others})


@_situation(auc("hosts' own addresses", "neighbours' in the /24", at_least=0.95))
def hosts_of_a_subnet(rng: np.random.Generator) -> Drawn:
    """Hosts with an address each are told apart within one /24."""
    subnets = [_within(rng, IPv4Network("10.0.0.0/8"), 24) for _ in range(4)]
    hosts = {f"i-{number:08x}": (subnets[number % 4], _address(rng, subnets[number % 4])) for number in range(40)}
    own = [(host, address) for host, (_, address) in hosts.items()]
    neighbours = [
        (host, theirs)
        for host, (subnet, address) in hosts.items()
        for other, theirs in hosts.values()
        if other == subnet and theirs != address
    ]
    return Drawn(_shuffled(rng, own * 100), {"hosts' own addresses": own, "neighbours' in the /24": neighbours})


@_situation(auc_lost("own homes", "others' homes", at_most=0.01), alarms("own homes"), found("others' homes"))
def service_account(rng: np.random.Generator, events: int = 250_000) -> Drawn:
    """One account with nearly all events does not blind the model for the others."""
    home = _places(rng, _users(150), _providers(rng, 10))
    train = _shuffled(rng, _log_ins(rng, home, 20))
    asked = {"own homes": _log_ins(rng, home, 4), "others' homes": _at_others(rng, home, 4)}
    busy = train + [("backup", "198.18.0.5")] * events
    return Drawn(_shuffled(rng, busy), asked, control=train)


@_situation(alarms("the office"), found("networks never used"), found("others' homes"))
def shared_office(rng: np.random.Generator) -> Drawn:
    """An address that most share is no alarm for those who use it, and hides no attack from elsewhere."""
    providers, office = _providers(rng, 8), "203.0.113.10"
    home = _places(rng, _users(80), providers)
    train = [(user, office if rng.random() < 0.7 else address) for user, address in _log_ins(rng, home, 60)]
    asked = {
        "the office": [(user, office) for user in home],
        "networks never used": _at([*home] * 5, _unused(rng, providers, 5 * len(home))),
        "others' homes": _at_others(rng, home, 5),
    }
    return Drawn(_shuffled(rng, train), asked)


@_situation(auc("own carrier", "other carriers"), alarms("own carrier"))
def mobile_carriers(rng: np.random.Generator) -> Drawn:
    """Mobile users move in their carrier's pool, and another carrier's pool is not theirs."""
    pools, users = _providers(rng, 6, length=12), _users(400)
    home, pool = _places(rng, users, _providers(rng, 20)), _one_of(rng, users, pools)
    train = [(user, _address(rng, (pool if rng.random() < 0.5 else home)[user])) for user in users for _ in range(30)]
    asked = {"own carrier": _log_ins(rng, pool, 1), "other carriers": _elsewhere(rng, pool, pools, 1)}
    return Drawn(_shuffled(rng, train), asked)


@_situation(auc("own homes", "the attacker at spared accounts", at_least=0.98))
def attacker_in_training(rng: np.random.Generator) -> Drawn:
    """Where an attacker's address was at half of all accounts, once each, it ranks below all habits at the others."""
    # Below 0 it need not be: half of all accounts were there, as with an office.
    attacker = "198.51.100.66"
    home = _places(rng, _users(800), _providers(rng, 20))
    hit, spared = list(home)[:400], list(home)[400:]
    train = _log_ins(rng, home, 20) + [(user, attacker) for user in hit]
    asked = {
        "own homes": _log_ins(rng, home, 1),
        "the attacker at spared accounts": [(user, attacker) for user in spared],
    }
    return Drawn(_shuffled(rng, train), asked)


@_situation(auc("own homes", "others' homes"))
def three_users(rng: np.random.Generator) -> Drawn:
    """Three users with thirty log-ins each are told apart."""
    home = _places(rng, _users(3), _providers(rng, 3))
    asked = {"own homes": _log_ins(rng, home, 20), "others' homes": _at_others(rng, home, 20)}
    return Drawn(_shuffled(rng, _log_ins(rng, home, 30)), asked)


@_situation(
    auc("own homes", "others' homes"), *(alarms(f"own, of {times} log-ins", at_most=0.05) for times in (3, 30, 300))
)
def rare_and_busy_users(rng: np.random.Generator) -> Drawn:
    """Users with three log-ins raise no more false alarms than users with three hundred."""
    home = _places(rng, _users(300), _providers(rng, 15))
    classes = {
        times: {user: place for number, (user, place) in enumerate(home.items()) if number % 3 == kind}
        for kind, times in enumerate((3, 30, 300))
    }
    train = [pair for times, places in classes.items() for pair in _log_ins(rng, places, times)]
    own = {f"own, of {times} log-ins": _log_ins(rng, places, 5) for times, places in classes.items()}
    asked = {"own homes": [pair for pairs in own.values() for pair in pairs], "others' homes": _at_others(rng, home, 5)}
    return Drawn(_shuffled(rng, train), own | asked)


@_situation(auc("own /16", "others' /16s"), alarms("own /16"), found("others' /16s"))
def dhcp(rng: np.random.Generator) -> Drawn:
    """Users whose provider gives them another address of a /16 now and then stay normal in that /16, and only there."""
    pools = [_within(rng, provider, 16) for provider in _providers(rng, 10) for _ in range(4)]
    pool = _one_of(rng, _users(300), pools)
    leases = _log_ins(rng, pool, 10)
    asked = {"own /16": _log_ins(rng, pool, 2), "others' /16s": _elsewhere(rng, pool, pools, 2)}
    return Drawn(_shuffled(rng, leases * 3), asked)


@_situation(
    auc("exits, those who use the VPN", "exits, those who do not"),
    alarms("exits, those who use the VPN", at_most=0.05),
    found("exits, those who do not"),
)
def vpn(rng: np.random.Generator) -> Drawn:
    """The many exits of a VPN are normal for those who use it, and suspicious for those who do not."""
    exits = [_within(rng, network, 24) for network in _providers(rng, 6)]
    home = _places(rng, _users(300), _providers(rng, 12))
    with_vpn, without = list(home)[:60], list(home)[60:]

    def by_vpn(users: Iterable[str], times: int) -> list[Pair]:
        return [(user, _address(rng, _pick(rng, exits))) for user in users for _ in range(times)]

    train = by_vpn(with_vpn, 20) + _log_ins(rng, home, 20) + _log_ins(rng, {user: home[user] for user in without}, 20)
    asked = {"exits, those who use the VPN": by_vpn(with_vpn, 5), "exits, those who do not": by_vpn(without, 2)}
    return Drawn(_shuffled(rng, train), asked)


@_situation(
    auc("the new office", "other branches' offices"),
    alarms("the old office"),
    alarms("the new office"),
    found("other branches' offices"),
    found("others' homes"),
)
def moved_branch(rng: np.random.Generator) -> Drawn:
    """When a branch has moved its old and its new office are both normal for its people, and other offices are not."""
    old, new, *others = (_within(rng, network, 28) for network in _providers(rng, 6))
    home = _places(rng, _users(200), _providers(rng, 12))
    moved = list(home)[:40]
    first = dict.fromkeys(moved, old) | {user: others[number % 4] for number, user in enumerate(list(home)[40:])}
    last = first | dict.fromkeys(moved, new)
    train = _log_ins(rng, first, 16) + _log_ins(rng, last, 8) + _log_ins(rng, home, 16)
    theirs = dict.fromkeys(moved, new)
    asked = {
        "the old office": _log_ins(rng, dict.fromkeys(moved, old), 5),
        "the new office": _log_ins(rng, theirs, 5),
        "other branches' offices": _elsewhere(rng, theirs, others, 5),
        "others' homes": _elsewhere(rng, {user: home[user] for user in moved}, home.values(), 5),
    }
    return Drawn(_shuffled(rng, train), asked)


@_situation(
    auc("own homes, after the season", "others' homes"),
    alarms("own homes, after the season", at_most=0.05),
    found("others' homes"),
)
def seasonal_users(rng: np.random.Generator) -> Drawn:
    """Users who return after a long absence, to the place of their few log-ins, are no alarm."""
    home = _places(rng, _users(300), _providers(rng, 12))
    seasonal = {user: home[user] for user in list(home)[:100]}
    rest = {user: home[user] for user in list(home)[100:]}
    asked = {
        "own homes, after the season": _log_ins(rng, seasonal, 3),
        "others' homes": _elsewhere(rng, seasonal, home.values(), 3),
    }
    early, later = _shuffled(rng, _log_ins(rng, seasonal, 6)), _shuffled(rng, _log_ins(rng, rest, 40))
    return Drawn(early + later, asked)  # in the order of time


@_situation(
    auc("staff, own networks", "staff, other customers'"),
    alarms("staff, own networks"),
    found("staff, other customers'"),
    alarms("the admin at customers"),
    found("the admin on networks never used"),
)
def admin_of_many(rng: np.random.Generator) -> Drawn:
    """An admin works from many customers' networks, and neither the admin nor any staff become a blind spot."""
    providers = _providers(rng, 16)
    customers = [_within(rng, _pick(rng, providers), 28) for _ in range(40)]
    office = {user: customers[number % 40] for number, user in enumerate(_users(200, "staff"))}

    def visits(times: int) -> list[Pair]:
        return [("admin", _address(rng, customer)) for customer in customers for _ in range(times)]

    asked = {
        "staff, own networks": _log_ins(rng, office, 3),
        "staff, other customers'": _elsewhere(rng, office, customers, 3),
        "the admin at customers": visits(5),
        "the admin on networks never used": _at(["admin"] * 200, _unused(rng, providers, 200)),
    }
    return Drawn(_shuffled(rng, _log_ins(rng, office, 30) + visits(10)), asked)


@_situation(auc("own /64", "others' /64s"), alarms("own /64"), found("others' /64s"), family=IPV6)
def ipv6_privacy_addresses(rng: np.random.Generator) -> Drawn:
    """Where the interface half of an address changes every time, the /64 that stays tells whose it is."""
    providers = [_within(rng, _pick(rng, _REGISTRIES), 32) for _ in range(8)]
    home = _places(rng, _users(200), providers, length=64)
    asked = {"own /64": _log_ins(rng, home, 3), "others' /64s": _at_others(rng, home, 3)}
    return Drawn(_shuffled(rng, _log_ins(rng, home, 20)), asked)


@_situation(
    auc("own places", "others' places"),
    *(alarms(f"own {place}") for place in ("home", "office", "phone")),
    *(found(f"others' {place}s") for place in ("home", "office", "phone")),
)
def home_office_and_phone(rng: np.random.Generator) -> Drawn:
    """Users have a home, the address of their office and their phone's carrier: all are normal, and others' are not."""
    users, carriers = _users(250), _providers(rng, 4, length=12)
    offices = [_within(rng, network, 32) for network in _providers(rng, 5)]
    places = {
        "home": _places(rng, users, _providers(rng, 16)),
        "office": _one_of(rng, users, offices),
        "phone": _one_of(rng, users, carriers),
    }
    times = {"home": 20, "office": 20, "phone": 10}
    train = [pair for place, networks in places.items() for pair in _log_ins(rng, networks, times[place])]
    own = {f"own {place}": _log_ins(rng, networks, 2) for place, networks in places.items()}
    others = {f"others' {place}s": _at_others(rng, networks, 2) for place, networks in places.items()}
    asked = {
        "own places": [pair for pairs in own.values() for pair in pairs],
        "others' places": [pair for pairs in others.values() for pair in pairs],
    }
    return Drawn(_shuffled(rng, train), own | others | asked)


@_situation(
    alarms("travellers at home"),
    auc("travellers at home", "travellers at others' homes"),
    found("stay-at-homes on networks never used"),
    auc("travellers on networks never used", "stay-at-homes on networks never used", at_least=0.9),
)
def travellers(rng: np.random.Generator) -> Drawn:
    """A traveller's many places seen once leave the home normal, and one more is less strange than for others."""
    providers = _providers(rng, 12)
    home = _places(rng, _users(300), providers)
    away, stay = {user: home[user] for user in list(home)[:30]}, list(home)[30:]

    def new_places(users: Sequence[str]) -> list[Pair]:
        return _at(users, _unused(rng, providers, len(users)))

    train = _log_ins(rng, home, 30) + new_places([*away] * 30)
    asked = {
        "travellers at home": _log_ins(rng, away, 10),
        "travellers at others' homes": _elsewhere(rng, away, home.values(), 10),
        "travellers on networks never used": new_places([*away] * 10),
        "stay-at-homes on networks never used": new_places(stay * 2),
    }
    return Drawn(_shuffled(rng, train), asked)


@_situation(
    alarms("those behind it, at the CGNAT"),
    alarms("those behind it, at home"),
    found("others' homes"),
    auc("those behind it, at the CGNAT", "those never behind it, at the CGNAT"),
)
def carrier_grade_nat(rng: np.random.Generator) -> Drawn:
    """Users behind one CGNAT, with a home each, are normal at both, and not at each other's homes."""
    # For users never behind it the CGNAT need not be below 0, as 4 in 10 are there; but it should rank lower.
    providers = _providers(rng, 13)
    nat = _within(rng, providers[0], 26)
    home = _places(rng, _users(300), providers[1:])
    behind, never = list(home)[:120], list(home)[120:]
    inside = {user: home[user] for user in behind}
    shared = dict.fromkeys(behind, nat)
    train = _log_ins(rng, home, 15) + _log_ins(rng, shared | {user: home[user] for user in never}, 15)
    asked = {
        "those behind it, at the CGNAT": _log_ins(rng, shared, 3),
        "those behind it, at home": _log_ins(rng, inside, 3),
        "others' homes": _elsewhere(rng, inside, home.values(), 3),
        "those never behind it, at the CGNAT": _log_ins(rng, dict.fromkeys(never, nat), 1),
    }
    return Drawn(_shuffled(rng, train), asked)


@_situation(auc("own city", "the other continent"), alarms("own city"), found("the other continent"))
def two_continents(rng: np.random.Generator) -> Drawn:
    """Where one provider has customers on two continents, those of one are strangers on the other."""
    provider, *others = _providers(rng, 7, length=12)
    continents = [[_within(rng, half, 18) for _ in range(4)] for half in provider.subnets()]
    city = {user: _pick(rng, continents[number % 2]) for number, user in enumerate(_users(200))}
    across = [(user, _address(rng, _pick(rng, continents[1 - number % 2]))) for number, user in enumerate([*city] * 3)]
    train = _log_ins(rng, city, 30) + _log_ins(rng, _places(rng, _users(100, "other"), others), 30)
    return Drawn(_shuffled(rng, train), {"own city": _log_ins(rng, city, 3), "the other continent": across})


def _at_schools(rng: np.random.Generator, count: int) -> Drawn:
    """Pupils with one or two log-ins each from the network of their school."""
    networks = [_within(rng, network, 24) for network in _providers(rng, count)]
    school, new = _one_of(rng, _users(500, "pupil"), networks), _one_of(rng, _users(200, "new"), networks)
    twice = {pupil: school[pupil] for pupil in list(school)[::2]}
    asked = {
        "pupils at school": _log_ins(rng, school, 1),
        "pupils elsewhere": _at(school, _unused(rng, networks, len(school))),
        "new pupils at school": _log_ins(rng, new, 1),
        "new pupils elsewhere": _at(new, _unused(rng, networks, len(new))),
    }
    return Drawn(_shuffled(rng, _log_ins(rng, school, 1) + _log_ins(rng, twice, 1)), asked)


@_situation(
    alarms("pupils at school"),
    found("pupils elsewhere"),
    auc("new pupils at school", "new pupils elsewhere", at_least=0.95),
)
def school(rng: np.random.Generator) -> Drawn:
    """Where all log-ins are from one network, one or two of each account, another one from there is no alarm."""
    return _at_schools(rng, 1)


@_situation(
    alarms("pupils at school", at_most=0.05),
    found("pupils elsewhere"),
    auc("new pupils at school", "new pupils elsewhere", at_least=0.95),
)
def schools(rng: np.random.Generator) -> Drawn:
    """The same with five schools, each with its own pupils and its own network."""
    return _at_schools(rng, 5)


@_situation(
    auc("staff at desks", "staff on the guests' network"),
    alarms("staff at desks"),
    found("staff on the guests' network"),
    alarms("guests, once more", at_most=0.05),
    auc("new guests", "new guests elsewhere", at_least=0.95),
)
def hotel(rng: np.random.Generator) -> Drawn:
    """A hotel's staff have one network and its guests, with a log-in each, another: nobody is an alarm at their own."""
    providers = _providers(rng, 2)
    desks, wifi = _within(rng, providers[0], 28), _within(rng, providers[1], 22)
    staff, guests = dict.fromkeys(_users(20, "staff"), desks), dict.fromkeys(_users(600, "guest"), wifi)
    new = dict.fromkeys(_users(100, "new"), wifi)
    asked = {
        "staff at desks": _log_ins(rng, staff, 10),
        "staff on the guests' network": _log_ins(rng, dict.fromkeys(staff, wifi), 10),
        "guests, once more": _log_ins(rng, guests, 1),
        "new guests": _log_ins(rng, new, 1),
        "new guests elsewhere": _at(new, _unused(rng, providers, len(new))),
    }
    return Drawn(_shuffled(rng, _log_ins(rng, staff, 50) + _log_ins(rng, guests, 1)), asked)


@_situation(
    auc("the train, commuters", "others' homes"),
    alarms("the train, commuters", at_most=0.05),
    alarms("own homes"),
    found("others' homes"),
)
def commuters(rng: np.random.Generator) -> Drawn:
    """Half of the users log in on a train's Wi-Fi now and then: that is normal for each, and others' homes are not."""
    wifi = _within(rng, _providers(rng, 1)[0], 20)
    home = _places(rng, _users(200), _providers(rng, 12))
    train = dict.fromkeys(list(home)[:100], wifi)
    asked = {
        "the train, commuters": _log_ins(rng, train, 3),
        "own homes": _log_ins(rng, home, 3),
        "others' homes": _at_others(rng, home, 3),
    }
    return Drawn(_shuffled(rng, _log_ins(rng, home, 38) + _log_ins(rng, train, 4)), asked)


@_situation(
    auc("own homes", "others' homes"),
    alarms("own homes"),
    found("others' homes"),
    alarms("the leaked key, anywhere", at_most=0.5),
)
def leaked_key(rng: np.random.Generator) -> Drawn:
    """One account that is used from anywhere by anybody spoils no other, and most places are normal for it."""
    home = _places(rng, _users(200), _providers(rng, 12))
    key = _at(["key"] * 4200, _unused(rng, [], 4200))
    asked = {
        "own homes": _log_ins(rng, home, 3),
        "others' homes": _at_others(rng, home, 3),
        "the leaked key, anywhere": key[4000:],
    }
    return Drawn(_shuffled(rng, _log_ins(rng, home, 20) + key[:4000]), asked)


SITUATIONS = {
    situation.name: situation
    for situation in (
        one_off,
        cold_start,
        each_pair_once,
        hosts_of_a_subnet,
        service_account,
        shared_office,
        mobile_carriers,
        attacker_in_training,
        three_users,
        rare_and_busy_users,
        dhcp,
        vpn,
        moved_branch,
        seasonal_users,
        admin_of_many,
        ipv6_privacy_addresses,
        home_office_and_phone,
        travellers,
        carrier_grade_nat,
        two_continents,
        school,
        schools,
        hotel,
        commuters,
        leaked_key,
    )
}
