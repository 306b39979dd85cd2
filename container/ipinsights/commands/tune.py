"""``ipinsights tune``: search for hyperparameters that validate best, and keep the best model.

It is `train` many times over. Optuna draws the settings, several trainings run side by side, and each is an MLflow run.
"""

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ipinsights.commands import learning
from ipinsights.commands.options import Commands, positive
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.errors import UserError, brief, refusals
from ipinsights.hyperparameters import Hyperparameters, declarations
from ipinsights.machine import available_memory, usable_cores
from ipinsights.training.progress import EpochSummary
from ipinsights.tuning import space
from ipinsights.tuning.space import Range
from ipinsights.tuning.trials import OBJECTIVES, Tried, Watcher
from ipinsights.tuning.worker import Work, Worker

if TYPE_CHECKING:
    from ipinsights.tracking.runs import Experiment, Run
    from ipinsights.tuning.search import Search

_TRACKING, _MODELS = "mlflow.db", "mlflow-models"
"""MLflow's database and the models of its runs, in the folder of a search."""


def add(commands: Commands) -> None:
    """Add the command."""
    tuned = [declaration.name for declaration in declarations() if declaration.tuning]
    command = commands.add_parser(
        "tune",
        help="search for the hyperparameters that validate best",
        description=f"Train many models with different hyperparameters, and keep the best. {learning.INPUT} Optuna "
        "draws the hyperparameters. The first trial is a plain training. A training that validates worse than the "
        "median of the others is given up. Ctrl-C ends the search and keeps what it found; the same command again goes "
        "on. It needs the extra `tune`: pip install 'ipinsights[tune]'.",
    )
    command.add_argument("data", type=Path, nargs="+", help="files and folders of log-ins")
    command.add_argument(
        "--validation", type=Path, nargs="+", required=True, help="later log-ins, to compare the models by"
    )
    command.add_argument(
        "--out", type=Path, required=True, help="the folder for the search, its pictures and the best model"
    )
    command.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default=OBJECTIVES[0],
        help="what is maximised: how well scores tell validation log-ins from random addresses (discriminator_auc, the "
        "default), from addresses of other entities (shuffled_auc), or the mean of both",
    )
    command.add_argument(
        "--trials", type=positive, default=20, metavar="N", help="so many trials, earlier ones included (default 20)"
    )
    command.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="NAME[=LOW:HIGH]",
        help="tune this hyperparameter, from this range; may be repeated. Without it, all that have a range worth "
        f"tuning in, but num_entity_vectors: {', '.join(name for name in tuned if name != space.FOLLOWS_DATA)}",
    )
    command.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="train so many models at a time. The default is the number of cores, or fewer, so that the largest of the "
        "models fit into the memory",
    )
    command.add_argument(
        "--mlflow",
        metavar="URI",
        help=f"MLflow's tracking URI. The default is a database in the folder of the search ({_TRACKING})",
    )
    command.add_argument("--no-mlflow", action="store_true", help="do not record the trials with MLflow")
    learning.add_networks(command)
    learning.add_hyperparameters(command, "Those that you set are the same in all trials, and not tuned.")
    command.set_defaults(run=run, on_sagemaker=None)


def run(options: argparse.Namespace) -> None:
    """Read, search, and say what was found."""
    from ipinsights.tuning.search import Search  # loads Optuna

    given = learning.given(options)
    ranges = space.ranges(options.tune, given)
    train, validation = (learning.files_in(paths) for paths in (options.data, options.validation))
    hp = learning.hyperparameters(given, train, None)
    with refusals("write the search to", options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    experiment = _experiment(options)
    index = EntityIndex(hp.num_entity_vectors)
    log_ins, held = learning.read(train, index, hp, "train"), learning.read(validation, index, hp, "validation")
    networks = Networks.read(options.networks, FAMILIES[hp.ip_version]) if options.networks else None
    print(f"Read {len(log_ins):,} log-ins of {index.owned:,} entities, and {len(held):,} to validate by", flush=True)
    tuned = {range_.name for range_ in ranges}
    fixed = {name: value for name, value in dataclasses.asdict(hp).items() if name not in tuned}
    subject = {"log-ins": _digest(log_ins), "validation log-ins": _digest(held), "hyperparameters": fixed}
    with Search(options.out, ranges, hp, options.objective, subject) as search:
        search.begin_with(hp.adapted(len(log_ins)))
        before = search.tried
        if before:
            print(f"Going on with the search in {options.out}: {before} of {options.trials} trials have ended")
        if before < options.trials:
            _search(search, Work(log_ins, held, networks), hp, ranges, options, experiment)
        _tell(search, options, experiment)
        if options.on_sagemaker:
            needed = ["num_entity_vectors", "vector_dim", *(["ip_version"] if hp.ip_version != 4 else []), *given]
            static = {name: getattr(hp, name) for name in needed if name not in tuned}
            code = options.on_sagemaker(ranges, static, options.objective, options.trials, min(options.trials, 4))
            print(f"\nThe same search on SageMaker, with its SDK 3:\n\n{code}")


def _search(
    search: "Search",
    work: Work,
    hp: Hyperparameters,
    ranges: list[Range],
    options: argparse.Namespace,
    experiment: "Experiment | None",
) -> None:
    most = options.trials - search.tried
    jobs = min(options.jobs, most) if options.jobs else _affordable(work, hp, ranges, most)
    threads = max(1, usable_cores() // jobs)
    print(
        f"Tuning {', '.join(range_.name for range_ in ranges)} for {options.objective}: {most} trials, {jobs} at a "
        f"time, {threads} thread{'s' * (threads > 1)} each",
        flush=True,
    )
    with learning.stop_requests() as stop:
        workers = [Worker(work, threads) for _ in range(jobs)]
        search.run(options.trials, workers, lambda: Worker(work, threads), _Lines(options, experiment), stop)


def _affordable(work: Work, hp: Hyperparameters, ranges: list[Range], most: int) -> int:
    """How many trainings fit into the memory, each with the largest model of the ranges: one a core at most.

    Raises UserError if the log-ins cannot be trained on.
    """
    largest: dict[str, Any] = {range_.name: range_.high for range_ in ranges}
    worker = Worker(work, usable_cores())
    try:
        need = worker.need(dataclasses.replace(hp, **largest))
    finally:
        worker.end()
    available = available_memory()
    fit = most if available is None else available // need.memory
    return max(1, min(most, usable_cores() if need.device == "cpu" else 1, fit))


class _Lines(Watcher):
    """Prints what a person wants to know of a search as it goes, and records each trial as an MLflow run."""

    def __init__(self, options: argparse.Namespace, experiment: "Experiment | None") -> None:
        self._experiment = experiment
        self._objective = options.objective
        self._width = len(str(options.trials))
        self._runs: dict[int, Run] = {}

    def trial_began(self, number: int, hyperparameters: Hyperparameters) -> None:
        """It becomes a run."""
        if self._experiment:
            self._runs[number] = self._experiment.run(f"trial {number}")
            self._runs[number].hyperparameters(hyperparameters)

    def epoch_done(self, number: int, summary: EpochSummary) -> None:
        """Its metrics."""
        if self._experiment:
            self._runs[number].epoch(summary)

    def trial_ended(self, tried: Tried, folder: Path | None) -> None:
        """A line."""
        after = f"after {tried.epochs} epoch{'s' * (tried.epochs != 1)}, {tried.seconds:,.0f} s"
        drawn = ", ".join(f"{name} {value:.4g}" for name, value in tried.values.items())
        if tried.objective is not None:
            what = f"{tried.objective:.5f} {after}{', the best so far' if tried.best else ''}"
        else:
            what = f"{'failed' if tried.failed else 'given up'} {after}, because {tried.reason}"
        print(f"Trial {tried.number:>{self._width}}: {what} ({drawn})", flush=True)
        run = self._runs.pop(tried.number, None)
        if run and tried.objective is not None:
            run.metric(f"objective.{self._objective}", tried.objective)
        if run and folder:
            run.model(folder)
        if run:
            run.end("FAILED" if tried.failed else "FINISHED" if folder else "KILLED", tried.reason)

    def trial_broken_off(self, number: int) -> None:
        """Its run, too."""
        if self._experiment:
            self._runs.pop(number).end("KILLED", "the search was interrupted")


def _tell(search: "Search", options: argparse.Namespace, experiment: "Experiment | None") -> None:
    """What was found. Raises UserError if there is nothing."""
    from ipinsights.tuning import pictures
    from ipinsights.tuning.search import MODEL

    if search.tried < options.trials:
        print(
            f"Stopped after {search.tried} of {options.trials} trials. They are kept in {options.out}. The same "
            "command again goes on"
        )
    best, first = search.best, search.first
    if best is None:
        raise UserError(f"no trial has ended with a model. The last one: {search.last_reason or 'was broken off'}")
    plain = f"; a plain training (trial 0) has {first:.5f}" if first is not None and best.number else ""
    print(f"Best of {search.tried}: trial {best.number} with {options.objective} {best.value:.5f}{plain}")
    print(f"Its model is in {options.out / MODEL}. To train one like it:")
    chosen = [text for name, value in best.params.items() for text in (f"--{name.replace('_', '-')}", f"{value:.6g}")]
    given = [text for name, value in learning.given(options).items() for text in (f"--{name.replace('_', '-')}", value)]
    print(f"  ipinsights train DATA --validation LATER --model MODEL {shlex.join([*given, *chosen])}")
    for path in pictures.draw(search.study, options.out, options.objective):
        print(f"Drew {path}")
    if experiment:
        print(f"Each trial is an MLflow run at {experiment.uri}")


def _experiment(options: argparse.Namespace) -> "Experiment | None":
    """Where trials are recorded. Raises UserError."""
    if options.no_mlflow:
        if options.mlflow:
            raise UserError(f"--mlflow {brief(options.mlflow)} and --no-mlflow contradict each other")
        return None
    own = f"sqlite:///{(options.out / _TRACKING).resolve()}"
    return learning.experiment(options.mlflow or own, None if options.mlflow else options.out / _MODELS)


def _digest(events: Events) -> str:
    """Tells log-ins from others."""
    hashed = xxhash.xxh3_64(events.entity.tobytes())
    hashed.update(events.address.tobytes())
    return hashed.hexdigest()
