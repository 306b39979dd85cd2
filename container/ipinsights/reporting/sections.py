"""The sections of a page about the log-ins and the model, in sentences, tables and plots.

`comparisons` has those that compare real log-ins with attacks.
"""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ipinsights.evaluation.comparison import Promise
from ipinsights.evaluation.embeddings import UNKNOWN, Embeddings, Map, Method, largest_groups
from ipinsights.evaluation.judgement import Judgement
from ipinsights.evaluation.log_ins import LogIns
from ipinsights.model.calibration import RATES, Calibration
from ipinsights.model.scoring import Scorer
from ipinsights.reporting import figures
from ipinsights.reporting.parts import (
    NONE,
    Figure,
    Plot,
    Section,
    Table,
    count,
    counted,
    minute,
    number,
    percent,
    rate,
)

Alert = Mapping[str, Any]
"""A row of the list: ``entity``, ``network``, ``count``, ``first``, ``last``, ``score``, ``percentile``, ``known`` and
``reason``. What is None, NaT or missing is shown as a dash. Where it is open whether an account is known, it stands
among the known ones."""

_UNUSUAL = 0.01
"""The promised rate that the headline speaks of."""
_CALIBRATED = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
_GROUPS = 6


def headline(log_ins: LogIns, scorer: Scorer, judgement: Judgement) -> list[Figure]:
    """The first numbers that a person looks for."""
    pairs = log_ins.pairs.hashed()
    known = log_ins.pairs.entities.filter(scorer.knows_hashed(pairs.digests))
    accounts = len(log_ins.pairs.entities.unique())
    found = [
        Figure(count(len(log_ins)), "log-ins"),
        Figure(count(len(known.unique())), "accounts that the model knows"),
        Figure(count(accounts - len(known.unique())), "accounts never seen before"),
    ]
    if log_ins.days is not None:
        found.append(Figure(number(log_ins.days, 1), "days"))
    if scorer.calibration is not None:
        unusual = scorer.calibrate_hashed(*pairs).below([_UNUSUAL])[0]
        found.append(Figure(count(unusual), f"look unusual, as {rate(_UNUSUAL)} of ordinary log-ins would"))
    found.append(Figure(count(judgement.false_alarms), f"flagged, as they score below {number(judgement.threshold)}"))
    return found


def unusual(log_ins: LogIns, scorer: Scorer) -> Section:
    """How many log-ins look unusual, at each promised rate."""
    calibration, name, title = scorer.calibration, "unusual", "How many look unusual"
    if calibration is None:
        lead = "The model is not calibrated, so it cannot tell how unusual a score is. Train with a validation channel."
        return Section(name, title, [lead])
    pairs = log_ins.pairs.hashed()
    scores, known = scorer.score_hashed(*pairs), scorer.knows_hashed(pairs.digests)
    rows, one = [], rate(0.01)
    for kind, sketch, those in (("known", calibration.known, known), ("never seen", calibration.new, ~known)):
        own = scores[those]
        for promised in RATES[:3]:
            threshold = sketch.threshold(promised).score
            if not len(own):
                continue
            cells = [kind, rate(promised)]
            if threshold is None:
                rows.append([*cells, "too few to tell", NONE, NONE])
            else:
                below = int((own < threshold).sum())
                rows.append([*cells, number(threshold), count(below), number(promised * len(own), 1)])
    head = ["accounts", "promised rate", "score below", "found", "expected"]
    return Section(
        name,
        title,
        [
            f"A log-in is unusual at a rate of {one} if only {one} of ordinary log-ins score as low. If many more are "
            "found than expected, look at them: it may be an attack, a new office or provider, or a model that has "
            "become old."
        ],
        [Table("Unusual log-ins, found and expected", head, rows, texts=2)],
    )


def alerts(rows: Sequence[Alert]) -> Section:
    """The list of the day: known accounts, and accounts never seen before."""
    known, strangers = ([row for row in rows if (row.get("known") is False) is new] for new in (False, True))
    tables = [
        _listed("Accounts that the model knows, the most unusual first", known),
        _listed("Accounts never seen before, the most unusual place first", strangers),
    ]
    lead = (
        f"{counted(len(known), 'place')} of known accounts and {counted(len(strangers), 'place')} of accounts never "
        "seen before, each with its reason. Of a new account nothing is known, so its list says only how unusual the "
        "place is for anybody. Reasons count the log-ins that training learnt from, not those that validated it."
    )
    return Section("list", "This morning's list", [lead], [table for table in tables if table.rows])


def _listed(caption: str, rows: Sequence[Alert]) -> Table:
    head = ["account", "network", "when (UTC)", "count", "score", "ordinary ones as low", "reason"]
    cells = [
        [
            _text(row.get("entity")),
            _text(row.get("network")),
            _when(row.get("first"), row.get("last")),
            _text(row.get("count")),
            number(row.get("score")),
            percent(row.get("percentile")),
            _text(row.get("reason")),
        ]
        for row in rows
    ]
    return Table(caption, head, cells, texts=3, wide=True)


def _when(first: object, last: object) -> str:
    """A moment, or from when to when: the second without its day if that is the first's."""
    begin, end = (_moment(time) for time in (first, last))
    if begin == end or end == NONE:
        return begin
    day, _, hour = end.partition(" ")
    return f"{begin} to {hour if hour and begin.startswith(day) else end}"


def _moment(time: object) -> str:
    if not isinstance(time, datetime.datetime | np.datetime64):
        return _text(time)
    return NONE if np.isnat(np.datetime64(time)) else minute(time)


def _text(value: object) -> str:
    if value is None:
        return NONE
    return count(value) if isinstance(value, int) else str(value)


def calibration(log_ins: LogIns, scorer: Scorer, found: Calibration | None) -> Section | None:
    """Whether as few log-ins score low as was promised."""
    if found is None:
        return None
    pairs = log_ins.pairs.hashed()
    scores, known = scorer.score_hashed(*pairs), scorer.knows_hashed(pairs.digests)
    points: dict[str, list[tuple[float, float]]] = {}
    rows: list[list[str]] = []
    broken: list[Promise] = []
    for name, sketch, own in (
        ("known accounts", found.known, scores[known]),
        ("accounts never seen", found.new, scores[~known]),
    ):
        for promised in _CALIBRATED:
            threshold = sketch.threshold(promised).score
            if threshold is None or not len(own):
                continue
            promise = Promise(name, promised, threshold, len(own), float((own < threshold).mean()))
            rows.append([name, rate(promised), number(threshold), percent(promise.below), count(len(own))])
            if promise.below > 0:
                points.setdefault(name, []).append((promised, promise.below))
            if promise.broken:
                broken.append(promise)
    if not points:
        return None
    says = "On the dotted line as many log-ins score low as the training promised; above it there are more. "
    if broken:
        worst = max(broken, key=lambda one: abs(math.log(max(one.below, 0.5 / one.log_ins) / one.rate)))
        says += f"The largest difference: of the {worst.entities}, {percent(worst.below)} score below where "
        says += f"{rate(worst.rate)} were promised."
    else:
        says += "No share is more than twice or less than half of what was promised, but for chance."
    lowest = min(share for pairs_ in points.values() for pair in pairs_ for share in pair)
    plot = Plot(
        "plot-calibration",
        "Promised and observed shares",
        says,
        figures.calibration(points, lowest),
        Table(
            "Promised and observed shares",
            ["accounts", "promised", "score below", "observed", "of log-ins"],
            rows,
        ),
    )
    lead = (
        "The model was calibrated by log-ins that it did not learn from. If these log-ins differ from those, the rates "
        "that it tells are no longer true, and it should be trained again."
    )
    return Section("calibration", "Does the model keep its promises?", [lead], plots=[plot])


_FACTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "events": ("log-ins", count),
    "entities": ("accounts", count),
    "addresses": ("distinct addresses", count),
    "pairs": ("distinct pairs of an account and an address", count),
    "busiest_entity_share": ("share of the log-ins of the busiest account", percent),
    "busiest_address": ("the busiest address", str),
    "busiest_address_share": ("its share of the log-ins", percent),
    "one_event_entities_share": ("share of the accounts with a single log-in", percent),
    "one_event_pairs_share": ("share of the pairs with a single log-in", percent),
    "reserved_address_share": ("share of the log-ins from private or reserved addresses", percent),
    "unknown_prefix_share": ("share of the log-ins from networks too rare to be known", percent),
}


def profile(manifest: Mapping[str, Any]) -> Section | None:
    """What the training data looked like."""
    facts = manifest.get("data")
    if not isinstance(facts, dict):
        return None
    rows = [[name, shown(facts[key])] for key, (name, shown) in _FACTS.items() if facts.get(key) is not None]
    doubts = [str(doubt) for doubt in facts.get("doubts", [])]
    lead = (
        f"{counted(len(doubts), 'thing')} in the training data makes the result doubtful:"
        if doubts
        else "Nothing in the training data makes the result doubtful."
    )
    return Section(
        "data",
        "What the model learnt from",
        [lead],
        [Table("The training data", ["fact", "value"], rows)],
        points=doubts,
    )


def maps(sampled: Mapping[str, Embeddings], placed: Mapping[str, Map], how: Method) -> Section | None:
    """Where embeddings lie, by what they are of (such as "account")."""
    plots = [_map(noun, those, placed[noun]) for noun, those in sampled.items() if len(those) > 1]
    if not plots:
        return None
    axes = (
        "The axes are the first two principal components, and have no unit."
        if how == "pca"
        else "The map is by t-SNE: only neighbours mean something, not distances between groups."
    )
    lead = (
        "Each point is an embedding. What lies close together is alike to the model: accounts that come from the same "
        f"networks, and networks with the same accounts. {axes}"
    )
    return Section("map", "Map of embeddings", [lead], plots=plots)


def _map(noun: str, found: Embeddings, placed: Map) -> Plot:
    groups = largest_groups(found.groups, _GROUPS)
    rows = [[group, count(found.groups.count(group))] for group in groups]
    rest = sum(group not in groups and group != UNKNOWN for group in found.groups)
    rows += [["others", count(rest)]] if rest else []
    without = found.groups.count(UNKNOWN)
    rows += [[UNKNOWN, count(without)]] if without else []
    several = {"entity": "entities", "address": "addresses"}.get(noun)
    says = f"{counted(len(found), noun, several)}, with a colour and a marker for each of the largest groups."
    if placed.shares:
        says += (
            f" The two axes have {percent(sum(placed.shares))} of all differences: the more, the more the map shows."
        )
    title = f"Map of {several or noun + 's'}"
    table = Table(f"Points of the {title.lower()}", ["provider or network", "points"], rows)
    return Plot(f"plot-{noun}", title, says, figures.embedding_map(found, placed), table)
