"""``ipinsights train``: train a model of log-ins in files, without SageMaker's folders.

It is the training of the container. What differs is what a person at a shell expects: what is not set follows from the
data, the lines are for reading, and no model is replaced by mistake.
"""

import argparse
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from ipinsights.commands.options import Commands
from ipinsights.data import events
from ipinsights.data.addresses import FAMILIES, IPV6
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.formats import CSV, JSON_LINES, PARQUET
from ipinsights.data.malformed import ABSENT, Kind
from ipinsights.data.networks import Networks
from ipinsights.errors import UserError, refusals
from ipinsights.hyperparameters import VECTOR_DIM, Hyperparameters, declarations
from ipinsights.model import artifact
from ipinsights.model.calibration import Calibration
from ipinsights.model.model import Model
from ipinsights.training.progress import Ending, EpochSummary, Plan, Record

_BY_SUFFIX = {".parquet": PARQUET, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES}
"""What is not CSV."""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="train a model",
        description="Train a model of log-ins. The input is what `ipinsights prepare` writes: CSV without a header, a "
        "log-in a line, the entity and the address (a time may follow). It may also be JSON Lines (.jsonl) or Parquet "
        "(.parquet), as the container reads them. What you do not set follows from the data. Ctrl-C ends the training "
        "early and saves the model so far.",
    )
    command.add_argument("data", type=Path, nargs="+", help="files and folders of log-ins")
    command.add_argument(
        "--validation", type=Path, nargs="+", default=[], help="later log-ins, to measure and to calibrate the model by"
    )
    command.add_argument("--model", type=Path, required=True, help="the folder for the model")
    command.add_argument("--force", action="store_true", help="replace the model in that folder, if there is one")
    command.add_argument(
        "--from", type=Path, dest="earlier", metavar="MODEL", help="continue from the model in this folder"
    )
    command.add_argument(
        "--networks",
        type=Path,
        nargs="+",
        default=[],
        help="tables of address ranges with providers and countries, in iptoasn's format",
    )
    group = command.add_argument_group("hyperparameters")
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
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Read, train and save, with a line for each."""
    began = time.monotonic()
    _require_free(options.model, options.force)
    earlier = artifact.load(options.earlier) if options.earlier else None
    train, validation = (_files(paths) for paths in (options.data, options.validation))
    given = {d.name: str(value) for d in declarations() if (value := getattr(options, d.name)) is not None}
    hp = _hyperparameters(given, train, earlier)
    hp.require(validated=bool(validation))
    if earlier:
        earlier.require(hp)
        index = earlier.index.copy()
    else:
        index = EntityIndex(hp.num_entity_vectors)
    log_ins = _read(train, index, hp, "train")
    held = _read(validation, index, hp, "validation") if validation else None
    networks = Networks.read(options.networks, FAMILIES[hp.ip_version]) if options.networks else None
    known = f", of which {earlier.index.owned:,} are known from {options.earlier}" if earlier else ""
    print(f"Read {len(log_ins):,} log-ins; the model has a row for each of {index.owned:,} entities{known}")
    if index.sharing:
        print(
            f"Warning: {index.sharing:,} entities found no free row and share the row of another. Train anew, with "
            "num_entity_vectors of twice the number of entities"
        )
    from ipinsights.training.fit import fit  # loads torch, which takes seconds

    lines = _Lines(hp)
    with _stop_requests() as stop:
        model = fit(log_ins, hp, held, lines, networks=networks, earlier=earlier, stop=stop)
    if model.untrained:
        raise UserError("the training was stopped before it learnt anything. No model was written")
    with refusals("write the model to", options.model):
        artifact.save(model, options.model, lines.facts(len(log_ins), time.monotonic() - began))
    size = sum(file.stat().st_size for file in options.model.iterdir())
    print(f"Saved the model to {options.model} ({size / 1e6:,.1f} MB) after {time.monotonic() - began:,.0f} s")


class _Lines(Record):
    """Prints what a person wants to know of a training as it goes."""

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        super().__init__(hyperparameters)
        self._bar: tqdm[None] | None = None

    def training_planned(self, plan: Plan) -> None:
        """What is learnt from, and what in it is doubtful."""
        super().training_planned(plan)
        hp, profile = plan.hyperparameters, plan.profile
        print(
            f"The log-ins are {profile.pairs:,} distinct pairs of {profile.entities:,} entities and "
            f"{profile.addresses:,} addresses; {plan.held_out:,} are kept apart for calibration"
        )
        for doubt in profile.doubts():
            print(f"Warning: {doubt}")
        steps = -(-(profile.events - plan.held_out) // hp.mini_batch_size)
        print(
            f"Training on {plan.device}: {hp.epochs} epochs of {steps:,} steps, vector_dim {hp.vector_dim}, "
            f"learning_rate {hp.learning_rate:.3g}",
            flush=True,
        )
        if plan.slower_because:
            print(f"Warning: training is several times slower than it could be, because {plan.slower_because}")
        self._bar = tqdm(
            total=hp.epochs * (profile.events - plan.held_out), unit=" log-ins", unit_scale=True, disable=None
        )

    def step_done(self, epoch: int, positives: int) -> None:
        """The progress bar."""
        del epoch
        if self._bar is not None:
            self._bar.update(positives)

    def epoch_done(self, summary: EpochSummary) -> None:
        """Its validation, where there is any."""
        parts = [
            f"{value:.4f} {against}"
            for value, against in (
                (summary.discriminator_auc, "against random addresses"),
                (summary.shuffled_auc, "against addresses of others"),
            )
            if value is not None
        ]
        if parts:
            with tqdm.external_write_mode():
                number = f"{summary.epoch + 1:>{len(str(self.hyperparameters.epochs))}}"
                print(f"Epoch {number} of {self.hyperparameters.epochs}: AUC {', '.join(parts)}", flush=True)

    def uncounted(self) -> None:
        """There was no time for what makes the score exact."""
        print("Warning: there was no time to write counting into the model, so its scores are less exact")

    def calibrated(self, calibration: Calibration) -> None:
        """Where the usual thresholds are."""
        known = calibration.known
        told = [
            f"{row.rate:.2%} below {row.score:.2f}"
            for rate in (0.01, 0.001)
            if (row := known.threshold(rate)).score is not None
        ]
        if told:
            print(f"Of the {len(known):,} log-ins that training did not use, these score low: {'; '.join(told)}")
        else:
            print(f"Training did not use {len(known):,} log-ins, which are too few to tell thresholds by")

    def training_ended(self, ending: Ending) -> None:
        """Why it ended, if early."""
        super().training_ended(ending)
        if self._bar is not None:
            self._bar.close()
        if ending.ended != "all_epochs":
            why = "validation did not rise any more" if ending.ended == "early_stopping" else "it was asked to stop"
            print(f"Training ended after {ending.epochs} epochs, because {why}")
        print("Writing what was counted into the model", flush=True)


def _require_free(folder: Path, force: bool) -> None:
    """Raise UserError if there is a model in the folder that may not be replaced, or nothing can be written there."""
    with refusals("write the model to", folder):
        if (folder / artifact.MANIFEST).exists() and not force:
            raise UserError(f"there is a model in {folder}: name another folder, or replace it with --force")
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".tried"
        trial.touch()
        trial.unlink()


def _files(paths: Sequence[Path]) -> list[Path]:
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


def _hyperparameters(given: dict[str, str], files: Sequence[Path], earlier: Model | None) -> Hyperparameters:
    """What is given, and of the rest what follows from the earlier model or from the data. Raises UserError."""
    values = dict(given)
    if earlier:
        values = {name: str(value) for name, value in earlier.fixed.items()} | values
    values.setdefault("vector_dim", str(VECTOR_DIM))
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
    values.setdefault("num_entity_vectors", str(max(1, 2 * entities)))
    return Hyperparameters.parse(values)


def _read(files: Sequence[Path], index: EntityIndex, hp: Hyperparameters, name: str) -> Events:
    """The log-ins of some files. Raises UserError if there are none, or malformed ones that may not be skipped."""
    with _bar(files, f"reading {name}") as bar:
        read = events.read(
            files,
            index,
            FAMILIES[hp.ip_version],
            claim=name == "train",
            channel=name,
            content_type=_content_type(files),
            tolerated=hp.tolerated,
            spared=ABSENT if hp.malformed_rows == "skip_placeholders" else (),
            progress=bar.update,
        )
    if read.malformed.count:
        print(f"Warning: skipped {read.malformed.count:,} malformed rows: {read.malformed.told}: {read.malformed}")
    return read


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
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


def _bar(files: Sequence[Path], what: str) -> "tqdm[None]":
    """A bar over the bytes of some files, on a terminal only."""
    return tqdm(total=sum(file.stat().st_size for file in files), desc=what, unit="B", unit_scale=True, disable=None)
