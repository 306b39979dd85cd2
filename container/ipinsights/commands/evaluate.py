"""``ipinsights evaluate``: how well a model tells real log-ins from fabricated ones."""

import argparse
from pathlib import Path

from ipinsights.commands.options import CSV, Commands, open_scorer, seed
from ipinsights.data.events import find_files
from ipinsights.data.records import Records, parse_stream
from ipinsights.data.sources import stream
from ipinsights.errors import UserError
from ipinsights.evaluation import comparison


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "evaluate",
        help="measure how well a model tells real log-ins from fabricated ones",
        description="Compare real log-ins with as many fabricated ones. The command prints the ROC AUC and what a "
        f"threshold catches, and whether as few log-ins score low as the model's calibration promised. {CSV}",
    )
    command.add_argument("--model", type=Path, required=True, help="the folder of a model")
    command.add_argument(
        "data", type=Path, help="real log-ins that training did not see: a CSV file or a folder of CSV files"
    )
    command.add_argument("--threshold", type=float, default=0.0, help="flag scores below this (default 0)")
    command.add_argument("--seed", type=seed, default=0, help="the seed of the fabricated addresses (default 0)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table."""
    scorer = open_scorer(options.model)
    files = find_files(options.data) if options.data.is_dir() else [options.data]
    parts = []
    for path in files:
        with stream(path) as text:
            parts += [pairs for _, pairs in parse_stream(text, text.name, scorer.family)]
    log_ins = Records.concat(parts)
    if not len(log_ins):
        raise UserError(f"{options.data} holds no log-ins")
    print(f"{len(log_ins):,} log-ins, flagged below a score of {options.threshold:g}")
    print(f"{'against':28}{'AUC':>8}{'precision':>11}{'recall':>9}{'F1':>8}{'FPR':>8}")
    compared = comparison.evaluate(scorer, log_ins, options.threshold, options.seed)
    for c in compared:
        d = c.detection
        print(f"{c.negatives:28}{c.auc:8.4f}{d.precision:11.4f}{d.recall:9.4f}{d.f1:8.4f}{d.false_positive_rate:8.4f}")
    if comparison.OTHERS not in [c.negatives for c in compared]:
        several = len(log_ins.entities.unique()) > 1
        reason = "each entity uses every address" if several else "they are of one entity"
        print(f"{comparison.OTHERS}: not compared, since there are none in these log-ins: {reason}")
    promises = comparison.promises(scorer, log_ins)
    for p in promises:
        print(
            f"{p.below:.3%} of {p.log_ins:,} log-ins of {p.entities} entities score below {p.score:.2f}: "
            f"{p.rate:.2%} were promised"
        )
    if any(p.broken for p in promises):
        print(
            "Warning: more than twice or less than half as many log-ins as promised are below a threshold. Log-ins "
            "have changed since the model was trained, or these are of another kind: train anew"
        )
