"""What options of several commands have in common."""

import argparse
import os
from pathlib import Path
from typing import TypeAlias

from ipinsights.model.scoring import UNTRAINED_MODEL, Scorer

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is added, whose parser has a default ``run``: what is to be done with its options."""

CSV = (
    "The input is CSV without a header. Each line is a log-in: the entity (any string) and an IPv4 address. A model "
    "trained with ip_version=6 takes IPv6 and IPv4 addresses."
)
"""What a command reads, in its description."""


def open_scorer(folder: Path) -> Scorer:
    """A scorer of the model in a folder, which may be untrained if the environment says so. Raises UserError."""
    return Scorer.open(folder, untrained=os.environ.get(UNTRAINED_MODEL, "").lower() == "accept")


def seed(text: str) -> int:
    """The type of an option that decides every random draw."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
