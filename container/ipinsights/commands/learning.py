"""What the commands that train have in common: options, log-ins in files, and settings that follow from the data."""

import argparse
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tqdm import tqdm

from ipinsights.data import events
from ipinsights.data.addresses import FAMILIES, IPV6
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.formats import CSV, JSON_LINES, PARQUET
from ipinsights.data.malformed import Kind, spared
from ipinsights.errors import UserError, refusals
from ipinsights.hyperparameters import VECTOR_DIM, Hyperparameters, completed, declarations, rows_for
from ipinsights.model.model import Model

if TYPE_CHECKING:
    from ipinsights.tracking.runs import Experiment

INPUT = (
    "The input is what `ipinsights prepare` writes: CSV without a header, a log-in a line, the entity and the address "
    "(a time may follow). It may also be JSON Lines (.jsonl) or Parquet (.parquet), as the container reads them."
)
"""What these commands read, in their descriptions."""

_BY_SUFFIX = {".parquet": PARQUET, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES}
"""What is not CSV."""


def add_networks(command: argparse.ArgumentParser) -> None:
    """Add the tables that the model may learn providers and countries from."""
    command.add_argument(
        "--networks",
        type=Path,
        nargs="+",
        default=[],
        help="tables of address ranges with providers and countries, in iptoasn's format",
    )


def add_hyperparameters(command: argparse.ArgumentParser, what: str) -> None:
    """Add an option for each hyperparameter, as a group with this description."""
    group = command.add_argument_group("hyperparameters", what)
    for declaration in declarations():
        follows = {
            "num_entity_vectors": "twice the number of entities",
            "vector_dim": str(VECTOR_DIM),
            "ip_version": "6 if the log-ins have IPv6 addresses, else 4",
        }.get(declaration.name, declaration.default)
        group.add_argument(
            f"--{declaration.name.replace('_', '-')}",
            metavar="VALUE",
            help=f"{declaration.help} (default: {follows})".replace("%", "%%"),
        )


def given(options: argparse.Namespace) -> dict[str, str]:
    """The hyperparameters that are set."""
    return {d.name: str(value) for d in declarations() if (value := getattr(options, d.name)) is not None}


def files_in(paths: Sequence[Path]) -> list[Path]:
    """The files that are named and those in folders, in order. Raises UserError if one does not exist."""
    found: list[Path] = []
    for path in paths:
        with refusals("read", path):
            path.stat()
        inside = events.find_files(path) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} has no files with log-ins")
        found += inside
    return found


def _content_type(files: Sequence[Path]) -> str:
    """Of all files together. Raises UserError if they are of several kinds."""
    kinds = {_BY_SUFFIX.get(file.suffix.lower(), CSV): file for file in reversed(files)}
    if len(kinds) > 1:
        names = " and ".join(f"{file} ({kind})" for kind, file in kinds.items())
        raise UserError(f"the files are of several formats, such as {names}: convert them to one")
    return next(iter(kinds))


def hyperparameters(asked_for: dict[str, str], files: Sequence[Path], earlier: Model | None) -> Hyperparameters:
    """What is given, and of the rest what follows from the earlier model or from the data. Raises UserError."""
    values = completed(asked_for, earlier.fixed if earlier else {})
    asked = Hyperparameters.parse({"num_entity_vectors": "1", **values})  # so that a mistake is told before reading
    if "num_entity_vectors" in values and "ip_version" in values:
        return asked
    with _bar(files, "looking at the log-ins") as bar:
        entities, kinds = events.survey(files, FAMILIES[asked.ip_version], _content_type(files), bar.update)
        if kinds[Kind.IPV6] and "ip_version" not in values:
            print(f"{kinds[Kind.IPV6]:,} addresses are IPv6, so the model is for both versions (ip_version=6)")
            values["ip_version"] = str(IPV6.version)
            bar.reset()
            entities, _ = events.survey(files, IPV6, _content_type(files), bar.update)
    values.setdefault("num_entity_vectors", str(rows_for(entities)))
    return Hyperparameters.parse(values)


def read(files: Sequence[Path], index: EntityIndex, hp: Hyperparameters, name: str) -> Events:
    """The log-ins of some files. Raises UserError if there are none, or malformed ones that may not be skipped."""
    with _bar(files, f"reading {name}") as bar:
        found = events.read(
            files,
            index,
            FAMILIES[hp.ip_version],
            claim=name == "train",
            channel=name,
            content_type=_content_type(files),
            tolerated=hp.tolerated,
            spared=spared(hp.malformed_rows),
            progress=bar.update,
        )
    if found.malformed.count:
        print(f"Warning: skipped {found.malformed.count:,} malformed rows: {found.malformed.told}: {found.malformed}")
    return found


def _bar(files: Sequence[Path], what: str) -> "tqdm[None]":
    """A bar over the bytes of some files, on a terminal only."""
    return tqdm(total=sum(file.stat().st_size for file in files), desc=what, unit="B", unit_scale=True, disable=None)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within it, SIGINT and SIGTERM only make the question whether to stop true; a second SIGINT interrupts."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def experiment(uri: str | None, artifacts: Path | None = None) -> "Experiment":
    """The MLflow experiment that trainings belong to. Nothing is sent anywhere but to the tracking URI.

    Raises UserError if MLflow is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
    from ipinsights.tracking.runs import Experiment

    return Experiment(uri, "ipinsights", artifacts)
