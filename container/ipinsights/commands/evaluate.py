"""``ipinsights evaluate``: how well a model tells real log-ins from attacks, beside simple baselines."""

import argparse
import json
import math
from pathlib import Path

from ipinsights.commands.judging import add_inputs, judged
from ipinsights.commands.options import LOG_INS, Commands, seed
from ipinsights.errors import refusals
from ipinsights.evaluation.judgement import Judgement, Rule, Verdict
from ipinsights.evaluation.ranking import Interval

_WIDTH = 28
_SHOWN = 9
"""Thresholds of a sweep that the terminal shows."""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "evaluate",
        help="measure how well a model tells real log-ins from attacks",
        description="Compare real log-ins with as many fabricated ones: with random addresses, with other entities' "
        "addresses and, if there is a table of networks, with addresses of the same provider or country. The command "
        "prints the ROC AUC and the average precision with their intervals of 95 %, what a threshold catches, and "
        "whether as few log-ins score low as the model's calibration promised. Only entities that the model knows take "
        f"part. {LOG_INS}",
    )
    add_inputs(command)
    chosen = command.add_mutually_exclusive_group()
    chosen.add_argument("--threshold", type=_finite, default=0.0, help="flag scores below this (default 0)")
    chosen.add_argument(
        "--budget", type=_positive, help="choose the threshold so that so many real log-ins are flagged on a day"
    )
    chosen.add_argument(
        "--max-false-alarms", type=_share, help="choose it so that this share of real log-ins is flagged, such as 0.001"
    )
    command.add_argument(
        "--seed", type=seed, default=0, help="the seed of fabricated addresses and of intervals (default 0)"
    )
    command.add_argument(
        "--resamples", type=seed, default=200, help="bootstrap samples for the intervals (default 200; 0: none)"
    )
    output = command.add_mutually_exclusive_group()
    output.add_argument("--sweep", action="store_true", help="also print what other thresholds catch")
    output.add_argument("--json", action="store_true", help="print all numbers as JSON (docs/judging.md has the keys)")
    command.add_argument("--out", type=Path, metavar="FILE.html", help="also write a page with plots")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table or JSON."""
    found = judged(options, _rule(options), options.resamples)
    if options.out:
        from ipinsights.reporting import page  # slow to import, and no command that scores needs it

        with refusals("write", options.out):
            page.write(options.out, page.Contents(*found), "Evaluation")
    if options.json:
        print(json.dumps(found.judgement.facts(), indent=2))
    else:
        _print(found.judgement, options.sweep)


def _rule(options: argparse.Namespace) -> Rule:
    if options.budget is not None:
        return Rule("budget", options.budget)
    if options.max_false_alarms is not None:
        return Rule("max_false_alarms", options.max_false_alarms)
    return Rule("threshold", options.threshold)


def _print(judgement: Judgement, sweep: bool) -> None:
    days = "" if judgement.days is None else f" in {judgement.days:.1f} days"
    print(
        f"{judgement.log_ins:,} log-ins of {_entities(judgement.entities)}{days}, flagged below a score of "
        f"{judgement.threshold:g}"
    )
    unknown = judgement.unknown
    if unknown["log_ins"] or unknown["attacks"]:
        attacks = f", and {unknown['attacks']:,} attacks" if unknown["attacks"] else ""
        print(
            f"Not compared: {unknown['log_ins']:,} log-ins of {_entities(unknown['entities'])} that the model does not "
            f"know{attacks} (--all takes them too)"
        )
    a_day = judgement.a_day(judgement.false_alarms)
    if a_day is not None:
        print(f"{judgement.false_alarms:,} log-ins are flagged, {a_day:,.1f} a day")
    several = len(judgement.verdicts) > len(judgement.by_model)
    judge_head = f"{'by':24}" if several else ""
    print(
        f"{'against':{_WIDTH}}{judge_head}{'AUC':>8}{'95 %':>15}{'AP':>8}{'95 %':>15}"
        f"{'precision':>11}{'recall':>9}{'F1':>8}{'FPR':>8}"
    )
    for verdict in judgement.verdicts:
        print(_row(verdict, several))
    if several:
        print("A baseline's threshold flags no more of the log-ins than the model's.")
    if sweep:
        for verdict in judgement.by_model:
            _print_sweep(judgement, verdict)
    for promise in judgement.promises:
        print(
            f"{promise.below:.3%} of {promise.log_ins:,} log-ins of {promise.entities} entities score below "
            f"{promise.score:.2f}: {promise.rate:.2%} were promised"
        )
    if any(promise.broken for promise in judgement.promises):
        print(
            "Warning: more than twice or less than half as many log-ins as promised are below a threshold. Log-ins "
            "have changed since the model was trained, or these are of another kind: train anew"
        )
    for note in judgement.notes:
        print(note)


def _row(verdict: Verdict, several: bool) -> str:
    d, areas = verdict.detection, verdict.areas
    judge_name = f"{verdict.judge:24}" if several else ""
    auc, precision = verdict.intervals or (None, None)
    return (
        f"{verdict.attacks:{_WIDTH}}{judge_name}{areas.roc_auc:8.4f}{_interval(auc):>15}"
        f"{areas.average_precision:8.4f}{_interval(precision):>15}"
        f"{_share_text(d.precision):>11}{d.recall:9.4f}{d.f1:8.4f}{d.false_positive_rate:8.4f}"
    )


def _share_text(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.4f}"


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}"


def _print_sweep(judgement: Judgement, verdict: Verdict) -> None:
    rows = judgement.sweep(verdict)
    places = sorted({round(number * (len(rows) - 1) / (_SHOWN - 1)) for number in range(_SHOWN)})
    print(f"\n{verdict.attacks}, by threshold")
    print(f"{'below':>10}{'false alarms':>14}{'a day':>10}{'precision':>11}{'recall':>9}{'F1':>8}{'FPR':>8}")
    for row in (rows[place] for place in places):
        a_day = row["false_alarms_a_day"]
        print(
            f"{row['threshold']:10.2f}{row['false_alarms']:14,}{'-' if a_day is None else f'{a_day:,.1f}':>10}"
            f"{_share_text(row['precision']):>11}{row['recall']:9.4f}{row['f1']:8.4f}{row['false_positive_rate']:8.4f}"
        )
    print()


def _entities(count: int) -> str:
    return "1 entity" if count == 1 else f"{count:,} entities"


def _positive(text: str) -> float:
    """The type of a number above 0."""
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _share(text: str) -> float:
    """The type of a share of all log-ins."""
    number = _finite(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return number


def _finite(text: str) -> float:
    """The type of a number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number
