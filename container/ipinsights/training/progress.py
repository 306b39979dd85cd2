"""What training tells while it runs: the numbers, and who hears them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.vocabulary import Vocabulary


@dataclass(frozen=True)
class Plan:
    """What a training is about to do."""

    hyperparameters: Hyperparameters
    """Adapted to the data."""
    vocabulary: Vocabulary
    device: str
    step: str
    """Which of the steps it takes: a `placement.StepName`."""
    threads: int
    """That compute; on the CPU."""
    slower_because: str
    """Why training is slower than it could be, in words to follow "because"; empty where nothing is known."""
    memory: int
    """Bytes that the trained parameters and the largest step take."""
    earlier: Vocabulary | None = None
    """What the model knew that training goes on from."""


@dataclass
class Position:
    """How far a training has come, and where its random numbers were: enough to draw the steps to come."""

    epoch: int
    """Epochs that are over."""
    steps: int
    """Steps taken since, of the epoch under way."""
    epoch_began: npt.NDArray[np.uint8]
    """The state of torch's generator before that epoch's order is drawn."""
    drew: npt.NDArray[np.uint8]
    """Its state before the last step's negatives were drawn, and those of its neighbours."""


@dataclass(frozen=True)
class BatchProgress:
    """Running means since the epoch began, as of one mini-batch (counted as the hyperparameter's help says)."""

    epoch: int
    batch: int
    accuracy: float
    cross_entropy: float
    records_per_second: float
    """Since the last print."""


@dataclass(frozen=True)
class EpochSummary:
    """What an epoch came to."""

    epoch: int
    records: int
    """Positives and negatives."""
    batches: int
    seconds: float
    """Of training, without validation."""
    accuracy: float
    cross_entropy: float
    discriminator_auc: float | None
    """Validation events against as many random negatives (R = 1, S = 0, whatever training uses); None without any."""
    shuffled_auc: float | None
    """The same against addresses of other entities' validation events; None without any."""


Ended = Literal["all_epochs", "early_stopping", "stopped"]
"""Why a training ended: all epochs are trained; validation rose no more; or it was asked to stop."""


@dataclass(frozen=True)
class Ending:
    """How a training ended."""

    epochs: int
    """Whole epochs trained."""
    steps: int
    """Optimiser steps taken in one more, which was not ended."""
    ended: Ended
    saved: EpochSummary | None
    """What the model came to: the epoch whose weights it has, or the part of one; None where there is none."""


class Listener:
    """Hears how training goes; every method may be overridden."""

    def training_planned(self, plan: Plan) -> None:
        """Training is about to start; the memory is not taken yet."""

    def resumed(self, epoch: int, steps: int, damaged: list[str]) -> None:
        """Training goes on from a checkpoint, after so many epochs and steps; newer ones, if any, were damaged."""

    def checkpoint_written(self, where: str, seconds: float) -> None:
        """A checkpoint was written, which took so long."""

    def checkpoint_failed(self, error: OSError) -> None:
        """A checkpoint could not be written; training goes on without."""

    def step_done(self, epoch: int, positives: int) -> None:
        """An optimiser step on that many positives is over."""

    def batches_done(self, progress: BatchProgress) -> None:
        """The first mini-batch of an epoch is over, or a multiple of batch_metrics_publish_interval."""

    def epoch_done(self, summary: EpochSummary) -> None:
        """An epoch is over and validated."""

    def training_ended(self, ending: Ending) -> None:
        """All epochs are over, or something stopped training."""
