"""What options of several commands have in common."""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

from ipinsights.data.addresses import Family
from ipinsights.data.events import find_files
from ipinsights.data.malformed import Malformed
from ipinsights.data.records import Records, line_blocks, salvage_csv
from ipinsights.data.sources import Stream, stream
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.model.scoring import UNTRAINED_MODEL, Scorer, require_trained

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is added, whose parser has a default ``run``: what is to be done with its options."""

STANDARD_INPUT = Path("-")

CSV = (
    "The input is CSV without a header. Each line is a log-in: the entity (any string) and an IPv4 address. A model "
    "trained with ip_version=6 takes IPv6 and IPv4 addresses."
)
"""What a command reads, in its description."""
LOG_INS = f"{CSV} A third column may be the time, such as 2026-01-02T03:04:05Z."


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the option that names a model."""
    command.add_argument(
        "--model", type=Path, required=True, help="a model: its folder, or model.tar.gz as a training job leaves it"
    )


def open_scorer(path: Path) -> Scorer:
    """A scorer of a model, which may be untrained if the environment says so. Raises UserError."""
    return Scorer(open_model(path))


def open_model(path: Path) -> Model:
    """The model in a folder or an archive, which may be untrained if the environment says so. Raises UserError."""
    return open_described(path)[0]


def open_described(path: Path) -> tuple[Model, dict[str, Any]]:
    """`open_model` with the model's manifest."""
    model, manifest = artifact.load_described(path)
    if os.environ.get(UNTRAINED_MODEL, "").lower() != "accept":
        require_trained(model, path)
    return model, manifest


def add_log_ins(command: argparse.ArgumentParser) -> None:
    """Add the arguments that `log_ins` reads."""
    command.add_argument("log_ins", type=Path, nargs="+", help="files and folders of log-ins; - is standard input")
    command.add_argument(
        "--malformed",
        choices=("fail", "skip"),
        default="fail",
        help="what to do about malformed rows: fail at the first (the default), or skip and count them",
    )


def log_ins(options: argparse.Namespace, family: Family, joined: bool = False) -> Iterator[Records]:
    """The log-ins of all files, block by block. Raises UserError if a file cannot be read, or has a malformed row.

    In ``joined`` files, answers stand behind the log-ins and are passed over. Malformed rows that may be skipped are
    told on standard error, at the end.
    """
    skipped = Malformed()
    for text in texts(options.log_ins):
        for block in line_blocks(text, text.name):
            if joined:
                block = dataclasses.replace(block, text=_ANSWERS.sub(rb"\1", block.text))
            if options.malformed == "fail":
                yield block.parse(family)
            else:
                salvaged = salvage_csv(block.text, family, block.first_line)
                skipped.add(block.name, salvaged.faults)
                yield salvaged.records
    if skipped.count:
        print(f"Skipped {skipped.count:,} malformed rows: {skipped.told}: {skipped}", file=sys.stderr)


def texts(paths: Sequence[Path]) -> Iterator[Stream]:
    """The text of each file, open for as long as the caller reads it."""
    for path in paths:
        if path == STANDARD_INPUT:
            with Stream(FileIO(0, closefd=False), "standard input") as text:
                yield text
        for file in [] if path == STANDARD_INPUT else find_files(path) if path.is_dir() else [path]:
            with stream(file) as text:
                yield text


_ANSWERS = re.compile(rb"""^((?:"(?:[^"\n]|"")*"|[^",\n]*),[^,\n]*(?:,\d{4}-\d\d-\d\dT[^,\n]*)?+),.*$""", re.MULTILINE)
"""A line with a log-in, which is the group, and answers behind it."""


def positive(text: str) -> int:
    """The type of an option that is a number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """The type of an option that decides every random draw."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
