"""The ``ipinsights`` command. The layer above adds commands of its own to it."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ipinsights.commands import (
    alerts,
    embed,
    evaluate,
    explain,
    forget,
    prepare,
    report,
    score,
    simulate,
    train,
)
from ipinsights.commands.options import Commands
from ipinsights.errors import UserError, one_line, refusal
from ipinsights.version import version

_INTERRUPTED = 130
"""The exit code of a program that Ctrl-C has ended, as shells have it."""


def main(arguments: Sequence[str] | None = None, extend: Callable[[Commands], None] | None = None) -> None:
    """Run one command, of these or of those that ``extend`` adds.

    A fault of the input, a refusal of the system or Ctrl-C ends it with one sentence.
    """
    parser, commands = _parser()
    if extend:
        extend(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"ipinsights: {one_line(str(error))}")
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("ipinsights: interrupted, so what it has written is incomplete\n")
        sys.exit(_INTERRUPTED)
    except OSError as error:
        if error.filename:
            sys.exit(f"ipinsights: {refusal('use', error.filename, error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try to write the rest
        sys.exit(f"ipinsights: {refusal('write to', 'standard output', error)}")  # all else is named by who uses it


def _parser() -> tuple[argparse.ArgumentParser, Commands]:
    parser = argparse.ArgumentParser(
        prog="ipinsights",
        description="Learns which (entity, IP address) pairs are normal, and scores new ones. `train` trains a model "
        "and `serve` serves it. This command is for the shell.",
        epilog="A first walk:\n"
        "  ipinsights simulate --users 1000 --out traffic\n"
        "  mkdir -p ml/input/config ml/input/data && cp -r traffic/train traffic/validation ml/input/data\n"
        '  echo \'{"num_entity_vectors": "2000", "vector_dim": "64", "learning_rate": "0.01",\n'
        '    "mini_batch_size": "1000"}\' > ml/input/config/hyperparameters.json\n'
        "  SAGEMAKER_BASE_DIR=ml train\n"
        "  ipinsights score --model ml/model traffic/test/attacks.csv > scored.csv\n"
        "  python -c '\n"
        "import pandas\n"
        'scored = pandas.read_csv("scored.csv", names=["entity", "address", "score"], dtype={"entity": str},\n'
        "                         keep_default_na=False)\n"
        'print(scored.nsmallest(10, "score"))\'\n'
        "  ipinsights evaluate --model ml/model traffic/test/normal.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (simulate, prepare, train, alerts, explain, report, score, evaluate, embed, forget):
        command.add(commands)
    return parser, commands
