"""What options of several commands have in common."""

import argparse
import os
from pathlib import Path
from typing import Any, TypeAlias

from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.model.scoring import UNTRAINED_MODEL, Scorer, require_trained

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is added, whose parser has a default ``run``: what is to be done with its options."""

CSV = (
    "The input is CSV without a header. Each line is a log-in: the entity (any string) and an IPv4 address. A model "
    "trained with ip_version=6 takes IPv6 and IPv4 addresses."
)
"""What a command reads, in its description."""


def open_scorer(folder: Path) -> Scorer:
    """A scorer of the model in a folder, which may be untrained if the environment says so. Raises UserError."""
    return Scorer.open(folder, untrained=_accepts_untrained())


def open_model(folder: Path) -> tuple[Model, dict[str, Any]]:
    """The model in a folder, and its manifest; it may be untrained if the environment says so. Raises UserError."""
    model, manifest = artifact.read(folder)
    if not _accepts_untrained():
        require_trained(model, folder)
    return model, manifest


def _accepts_untrained() -> bool:
    return os.environ.get(UNTRAINED_MODEL, "").lower() == "accept"


def seed(text: str) -> int:
    """The type of an option that decides every random draw."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
