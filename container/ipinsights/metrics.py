"""The numbers in the printed lines: area under the ROC curve, and detection at a threshold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]


def auc(positive: Scores, negative: Scores) -> float:
    """The probability that a positive scores above a negative; ties count half; nan if either is empty.

    This is the area under the ROC curve, by ranks (Mann and Whitney).
    """
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left").sum(dtype=np.float64)
    up_to = np.searchsorted(ordered, positive, side="right").sum(dtype=np.float64)
    return float((below + up_to) / 2 / len(positive) / len(negative))


@dataclass(frozen=True)
class Detection:
    """The result of flagging every score below ``threshold``: attacks should be flagged, log-ins should not."""

    threshold: float
    flagged: int
    true_positives: int
    attacks: int
    log_ins: int

    @classmethod
    def at(cls, threshold: float, log_ins: Scores, attacks: Scores) -> "Detection":
        """Count over the scores of real log-ins and of attacks."""
        caught = int((attacks < threshold).sum())
        return cls(threshold, caught + int((log_ins < threshold).sum()), caught, len(attacks), len(log_ins))

    @property
    def precision(self) -> float:
        """Share of the flagged that are attacks; nan if none is flagged."""
        return self.true_positives / self.flagged if self.flagged else float("nan")

    @property
    def recall(self) -> float:
        """Share of the attacks that are flagged."""
        return self.true_positives / self.attacks if self.attacks else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.true_positives / (self.flagged + self.attacks) if self.flagged + self.attacks else float("nan")

    @property
    def false_positive_rate(self) -> float:
        """Share of the log-ins that are flagged."""
        return (self.flagged - self.true_positives) / self.log_ins if self.log_ins else float("nan")
