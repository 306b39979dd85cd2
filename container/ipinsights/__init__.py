"""IP Insights, open: learns from log-ins which (entity, IP address) pairs are normal, and scores new ones.

`fit` trains a `Model`, `load` opens one, a `Scorer` scores with it, and `explain` says why a pair has its score. Python
imports each name when you first use it, so a program that only scores does not wait for torch. `ipinsights.sagemaker`
is the SageMaker algorithm container.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ipinsights.version import version

if TYPE_CHECKING:
    from ipinsights.detector import IPInsightsDetector
    from ipinsights.errors import UserError
    from ipinsights.estimators import fit
    from ipinsights.hyperparameters import Hyperparameters
    from ipinsights.model.artifact import load
    from ipinsights.model.explanation import explain
    from ipinsights.model.model import Model
    from ipinsights.model.scoring import Scorer

    __version__: str

__all__ = ["Hyperparameters", "IPInsightsDetector", "Model", "Scorer", "UserError", "explain", "fit", "load"]

_HOMES = {
    "Hyperparameters": "hyperparameters",
    "IPInsightsDetector": "detector",
    "Model": "model.model",
    "Scorer": "model.scoring",
    "UserError": "errors",
    "explain": "model.explanation",
    "fit": "estimators",
    "load": "model.artifact",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
