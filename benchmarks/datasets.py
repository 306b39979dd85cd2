"""The data: where it lies, and how it is split."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.evaluation import simulation

FOLDER = Path(os.environ.get("IPINSIGHTS_DATA") or Path(__file__).parents[2] / "shared" / "data")
"""Named by ``IPINSIGHTS_DATA``; need not exist."""

RANGES = FOLDER / "ip2asn-2015-u32.tsv.gz"
"""IPv4 address ranges with their provider and country, to simulate with and to look networks up in."""

TOR = FOLDER / "tor_relay_ip_events_a.csv.gz"
"""Tor relays (entities) seen at new IPv4 addresses, from the public relay list."""

TOR_IPV6 = FOLDER / "tor_relay_ipv6_events_a.csv.gz"
"""The same for IPv6."""

TOR_FILES = {IPV4.version: TOR, IPV6.version: TOR_IPV6}

TOR_HYPERPARAMETERS: dict[str, Any] = {
    "vector_dim": 64,
    "epochs": 10,
    "random_negative_sampling_rate": 1,
    "shuffled_negative_sampling_rate": 2,
    "learning_rate": 0.01,
    "mini_batch_size": 1000,
}
"""Chosen on the validation split."""
TUTORIAL_HYPERPARAMETERS: dict[str, Any] = {
    "vector_dim": 128,
    "epochs": 5,
    "random_negative_sampling_rate": 5,
    "learning_rate": 0.01,
    "mini_batch_size": 1000,
}
"""The AWS tutorial's; what they leave out has its default."""

Split = Literal["far", "validation", "test"]
"""*validation* is the 60 days before *test*, *far* the half year before those. What was chosen on the one can be
checked on the other: in half a year more of the world is new."""


def _unix(day: str) -> float:
    return pd.Timestamp(day, tz="UTC").timestamp()


_TOR_TEST = 1772500673
_TOR_PERIODS: dict[Split, tuple[float, float]] = {
    "far": (_unix("2025-07-15"), _unix("2026-01-02")),
    "validation": (_unix("2026-01-02"), _TOR_TEST),
    "test": (_TOR_TEST, np.inf),
}
_TOR_PER_RELAY = 20


@dataclass(frozen=True)
class TorSplit:
    """Events by time: columns fingerprint and ip."""

    train: pd.DataFrame
    """All that came before the split's period."""
    test: pd.DataFrame
    """Addresses never used before, of relays that training saw, at most 20 a relay."""


def tor(split: Split = "test", family: Family = IPV4) -> TorSplit:
    """A split of the relays' events of one IP version."""
    events = pd.read_csv(TOR_FILES[family.version])
    begin, end = _TOR_PERIODS[split]
    train = events[events.timestamp < begin]
    later = events[(events.timestamp >= begin) & (events.timestamp < end)]
    changes = later[(later.kind == "change") & later.fingerprint.isin(train.fingerprint)]
    return TorSplit(train, changes.groupby("fingerprint").head(_TOR_PER_RELAY))


def tor_days(split: Split, family: Family = IPV4) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """All events before a split's period, and those of each day of it: columns fingerprint and ip."""
    events = pd.read_csv(TOR_FILES[family.version])
    begin, end = _TOR_PERIODS[split]
    later = events[(events.timestamp >= begin) & (events.timestamp < end)]
    return events[events.timestamp < begin], [day for _, day in later.groupby((later.timestamp - begin) // 86400)]


@dataclass(frozen=True)
class TutorialSplit:
    """The traffic of the AWS tutorial, simulated on a table of address ranges."""

    train: simulation.Traffic
    """The first seven days."""
    case: simulation.TestCase
    """100,000 later log-ins and as many attacks, and other later log-ins."""


def tutorial(users: int = 10_000, synthetic: bool = False) -> TutorialSplit:
    """What ``ipinsights simulate --ranges RANGES`` writes; with ``synthetic``, on a table that needs no file."""
    rng = np.random.default_rng(0)
    ranges = simulation.Ranges.synthetic(rng) if synthetic else simulation.Ranges.read(RANGES)
    return TutorialSplit(*simulation.split(simulation.simulate(users, ranges, rng), ranges, 100_000, rng))
