"""``ipinsights score``: a score behind each line of a CSV file."""

import argparse
import sys
from io import FileIO
from pathlib import Path

from ipinsights.commands.options import CSV, Commands
from ipinsights.data.records import append_scores, hash_stream
from ipinsights.data.sources import Stream, stream
from ipinsights.model.scoring import Scorer


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "score",
        help="append a score to each line of a CSV file",
        description=f"{CSV} Every line is written again with its score behind it: higher is more normal; below 0 "
        "the model holds the pair for made up. Reads and writes as it goes, in constant memory.",
    )
    command.add_argument(
        "--model", type=Path, required=True, help="the folder of a model: what `train` wrote, or model.tar.gz unpacked"
    )
    command.add_argument("file", nargs="?", default="-", help="the file to score; - or nothing: standard input")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Score a file as it is read."""
    scorer = Scorer.open(options.model)
    standard_input = options.file == "-"
    with Stream(FileIO(0, closefd=False), "standard input") if standard_input else stream(Path(options.file)) as text:
        for block, pairs in hash_stream(text, text.name, scorer.family):
            sys.stdout.buffer.write(append_scores(block, scorer.score_hashed(*pairs)))
    sys.stdout.buffer.flush()
