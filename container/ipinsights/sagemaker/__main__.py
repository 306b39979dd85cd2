"""The image's entry point (``IMAGE train``, ``IMAGE serve``, ``IMAGE ipinsights ...``), and console scripts.

Without an argument it trains where a training job lies, as version 3 of the SageMaker SDK has it in local mode.

The scripts are what a person calls. They print the same lines as the image, but for the built-in's first one, which
says that a container's entry point was called.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from ipinsights.machine import limit_threads, share_memory_pools
from ipinsights.sagemaker import stopping
from ipinsights.sagemaker.paths import Paths

_TRAIN = (
    "Run the training job that lies in /opt/ml: hyperparameters and channels in /opt/ml/input, the model in "
    "/opt/ml/model. If it fails, /opt/ml/output/failure says why. It has no options, since the platform gives none. "
    "The environment variable SAGEMAKER_BASE_DIR names another folder than /opt/ml."
)
_SERVE = (
    "Serve the model in /opt/ml/model on port 8080: GET /ping and POST /invocations. It has no options, since the "
    "platform gives none. Environment variables set it up: SAGEMAKER_BIND_TO_PORT names another port, "
    "IPINSIGHTS_BIND_ADDRESS one address to listen on, SAGEMAKER_BASE_DIR another folder than /opt/ml, and "
    "docs/serving.md lists the others."
)


def train(arguments: Sequence[str] | None = None) -> None:
    """Run a training job. With ``--help``, or arguments, of which it has none, it starts nothing."""
    argparse.ArgumentParser(prog="train", description=_TRAIN).parse_args(arguments)
    stopping.watch()
    limit_threads()
    from ipinsights.sagemaker import job  # imports much, which takes a second

    try:
        job.main()
    finally:
        stopping.ignore()


def serve(arguments: Sequence[str] | None = None) -> None:
    """Serve the model. With ``--help``, or arguments, of which it has none, it starts nothing."""
    argparse.ArgumentParser(prog="serve", description=_SERVE).parse_args(arguments)
    stopping.exit_at_once()  # until gunicorn stops in its own way
    limit_threads()
    share_memory_pools()
    from ipinsights.sagemaker import server

    server.main()


def main() -> None:
    """Run the role that the first argument names, or the command ``ipinsights`` with all others."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["ipinsights"]:
        from ipinsights.sagemaker import commands

        commands.main(arguments[1:])
        return
    if not arguments and os.access(Paths.from_environment().hyperparameters, os.F_OK):
        arguments = [train.__name__]
    parser = argparse.ArgumentParser(
        prog="docker run IMAGE",
        usage="docker run IMAGE {train|serve}, or docker run IMAGE ipinsights COMMAND",
        description="IP Insights: learns which (entity, IP address) pairs are normal, and scores new ones.",
    )
    roles = parser.add_subparsers(prog="docker run IMAGE", required=True, metavar="{train|serve}", dest="role")
    for role, text in ((train, _TRAIN), (serve, _SERVE)):
        roles.add_parser(role.__name__, help=text.partition(": ")[0], description=text).set_defaults(run=role)
    roles.add_parser("ipinsights", help="Run a command for the shell: prepare, train, alerts, report and others.")
    options = parser.parse_args(arguments)
    if options.run is train:
        stopping.watch()  # before the line, since whoever has read it may stop the job
        print("Docker entrypoint called with argument(s): train", flush=True)  # before anything that takes time
    options.run([])


if __name__ == "__main__":
    main()
