"""Runs of an MLflow experiment: the hyperparameters of a training, its metrics per epoch, and its model.

Each run is named by its id, so several can be in progress.
"""

import contextlib
import dataclasses
import logging
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

from ipinsights.errors import UserError, one_line
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training.progress import EpochSummary
from ipinsights.version import version as our_version

try:
    import mlflow
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
except ImportError as error:
    raise UserError("tracking needs MLflow: pip install 'ipinsights[tune]'") from error

_PACKAGE = Path(__file__).parents[1]
_NEEDED = ("numpy", "pandas", "pyarrow", "xxhash")
"""What scoring imports. A model asks for the releases that are installed here."""
_SIGNATURE = ModelSignature(
    Schema([ColSpec("string", "entity"), ColSpec("string", "ip")]),
    Schema([ColSpec("double", "dot_product"), ColSpec("double", "percentile"), ColSpec("boolean", "known")]),
)


class Experiment:
    """An experiment of a tracking server or of a database."""

    def __init__(self, uri: str | None, name: str, artifacts: Path | None = None) -> None:
        """Open it, or make it.

        Without a ``uri`` it is MLflow's default: the environment variable MLFLOW_TRACKING_URI, or mlflow.db in the
        working directory. ``artifacts`` is a folder for a new experiment's models, unless the server has a place of its
        own. Raises UserError.
        """
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with _refusals(uri):
            if uri is not None:
                mlflow.set_tracking_uri(uri)
            self.uri: str = mlflow.get_tracking_uri()
            self._client = mlflow.MlflowClient()
            found = self._client.get_experiment_by_name(name)
            place = artifacts.resolve().as_uri() if artifacts and self.uri.startswith("sqlite:") else None
            self._id = found.experiment_id if found else self._client.create_experiment(name, place)

    def run(self, name: str) -> "Run":
        """Begin a run. Raises UserError."""
        with _refusals(self.uri):
            run = self._client.create_run(self._id, run_name=name, tags={"ipinsights.version": our_version()})
        return Run(self._client, run.info.run_id)


class Run:
    """A run in progress. As a context it ends with it."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client = client
        self.id = run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end("FAILED" if kind else "FINISHED", str(error or ""))

    def hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        """Record them. Raises UserError."""
        values = dataclasses.asdict(hyperparameters).items()
        with _refusals(None):
            self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in values])

    def epoch(self, summary: EpochSummary) -> None:
        """Record the metrics of an epoch. Its number, from 1, is the step. Raises UserError."""
        values = dataclasses.asdict(summary)
        step = values.pop("epoch") + 1
        now = int(1000 * time.time())
        with _refusals(None):
            metrics = [Metric(key, float(value), now, step) for key, value in values.items() if value is not None]
            self._client.log_batch(self.id, metrics=metrics)

    def metric(self, name: str, value: float) -> None:
        """Record a metric of the whole run. Raises UserError."""
        with _refusals(None):
            self._client.log_metric(self.id, name, value)

    def model(self, folder: Path) -> None:
        """Record the model in a folder as one that MLflow loads and serves (`flavour`). Raises UserError."""
        with _refusals(None), mlflow.start_run(run_id=self.id):
            mlflow.pyfunc.log_model(
                name="model",
                loader_module="ipinsights.tracking.flavour",
                data_path=str(folder),
                code_paths=[str(_PACKAGE)],
                signature=_SIGNATURE,
                pip_requirements=[f"{name}=={version(name)}" for name in _NEEDED],
            )
            self._client.update_run(self.id, status="RUNNING")

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str = "") -> None:
        """End the run. Raises UserError."""
        with _refusals(None):
            if reason:
                self._client.set_tag(self.id, "reason", reason[:500])
            self._client.set_terminated(self.id, status)


@contextlib.contextmanager
def _refusals(uri: str | None) -> Iterator[None]:
    """Turn what MLflow, its database or its network refuses into UserError, and keep its advice to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (MlflowException, OSError) as error:
            where = f" {uri}" if uri else ""
            raise UserError(f"MLflow's tracking{where} failed: {one_line(str(error))[:500]}") from error
