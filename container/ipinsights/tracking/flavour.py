"""A model as MLflow has it: `mlflow.pyfunc.load_model` returns an object whose ``predict`` scores a data frame.

The folder holds the artifact as `train` writes it and a copy of this package, so nothing is unpickled, and the model
scores where this package is not installed.
"""

from typing import Any

import numpy as np
import pandas as pd

from ipinsights.data.columns import salvage_columns
from ipinsights.data.frames import ADDRESS, ENTITY, columns
from ipinsights.model.scoring import Scorer


class ScoringModel:
    """What MLflow calls."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score a data frame with the columns ``entity`` and ``ip``, [n].

        The columns of the result are ``dot_product`` (the score: higher is more normal, below 0 looks fabricated),
        ``percentile`` (the share of ordinary log-ins that score no higher; NaN if the model is not calibrated) and
        ``known`` (whether training saw the entity; where entities share rows, all count as known). A row that cannot be
        read has NaN, and is not known. Raises UserError if a column is missing.
        """
        del params
        scorer = self._scorer
        records, readable = salvage_columns(*columns(model_input, ENTITY, ADDRESS), scorer.family)
        digests, addresses = records.hashed()
        scores, percentiles = (np.full(len(readable), np.nan) for _ in range(2))
        known = np.zeros(len(readable), dtype=np.bool_)
        scores[readable] = found = scorer.score_hashed(digests, addresses)
        known[readable] = scorer.knows_hashed(digests)
        if scorer.calibration:
            percentiles[readable] = scorer.calibration.percentile(found, known[readable])
        table = {"dot_product": scores, "percentile": percentiles, "known": known}
        return pd.DataFrame(table, index=getattr(model_input, "index", None))


def _load_pyfunc(path: str) -> ScoringModel:
    """What MLflow calls to load the folder of an artifact."""
    return ScoringModel(Scorer.open(path))
