"""A trained model keeps what its calibration promises, of log-ins that it has not seen."""

import numpy as np
import pytest

from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.training.fit import fit

USERS, STRANGERS, LOG_INS = 300, 100, 25


def simulated(seed: int) -> tuple[Events, Events]:
    """Log-ins to learn from and later ones, those of some strangers among them: a few places each, and now and then
    any other."""
    rng = np.random.default_rng(seed)
    providers = rng.choice(200, 20, replace=False) + 10
    places = rng.choice(providers, (USERS + STRANGERS, 3)) << 24 | rng.integers(0, 40, (USERS + STRANGERS, 3)) << 16
    entity = np.repeat(np.arange(USERS + STRANGERS), 2 * LOG_INS)
    network = places[entity, rng.integers(0, 3, len(entity))]
    travels = rng.random(len(entity)) < 0.05
    network = np.where(
        travels, rng.choice(providers, len(entity)) << 24 | rng.integers(0, 40, len(entity)) << 16, network
    )
    address = (network | rng.integers(0, 1 << 16, len(entity))).astype(np.uint32)
    index = EntityIndex(2 * (USERS + STRANGERS))
    index.tags[:USERS] = np.arange(1, USERS + 1)
    first = (np.arange(len(entity)) % (2 * LOG_INS) < LOG_INS) & (entity < USERS)
    entity = np.where(entity < USERS, entity, index.num_rows)
    learnt, later = (Events(entity[some].astype(np.int32), address[some], index) for some in (first, ~first))
    return learnt, later


def shares(model: Model, later: Events, rate: float) -> tuple[float, float]:
    """The shares of the log-ins of known and of new entities whose percentile is no more than a rate."""
    assert model.calibration is not None
    known = later.entity < model.index.num_rows
    percentile = model.calibration.percentile(model.score_rows(later.entity, later.address), known)
    return float((percentile[known] <= rate).mean()), float((percentile[~known] <= rate).mean())


@pytest.mark.slow
@pytest.mark.parametrize("validated", [False, True])
def test_later_log_ins_are_as_rarely_below_a_threshold_as_promised(validated: bool) -> None:
    """Over 20 draws: with log-ins kept apart from training, and with a validation channel."""
    found = []
    for seed in range(20):
        train, later = simulated(seed)
        hp = Hyperparameters(
            num_entity_vectors=train.index.num_rows, vector_dim=16, epochs=3, seed=seed, held_out_share=0.1
        )
        validation = simulated(1000)[1] if validated else None
        if validation is not None:
            chosen = np.random.default_rng(seed).random(len(later)) < 0.5
            validation = Events(later.entity[chosen], later.address[chosen], later.index)
            later = Events(later.entity[~chosen], later.address[~chosen], later.index)
        model = fit(train, hp, validation)
        found.append([shares(model, later, rate) for rate in (0.1, 0.02)])
    mean = np.mean(found, axis=0)
    for rate, (known, new) in zip((0.1, 0.02), mean, strict=True):
        assert known == pytest.approx(rate, rel=0.3)
        # Strangers have few distinct scores, as there are few networks here: a percentile counts all equal ones.
        assert 0.3 * rate < new < 1.2 * rate


def test_what_is_kept_apart_takes_no_part() -> None:
    """Its counts, its history and its training are those of a training on the rest alone."""
    train, _ = simulated(0)
    hp = Hyperparameters(num_entity_vectors=train.index.num_rows, vector_dim=16, epochs=1, held_out_share=0.1)
    model = fit(train, hp)
    assert model.counted is not None
    assert model.calibration is not None
    apart = len(train) - model.counted.history.events
    assert apart == pytest.approx(0.1 * len(train), rel=0.2)
    assert len(model.calibration.known) == model.counted.apart.events == apart
    assert model.vocabulary.events == len(train) - apart


@pytest.mark.parametrize("held_out_share", [0.0, 0.02])
def test_a_model_that_can_tell_little_takes_few_log_ins_for_fabricated(held_out_share: float) -> None:
    """One learnt coordinate cannot tell others' places from own ones: a threshold above all is as good as any other."""
    train, later = simulated(0)
    hp = Hyperparameters(num_entity_vectors=train.index.num_rows, vector_dim=4, epochs=3, held_out_share=held_out_share)
    model = fit(train, hp)
    known = later.entity < model.index.num_rows
    assert (model.score_rows(later.entity[known], later.address[known]) < 0).mean() < 0.15


@pytest.mark.parametrize(("share", "log_ins"), [(0.0, 7500), (0.02, 390)])
def test_without_enough_log_ins_there_is_no_calibration(share: float, log_ins: int) -> None:
    train, _ = simulated(0)
    some = Events(train.entity[:log_ins], train.address[:log_ins], train.index)
    hp = Hyperparameters(num_entity_vectors=train.index.num_rows, vector_dim=8, epochs=1, held_out_share=share)
    model = fit(some, hp)
    assert model.calibration is None
    assert model.vocabulary.events == log_ins
