"""What options of several commands have in common."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is added, whose parser has a default ``run``: what is to be done with its options."""

CSV = (
    "The input is CSV without a header. Each line is a log-in: the entity (any string) and an IPv4 address. A model "
    "trained with ip_version=6 takes IPv6 and IPv4 addresses."
)
"""What a command reads, in its description."""


def seed(text: str) -> int:
    """The type of an option that decides every random draw."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
