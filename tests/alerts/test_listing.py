"""The list of log-ins to look at, and the numbers in its reasons, against a plain count of the raw events."""

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from conftest import SMALL, Traffic, to_events
from ipinsights.alerts.listing import Alert, Alerts, find
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records, parse_csv
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit

Pairs = Sequence[tuple[Any, ...]]


def log_ins(rows: Pairs, family: Family = IPV4) -> Records:
    return parse_csv("".join(",".join(row) + "\n" for row in rows).encode(), family)


def trained(train: Records, validation: Records | None, networks: Networks | None = None, **others: object) -> Model:
    version = 4 if train.addresses.dtype == np.uint32 else 6
    hp = Hyperparameters.parse({**SMALL, "ip_version": str(version), **{k: str(v) for k, v in others.items()}})
    events = to_events(train, hp.num_entity_vectors)
    held = Events(events.index.find(validation.entities), validation.addresses, events.index) if validation else None
    return fit(events, hp, held, networks=networks)


@pytest.fixture(scope="module")
def model(traffic: Traffic) -> Model:
    return trained(traffic.train, traffic.normal)


def pairs(records: Records) -> list[tuple[Any, ...]]:
    return list(zip(records.entities.to_pylist(), texts(records), strict=True))


def texts(records: Records) -> list[str]:
    return [str(ipaddress.IPv4Address(address)) for address in records.addresses.tolist()]


class Raw(NamedTuple):
    """All events of a training, as numbers."""

    accounts: dict[str, int]
    entities: npt.NDArray[np.int64]
    addresses: npt.NDArray[Any]

    @classmethod
    def of(cls, records: Records) -> "Raw":
        encoded = records.entities.dictionary_encode()
        names = {name: code for code, name in enumerate(encoded.dictionary.to_pylist())}
        return cls(names, encoded.indices.to_numpy().astype(np.int64), records.addresses)


def number(text: str) -> int:
    return int(text.replace(",", ""))


NETWORK = r"[0-9a-f.:]+/[0-9]+"
CLAUSES = {
    "never": r"Training never saw this account",
    "first": rf"First log-in from (?P<place>{NETWORK})",
    "abroad": r"First log-in from (?P<country>[A-Z]{2})(?: \(AS(?P<provider>\d+)\))?",
    "elsewhere": r"First log-in from AS(?P<provider>\d+)",
    "same": r"(?P<n>[\d,]+) of (?P<total>[\d,]+) before came from the same provider, AS(?P<provider>\d+)",
    "each": r"its (?P<total>[\d,]+) before came from as many networks",
    "some": rf"(?P<n>[\d,]+) of (?:its )?(?P<total>[\d,]+) (?:log-ins )?before came from (?P<place>{NETWORK})",
    "all": rf"(?:all (?P<total>[\d,]+)|the only one) before came from (?P<listed>{NETWORK}(?:(?:, | and ){NETWORK})*)",
    "many": r"its (?P<total>[\d,]+) before came from (?P<networks>[\d,]+) networks, most often from "
    rf"(?P<place>{NETWORK}) \((?P<n>[\d,]+) times\)",
    "nobody": rf"no account has used (?P<place>{NETWORK})",
    "users": rf"(?:none has used (?P<none>{NETWORK}), and )?(?P<n>[\d,]+) of (?P<total>[\d,]+) accounts "
    rf"(?:has|have) used (?P<place>{NETWORK})",
}


def told(number: int, family: Family) -> IPv4Address | IPv6Address:
    """An address of a family. Of IPv6, only the first 64 bits are in the number; an IPv4 address is a 6to4 network."""
    if family is IPV4:
        return IPv4Address(number)
    return IPv4Address(number >> 16 & 0xFFFFFFFF) if number >> 48 == 0x2002 else IPv6Address(number << 64)


def check(alert: Alert, events: Raw, family: Family = IPV4, table: Networks | None = None) -> list[str]:
    """Count everything in a reason again. Returns which clauses it has."""
    own = events.addresses[events.entities == events.accounts.get(alert.entity, -1)]
    narrow = Counter(
        str(ipaddress.ip_network(f"{address}/{24 if address.version == 4 else 64}", strict=False))
        for address in (told(number, family) for number in own.tolist())
    )

    def inside(numbers: npt.NDArray[Any], network: str) -> npt.NDArray[np.bool_]:
        ends = ipaddress.ip_network(network)
        first, last = int(ends[0]), int(ends[-1])
        if family is IPV6:
            v4 = isinstance(ends, ipaddress.IPv4Network)
            first, last = (
                (0x2002 << 48 | first << 16, 0x2002 << 48 | last << 16 | 0xFFFF) if v4 else (first >> 64, last >> 64)
            )
        numbers = numbers.astype(np.uint64)
        return (numbers >= np.uint64(first)) & (numbers <= np.uint64(last))

    def labels(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        assert table is not None
        ranges = zip(table.first.tolist(), table.last.tolist(), table.labels.T.tolist(), strict=True)
        found = np.zeros((2, len(numbers)), dtype=np.uint32)
        for first, last, label in ranges:
            found[:, (numbers >= first) & (numbers <= last)] = np.array(label)[:, None]
        return found

    def users(network: str) -> int:
        return len(np.unique(events.entities[inside(events.addresses, network)]))

    kinds = []
    for clause in alert.reason.split("; "):
        kind, found = next(
            (kind, match) for kind, form in CLAUSES.items() if (match := re.fullmatch(form, clause, re.IGNORECASE))
        )
        facts = {name: text for name, text in found.groupdict().items() if text is not None}
        kinds.append(kind)
        if kind == "never":
            assert not len(own)
        if kind == "first":
            assert ipaddress.ip_address(alert.address) in ipaddress.ip_network(facts["place"])
            assert not inside(own, facts["place"]).any()
        if kind in ("abroad", "elsewhere", "same"):
            here = labels(np.array([int(ipaddress.ip_address(alert.address))]))[:, 0]
            assert facts.get("provider") == (str(here[0]) if here[0] else None)
            providers, countries = labels(own)
            if kind != "abroad":
                assert (providers == here[0]).sum() == number(facts.get("n", "0"))
            if kind == "abroad":
                assert int(here[1]).to_bytes(2).decode() == facts["country"]
                assert not (countries == here[1]).any()
        if kind in ("some", "all", "many", "same", "each"):
            assert number(facts.get("total", "1")) == len(own)
        if kind == "some":
            assert number(facts["n"]) == inside(own, facts["place"]).sum() > 0
        if kind == "all":
            assert set(re.findall(NETWORK, facts["listed"])) == set(narrow)
        if kind == "each":
            assert set(narrow.values()) == {1}
        if kind == "many":
            assert (number(facts["networks"]), number(facts["n"])) == (len(narrow), max(narrow.values()))
            assert narrow[facts["place"]] == number(facts["n"])
        if kind == "nobody":
            assert users(facts["place"]) == 0
        if kind == "users":
            assert number(facts["total"]) == len(events.accounts)
            assert number(facts["n"]) == users(facts["place"]) > 0
            assert "none" not in facts or users(facts["none"]) == 0
    return kinds


def test_every_number_of_a_thousand_reasons_can_be_counted_again(model: Model, traffic: Traffic) -> None:
    rows = pairs(traffic.normal) + pairs(traffic.attacks)
    strangers = [(f"stranger_{i % 40}", address) for i, (_, address) in enumerate(rows[::7])]
    alerts = find(model, [log_ins(rows), log_ins(strangers)], budget=1000)
    assert len(alerts) == 1000
    events = Raw.of(traffic.train)
    kinds = Counter(kind for alert in alerts for kind in check(alert, events))
    assert kinds.keys() >= {"never", "first", "some", "many", "users"}, kinds


def test_every_kind_of_reason_can_be_counted_again() -> None:
    """With providers and countries, regular accounts and ones that roam, and log-ins that were kept apart."""
    rng = np.random.default_rng(0)
    blocks = [int(ipaddress.ip_address(f"{net}.{block}.0.0")) for net in (10, 20) for block in range(0, 80, 2)]
    countries = [int.from_bytes(code) for code in (b"NL", b"FR", b"PE")] + [0]
    table = Networks(
        np.array(blocks, dtype=np.uint32),
        np.array([first + 0x1FFFF for first in blocks], dtype=np.uint32),
        np.array(
            [[64500 + i // 3 if i % 5 else 0, countries[i // 9 % 4]] for i in [*range(40)] * 2], dtype=np.uint32
        ).T,
    )

    def address(net: int = 10) -> str:
        return f"{net}.{rng.integers(90)}.{rng.integers(4)}.{rng.integers(256)}"

    homes = {f"user_{i}": [address() for _ in range(1 + i % 4)] for i in range(60)}
    rows = [(name, str(rng.choice(own))) for name, own in homes.items() for _ in range(int(rng.integers(1, 30)))]
    rows += [(f"roamer_{i % 12}", f"10.{i * 7 % 90}.{100 + i}.1") for i in range(120)]
    rows += [(f"visitor_{i}", address()) for i in range(30)]
    train = log_ins(rows)
    model = trained(train, None, networks=table, held_out_share=0.1, epochs=2)
    names = [*homes, *(f"roamer_{i}" for i in range(12)), *(f"visitor_{i}" for i in range(30)), "x", "y"]
    strange = [(name, address(net)) for name in names * 8 for net in (10, 20)]
    strange += [(name, f"11.{i % 250}.0.1") for i, name in enumerate(names)]
    alerts = find(model, [log_ins(strange)], budget=2000)
    assert len(alerts) > 1000
    kinds = Counter(kind for alert in alerts for kind in check(alert, Raw.of(train), table=table))
    assert kinds.keys() == CLAUSES.keys(), kinds


def test_every_number_of_reasons_about_ipv6_can_be_counted_again() -> None:
    """Also about IPv4 in a model of both versions."""
    rng = np.random.default_rng(1)

    def address() -> str:
        if rng.random() < 0.3:
            return f"10.{rng.integers(40)}.{rng.integers(4)}.{rng.integers(256)}"
        return f"2001:{rng.integers(8):x}:{rng.integers(9):x}:{rng.integers(3):x}::{rng.integers(99)}"

    homes = {f"user_{i}": [address() for _ in range(1 + i % 6)] for i in range(60)}
    train = log_ins([(name, str(rng.choice(homes[name]))) for name in homes for _ in range(20)], IPV6)
    model = trained(train, None, held_out_share=0.1, epochs=2)
    strange = log_ins([(name, address()) for name in [*homes, "x"] * 20] + [("x", "2a00::1"), ("x", "9.0.0.1")], IPV6)
    alerts = find(model, [strange], budget=2000)
    assert len(alerts) > 500
    kinds = Counter(kind for alert in alerts for kind in check(alert, Raw.of(train), IPV6))
    assert kinds.keys() >= {"never", "first", "some", "all", "many", "nobody", "users"}, kinds


def test_no_reason_overlooks_a_log_in_that_was_kept_apart_from_training(traffic: Traffic) -> None:
    model = trained(traffic.train, None, held_out_share=0.2)
    assert model.counted is not None
    apart = model.counted.apart
    assert apart.events > 400
    reverse = {int(model.index.find(pa.array([name]))[0]): name for name in set(traffic.train.entities.to_pylist())}
    kept = [
        (reverse[row], str(ipaddress.IPv4Address(address)))
        for row, address in zip(apart.entities.tolist(), apart.addresses.tolist(), strict=True)
    ]
    others = [(kept[i - 1][0], address) for i, (_, address) in enumerate(kept)]
    alerts = find(model, [log_ins([*kept, *others, *pairs(traffic.attacks)])], budget=10**6)
    events = Raw.of(traffic.train)
    for alert in alerts:
        check(alert, events)
    own = {(entity, place(address)) for entity, address in pairs(traffic.train)}
    assert all(alert.score < 0 for alert in alerts if (alert.entity, alert.network) in own)


def place(address: str) -> str:
    return str(ipaddress.ip_network(f"{address}/24", strict=False))


def test_each_account_and_network_stands_once_with_its_lowest_score(model: Model, traffic: Traffic) -> None:
    rows = pairs(traffic.attacks)[:200] * 2
    timed = [(*row, f"2026-01-0{1 + i % 5}T0{i % 10}:00:00Z") for i, row in enumerate(rows)]
    parts = [log_ins(timed[i : i + 70]) for i in range(0, len(timed), 70)]
    alerts = find(model, parts, budget=10**6)
    scores = dict(zip(rows, Scorer(model).score(log_ins(rows)).tolist(), strict=True))
    for alert in alerts:
        of_it = [(row, time) for *row, time in timed if (row[0], place(row[1])) == (alert.entity, alert.network)]
        assert alert.log_ins == len(of_it)
        assert alert.score == min(scores[tuple(row)] for row, _ in of_it)
        assert scores[alert.entity, alert.address] == alert.score
        assert f"{alert.first}Z" == min(time for _, time in of_it)
        assert f"{alert.last}Z" == max(time for _, time in of_it)
    assert len({(alert.entity, alert.network) for alert in alerts}) == len(alerts)
    assert (alerts.log_ins, alerts.accounts, alerts.days) == (400, len({entity for entity, _ in rows}), 5)


def order(alerts: Sequence[Alert]) -> list[tuple[float | None, float]]:
    return [(alert.percentile, alert.score) for alert in alerts]


def test_new_accounts_have_a_list_of_their_own(model: Model, traffic: Traffic) -> None:
    rows = [
        (f"new_{i % 99}" if i % 2 else entity, address) for i, (entity, address) in enumerate(pairs(traffic.attacks))
    ]
    alerts = find(model, [log_ins(rows)], budget=100)
    assert len(alerts) == 100
    assert alerts.known
    assert alerts.new
    assert all(not alert.entity.startswith("new_") and alert.known for alert in alerts.known)
    assert all(alert.entity.startswith("new_") and alert.known is False for alert in alerts.new)
    assert order(alerts.known) == sorted(order(alerts.known))
    assert order(alerts.new) == sorted(order(alerts.new))
    assert alerts.new_accounts == 99
    assert len(alerts.new) == 50  # half of the budget


def test_a_few_new_accounts_get_their_share(model: Model, traffic: Traffic) -> None:
    rows = [
        *pairs(traffic.attacks)[:400],
        *((f"new_{i}", address) for i, (_, address) in enumerate(pairs(traffic.attacks)[:20])),
    ]
    groups = len({(entity, place(address)) for entity, address in rows})
    alerts = find(model, [log_ins(rows)], budget=40)
    assert len(alerts) == 40
    assert len(alerts.new) == -(-40 * 20 // groups)
    assert len(find(model, [log_ins(rows[-20:])], budget=6).new) == 6


def test_a_budget_is_for_a_day(model: Model, traffic: Traffic) -> None:
    timed = [(*row, f"2026-01-0{1 + i % 3}") for i, row in enumerate(pairs(traffic.attacks))]
    assert len(find(model, [log_ins(timed)], budget=7)) == 21
    assert len(find(model, [traffic.attacks], budget=7)) == 7
    first = find(model, [log_ins(timed)], budget=7)
    assert [alert.entity for alert in find(model, [log_ins(timed[:1000]), log_ins(timed[1000:])], budget=7)] == [
        alert.entity for alert in first
    ]


def test_what_was_looked_at_makes_room_for_others(model: Model, traffic: Traffic) -> None:
    monday = find(model, [traffic.attacks], budget=10)
    seen = {(alert.entity, alert.network) for alert in monday}
    tuesday = find(model, [traffic.attacks], budget=10, seen=seen)
    assert len(tuesday) == 10
    assert not seen & {(alert.entity, alert.network) for alert in tuesday}
    assert tuesday.seen_before == 10


def test_a_network_of_the_accounts_own_is_no_alarm_unless_it_scores_below_0(model: Model, traffic: Traffic) -> None:
    alerts = find(model, [traffic.train], budget=10**6)
    own = {(entity, place(address)) for entity, address in pairs(traffic.train)}
    assert own >= {(alert.entity, alert.network) for alert in alerts}
    scores = Scorer(model).score(traffic.train).tolist()
    low = {
        (entity, place(address))
        for (entity, address), score in zip(pairs(traffic.train), scores, strict=True)
        if score < 0
    }
    assert {(alert.entity, alert.network) for alert in alerts} == low


def test_a_rate_of_false_alarms_is_kept(model: Model, traffic: Traffic) -> None:
    assert model.calibration is not None
    alerts = find(model, [traffic.normal, traffic.attacks], max_false_alarms=0.05)
    assert all(alert.percentile is not None and alert.percentile <= 0.05 for alert in alerts)
    listed = {(alert.entity, alert.network) for alert in alerts}
    for records, low, high in ((traffic.normal, 0.0, 0.05), (traffic.attacks, 0.9, 1.0)):
        share = np.mean([(entity, place(address)) in listed for entity, address in pairs(records)])
        assert low <= share <= high
    with pytest.raises(UserError, match=r"calibrated by 2,000 log-ins, too few for a rate of false alarms of 1e-06"):
        find(model, [traffic.normal], max_false_alarms=1e-6)


def test_without_calibration_the_scores_rank(traffic: Traffic) -> None:
    model = trained(traffic.train, None, held_out_share=0)
    assert model.calibration is None
    alerts = find(model, [traffic.attacks], budget=10)
    assert [alert.percentile for alert in alerts] == [None] * 10
    assert [alert.score for alert in alerts] == sorted(alert.score for alert in alerts)
    with pytest.raises(UserError, match="the model is not calibrated, so it cannot keep to a rate"):
        find(model, [traffic.attacks], max_false_alarms=0.01)


@pytest.mark.parametrize("history", [0, 16, 24])
def test_what_the_model_does_not_keep_is_not_told(traffic: Traffic, history: int) -> None:
    model = trained(traffic.train, traffic.normal, history=history, epochs=1)
    reasons = [alert.reason for alert in find(model, [traffic.attacks], budget=20)]
    if not history:
        assert set(reasons) == {"The model keeps no history of addresses"}
    events = Raw.of(traffic.train)
    for alert in find(model, [traffic.attacks], budget=20) if history else ():
        assert history > 16 or "/24" not in alert.reason
        check(alert, events)


def test_shared_rows_leave_open_who_is_known(traffic: Traffic) -> None:
    model = trained(traffic.train, traffic.normal, num_entity_vectors=50, epochs=1)
    alerts = find(model, [traffic.attacks], budget=20)
    assert not alerts.new
    assert {alert.known for alert in alerts.known} == {None}


def test_provider_and_country_are_named() -> None:
    home, abroad, far = (int(ipaddress.ip_address(text)) for text in ("192.0.2.0", "198.51.100.0", "203.0.113.0"))
    table = Networks(
        np.array([home, abroad, far], dtype=np.uint32),
        np.array([home + 255, abroad + 255, far + 255], dtype=np.uint32),
        np.array([[64500, 64501, 64500], [int.from_bytes(c) for c in (b"NL", b"FR", b"NL")]], dtype=np.uint32),
    )
    rows = [(f"user_{i % 40}", f"192.0.2.{i % 40}") for i in range(2000)]
    rows += [(f"roamer_{i % 9}", f"198.51.100.{i % 99}") for i in range(300)]
    rows += [(f"roamer_{i % 9}", "203.0.113.9") for i in range(90)]
    model = trained(log_ins(rows), None, networks=table, held_out_share=0)
    (alert,) = find(model, [log_ins([("user_7", "198.51.100.200")])], budget=1)
    assert alert.reason == (
        "First log-in from FR (AS64501); all 50 before came from 192.0.2.0/24; 9 of 49 accounts have used "
        "198.51.100.0/24"
    )
    (alert,) = find(model, [log_ins([("user_7", "203.0.113.200")])], budget=1)
    assert alert.reason == (
        "First log-in from 203.0.0.0/8; 50 of 50 before came from the same provider, AS64500; 9 of 49 accounts have "
        "used 203.0.113.0/24"
    )


def test_ipv6_is_listed_by_64_bits_and_ipv4_beside_it_by_24() -> None:
    rows = [(f"user_{i % 30}", f"2001:db8:{i % 30}::{i}") for i in range(900)]
    rows += [(f"user_{i % 30}", f"10.{i % 30}.0.{i % 200}") for i in range(900)]
    model = trained(log_ins(rows, IPV6), None, held_out_share=0)
    strange = [("user_1", "2001:db8:f:1::1"), ("user_1", "2001:db8:f:1::2"), ("user_1", "10.99.0.1"), ("x", "10.5.0.1")]
    alerts = find(model, [log_ins(strange, IPV6)], budget=9)
    assert {(a.entity, a.network, a.log_ins) for a in alerts} == {
        ("user_1", "2001:db8:f:1::/64", 2),
        ("user_1", "10.99.0.0/24", 1),
        ("x", "10.5.0.0/24", 1),
    }
    assert {(a.network, a.address) for a in alerts} >= {
        ("2001:db8:f:1::/64", "2001:db8:f:1::"),
        ("10.99.0.0/24", "10.99.0.1"),
    }
    reasons = {alert.network: alert.reason for alert in alerts}
    assert reasons["10.99.0.0/24"] == (
        "First log-in from 10.99.0.0/16; 30 of 60 before came from 10.0.0.0/8; none has used 10.99.0.0/24, and 30 of "
        "30 accounts have used 10.0.0.0/8"
    )
    assert reasons["10.5.0.0/24"] == "Training never saw this account; 1 of 30 accounts has used 10.5.0.0/24"


def test_of_no_log_ins_there_are_no_alerts(model: Model) -> None:
    assert find(model, [], budget=5) == Alerts((), (), 0, 0, 0, 1, 0)
