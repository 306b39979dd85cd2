"""The ``ipinsights`` command: simulate, score and evaluate from a shell. Each command calls one part of the package.

The layer above adds commands of its own to it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import TypeAlias

import numpy as np

import ipinsights
from ipinsights import addresses, evaluation, simulation
from ipinsights.errors import UserError
from ipinsights.events import find_files
from ipinsights.records import Records, append_scores, hash_stream, parse_stream
from ipinsights.scoring import Scorer
from ipinsights.sources import Stream, stream

_CSV = (
    "Headerless CSV, one log-in a line: the entity (any string) and an IPv4 address, or, for a model trained with "
    "ip_version=6, an IPv6 or IPv4 address."
)


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is added, whose parser has a default ``run``: what is to be done with its options."""


def main(arguments: Sequence[str] | None = None, extend: Callable[[Commands], None] | None = None) -> None:
    """Run one command, of these or of those that ``extend`` adds.

    A fault of the input ends it with one sentence and exit code 1.
    """
    parser, commands = _parser()
    if extend:
        extend(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        sys.exit(f"ipinsights: {error}")
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(1)


def _parser() -> tuple[argparse.ArgumentParser, Commands]:
    parser = argparse.ArgumentParser(
        prog="ipinsights",
        description="Which (entity, IP address) pairs are normal? Train with `train`, serve with `serve`; this is for "
        "the shell.",
        epilog="A first walk:\n"
        "  ipinsights simulate --users 1000 --out traffic\n"
        "  mkdir -p ml/input/config ml/input/data && cp -r traffic/train traffic/validation ml/input/data\n"
        '  echo \'{"num_entity_vectors": "2000", "vector_dim": "64", "learning_rate": "0.01",\n'
        '    "mini_batch_size": "1000"}\' > ml/input/config/hyperparameters.json\n'
        "  SAGEMAKER_BASE_DIR=ml train\n"
        "  ipinsights score --model ml/model traffic/test/attacks.csv | sort -t, -k3 -g | head\n"
        "  ipinsights evaluate --model ml/model traffic/test/normal.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=ipinsights.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "simulate",
        help="make log-ins like the AWS tutorial's",
        description="Make ten days of log-ins like the AWS tutorial's: users with a home and a work network, who "
        "travel now and then. Writes OUT/train/log-ins.csv (the first seven days), OUT/test/normal.csv (later log-ins "
        "of known users), OUT/test/attacks.csv (as many, from random networks) and OUT/validation/log-ins.csv (other "
        "later log-ins).",
    )
    command.add_argument("--out", type=Path, required=True, help="the folder to write to")
    command.add_argument(
        "--users", type=int, default=10_000, help="how many users; 10000, the default, make 3 million log-ins"
    )
    command.add_argument(
        "--ranges",
        type=Path,
        help="a table of address ranges in iptoasn's format (first TAB last TAB ..., as integers; may be gzip); "
        "without it an allocation of the address space is made up",
    )
    command.add_argument(
        "--test-size", type=int, default=100_000, help="log-ins to test with, and attacks (default 100000)"
    )
    command.add_argument("--seed", type=_seed, default=0, help="decides every random draw (default 0)")
    command.set_defaults(run=_simulate)

    command = commands.add_parser(
        "score",
        help="append a score to each line of a CSV file",
        description=f"{_CSV} Every line is written again with its score behind it: higher is more normal; below 0 "
        "the model holds the pair for made up. Reads and writes as it goes, in constant memory.",
    )
    command.add_argument(
        "--model", type=Path, required=True, help="the folder of a model: what `train` wrote, or model.tar.gz unpacked"
    )
    command.add_argument("file", nargs="?", default="-", help="the file to score; - or nothing: standard input")
    command.set_defaults(run=_score)

    command = commands.add_parser(
        "evaluate",
        help="measure how well a model tells real log-ins from made-up ones",
        description=f"Real log-ins against as many made-up ones: ROC AUC, and what a threshold catches. {_CSV}",
    )
    command.add_argument("--model", type=Path, required=True, help="the folder of a model")
    command.add_argument(
        "data", type=Path, help="real log-ins that training did not see: a CSV file or a folder of them"
    )
    command.add_argument("--threshold", type=float, default=0.0, help="flag scores below this (default 0)")
    command.add_argument("--seed", type=_seed, default=0, help="decides the made-up addresses (default 0)")
    command.set_defaults(run=_evaluate)
    return parser, commands


def _simulate(options: argparse.Namespace) -> None:
    if options.users < 1 or options.test_size < 1:
        raise UserError("--users and --test-size must be at least 1")
    rng = np.random.default_rng(options.seed)
    ranges = simulation.Ranges.read(options.ranges) if options.ranges else simulation.Ranges.synthetic(rng)
    traffic = simulation.simulate(options.users, ranges, rng)
    train, case = simulation.split(traffic, ranges, options.test_size, rng)
    parts = {
        "train/log-ins": train,
        "validation/log-ins": case.validation,
        "test/normal": case.normal,
        "test/attacks": case.attacks,
    }
    for name, part in parts.items():
        path = options.out / f"{name}.csv"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {error.strerror}") from error
        lines = zip(part.names(), addresses.render(part.address), strict=True)
        path.write_text("".join(f"{user},{address}\n" for user, address in lines))
        print(f"{path}: {len(part.user):,} log-ins")


def _score(options: argparse.Namespace) -> None:
    scorer = Scorer.open(options.model)
    standard_input = options.file == "-"
    with Stream(FileIO(0, closefd=False), "standard input") if standard_input else stream(Path(options.file)) as text:
        for block, pairs in hash_stream(text, text.name, scorer.family):
            sys.stdout.buffer.write(append_scores(block, scorer.score_hashed(*pairs)))
    sys.stdout.buffer.flush()


def _evaluate(options: argparse.Namespace) -> None:
    scorer = Scorer.open(options.model)
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
    for c in evaluation.evaluate(scorer, log_ins, options.threshold, options.seed):
        d = c.detection
        print(f"{c.negatives:28}{c.auc:8.4f}{d.precision:11.4f}{d.recall:9.4f}{d.f1:8.4f}{d.false_positive_rate:8.4f}")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
