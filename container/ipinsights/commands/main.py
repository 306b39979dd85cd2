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
    tune,
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
        description="Learns which (entity, IP address) pairs are normal, and lists the log-ins that are not. The "
        "commands `train` and `serve`, without `ipinsights`, are SageMaker's: they work in /opt/ml.",
        epilog="A first walk:\n"
        "  ipinsights simulate --users 1000 --out traffic --log\n"
        '  ipinsights prepare traffic/access.log --resource "GET /login_success" --status 200 --out log-ins\n'
        "  ipinsights train log-ins/train --validation log-ins/validation --model model\n"
        "  ipinsights alerts log-ins/latest --model model --budget 20\n"
        "  ipinsights report log-ins/latest --model model --train log-ins/train --out report.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (simulate, prepare, train, tune, alerts, explain, report, score, evaluate, embed, forget):
        command.add(commands)
    return parser, commands
