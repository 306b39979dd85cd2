"""What options of several commands have in common."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is added, whose parser has a default ``run``: what is to be done with its options."""

CSV = (
    "Headerless CSV, one log-in a line: the entity (any string) and an IPv4 address, or, for a model trained with "
    "ip_version=6, an IPv6 or IPv4 address."
)
"""What a command reads, in its description."""


def seed(text: str) -> int:
    """The type of an option that decides every random draw."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
