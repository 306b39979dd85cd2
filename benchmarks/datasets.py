"""The real data: where it lies, and how it is split."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(os.environ.get("IPINSIGHTS_DATA") or Path(__file__).parents[2] / "shared" / "data")
"""Named by ``IPINSIGHTS_DATA``; need not exist."""

RANGES = FOLDER / "ip2asn-2015-u32.tsv.gz"
"""Address ranges with their ASN, to simulate with."""

TOR = FOLDER / "tor_relay_ip_events_a.csv.gz"
"""Tor relays (entities) seen at new addresses, from the public relay list."""

_TOR_VALIDATION = int(pd.Timestamp("2026-01-02", tz="UTC").timestamp())
_TOR_TEST = 1772500673
_TOR_PER_RELAY = 20


@dataclass(frozen=True)
class TorSplit:
    """Events by time: columns fingerprint and ip."""

    train: pd.DataFrame
    test: pd.DataFrame
    """Addresses never used before, of relays that training saw, at most 20 a relay."""


def tor(test: bool = True) -> TorSplit:
    """The test split, or the validation split with what precedes it."""
    events = pd.read_csv(TOR)
    begin, end = (_TOR_TEST, np.inf) if test else (_TOR_VALIDATION, _TOR_TEST)
    train = events[events.timestamp < begin]
    later = events[(events.timestamp >= begin) & (events.timestamp < end)]
    changes = later[(later.kind == "change") & later.fingerprint.isin(train.fingerprint)]
    return TorSplit(train, changes.groupby("fingerprint").head(_TOR_PER_RELAY))
