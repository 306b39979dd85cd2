"""``ipinsights score``: append a score to each line of a CSV file."""

import argparse
import sys
from io import FileIO
from pathlib import Path

from ipinsights.commands.options import CSV, Commands, open_scorer
from ipinsights.data.records import append_scores, hash_stream
from ipinsights.data.sources import Stream, stream


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "score",
        help="append a score to each line of a CSV file",
        description="Write each line of a CSV file again with its score appended. A higher score is more normal. Below "
        f"0 the model takes the pair for fabricated. The command needs constant memory. {CSV} The output is CSV, "
        "too: to sort it, use a program that reads CSV, since a quoted entity may hold commas.",
    )
    command.add_argument(
        "--model",
        type=Path,
        required=True,
        help="the folder of a model: the output of `train`, or model.tar.gz unpacked",
    )
    command.add_argument(
        "file",
        nargs="?",
        default="-",
        help="the file to score. Without it, or with -, the command reads standard input",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Score a file as it is read."""
    scorer = open_scorer(options.model)
    standard_input = options.file == "-"
    with Stream(FileIO(0, closefd=False), "standard input") if standard_input else stream(Path(options.file)) as text:
        for block, pairs in hash_stream(text, text.name, scorer.family):
            sys.stdout.buffer.write(append_scores(block, scorer.score_hashed(*pairs)))
    sys.stdout.buffer.flush()
