"""The loaded model, as requests find it: one today; a multi-model endpoint would hold many here."""

from pathlib import Path

from ipinsights.errors import AlgorithmError
from ipinsights.scoring import Scorer


class ModelStore:
    """Holds the scorer of the model in a folder. Load it before forking and workers share its pages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scorer: Scorer | None = None

    def load(self) -> None:
        """Map the model. Raises UserError where it cannot be."""
        self._scorer = Scorer.open(self._folder)

    @property
    def ready(self) -> bool:
        """Whether requests can be scored."""
        return self._scorer is not None

    @property
    def scorer(self) -> Scorer:
        """The scorer; the model must be loaded."""
        if self._scorer is None:
            raise AlgorithmError("a request came before the model was loaded")
        return self._scorer
