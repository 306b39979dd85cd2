"""``ipinsights report``: one HTML page about log-ins and the model that scores them."""

import argparse
from pathlib import Path

from ipinsights.alerts.listing import BUDGET, find
from ipinsights.commands.judging import add_inputs, judged
from ipinsights.commands.options import LOG_INS, Commands, positive, seed
from ipinsights.errors import refusals


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "report",
        help="write a page about log-ins and the model that scores them",
        description="Write one HTML file: the list of log-ins to look at, how many look unusual, a threshold to move, "
        "the scores of real log-ins and of fabricated ones, curves and areas beside baselines, whether the model keeps "
        "its promises, what it learnt from, and a map of embeddings. The file needs no network and can be read on a "
        "phone, in print and aloud. "
        f"{LOG_INS}",
    )
    add_inputs(command)
    command.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the file to write")
    command.add_argument(
        "--budget",
        type=positive,
        default=BUDGET,
        metavar="N",
        help=f"so many log-ins a day at most on the list of those to look at (default {BUDGET})",
    )
    command.add_argument("--seed", type=seed, default=0, help="the seed of everything that is drawn (default 0)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Judge the model by the log-ins, and write the page."""
    from ipinsights.reporting import page  # slow to import, and no command that scores needs it

    found = judged(options)
    listed = page.rows_of(find(found.model, [found.log_ins.pairs], budget=options.budget))
    with refusals("write", options.out):
        page.write(options.out, page.Contents(*found, alerts=listed))
    print(f"{options.out}: {len(found.log_ins):,} log-ins, {options.out.stat().st_size / 1e6:.1f} MB")
