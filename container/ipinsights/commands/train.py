"""``ipinsights train``: train a model of log-ins in files, without SageMaker's folders.

It is the training of the container. What differs is what a person at a shell expects: what is not set follows from the
data, the lines are for reading, and no model is replaced by mistake.
"""

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ipinsights.commands import learning
from ipinsights.commands.options import Commands
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.networks import Networks
from ipinsights.errors import UserError, refusals
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.calibration import Calibration
from ipinsights.training.progress import Ending, EpochSummary, Plan, Record

if TYPE_CHECKING:
    from ipinsights.tracking.runs import Run


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="train a model",
        description=f"Train a model of log-ins. {learning.INPUT} What you do not set follows from the data. Ctrl-C "
        "ends the training early and saves the model so far.",
    )
    command.add_argument("data", type=Path, nargs="+", help="files and folders of log-ins")
    command.add_argument(
        "--validation", type=Path, nargs="+", default=[], help="later log-ins, to measure and to calibrate the model by"
    )
    command.add_argument("--model", type=Path, required=True, help="the folder for the model")
    command.add_argument("--force", action="store_true", help="replace the model in that folder, if there is one")
    command.add_argument(
        "--from", type=Path, dest="earlier", metavar="MODEL", help="continue from this model: a folder, or model.tar.gz"
    )
    learning.add_networks(command)
    command.add_argument(
        "--mlflow",
        nargs="?",
        const="",
        metavar="URI",
        help="record the training, its metrics per epoch and the model as an MLflow run, at this tracking URI. Without "
        "a URI it is MLflow's default: the environment variable MLFLOW_TRACKING_URI, or mlflow.db here",
    )
    learning.add_hyperparameters(command, "What you do not set follows from the data.")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Read, train and save, with a line for each."""
    began = time.monotonic()
    _require_free(options.model, options.force)
    earlier = artifact.load(options.earlier) if options.earlier else None
    train, validation = (learning.files_in(paths) for paths in (options.data, options.validation))
    hp = learning.hyperparameters(learning.given(options), train, earlier)
    hp.require(validated=bool(validation))
    experiment = None if options.mlflow is None else learning.experiment(options.mlflow or None)
    if earlier:
        earlier.require(hp)
        index = earlier.index.copy()
    else:
        index = EntityIndex(hp.num_entity_vectors)
    log_ins = learning.read(train, index, hp, "train")
    held = learning.read(validation, index, hp, "validation") if validation else None
    networks = Networks.read(options.networks, FAMILIES[hp.ip_version]) if options.networks else None
    known = f", of which {earlier.index.owned:,} are known from {options.earlier}" if earlier else ""
    print(f"Read {len(log_ins):,} log-ins; the model has a row for each of {index.owned:,} entities{known}")
    if index.sharing:
        print(
            f"Warning: {index.sharing:,} entities found no free row and share the row of another. Train anew, with "
            "num_entity_vectors of twice the number of entities"
        )
    from ipinsights.training.fit import fit  # loads torch, which takes seconds

    run = experiment.run("train") if experiment else None
    lines = _Lines(hp, run)
    with run or nullcontext():
        with learning.stop_requests() as stop:
            model = fit(log_ins, hp, held, lines, networks=networks, earlier=earlier, stop=stop)
        if model.untrained:
            raise UserError("the training was stopped before it learnt anything. No model was written")
        with refusals("write the model to", options.model):
            artifact.save(model, options.model, lines.facts(len(log_ins), time.monotonic() - began))
        size = sum(file.stat().st_size for file in options.model.iterdir())
        print(f"Saved the model to {options.model} ({size / 1e6:,.1f} MB) after {time.monotonic() - began:,.0f} s")
        if run and experiment:
            run.model(options.model)
            print(f"Recorded it as MLflow run {run.id} at {experiment.uri}")


class _Lines(Record):
    """Prints what a person wants to know of a training as it goes."""

    def __init__(self, hyperparameters: Hyperparameters, run: "Run | None") -> None:
        """Also records the training as an MLflow run, if there is one."""
        super().__init__(hyperparameters)
        self._run = run
        self._bar: tqdm[None] | None = None

    def training_planned(self, plan: Plan) -> None:
        """What is learnt from, and what in it is doubtful."""
        super().training_planned(plan)
        if self._run:
            self._run.hyperparameters(plan.hyperparameters)
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
        if self._run:
            self._run.epoch(summary)
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
            print(
                f"Of {len(known):,} log-ins of known entities that training did not use, so many score low: "
                f"{'; '.join(told)}"
            )
        else:
            print(f"Training did not use {len(known):,} log-ins of known entities, too few to tell thresholds by")

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
