"""What training reports while it runs: the numbers, and the listener that receives them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ipinsights.errors import AlgorithmError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.calibration import Calibration
from ipinsights.model.profile import Profile
from ipinsights.model.vocabulary import Vocabulary


@dataclass(frozen=True)
class Plan:
    """What a training will do."""

    hyperparameters: Hyperparameters
    """Adapted to the data."""
    vocabulary: Vocabulary
    profile: Profile
    """Facts about the training events, and what in them makes the result doubtful."""
    device: str
    step: str
    """The kind of step: a `placement.StepName`."""
    threads: int
    """Threads that compute on the CPU."""
    slower_because: str
    """Why training is slower than possible, to follow "because"; empty without a known reason."""
    memory: int
    """Bytes that the trained parameters and the largest step need."""
    earlier: Vocabulary | None = None
    """The vocabulary of the model from which training continues."""
    held_out: int = 0
    """Events that are kept apart from training."""
    unseen: int = 0
    """Validation events of entities that training never saw."""
    ranks: int = 1
    """Ranks that train, on a host or a GPU each; fewer than there are where there is little data."""


@dataclass
class Position:
    """The progress of a training, and the state of its random numbers: enough to draw the following steps."""

    epoch: int
    """Complete epochs."""
    steps: int
    """Steps taken in the current epoch."""
    epoch_began: npt.NDArray[np.uint8]
    """The state of torch's generator before the epoch's order is drawn."""
    drew: npt.NDArray[np.uint8]
    """Its state before the negatives of the last step and of its neighbours were drawn."""


@dataclass(frozen=True)
class BatchProgress:
    """Running means since the epoch began, at one mini-batch (counted as the hyperparameter's help says)."""

    epoch: int
    batch: int
    accuracy: float
    cross_entropy: float
    records_per_second: float
    """Since the last print."""


@dataclass(frozen=True)
class Quality:
    """How well the scores tell validation events from fabricated ones: areas under the ROC curve. None: no such events.

    The fabricated ones are as many random addresses (R = 1, S = 0, whatever training uses), or addresses of other
    entities' validation events.
    """

    discriminator_auc: float | None = None
    """Against random addresses: the built-in's measure."""
    shuffled_auc: float | None = None
    """Against addresses of others."""
    known_discriminator_auc: float | None = None
    """The same, for events of entities that training saw, where there are others too."""
    known_shuffled_auc: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochSummary(Quality):
    """The result of an epoch, its validation included."""

    epoch: int
    records: int
    """Positives and negatives."""
    batches: int
    seconds: float
    """Duration of training, without validation."""
    accuracy: float
    cross_entropy: float


Ended = Literal["all_epochs", "early_stopping", "stopped"]
"""Why a training ended: all epochs are trained; validation no longer rose; or it was asked to stop."""


@dataclass(frozen=True)
class Ending:
    """How a training ended."""

    epochs: int
    """Complete epochs."""
    steps: int
    """Optimiser steps taken in one more, incomplete epoch."""
    ended: Ended
    saved: EpochSummary | None
    """The epoch, or the part of one, whose weights the model has; None if there is none."""


class Listener:
    """Receives the reports of a training; every method may be overridden."""

    def training_planned(self, plan: Plan) -> None:
        """Training is about to start; its memory is not allocated yet."""

    def resumed(self, epoch: int, steps: int, damaged: list[str]) -> None:
        """Training resumes from a checkpoint, after so many epochs and steps; newer ones, if any, were damaged."""

    def resharded(self, ranks: int) -> None:
        """The checkpoint from which it resumes was written by other ranks, so many."""

    def checkpoint_written(self, where: str, seconds: float) -> None:
        """A checkpoint was written in so many seconds."""

    def checkpoint_failed(self, error: Exception) -> None:
        """A checkpoint could not be written; training goes on without it."""

    def step_done(self, epoch: int, positives: int) -> None:
        """An optimiser step on that many positives is over."""

    def batches_done(self, progress: BatchProgress) -> None:
        """The first mini-batch of an epoch is over, or a multiple of batch_metrics_publish_interval."""

    def epoch_done(self, summary: EpochSummary) -> None:
        """An epoch is over and validated."""

    def uncounted(self) -> None:
        """There was no time to write counting into the model (`model.refit`): it has what it learnt alone."""

    def calibrated(self, calibration: Calibration) -> None:
        """It is known what scores ordinary log-ins get."""

    def training_ended(self, ending: Ending) -> None:
        """All epochs are over, or something stopped training."""


class Record(Listener):
    """Remembers what a manifest tells of a training."""

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters
        """As asked for, and as adapted to the data once training is planned."""
        self._profile: Profile | None = None
        self._place: dict[str, str] = {}
        self._ending: Ending | None = None

    def training_planned(self, plan: Plan) -> None:
        """The hyperparameters, the facts about the data, and where it is trained."""
        self.hyperparameters, self._profile = plan.hyperparameters, plan.profile
        self._place = {"device": plan.device}
        if plan.slower_because:
            self._place["slower_because"] = plan.slower_because

    def training_ended(self, ending: Ending) -> None:
        """How it ended, and with which metrics."""
        self._ending = ending

    def facts(self, events: int, seconds: float) -> dict[str, dict[str, Any]]:
        """What belongs into the manifest of the model, if reading and training so many events took so long.

        Raises AlgorithmError as long as training has not ended.
        """
        profile, ending = self._profile, self._ending
        if profile is None or ending is None:
            raise AlgorithmError("training ended without reporting how")
        return {
            "hyperparameters": dataclasses.asdict(self.hyperparameters),
            "training": {
                "events": events,
                "seconds": round(seconds, 3),
                "epochs": ending.epochs,
                "steps_beyond": ending.steps,
                "ended": ending.ended,
                **self._place,
            },
            "metrics": dataclasses.asdict(ending.saved) if ending.saved else {},
            "data": profile.facts(),
        }
