"""What the model's history has about an account and an address, and the sentence that says it.

The sentence tells where the account came from before, and who else has come from here. Its numbers are events and
entities of the training data, those included that were kept apart to calibrate by, so anybody can count them again.
(Log-ins of a validation channel are no training data: a model does not keep them.) Where the model keeps no history, or
too few bits of an address (the hyperparameter ``history``), that part of the sentence is left out: nothing is guessed.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ipinsights.alerts.places import Place, finest, name, narrowest, places
from ipinsights.data.addresses import Addresses
from ipinsights.model.explanation import country_name
from ipinsights.model.model import Model

NAMED = 3
"""So many networks of an account are named, if it has no more."""


class Own(NamedTuple):
    """How many events of an account are where the address is, or like it."""

    events: int
    """All its events."""
    inside: tuple[int | None, ...]
    """Of these, those in each of the places; None where too few bits of an address are kept."""
    networks: tuple[tuple[str, int], ...]
    """The account's networks and its events in each, the busiest first; none where too few bits are kept."""
    provider: int | None
    """Events from addresses of the same provider; None where the address's is not known."""
    country: int | None
    """Likewise."""


@dataclass(frozen=True)
class Evidence:
    """What the history has about one account and one address."""

    places: tuple[Place, ...]
    """The networks around the address, the longest first."""
    known: bool | None
    """Whether training saw the account. None where entities share rows, which leaves it open."""
    accounts: int | None
    """All accounts with a history; None if the model has none."""
    users: tuple[int | None, ...]
    """Of these, those with events in each of the places; None where too few bits of an address are kept."""
    provider: int | None
    """The number of the autonomous system of the address; None without a table, or if training did not meet it."""
    country: str | None
    """Its two letters; None likewise."""
    own: Own | None
    """The account's own; None if the model has no history of it."""

    @classmethod
    def of(cls, model: Model, row: int, address: int) -> "Evidence":
        """For an entity's row, in [0, E], and an address of the model's family."""
        family, counted = model.family, model.counted
        around = places(address, family)
        kept = counted if counted and len(counted.history) else None
        bits = kept.history.length if kept else 0
        table = model.vocabulary.networks
        provider = country = 0
        if table is not None:
            provider, country = table.labels_of(np.array([address], dtype=family.dtype))[:, 0].tolist()
        own = None
        addresses, counts = kept.own(row) if kept else (np.zeros(0, dtype=family.dtype), np.zeros(0, dtype=np.int64))
        if len(addresses):
            same: list[int | None] = [None, None]
            if table is not None and bits == family.width:
                labels = table.labels_of(addresses)
                for kind, label in enumerate((provider, country)):
                    same[kind] = int(counts[labels[kind] == label].sum()) if label else None
            inside = tuple(int(counts[_in(addresses, near)].sum()) if bits >= near.bits else None for near in around)
            networks = _networks(model, addresses, counts) if bits >= finest(family) else ()
            own = Own(int(counts.sum()), inside, networks, *same)
        sharing = model.index.sharing > 0
        return cls(
            places=around,
            known=None if sharing else row < model.index.num_rows,
            accounts=len(kept.history.rows) if kept else None,
            users=tuple(
                kept.users(place.first, place.last) if kept and bits >= place.bits else None for place in around
            ),
            provider=provider or None,
            country=country_name(country) if country else None,
            own=own,
        )

    def sentence(self) -> str:
        """Where the account came from before, and who else has come from here."""
        parts = [*self._own(), *self._others()]
        text = "; ".join(parts) or "the model keeps no history of addresses"
        return text[0].upper() + text[1:]

    def _own(self) -> list[str]:
        if self.known is False:
            return ["training never saw this account"]
        if self.own is None:
            return []
        own, parts = self.own, []
        near = [(place, n) for place, n in zip(self.places, own.inside, strict=True) if n is not None]
        used = next(((place, n) for place, n in near if n), None)
        unused = [place for place, n in near if not n]
        if used and not unused:
            parts.append(f"{used[1]:,} of its {own.events:,} log-ins before came from {used[0].name}")
            return parts
        where = f"first log-in from {unused[-1].name}" if unused else ""
        if own.country == 0:
            where = f"first log-in from {self.country}" + (f" (AS{self.provider})" if self.provider else "")
        elif own.provider == 0:
            where = f"first log-in from AS{self.provider}"
        if where:
            parts.append(where)
        if used:
            parts.append(f"{used[1]:,} of {own.events:,} before came from {used[0].name}")
        elif own.provider:
            parts.append(f"{own.provider:,} of {own.events:,} before came from the same provider, AS{self.provider}")
        elif own.networks:
            parts.append(_before(own))
        return parts

    def _others(self) -> list[str]:
        counted = [(place, n) for place, n in zip(self.places, self.users, strict=True) if n is not None]
        if self.accounts is None or not counted:
            return []
        met = next(((place, n) for place, n in counted if n), None)
        if met is None:
            return [f"no account has used {counted[-1][0].name}"]
        place, n = met
        told = f"{n:,} of {self.accounts:,} accounts {'has' if n == 1 else 'have'} used {place.name}"
        return [told if place == counted[0][0] else f"none has used {counted[0][0].name}, and {told}"]


def _before(own: Own) -> str:
    """Where all events of an account are."""
    names = [name for name, _ in own.networks]
    if len(names) > NAMED:
        busiest, events = own.networks[0]
        if events == 1:
            return f"its {own.events:,} before came from as many networks"
        return (
            f"its {own.events:,} before came from {len(names):,} networks, most often from {busiest} ({events:,} times)"
        )
    listed = " and ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])
    return f"{f'all {own.events:,}' if own.events > 1 else 'the only one'} before came from {listed}"


def _networks(model: Model, addresses: Addresses, counts: npt.NDArray[np.int64]) -> tuple[tuple[str, int], ...]:
    """The narrow networks of some addresses and the sum of counts in each, the largest first."""
    firsts, at = np.unique(narrowest(addresses, model.family), return_inverse=True)
    totals = np.bincount(at, counts).astype(np.int64)
    order = np.lexsort((firsts, -totals))
    return tuple((name(int(firsts[i]), model.family), int(totals[i])) for i in order)


def _in(addresses: Addresses, place: Place) -> npt.NDArray[np.bool_]:
    first, last = (addresses.dtype.type(end) for end in (place.first, place.last))
    inside: npt.NDArray[np.bool_] = (first <= addresses) & (addresses <= last)
    return inside
