"""What the commands that judge a model have in common: what they are given, and the judgement."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from ipinsights.commands.options import add_model, open_described
from ipinsights.data.networks import Networks
from ipinsights.evaluation import log_ins
from ipinsights.evaluation.judgement import SCORE_0, Judgement, Rule, judge
from ipinsights.evaluation.log_ins import LogIns
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer


class Judged(NamedTuple):
    """A model with the log-ins that it was judged by."""

    scorer: Scorer
    model: Model
    manifest: dict[str, Any]
    log_ins: LogIns
    judgement: Judgement


def add_inputs(command: argparse.ArgumentParser) -> None:
    """Add the model, real log-ins, and what they may be compared with."""
    add_model(command)
    command.add_argument(
        "data", type=Path, help="real log-ins that training did not see: a CSV file or a folder of CSV files"
    )
    command.add_argument(
        "--train",
        type=Path,
        metavar="FOLDER",
        help="the log-ins that training saw, for the baselines: longest shared prefix and counting",
    )
    command.add_argument("--attacks", type=Path, metavar="FILE", help="log-ins that were attacks, as CSV")
    command.add_argument(
        "--networks",
        type=Path,
        metavar="FILE",
        help="a table of networks in iptoasn's format, for addresses of the same provider. The default is what the "
        "model knows of the table it was trained with",
    )
    command.add_argument("--all", action="store_true", help="also take entities that the model does not know")


def judged(options: argparse.Namespace, rule: Rule = SCORE_0, resamples: int = 200) -> Judged:
    """Read what was given, and judge the model. Raises UserError."""
    model, manifest = open_described(options.model)
    scorer, family = Scorer(model), model.family
    read = log_ins.read(options.data, family)
    judgement = judge(
        scorer,
        read,
        everyone=options.all,
        networks=Networks.read([options.networks], family) if options.networks else model.vocabulary.networks,
        attacks=log_ins.read(options.attacks, family).pairs if options.attacks else None,
        train=log_ins.read_training(options.train, family) if options.train else None,
        rule=rule,
        resamples=resamples,
        seed=options.seed,
    )
    return Judged(scorer, model, manifest, read, judgement)
