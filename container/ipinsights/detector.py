"""The model with scikit-learn's interface: an outlier detector for rows of (entity, IP address)."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ipinsights.errors import UserError
from ipinsights.estimators import fit
from ipinsights.hyperparameters import VECTOR_DIM
from ipinsights.model.model import Model

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise UserError("IPInsightsDetector needs scikit-learn: pip install 'ipinsights[sklearn]'") from error


class IPInsightsDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Learns which entities log in from where, and tells unusual log-ins.

    X is a data frame or an array of two columns of strings, the entity and the IP address, [n, 2]; y is ignored.
    ``contamination`` is the share of ordinary log-ins that `predict` may call outliers (by the calibration), or "auto":
    a score below 0, where the model takes a pair for fabricated. The other parameters are hyperparameters. After `fit`,
    ``model_`` is the model and ``offset_`` the threshold.
    """

    def __init__(
        self,
        *,
        contamination: float | str = "auto",
        vector_dim: int = VECTOR_DIM,
        epochs: int = 10,
        ip_version: int | None = None,
        num_entity_vectors: int | None = None,
        seed: int = 0,
    ) -> None:
        self.contamination = contamination
        self.vector_dim = vector_dim
        self.epochs = epochs
        self.ip_version = ip_version
        self.num_entity_vectors = num_entity_vectors
        self.seed = seed

    def fit(self, X: Any, y: object = None) -> Self:  # noqa: N803
        """Train. Raises ValueError if X has other than two columns, and UserError if its rows cannot be read."""
        del y
        frame = self._frame(X, fitting=True)
        parameters = {name: value for name, value in self.get_params().items() if name != "contamination"}
        self.model_: Model = fit(frame, **{name: value for name, value in parameters.items() if value is not None})
        self.offset_ = self._threshold()
        return self

    def score_samples(self, X: Any) -> npt.NDArray[np.float32]:  # noqa: N803
        """The score of each row, [n]: higher is more normal. Raises UserError if a row cannot be read."""
        check_is_fitted(self)
        return self.model_.embed(self._frame(X)).scores

    def decision_function(self, X: Any) -> npt.NDArray[np.float32]:  # noqa: N803
        """The score less ``offset_``, [n]: below 0 is an outlier."""
        return self.score_samples(X) - np.float32(self.offset_)

    def predict(self, X: Any) -> npt.NDArray[np.int_]:  # noqa: N803
        """1 for each inlier, -1 for each outlier, [n]."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _threshold(self) -> float:
        if self.contamination == "auto":
            return 0.0
        if not isinstance(self.contamination, float) or not 0 < self.contamination <= 0.5:
            raise ValueError(f"contamination is {self.contamination!r}: it must be 'auto' or a share in (0, .5]")
        calibration = self.model_.calibration
        found = calibration.known.threshold(self.contamination).score if calibration else None
        if found is None:
            raise UserError(
                f"there are too few rows to tell a threshold for contamination={self.contamination:g}: use 'auto', or "
                "fit more"
            )
        return found

    def _frame(self, X: Any, fitting: bool = False) -> dict[str, Any]:  # noqa: N803
        """The two columns. Raises ValueError if there are others."""
        if hasattr(X, "columns"):
            names = [str(name) for name in X.columns]
            data = [X[name] for name in X.columns]
        else:
            array = np.asarray(X, dtype=object)
            if array.ndim != 2:
                raise ValueError(
                    f"Expected 2D array, got {array.ndim}D array: X has two columns, entities and addresses"
                )
            names, data = [], list(array.T)
        if len(data) != 2:
            raise ValueError(f"X has {len(data)} features, but {type(self).__name__} is expecting 2 features as input")
        if fitting:
            self.n_features_in_ = len(data)
            if names:
                self.feature_names_in_ = np.array(names, dtype=object)
        return dict(zip(("entity", "ip"), data, strict=True))
