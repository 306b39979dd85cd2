"""Which log-ins to look at, worst first.

Log-ins of one account from one network are one *alert*: whoever looks into it looks into all of them. Its score is the
lowest among them. Accounts that the model knows and accounts that it never saw are two lists. Nothing is known of the
habits of the latter, so they are ranked by how unusual the place is for anybody, which is what their score says.

A list is ranked by the percentile (`model.calibration`), of which either kind has its own scale; without calibration,
by the score. The two share a budget as they share the pairs of an account and a network, so the same share of either is
looked at. But new accounts get half of it at most: most of them are just new.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.alerts.evidence import Evidence
from ipinsights.alerts.places import finest, name, narrowest, places, told
from ipinsights.data.addresses import Addresses
from ipinsights.data.records import Records
from ipinsights.data.times import Times, none
from ipinsights.errors import UserError
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer

BUDGET = 20
"""Alerts a day, unless somebody says how many."""
ORDINARY = 0.1
"""A log-in with a greater percentile needs no look, unless it scores below 0."""

Pair = tuple[str, str]
"""An account and the name of a network."""


@dataclass(frozen=True)
class Alert:
    """Log-ins of one account from one network."""

    entity: str
    network: str
    """Such as "192.0.2.0/24"; of IPv6 a /64."""
    address: str
    """The address with the lowest score; the first such one. Of IPv6, its first 64 bits."""
    log_ins: int
    first: np.datetime64
    """The time of the first and of the last of them; NaT where the input has no times."""
    last: np.datetime64
    score: float
    """The lowest score."""
    percentile: float | None
    """The share of ordinary log-ins that score no higher, in (0, 1]; None if the model is not calibrated."""
    known: bool | None
    """Whether training saw the account; None where accounts share rows, which leaves it open."""
    evidence: Evidence

    @property
    def reason(self) -> str:
        """Why it is on the list, in one sentence."""
        return self.evidence.sentence()


@dataclass(frozen=True)
class Alerts:
    """The two lists, and what they were chosen from."""

    known: tuple[Alert, ...]
    """Of accounts that training saw (or of all, where that is open), worst first."""
    new: tuple[Alert, ...]
    """Of accounts that training never saw, worst first."""
    log_ins: int
    accounts: int
    new_accounts: int
    days: int
    """Distinct days of UTC with log-ins; 1 where the input has no times."""
    seen_before: int
    """Alerts that were left out because they had been looked at."""

    def __len__(self) -> int:
        return len(self.known) + len(self.new)

    def __iter__(self) -> Iterator[Alert]:
        yield from self.known
        yield from self.new


def find(
    model: Model,
    log_ins: Iterable[Records],
    *,
    budget: int | None = None,
    max_false_alarms: float | None = None,
    seen: Collection[Pair] = (),
) -> Alerts:
    """The alerts among some log-ins, given in parts.

    There are at most ``budget`` a day on average, in both lists together, or those whose percentile is no more than
    ``max_false_alarms`` (none of new accounts, if the calibration cannot tell). Pairs of an account and a network in
    ``seen`` are left out. Of log-ins that score 0 or more, so are those from a network that the account has used, and
    those whose percentile is above `ORDINARY`: they need no look, however large the budget is.

    Raises UserError if the model's calibration does not support the rate of false alarms.
    """
    _require(model, max_false_alarms)
    groups = _Groups.gather(Scorer(model), log_ins)
    rows = model.index.find_hashed(groups.digests)
    sharing = model.index.sharing > 0
    known = np.ones(len(rows), dtype=np.bool_) if sharing else rows < model.index.num_rows
    calibration = model.calibration
    percentiles = calibration.percentile(groups.scores, known) if calibration else None
    order = np.lexsort((groups.firsts, groups.scores))  # as by percentiles within a list, but finer
    left_out = 0

    def worst(chosen: npt.NDArray[np.bool_]) -> Iterator[Alert]:
        nonlocal left_out
        for i in order[chosen[order]].tolist():
            if max_false_alarms is not None and percentiles is not None and percentiles[i] > max_false_alarms:
                return
            row, network = int(rows[i]), int(groups.networks[i])
            entity, place = groups.names[i].as_py(), name(network, model.family)
            if (entity, place) in seen:
                left_out += 1
            elif groups.scores[i] < 0 or not (
                (percentiles is not None and percentiles[i] > ORDINARY) or _uses(model, row, network)
            ):
                yield Alert(
                    entity=entity,
                    network=place,
                    address=told(int(groups.addresses[i]), model.family),
                    log_ins=int(groups.counts[i]),
                    first=groups.firsts[i],
                    last=groups.lasts[i],
                    score=float(groups.scores[i]),
                    percentile=None if percentiles is None else float(percentiles[i]),
                    known=None if sharing else bool(known[i]),
                    evidence=Evidence.of(model, row, int(groups.addresses[i])),
                )

    room = len(known) if budget is None else budget * max(1, len(groups.days))
    share = -(-room * int(np.count_nonzero(~known)) // max(1, len(known)))
    may_tell = max_false_alarms is None or calibration is None or calibration.new.supports(max_false_alarms)
    strangers = worst(~known & may_tell)
    new = list(islice(strangers, min(share, -(-room // 2))))
    old = list(islice(worst(known), room - len(new)))
    new += islice(strangers, room - len(new) - len(old))
    accounts, at = np.unique(groups.digests, return_index=True)
    return Alerts(
        known=tuple(old),
        new=tuple(new),
        log_ins=int(groups.counts.sum()),
        accounts=len(accounts),
        new_accounts=int(np.count_nonzero(~known[at])),
        days=max(1, len(groups.days)),
        seen_before=left_out,
    )


def _require(model: Model, rate: float | None) -> None:
    """Raise UserError if the model cannot tell which log-ins are as unusual as a rate of false alarms says."""
    if rate is None:
        return
    if model.calibration is None:
        raise UserError(
            "the model is not calibrated, so it cannot keep to a rate of false alarms: give a budget, or train with "
            "validation log-ins"
        )
    known = model.calibration.known
    if not known.supports(rate):
        raise UserError(
            f"the model was calibrated by {len(known):,} log-ins, too few for a rate of false alarms of {rate:g}: give "
            "a budget, or train with more validation log-ins"
        )


@dataclass(frozen=True)
class _Groups:
    """G pairs of an account and a network, ascending by the account's digest, then by the network."""

    digests: npt.NDArray[np.uint64]
    networks: Addresses
    """The first address of each network."""
    names: pa.StringArray
    addresses: Addresses
    """The address with the lowest score."""
    scores: npt.NDArray[np.float32]
    """The lowest score."""
    counts: npt.NDArray[np.int64]
    """Log-ins."""
    firsts: Times
    lasts: Times
    days: npt.NDArray[np.datetime64]
    """The days on which any of them was, datetime64[D]."""

    @classmethod
    def gather(cls, scorer: Scorer, log_ins: Iterable[Records]) -> "_Groups":
        """Of all log-ins. Memory is needed for the pairs, not for the log-ins."""
        nothing = Records(pa.array([], pa.string()), np.zeros(0, dtype=scorer.family.dtype))
        gathered = cls._of(scorer, nothing)
        waiting: list[_Groups] = []
        for part in log_ins:
            waiting.append(cls._of(scorer, part))
            if sum(map(len, waiting)) > len(gathered):
                gathered, waiting = cls._merged([gathered, *waiting]), []
        return cls._merged([gathered, *waiting])

    @classmethod
    def _of(cls, scorer: Scorer, part: Records) -> "_Groups":
        times = none(len(part)) if part.times is None else part.times
        digests, addresses = part.hashed()
        days = np.unique(times[~np.isnat(times)].astype("datetime64[D]"))
        ones = np.ones(len(part), dtype=np.int64)
        networks = narrowest(addresses, scorer.family)
        scores = scorer.score_hashed(digests, addresses)
        return cls._merged([cls(digests, networks, part.entities, addresses, scores, ones, times, times, days)])

    @classmethod
    def _merged(cls, parts: Sequence["_Groups"]) -> "_Groups":
        """The groups of all parts, each once."""
        digests, networks, addresses, scores, counts, firsts, lasts, days = (
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("digests", "networks", "addresses", "scores", "counts", "firsts", "lasts", "days")
        )
        order = np.lexsort((scores, networks, digests))  # it is stable: of equal scores the first comes first
        digests, networks = digests[order], networks[order]
        begins = np.ones(len(order), dtype=np.bool_)
        begins[1:] = (digests[1:] != digests[:-1]) | (networks[1:] != networks[:-1])
        at = np.flatnonzero(begins)
        lowest = order[at]
        return cls(
            digests[at],
            networks[at],
            pa.concat_arrays([part.names for part in parts]).take(pa.array(lowest)),
            addresses[lowest],
            scores[lowest],
            np.add.reduceat(counts[order], at) if len(at) else counts,
            np.fmin.reduceat(firsts[order], at) if len(at) else firsts,
            np.fmax.reduceat(lasts[order], at) if len(at) else lasts,
            np.unique(days),
        )

    def __len__(self) -> int:
        return len(self.digests)


def _uses(model: Model, row: int, network: int) -> bool:
    """Whether the model keeps a log-in of an entity in a network, given by its first address."""
    counted = model.counted
    if counted is None or counted.history.length < finest(model.family):
        return False
    own, _ = counted.own(row)
    longest = places(network, model.family)[0]
    begin, end = (own.dtype.type(bound) for bound in (longest.first, longest.last))
    return bool(np.searchsorted(own, begin) < np.searchsorted(own, end, side="right"))
