"""How unusual a score is: the share of ordinary log-ins that score no higher.

A score says how much likelier a pair is than a fabricated one, not how often ordinary log-ins score so low. That is
found by log-ins that the model did not learn from. If c of n of them score no higher, the *percentile* is
(c + 1) / (n + 1). This is a conformal p-value: whatever the scores are like, of log-ins like those no more than a share
a has a percentile of a or less (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).

There are two kinds of log-ins. Those of *known* entities were kept apart from training. For those of *new* entities,
one log-in of each known entity is scored as if the entity had never been seen. This needs no second training: the score
of a stranger comes from counts alone, and its own can be taken out of them (`Counts.prior_without`).

The scores are kept as counts in narrow bins, so sketches of several machines add up, and a percentile is a look-up. A
bin counts whole, which can only make a percentile larger.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import Addresses, mapped_share, random_addresses
from ipinsights.distributed.group import ALONE, Group
from ipinsights.model.counting import Counts

RATES = (0.1, 0.01, 0.001, 0.0001)
"""The shares of false alarms for which thresholds are told."""
SUPPORT = 5
"""So many log-ins must be expected below a threshold. Then the true rate is, with 95 %, between .4 and 2.3 times it."""
BINS, _LOWEST, _PER_UNIT = 2048, -32, 32
"""Bins of 1 / 32 from -32 on; what lies beyond is in the first and in the last."""
_MOST = 1 << 17
"""Log-ins of each kind, at most."""
_NORMAL = 1.96
"""The quantile of the normal distribution for an interval of 95 %."""


@dataclass(frozen=True)
class Threshold:
    """Where to draw the line for a rate of false alarms."""

    rate: float
    """The share of ordinary log-ins that may be below it."""
    score: float | None
    """Log-ins that score less have a percentile of at most the rate. None: there are too few log-ins to tell."""
    interval: tuple[float, float]
    """The true share of ordinary log-ins below the score, with 95 % (Wilson's score interval)."""


@dataclass(frozen=True)
class Sketch:
    """The distribution of some scores."""

    counts: npt.NDArray[np.uint32]
    """Scores in each bin, [BINS]."""

    @classmethod
    def of(cls, scores: npt.NDArray[np.floating]) -> "Sketch":
        """Of scores, [n]."""
        return cls(np.bincount(bins(scores), minlength=BINS).astype(np.uint32))

    def __len__(self) -> int:
        return int(self.counts.sum(dtype=np.int64))

    def plus(self, other: "Sketch") -> "Sketch":
        """That of both together."""
        return Sketch(self.counts + other.counts)

    def of_all(self, group: Group) -> "Sketch":
        """That of all ranks together."""
        return Sketch(group.sum(self.counts.astype(np.int64)).astype(np.uint32))

    @property
    def percentiles(self) -> npt.NDArray[np.float64]:
        """The percentile of a score in each bin, in (0, 1], never falling: [BINS].

        It has seven digits, which tell those of `_MOST` log-ins apart.
        """
        percentiles = (1 + np.cumsum(self.counts, dtype=np.int64)) / (1 + len(self))
        scale = 10.0 ** (6 - np.floor(np.log10(percentiles)))
        rounded: npt.NDArray[np.float64] = np.rint(percentiles * scale) / scale
        return rounded

    def below(self, score: float) -> float:
        """The share of the scores below the lower end of a score's bin."""
        return float(self.counts[: bins(np.array([score]))[0]].sum(dtype=np.int64)) / max(1, len(self))

    def supports(self, rate: float) -> bool:
        """Whether there are enough log-ins to tell the threshold for a rate."""
        return rate * (1 + len(self)) >= SUPPORT

    def threshold(self, rate: float) -> Threshold:
        """The threshold for a rate of false alarms."""
        if not self.supports(rate):
            return Threshold(rate, None, (0.0, 1.0))
        below = int(np.searchsorted(self.percentiles, rate, side="right"))  # so many bins
        interval = _wilson(int(self.counts[:below].sum(dtype=np.int64)), len(self))
        return Threshold(rate, _LOWEST + below / _PER_UNIT, interval)


@dataclass(frozen=True)
class Calibration:
    """What scores ordinary log-ins get, and fabricated pairs."""

    known: Sketch
    """Of log-ins of known entities that training did not use."""
    new: Sketch
    """Of a log-in of each known entity, scored as if the entity had never been seen."""
    fabricated: Sketch
    """Of known entities with random addresses, and with addresses of others."""

    @classmethod
    def of(
        cls,
        score: Callable[[npt.NDArray[np.int32], Addresses], npt.NDArray[np.float32]],
        counts: Counts,
        rows: npt.NDArray[np.int32],
        addresses: Addresses,
        seed: int,
        group: Group = ALONE,
    ) -> "Calibration":
        """Calibrate the ``score`` of a model by log-ins that took no part in its training, nor in its ``counts``.

        ``rows`` and ``addresses``, [n], are of entities that training knows. In a ``group`` each rank has those of its
        entities, and all get the calibration by all of them.
        """
        rng = np.random.default_rng((seed, 0xCA11B) if group.size == 1 else (seed, 0xCA11B, group.rank))
        most = _MOST if group.size == 1 else _MOST * len(rows) // max(1, group.total(len(rows)))
        if len(rows) > most:
            some = np.sort(rng.choice(len(rows), most, replace=False))
            rows, addresses = rows[some], addresses[some]
        random = random_addresses(len(rows), counts.vocabulary.family, mapped_share(addresses, group), rng)
        others = addresses[rng.permutation(len(rows))]
        fabricated = (Sketch.of(score(rows, made_up)) for made_up in (random, others))
        return cls(
            known=Sketch.of(score(rows, addresses)).of_all(group),
            new=Sketch.of(_strangers(counts, rng, group)).of_all(group),
            fabricated=next(fabricated).plus(next(fabricated)).of_all(group),
        )

    @property
    def described(self) -> dict[str, Any]:
        """The thresholds, for the manifest."""
        return {
            name: {"log_ins": len(sketch), "thresholds": [self._row(sketch, rate) for rate in RATES]}
            for name, sketch in (("known", self.known), ("new", self.new))
        }

    def _row(self, sketch: Sketch, rate: float) -> dict[str, Any]:
        found = sketch.threshold(rate)
        row: dict[str, Any] = {"rate": rate, "score": found.score}
        if found.score is None:
            return row | {"log_ins_needed": math.ceil(SUPPORT / rate) - 1}
        row["true_rate_95"] = [round(share, 7) for share in found.interval]
        if sketch is self.known:
            row["fabricated_below"] = round(self.fabricated.below(found.score), 4)
        return row

    def percentile(self, scores: npt.NDArray[np.float32], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The percentile of each score among those of known or of new entities, in (0, 1]: [n]."""
        table = np.stack([self.new.percentiles, self.known.percentiles])
        percentiles: npt.NDArray[np.float64] = table[known.astype(np.intp), bins(scores)]
        return percentiles


def bins(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """The bin of each score in a `Sketch`, int32 [n]."""
    first = _LOWEST * _PER_UNIT
    place = np.floor(scores * _PER_UNIT)  # the product is exact in single precision: _PER_UNIT is a power of 2
    found: npt.NDArray[np.int32] = np.clip(place, first, first + BINS - 1).astype(np.int32) - first
    return found


def _strangers(counts: Counts, rng: np.random.Generator, group: Group) -> npt.NDArray[np.float64]:
    """The score of one event of each entity of this rank, as if its entity had never been seen: [M]."""
    history, scores = counts.history, []
    most = _MOST if group.size == 1 else _MOST * len(history.rows) // max(1, group.total(len(history.rows)))
    if len(history.rows) > most:
        history = history.of_entities(np.sort(rng.choice(history.rows, most, replace=False)))
    for part in counts.parts(history):
        sizes = np.diff(part.starts)
        total = np.cumsum(part.counts, dtype=np.float64)
        before = np.append(0, total)[part.starts]
        drawn = before[:-1] + rng.random(len(sizes)) * np.diff(before)
        place = np.clip(np.searchsorted(total, drawn, side="right"), part.starts[:-1], part.starts[1:] - 1)
        scores.append(counts.prior_without(part)[place])
    return np.concatenate(scores) if scores else np.zeros(0)


def _wilson(some: int, of: int) -> tuple[float, float]:
    """Wilson's score interval of 95 % for a share."""
    share, z2 = some / of, _NORMAL**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _NORMAL / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))  # at 0 and 1 rounding decides
