"""The sections of a page that compare real log-ins with attacks: scores, thresholds, and curves beside baselines."""

import numpy as np

from ipinsights.evaluation.judgement import Judgement, Verdict
from ipinsights.reporting import figures
from ipinsights.reporting.figures import REAL
from ipinsights.reporting.parts import Plot, Section, Slider, Table, count, counted, number, percent, rate

_ALARMS = (0.0001, 0.001, 0.01, 0.05)
_CAUGHT = (0.5, 0.9, 0.99)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_ROWS = 9
"""Rows of a table that stands for a whole curve."""


def distributions(judgement: Judgement) -> Section:
    """How real log-ins and attacks score."""
    rows = []
    for name, scores in [(REAL, judgement.scores), *((v.attacks, v.ranking.attacks) for v in judgement.by_model)]:
        below = float((scores < judgement.threshold).mean())
        rows.append([name, *map(number, np.quantile(scores, _QUANTILES).tolist()), percent(below)])
    head = [
        "pairs",
        *(f"{100 * share:.0f}{'th' if share != 0.5 else 'th (median)'} percentile" for share in _QUANTILES),
    ]
    attacks = ", ".join(f"{row[-1]} ({row[0]})" for row in rows[1:])
    says = (
        "Real log-ins (solid line, filled) should lie to the right of all others. The vertical line is the threshold, "
        f"{number(judgement.threshold)}. Below it are {rows[0][-1]} of the real log-ins, and of the attacks {attacks}."
    )
    table = Table("Scores of each kind", [*head, "below the threshold"], rows)
    plot = Plot("plot-scores", "Distributions of scores", says, figures.distributions(judgement), table)
    return Section("scores", "Scores of real log-ins and of attacks", _kinds(judgement), plots=[plot])


def _kinds(judgement: Judgement) -> list[str]:
    unknown = judgement.unknown["log_ins"]
    left = (
        f" {counted(unknown, 'log-in')} of {counted(judgement.unknown['entities'], 'account')} that the model does not "
        "know are left out."
        if unknown
        else ""
    )
    return [
        f"{counted(judgement.log_ins, 'real log-in')} of {counted(judgement.entities, 'account')} are compared with "
        f"pairs of the same accounts and addresses that they did not use.{left} "
        "A score says how much likelier a pair is than a fabricated one."
    ]


def sweep(judgement: Judgement) -> Section:
    """What each threshold catches, with one that can be moved."""
    by_kind = {verdict.attacks: judgement.sweep(verdict) for verdict in judgement.by_model}
    first = next(iter(by_kind.values()))
    steps = [
        {
            "threshold": row["threshold"],
            "shown": number(row["threshold"]),
            "overall": [
                percent(row["false_positive_rate"]),
                count(row["false_alarms"]),
                number(row["false_alarms_a_day"], 1),
            ],
            "rows": [
                [kind, *(percent(rows[place][name]) for name in ("precision", "recall")), number(rows[place]["f1"], 3)]
                for kind, rows in by_kind.items()
            ],
        }
        for place, row in enumerate(first)
    ]
    places = sorted({round(place * (len(steps) - 1) / (_ROWS - 1)) for place in range(_ROWS)})
    rows = [
        [steps[place]["shown"], *steps[place]["overall"], *(row[2] for row in steps[place]["rows"])] for place in places
    ]
    head = ["threshold", "real log-ins flagged", "false alarms", "a day", *(f"caught: {kind}" for kind in by_kind)]
    plot = Plot(
        "plot-sweep",
        "What a threshold catches",
        "A good threshold is where the dashed lines are already high and the solid line, the false alarms, is still "
        "low.",
        figures.sweep(judgement),
        Table("What each threshold catches", head, rows, texts=0),
    )
    slider = Slider(
        judgement.thresholds.index(judgement.threshold), steps, ["attacks", "precision", "recall", "F1"], plot
    )
    lead = (
        "Move the threshold. Precision is the share of attacks among what is flagged, if attacks were as frequent as "
        "in this comparison: in real traffic they are far rarer. Recall is the share of the attacks that is caught."
    )
    return Section("threshold", "Choose a threshold", [lead], slider=slider)


def curves(judgement: Judgement) -> Section:
    """How well the model ranks, beside the baselines."""
    kinds: dict[str, list[Verdict]] = {}
    for verdict in judgement.verdicts:
        kinds.setdefault(verdict.attacks, []).append(verdict)
    plots = [
        plot
        for place, (kind, verdicts) in enumerate(kinds.items())
        for plot in (_roc(place, kind, verdicts), _precision_recall(place, kind, verdicts))
    ]
    lead = (
        "An area of 1 separates all attacks from all real log-ins, and a ROC AUC of 0.5 is chance. In brackets are "
        f"intervals of {rate(0.95)}, by drawing accounts with replacement. Recall is at the model's threshold. A "
        "baseline has the highest threshold that flags no more real log-ins."
    )
    head = ["attacks", "by", "ROC AUC", "average precision", "recall", "false alarms"]
    table = Table("Areas, and what is caught at the threshold", head, [*map(_areas, judgement.verdicts)], texts=2)
    notes = [f"{note}." for note in judgement.notes]
    return Section("areas", "How well the model ranks", [lead, *notes], [table], plots, columns=True)


def _areas(verdict: Verdict) -> list[str]:
    auc, precision = verdict.intervals or (None, None)
    return [
        verdict.attacks,
        verdict.judge,
        number(verdict.areas.roc_auc, 4) + _interval(auc),
        number(verdict.areas.average_precision, 4) + _interval(precision),
        percent(verdict.detection.recall),
        percent(verdict.detection.false_positive_rate),
    ]


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({number(interval[0], 4)} to {number(interval[1], 4)})"


def _roc(place: int, kind: str, verdicts: list[Verdict]) -> Plot:
    best = max(verdicts, key=lambda verdict: verdict.areas.roc_auc)
    says = f"The higher on the left, the better. The largest area is {number(best.areas.roc_auc, 4)} ({best.judge})."
    head = ["by", *(f"at {rate(share)} of false alarms" for share in _ALARMS)]
    rows = [_row(verdict, verdict.ranking.roc(np.array(_ALARMS)).tolist()) for verdict in verdicts]
    table = Table(f"Share of the attacks caught ({kind})", head, rows)
    return Plot(f"plot-roc-{place}", f"ROC: {kind}", says, figures.roc(verdicts), table)


def _precision_recall(place: int, kind: str, verdicts: list[Verdict]) -> Plot:
    best = max(verdicts, key=lambda verdict: verdict.areas.average_precision)
    says = (
        "The longer a line stays at the top, the better. The largest average precision is "
        f"{number(best.areas.average_precision, 4)} ({best.judge})."
    )
    head = ["by", *(f"where {rate(share)} are caught" for share in _CAUGHT)]
    rows = [_row(verdict, verdict.ranking.precision(np.array(_CAUGHT)).tolist()) for verdict in verdicts]
    table = Table(f"Precision ({kind})", head, rows)
    return Plot(f"plot-pr-{place}", f"Precision and recall: {kind}", says, figures.precision_recall(verdicts), table)


def _row(verdict: Verdict, shares: list[float]) -> list[str]:
    return [verdict.judge, *map(percent, shares)]
