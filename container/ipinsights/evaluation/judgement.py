"""The evaluation that people otherwise make by hand: fabricated and real attacks, a sweep, areas, baselines, a budget.

Real log-ins are compared with attacks of up to four kinds: three of `negatives`, and those that somebody has labelled.
Only log-ins of accounts that the model knows take part, unless everyone is asked for: of an account that it has never
seen a model cannot know what is usual. All judges, the model and the baselines, score the same pairs. A baseline has no
threshold of its own, so it gets the highest one that flags no more real log-ins than the model does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from ipinsights.data.networks import Networks
from ipinsights.data.records import Pairs, Records
from ipinsights.errors import UserError
from ipinsights.evaluation import comparison, negatives
from ipinsights.evaluation.baselines import LongestPrefix
from ipinsights.evaluation.comparison import Promise
from ipinsights.evaluation.likelihood_ratio import LikelihoodRatio
from ipinsights.evaluation.log_ins import LogIns
from ipinsights.evaluation.negatives import NEAR, OTHERS, RANDOM
from ipinsights.evaluation.ranking import Areas, Interval, Ranking, threshold_for
from ipinsights.metrics import Detection, Scores
from ipinsights.model.calibration import SUPPORT
from ipinsights.model.scoring import Scorer

ATTACKS = "labelled attacks"
"""The kind of pairs that nobody had to fabricate."""
MODEL, PREFIX, COUNTING = "model", "longest shared prefix", "counting"
"""The judges: whatever scores pairs."""

_SPAN = (0.001, 0.999)
"""The quantiles of all scores between which the thresholds of a sweep lie."""
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_MOST_THRESHOLDS = 200


@dataclass(frozen=True)
class Rule:
    """How the threshold is chosen."""

    by: Literal["threshold", "budget", "max_false_alarms"] = "threshold"
    """The score itself, the log-ins flagged on a day, or the share of real log-ins that is flagged."""
    value: float = 0.0

    def threshold(self, log_ins: Scores, days: float | None) -> float:
        """The highest threshold that keeps it; scores of real log-ins, ascending, [n]. Raises UserError."""
        if self.by == "threshold":
            return self.value
        if self.by == "max_false_alarms":
            return threshold_for(log_ins, math.floor(self.value * len(log_ins)))
        if days is None:
            raise UserError(
                "a budget of alerts a day needs to know the days: give each log-in a time in a third column, such as "
                "2026-01-02T03:04:05Z, or choose the threshold by a share of false alarms"
            )
        return threshold_for(log_ins, math.floor(self.value * days))


SCORE_0 = Rule()
"""The threshold at which a model was trained to tell pairs apart."""


@dataclass(frozen=True)
class Verdict:
    """One judge on one kind of attacks."""

    judge: str
    attacks: str
    """The kind."""
    ranking: Ranking
    areas: Areas
    intervals: tuple[Interval, Interval] | None
    """95 % of the areas; None where there are fewer than two entities."""
    detection: Detection
    """At the judge's threshold."""

    def facts(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        auc, precision = self.intervals or (None, None)
        return {
            "judge": self.judge,
            "negatives": self.attacks,
            "pairs": len(self.ranking.attacks),
            "roc_auc": self.areas.roc_auc,
            "roc_auc_95": auc,
            "average_precision": self.areas.average_precision,
            "average_precision_95": precision,
            **_facts(self.detection),
        }


@dataclass(frozen=True)
class Judgement:
    """The result."""

    log_ins: int
    """Real log-ins that took part."""
    entities: int
    """Their accounts."""
    unknown: dict[str, int]
    """Left out, because the model does not know their accounts: ``log_ins``, ``entities`` and ``attacks``."""
    days: float | None
    threshold: float
    rule: Rule
    verdicts: list[Verdict]
    """Kind by kind, the model first."""
    thresholds: list[float]
    """Of the sweep, ascending."""
    promises: list[Promise]
    notes: list[str]
    """What could not be compared, and why: a sentence each."""
    resamples: int
    seed: int

    @property
    def by_model(self) -> list[Verdict]:
        """Those of the model."""
        return [verdict for verdict in self.verdicts if verdict.judge == MODEL]

    @property
    def false_alarms(self) -> int:
        """Real log-ins that the model flags."""
        return int(np.searchsorted(self.scores, self.threshold, side="left"))

    @property
    def scores(self) -> Scores:
        """What the model gave the real log-ins, ascending, [n]."""
        return self.by_model[0].ranking.log_ins

    def a_day(self, log_ins: int) -> float | None:
        """A number of log-ins as one a day; None without times."""
        return None if self.days is None else log_ins / self.days

    def sweep(self, verdict: Verdict) -> list[dict[str, Any]]:
        """What each threshold of the sweep catches."""
        rows = [_facts(verdict.ranking.at(threshold)) for threshold in self.thresholds]
        return [row | {"false_alarms_a_day": self.a_day(row["false_alarms"])} for row in rows]

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON; what cannot be told is None."""
        found = {
            "log_ins": self.log_ins,
            "entities": self.entities,
            "unknown": self.unknown,
            "days": self.days,
            "threshold": {"score": self.threshold, "chosen_by": self.rule.by, "value": self.rule.value},
            "false_alarms": self.false_alarms,
            "false_alarms_a_day": self.a_day(self.false_alarms),
            "comparisons": [verdict.facts() for verdict in self.verdicts],
            "sweep": {verdict.attacks: self.sweep(verdict) for verdict in self.by_model},
            "promises": [
                {
                    "entities": promise.entities,
                    "rate": promise.rate,
                    "score": promise.score,
                    "log_ins": promise.log_ins,
                    "below": promise.below,
                    "broken": promise.broken,
                }
                for promise in self.promises
            ],
            "notes": self.notes,
            "resamples": self.resamples,
            "seed": self.seed,
        }
        return _finite(found)  # type: ignore[no-any-return]


Judge: TypeAlias = Callable[[Pairs], Scores]


def judge(
    scorer: Scorer,
    log_ins: LogIns,
    *,
    everyone: bool = False,
    networks: Networks | None = None,
    attacks: Records | None = None,
    train: Pairs | None = None,
    rule: Rule = SCORE_0,
    resamples: int = 200,
    seed: int = 0,
) -> Judgement:
    """Judge a model by log-ins that training did not see.

    ``everyone``: also accounts that the model does not know. ``networks``: a table for addresses of the same provider.
    ``attacks``: labelled ones. ``train``: what the model learnt from, for the baselines. Intervals are from so many
    ``resamples``. Raises UserError if no log-in remains.
    """
    knows = scorer.knows_hashed
    every, unknown = log_ins, {"log_ins": 0, "entities": 0, "attacks": 0}
    if not everyone and not scorer.untrained:
        known = knows(log_ins.pairs.hashed().digests)
        strangers = log_ins.pairs.entities.filter(pa.array(~known))
        unknown["log_ins"], unknown["entities"] = len(strangers), len(strangers.unique())
        log_ins = log_ins.where(known)
        if not len(log_ins):
            raise UserError(
                f"the model knows none of the {unknown['entities']:,} accounts of these {unknown['log_ins']:,} "
                "log-ins. Give log-ins of accounts that training saw, or take unknown accounts too (--all)"
            )
        if attacks is not None:
            known = knows(attacks.hashed().digests)
            unknown["attacks"] = int((~known).sum())
            attacks = Records(attacks.entities.filter(pa.array(known)), attacks.addresses[known])
    kinds, notes = _attacks(scorer, log_ins.pairs, networks, attacks, seed)
    judges: dict[str, Judge] = {MODEL: lambda pairs: scorer.score_hashed(*pairs)}
    if train is None:
        notes.insert(0, "Baselines (longest shared prefix, counting) are left out: they need the training log-ins")
    else:
        judges |= _baselines(train, scorer)
    if rule.by == "max_false_alarms" and rule.value * len(log_ins) < SUPPORT:
        notes.append(
            f"{len(log_ins):,} log-ins are too few to tell a threshold for {rule.value:g} of false alarms: it takes "
            f"{math.ceil(SUPPORT / rule.value) if rule.value else math.inf:,} at least"
        )
    verdicts, threshold = _verdicts(judges, log_ins.pairs, kinds, rule, every.days, resamples, seed)
    return Judgement(
        log_ins=len(log_ins),
        entities=len(log_ins.pairs.entities.unique()),
        unknown=unknown,
        days=every.days,
        threshold=threshold,
        rule=rule,
        verdicts=verdicts,
        thresholds=_thresholds([verdict.ranking for verdict in verdicts if verdict.judge == MODEL], threshold),
        promises=comparison.promises(scorer, every.pairs),
        notes=notes,
        resamples=resamples,
        seed=seed,
    )


def _attacks(
    scorer: Scorer, log_ins: Records, networks: Networks | None, attacks: Records | None, seed: int
) -> tuple[dict[str, Records], list[str]]:
    """The attacks of each kind that there are, and why the other kinds are missing."""
    rng = np.random.default_rng(seed)
    kinds = {RANDOM: negatives.of_random(log_ins, scorer.family, rng), OTHERS: negatives.of_others(log_ins, rng)}
    notes = []
    if not len(kinds[OTHERS]):
        several = len(log_ins.entities.unique()) > 1
        reason = "each entity uses every address" if several else "they are of one entity"
        notes.append(f"{OTHERS}: not compared, since there are none in these log-ins: {reason}")
    if networks is not None:
        kinds[NEAR] = negatives.of_same_network(log_ins, networks, rng)
        if not len(kinds[NEAR]):
            notes.append(f"{NEAR}: not compared, since the table of networks has no address of these log-ins")
    if attacks is not None:
        kinds[ATTACKS] = attacks
        if not len(attacks):
            notes.append(f"{ATTACKS}: not compared, since the model knows none of their accounts")
    return {kind: pairs for kind, pairs in kinds.items() if len(pairs)}, notes


def _baselines(train: Pairs, scorer: Scorer) -> dict[str, Judge]:
    width = scorer.family.width
    prefix = LongestPrefix.fit(train.digests, train.addresses, width=width)
    counting = LikelihoodRatio.fit(train.digests, train.addresses, width=width)
    return {PREFIX: lambda pairs: prefix.score(*pairs), COUNTING: lambda pairs: counting.score(*pairs)}


def _verdicts(
    judges: dict[str, Judge],
    log_ins: Records,
    kinds: dict[str, Records],
    rule: Rule,
    days: float | None,
    resamples: int,
    seed: int,
) -> tuple[list[Verdict], float]:
    """Every judge on every kind of attacks, and the model's threshold. The first judge is the model."""
    names = pa.concat_arrays([log_ins.entities, *(pairs.entities for pairs in kinds.values())])
    encoded = names.dictionary_encode()
    sizes = [len(log_ins), *map(len, kinds.values())]
    ours, *of_kinds = np.split(encoded.indices.to_numpy(), np.cumsum(sizes)[:-1])
    real, attacks = log_ins.hashed(), {kind: pairs.hashed() for kind, pairs in kinds.items()}
    found: dict[str, list[Verdict]] = {kind: [] for kind in kinds}
    threshold, false_alarms = math.nan, 0
    for name, score in judges.items():
        scores = score(real)
        ascending = np.sort(scores)
        if name == MODEL:
            own = threshold = rule.threshold(ascending, days)
            false_alarms = int(np.searchsorted(ascending, threshold, side="left"))
        else:
            own = threshold_for(ascending, false_alarms)
        for (kind, pairs), theirs in zip(attacks.items(), of_kinds, strict=True):
            ranking = Ranking.of(scores, score(pairs), ours, theirs, len(encoded.dictionary))
            intervals = ranking.intervals(resamples, seed)
            found[kind].append(Verdict(name, kind, ranking, ranking.areas(), intervals, ranking.at(own)))
    return [verdict for verdicts in found.values() for verdict in verdicts], threshold


def _thresholds(rankings: Sequence[Ranking], chosen: float) -> list[float]:
    """Round numbers over the span of the scores, and the chosen threshold among them."""
    scores = np.concatenate([rankings[0].log_ins, *(ranking.attacks for ranking in rankings)])
    low, high = np.quantile(scores, _SPAN).tolist()
    low, high = min(low, chosen), max(high, chosen)
    step = next((step for step in _STEPS if (high - low) / step <= _MOST_THRESHOLDS), (high - low) / _MOST_THRESHOLDS)
    places = range(math.floor(low / step), math.ceil(high / step) + 1)
    return sorted({round(place * step, 6) for place in places} | {chosen})


def _facts(detection: Detection) -> dict[str, Any]:
    return {
        "threshold": detection.threshold,
        "flagged": detection.flagged,
        "true_positives": detection.true_positives,
        "false_alarms": detection.flagged - detection.true_positives,
        "precision": detection.precision,
        "recall": detection.recall,
        "f1": detection.f1,
        "false_positive_rate": detection.false_positive_rate,
    }


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
