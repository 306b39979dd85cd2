"""The names that the package offers, and what it costs to import them."""

import subprocess
import sys
from pathlib import Path

import pytest

import ipinsights
from conftest import Traffic, Tree, to_events

NAMES = ("Hyperparameters", "IPInsightsDetector", "Model", "Scorer", "UserError", "explain", "fit", "load")


def loaded_by(code: str) -> set[str]:
    """The libraries that some code loads, of those that take time or are for one layer alone."""
    heavy = ("torch", "flask", "gunicorn", "boto3", "pandas", "numpy")
    code += f"; import sys; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(result.stdout.split())


def test_a_name_is_imported_when_it_is_first_used() -> None:
    assert loaded_by("import ipinsights") == set()
    assert loaded_by("from ipinsights import Hyperparameters, UserError") == set()
    assert "torch" not in loaded_by("from ipinsights import explain, load, Model, Scorer")
    assert "torch" in loaded_by("from ipinsights import fit")


def test_every_public_name_is_there_and_no_other() -> None:
    assert tuple(sorted(ipinsights.__all__)) == NAMES
    assert set(NAMES) <= set(dir(ipinsights))
    for name in NAMES:
        assert getattr(ipinsights, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'ipinsights' has no attribute 'train'"):
        getattr(ipinsights, "train")  # noqa: B009  # the name is to be looked up
    assert ipinsights.__version__[0].isdigit()


def test_the_names_are_enough_to_train_and_to_score(traffic: Traffic, trained: tuple[Tree, object]) -> None:
    hyperparameters = ipinsights.Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=1)
    model = ipinsights.fit(to_events(traffic.train, 200), hyperparameters)
    assert isinstance(model, ipinsights.Model)
    for known in (model, ipinsights.load(trained[0].model), ipinsights.load(str(trained[0].model))):
        scores = ipinsights.Scorer(known).score(traffic.normal)
        assert len(scores) == len(traffic.normal)
    with pytest.raises(ipinsights.UserError, match="no model in"):
        ipinsights.load(Path(trained[0].base) / "nowhere")
