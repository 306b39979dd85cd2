"""What a search compares and reports while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training.progress import EpochSummary, Quality

OBJECTIVES = ("discriminator_auc", "shuffled_auc", "mean")
"""What may be maximised: a validation metric, or the mean of both. The first is the built-in's."""


@dataclass(frozen=True)
class Tried:
    """How a trial ended."""

    number: int
    values: dict[str, float]
    """Of the hyperparameters that are tuned."""
    epochs: int
    """Complete ones."""
    seconds: float
    objective: float | None = None
    """Of the model; None if there is none."""
    reason: str = ""
    """Why it was given up or failed; empty if it went to its end."""
    failed: bool = False
    best: bool = False
    """Whether it is the best so far."""


class Watcher:
    """Is told of trials; every method may be overridden."""

    def trial_began(self, number: int, hyperparameters: Hyperparameters) -> None:
        """A trial of a number, from 0, trains."""

    def epoch_done(self, number: int, summary: EpochSummary) -> None:
        """An epoch of it is over and validated."""

    def trial_ended(self, tried: Tried, folder: Path | None) -> None:
        """It is over. Its model is in a folder until this returns; None if there is none."""

    def trial_broken_off(self, number: int) -> None:
        """It was broken off, and will be tried again."""


def measure(quality: Quality | Mapping[str, Any], objective: str) -> float:
    """The value to maximise. Raises UserError if the validation log-ins do not tell it."""
    metrics = vars(quality) if isinstance(quality, Quality) else quality
    values = [metrics[name] for name in (OBJECTIVES[:2] if objective == "mean" else [objective])]
    if None in values:
        raise UserError(
            f"the validation log-ins do not tell {objective}: give log-ins of several entities that training has"
        )
    return float(sum(values) / len(values))
