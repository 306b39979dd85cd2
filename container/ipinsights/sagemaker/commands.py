"""The console script ``ipinsights``: the algorithm's commands, and what is SageMaker's.

That is the command ``algorithm-spec``, and the code that `tune` prints.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ipinsights.commands.main import main as run
from ipinsights.commands.options import Commands
from ipinsights.errors import UserError
from ipinsights.machine import limit_threads
from ipinsights.sagemaker import specification, tuner


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A fault of the input ends it with one sentence and exit code 1."""
    limit_threads()
    run(arguments, extend=_add)


def _add(commands: Commands) -> None:
    command = commands.add_parser(
        "algorithm-spec",
        help="print or send the request that makes the image a SageMaker Algorithm resource",
        description="Print the CreateAlgorithm request as JSON: hyperparameters with their ranges, channels, metrics, "
        "objectives, instance types and formats. `aws sagemaker create-algorithm --cli-input-json` accepts it. With "
        "--register the command sends it.",
    )
    command.add_argument("--image", required=True, help="the image's URI in ECR, in the region of the resource")
    command.add_argument(
        "--name", default=specification.DEFAULT_NAME, help=f"the resource's name (default {specification.DEFAULT_NAME})"
    )
    command.add_argument(
        "--register",
        action="store_true",
        help="create the resource with the credentials of the AWS command line, and print its ARN",
    )
    command.add_argument("--region", help="the region of the resource (default: the region of the AWS command line)")
    command.set_defaults(run=_algorithm_spec)
    commands.choices["tune"].set_defaults(on_sagemaker=tuner.code)


def _algorithm_spec(options: argparse.Namespace) -> None:
    request = specification.request(options.image, options.name)
    print(_register(request, options.region) if options.register else json.dumps(request, indent=2))


def _register(request: dict[str, Any], region: str | None) -> str:
    """Create the resource and return its ARN. Raises UserError."""
    import boto3  # is slow to import, and no other command needs it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = boto3.client("sagemaker", region_name=region)
        return str(client.create_algorithm(**request)["AlgorithmArn"])
    except (BotoCoreError, ClientError) as error:
        reason = " ".join(str(error).split())  # some have several lines
        raise UserError(f"cannot register algorithm {request['AlgorithmName']!r}: {reason}") from error
