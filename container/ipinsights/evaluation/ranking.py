"""How well scores rank attacks below real log-ins: ROC and precision-recall curves, their areas, and intervals.

An attack is what is to be found, so pairs are taken from the lowest score on, and all pairs of one score at a time. The
area under the precision-recall curve is the average precision: the mean, over the attacks, of the precision at their
scores. Unlike the ROC AUC it depends on how many attacks there are among the pairs.

The intervals are those of the bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993): entities are
drawn with replacement, each with all of its pairs, because the pairs of one entity resemble one another. A drawn entity
counts as often as it was drawn, so pairs are sorted once.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ipinsights.metrics import Detection, Scores

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

_QUANTILES = (0.025, 0.975)


class Areas(NamedTuple):
    """Both areas; nan where there are no log-ins or no attacks."""

    roc_auc: float
    average_precision: float


@dataclass(frozen=True)
class Ranking:
    """n log-ins and m attacks in the order of their scores, of E entities."""

    log_ins: Scores
    """Their scores, ascending, [n]."""
    attacks: Scores
    """Their scores, ascending, [m]."""
    entity: npt.NDArray[np.intp]
    """The entity of each pair, in [0, E), by score, [n + m]."""
    is_attack: npt.NDArray[np.bool_]
    """By score, [n + m]."""
    ends: npt.NDArray[np.intp]
    """Where the pairs of each distinct score end, [distinct scores]."""
    entities: int
    """E"""

    @classmethod
    def of(
        cls,
        log_ins: Scores,
        attacks: Scores,
        entity_of_log_in: npt.NDArray[np.integer],
        entity_of_attack: npt.NDArray[np.integer],
        entities: int,
    ) -> "Ranking":
        """Sort scores [n] and [m], whose entities are numbers in [0, E)."""
        scores = np.concatenate([log_ins, attacks])
        order = np.argsort(scores, kind="stable")
        scores = scores[order]
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) + 1 if len(scores) else np.zeros(0, np.intp)
        return cls(
            np.sort(log_ins),
            np.sort(attacks),
            np.concatenate([entity_of_log_in, entity_of_attack]).astype(np.intp)[order],
            order >= len(log_ins),
            ends,
            entities,
        )

    def areas(self, weights: Floats | None = None) -> Areas:
        """The areas, if each pair counts as often as its entity's weight says: [E]."""
        caught, flagged = self._caught(weights)
        attacks, log_ins = caught[-1], flagged[-1] - caught[-1]
        if not attacks or not log_ins:
            return Areas(float("nan"), float("nan"))
        false = flagged - caught
        area = (np.diff(false) * (caught[1:] + caught[:-1])).sum() / 2 / (attacks * log_ins)
        precision = caught[1:] / np.maximum(flagged[1:], 1)
        return Areas(float(area), float((np.diff(caught) * precision).sum() / attacks))

    def intervals(self, resamples: int, seed: int) -> tuple[Interval, Interval] | None:
        """The intervals of 95 % of both areas; None if fewer than two entities could be drawn."""
        present = np.unique(self.entity)
        if len(present) < 2:
            return None
        rng = np.random.default_rng((seed, 0xB007))
        chances, weights = np.full(len(present), 1 / len(present)), np.zeros(self.entities)
        drawn = []
        for _ in range(resamples):
            weights[present] = rng.multinomial(len(present), chances)
            drawn.append(self.areas(weights))
        areas = np.array([pair for pair in drawn if not np.isnan(pair.roc_auc)])
        if not len(areas):
            return None
        (low, lower), (high, higher) = np.quantile(areas, _QUANTILES, axis=0).tolist()
        return (low, high), (lower, higher)

    def at(self, threshold: float) -> Detection:
        """What flagging every score below a threshold catches."""
        caught = int(np.searchsorted(self.attacks, threshold, side="left"))
        false = int(np.searchsorted(self.log_ins, threshold, side="left"))
        return Detection(threshold, caught + false, caught, len(self.attacks), len(self.log_ins))

    def roc(self, false_positive_rates: Floats) -> Floats:
        """The share of the attacks that is caught with at most each of these shares of the log-ins: [n]."""
        caught, flagged = self._caught(None)
        false = flagged - caught
        place = np.searchsorted(false, np.floor(false_positive_rates * len(self.log_ins) + 1e-9), side="right") - 1
        shares: Floats = caught[place] / max(1, len(self.attacks))
        return shares

    def precision(self, recalls: Floats) -> Floats:
        """The precision where each of these shares of the attacks, above 0, is first caught: [n]."""
        caught, flagged = self._caught(None)
        place = np.searchsorted(caught, np.ceil(recalls * len(self.attacks) - 1e-9), side="left")
        precisions: Floats = caught[place] / np.maximum(flagged[place], 1)
        return precisions

    @cached_property
    def _unweighted(self) -> tuple[Floats, Floats]:
        return self._sums(self.is_attack.astype(np.float64), np.ones(len(self.entity)))

    def _caught(self, weights: Floats | None) -> tuple[Floats, Floats]:
        """The attacks, and all pairs, from the lowest score to each distinct one, beginning with none."""
        if weights is None:
            return self._unweighted
        weight = weights[self.entity]
        return self._sums(weight * self.is_attack, weight)

    def _sums(self, caught: Floats, flagged: Floats) -> tuple[Floats, Floats]:
        return tuple(np.append(0.0, np.cumsum(one)[self.ends - 1]) for one in (caught, flagged))  # type: ignore[return-value]


def threshold_for(log_ins: Scores, false_alarms: int) -> float:
    """The highest threshold below which there are no more than so many of these scores, ascending, [n]."""
    if false_alarms >= len(log_ins):
        return float(np.nextafter(log_ins[-1], np.inf)) if len(log_ins) else float("inf")
    return float(log_ins[max(0, false_alarms)])
