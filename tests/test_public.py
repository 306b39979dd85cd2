"""What a notebook does: data frames in, scores and reasons out."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks

import ipinsights
from conftest import Traffic
from ipinsights.data import addresses
from ipinsights.data.records import Records

QUICK: dict[str, Any] = {"epochs": 2, "vector_dim": 16, "learning_rate": 0.01, "mini_batch_size": 500}
FRAMES: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "pandas": lambda columns: pd.DataFrame(columns, index=[f"row {i}" for i in range(len(columns["entity"]))]),
    "polars": pl.DataFrame,
    "Arrow": pa.table,
    "dict": lambda columns: columns,
}


def columns(records: Records) -> dict[str, list[Any]]:
    return {"entity": records.entities.to_pylist(), "ip": addresses.render(records.addresses)}


@pytest.fixture(scope="module")
def model(traffic: Traffic) -> ipinsights.Model:
    return ipinsights.fit(pd.DataFrame(columns(traffic.train)), validation=columns(traffic.normal), **QUICK)


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_of_any_kind_are_scored(model: ipinsights.Model, traffic: Traffic, kind: str) -> None:
    rows = columns(traffic.attacks)
    frame = FRAMES[kind]({**rows, "ip": [*rows["ip"][:-1], "nowhere"]})
    scores, percentiles = model.score(frame), model.percentile(frame)
    expected = ipinsights.Scorer(model).score(traffic.attacks)
    np.testing.assert_array_equal(np.asarray(scores)[:-1], expected[:-1])
    assert np.isnan(np.asarray(scores)[-1])
    assert np.isnan(np.asarray(percentiles)[-1])
    assert ((np.asarray(percentiles)[:-1] > 0) & (np.asarray(percentiles)[:-1] <= 1)).all()
    assert np.median(np.asarray(percentiles)[:-1]) < 0.05
    if kind == "pandas":
        assert list(scores.index) == list(frame.index)
        assert frame.assign(score=scores).nsmallest(3, "score").score.is_monotonic_increasing
    if kind == "polars":
        assert isinstance(scores, pl.Series)


def test_frames_of_any_kind_train_the_same(model: ipinsights.Model, traffic: Traffic) -> None:
    rows, held = columns(traffic.train), columns(traffic.normal)
    for make in FRAMES.values():
        other = ipinsights.fit(make(rows), validation=make(held), **QUICK)
        np.testing.assert_array_equal(other.entity, model.entity)


def test_columns_may_have_other_names(model: ipinsights.Model, traffic: Traffic) -> None:
    rows = columns(traffic.attacks)
    frame = pd.DataFrame({"user": rows["entity"], "source": rows["ip"]})
    assert (model.score(frame, entity="user", address="source").to_numpy() == model.score(rows)).all()
    with pytest.raises(ipinsights.UserError, match=r"no column 'entity'; it has 'user', 'source'\. Say which"):
        model.score(frame)
    with pytest.raises(ipinsights.UserError, match=r"no column 'users'.*Did you mean 'user'\?"):
        ipinsights.fit(frame, entity="users", address="source")


def test_what_is_not_set_follows_from_the_frame(model: ipinsights.Model, traffic: Traffic) -> None:
    assert model.index.num_rows == 2 * len(traffic.train.entities.unique())
    rows = [(f"user_{i % 9}", f"2001:db8:{i % 9}::1" if i % 2 else f"10.0.{i % 9}.1") for i in range(90)]
    both = ipinsights.fit(pd.DataFrame(rows, columns=["entity", "ip"]), epochs=1)
    assert (both.family.version, both.vector_dim) == (6, 64)


def test_a_mistake_is_told(traffic: Traffic) -> None:
    rows = columns(traffic.train)
    with pytest.raises(ipinsights.UserError, match=r"'epoch' is unknown; did you mean 'epochs'\?"):
        ipinsights.fit(rows, epoch=3)
    with pytest.raises(ipinsights.UserError, match=r"^row 1: not an IPv4 address"):
        ipinsights.fit({"entity": ["a", "b"], "ip": ["1.2.3.4", "nowhere"]})
    with pytest.raises(ipinsights.UserError, match="give hyperparameters by name"):
        ipinsights.fit(rows, ipinsights.Hyperparameters(num_entity_vectors=9, vector_dim=8))
    skipping = {"entity": [*rows["entity"], "x"], "ip": [*rows["ip"], "nowhere"]}
    assert ipinsights.fit(skipping, malformed_rows="skip", **QUICK).vocabulary.events


def test_one_pair_is_asked_about(model: ipinsights.Model, traffic: Traffic) -> None:
    rows = columns(traffic.attacks)
    entity, address = rows["entity"][0], rows["ip"][0]
    assert model.knows(entity) is True
    assert model.knows("nobody") is False
    explained = model.explain(entity, address)
    assert explained.score == pytest.approx(model.score(rows)[0], abs=1e-4)
    assert sum(explained.parts.values()) == pytest.approx(explained.score, abs=1e-4)
    embedded = model.embed({"entity": [entity], "ip": [address]})
    assert embedded.scores[0] == pytest.approx(float(embedded.entity[0] @ embedded.ip[0]), abs=1e-4)
    with pytest.raises(ipinsights.UserError, match=r"row 1 .* \['a', 'nowhere'\] is no entity and address"):
        model.embed({"entity": ["a", "a"], "ip": [address, "nowhere"]})


def test_a_model_is_saved_and_loaded_also_packed(model: ipinsights.Model, traffic: Traffic, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        for file in (tmp_path / "model").iterdir():
            archive.add(file, file.name)
    rows = columns(traffic.attacks)
    for path in (tmp_path / "model", tmp_path / "model.tar.gz", str(tmp_path / "model.tar.gz")):
        np.testing.assert_array_equal(ipinsights.load(path).score(rows), model.score(rows))
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(__file__, "x.py")
    with pytest.raises(ipinsights.UserError, match=r"there is no model in .*other\.tar\.gz"):
        ipinsights.load(tmp_path / "other.tar.gz")


def test_training_continues_from_a_model(model: ipinsights.Model, traffic: Traffic) -> None:
    rows = columns(traffic.normal)
    later = ipinsights.fit(rows, earlier=model, epochs=1)
    assert later.index.num_rows == model.index.num_rows
    assert later.vocabulary.events > model.vocabulary.events


def table(records: Records) -> Any:
    rows = columns(records)
    return np.array([rows["entity"], rows["ip"]], dtype=object).T


@pytest.fixture(scope="module")
def detector(traffic: Traffic) -> ipinsights.IPInsightsDetector:
    return ipinsights.IPInsightsDetector(epochs=3, contamination=0.05).fit(table(traffic.train))


def test_the_detector_tells_outliers(detector: ipinsights.IPInsightsDetector, traffic: Traffic) -> None:
    normal, attacks = table(traffic.normal), table(traffic.attacks)
    assert set(detector.predict(attacks)) <= {-1, 1}
    assert (detector.predict(attacks) == -1).mean() > 0.9
    assert (detector.predict(normal) == -1).mean() < 0.1
    assert (detector.decision_function(normal) == detector.score_samples(normal) - np.float32(detector.offset_)).all()
    frame = pd.DataFrame(normal, columns=["who", "where"])
    assert (detector.score_samples(frame) == detector.score_samples(normal)).all()
    again = clone(detector).fit(table(traffic.train))
    assert (again.score_samples(normal) == detector.score_samples(normal)).all()


def test_the_detector_says_what_it_cannot_take(detector: ipinsights.IPInsightsDetector, traffic: Traffic) -> None:
    rows = table(traffic.normal)
    with pytest.raises(ValueError, match="X has 1 features, but IPInsightsDetector is expecting 2 features as input"):
        detector.predict(rows[:, :1])
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        detector.predict(rows[:, 0])
    with pytest.raises(ValueError, match=r"contamination is 2: it must be 'auto' or a share"):
        clone(detector).set_params(contamination=2).fit(rows)
    with pytest.raises(ipinsights.UserError, match=r"too few rows to tell a threshold for contamination=0\.0001"):
        clone(detector).set_params(contamination=0.0001).fit(rows)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_mixin_order,
        estimator_checks.check_estimators_unfitted,
    ],
    ids=lambda check: check.__name__,
)
def test_the_detector_keeps_to_the_rules_of_scikit_learn(check: Callable[[str, object], None]) -> None:
    """Those of its checks that feed no numbers."""
    check("IPInsightsDetector", ipinsights.IPInsightsDetector())
