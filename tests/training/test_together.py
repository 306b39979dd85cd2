"""Training on several ranks, in real processes: what must be as on one, and what must be nearly so."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from conftest import to_events
from distributed.together import together
from ipinsights.data.events import Events
from ipinsights.distributed.group import Group
from ipinsights.evaluation import simulation
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, refit
from ipinsights.model.model import Model
from ipinsights.training.checkpoint import Checkpoints
from ipinsights.training.fit import fit
from ipinsights.training.progress import EpochSummary, Listener, Plan
from ipinsights.training.together import fit_together

pytestmark = pytest.mark.slow

HP = Hyperparameters(
    num_entity_vectors=400,
    vector_dim=16,
    epochs=3,
    mini_batch_size=400,
    learning_rate=0.01,
    training_hosts="all",
)


class Kept(Listener):
    """Keeps what training reports."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.epochs: list[EpochSummary] = []

    def training_planned(self, plan: Plan) -> None:
        self.plan = plan

    def epoch_done(self, summary: EpochSummary) -> None:
        self.epochs.append(dataclasses.replace(summary, seconds=0.0))


def log_ins() -> tuple[Events, Events]:
    """The log-ins of 200 users, and later ones, of which some are of others."""
    rng = np.random.default_rng(0)
    ranges = simulation.Ranges.synthetic(rng)
    train, case = simulation.split(simulation.simulate(200, ranges, rng), ranges, 1000, rng)
    from conftest import records

    events = to_events(records(train), HP.num_entity_vectors)
    later = records(case.normal)
    entity = events.index.find(later.entities)
    entity[:20] = HP.num_entity_vectors  # of entities that training never saw
    return events, Events(entity, later.addresses, events.index)


def part(events: Events, group: Group) -> Events:
    """What a rank has read: every so-manieth event."""
    mine = slice(group.rank, None, group.size)
    return dataclasses.replace(events, entity=events.entity[mine], address=events.address[mine])


def trained(group: Group, folder: Path, hp: Hyperparameters = HP, validated: bool = True) -> dict[str, Any]:
    """Train, save, and tell what came of it."""
    train, validation = log_ins()
    heard = Kept()
    shard = fit_together(part(train, group), hp, part(validation, group) if validated else None, group, heard)
    artifact.save(shard, folder / "model", {}, group)
    assert heard.plan
    return {
        "rows": shard.rows,
        "epochs": heard.epochs,
        "vocabulary": heard.plan.vocabulary,
        "profile": heard.plan.profile,
        "held_out": heard.plan.held_out,
        "unseen": heard.plan.unseen,
        "ranks": heard.plan.ranks,
        "encoder": shard.model.encoder.prefix.tobytes(),
    }


def trained_without_validation(group: Group, folder: Path) -> dict[str, Any]:
    return trained(group, folder, validated=False)


def trained_with_a_small_sample(group: Group, folder: Path) -> dict[str, Any]:
    with mock.patch.object(refit, "_SAMPLED", 1):
        return trained(group, folder, validated=False)


def test_a_threshold_is_found_by_one_entity_at_least(tmp_path: Path) -> None:
    together(tmp_path, 2, trained_with_a_small_sample)
    assert artifact.load(tmp_path / "model").calibration


def alone(validated: bool = True) -> tuple[Model, Kept]:
    train, validation = log_ins()
    heard = Kept()
    return fit(train, HP, validation if validated else None, heard), heard


def same_history(one: Model, other: Model) -> None:
    assert one.counted
    assert other.counted
    for name in ("rows", "starts", "addresses", "counts"):
        np.testing.assert_array_equal(getattr(one.counted.history, name), getattr(other.counted.history, name))
    np.testing.assert_array_equal(one.counted.rows, other.counted.rows)
    np.testing.assert_array_equal(one.counted.entities, other.counted.entities)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_find_what_one_finds(tmp_path: Path, ranks: int) -> None:
    results = together(tmp_path, ranks, trained)
    expected, heard = alone()
    model = artifact.load(tmp_path / "model")
    assert heard.plan
    for found in results:
        for name in ("prefixes", "counts", "sizes", "levels", "events"):
            np.testing.assert_array_equal(getattr(found["vocabulary"], name), getattr(heard.plan.vocabulary, name))
        assert found["profile"] == heard.plan.profile
        assert found["unseen"] == heard.plan.unseen == 20
        assert found["ranks"] == ranks
        assert found["epochs"] == results[0]["epochs"]
        assert found["encoder"] == results[0]["encoder"]
    assert sorted(np.concatenate([found["rows"] for found in results])) == heard_rows(expected)
    np.testing.assert_array_equal(model.index.tags, expected.index.tags)
    same_history(model, expected)
    assert model.calibration
    assert expected.calibration
    assert len(model.calibration.known) == len(expected.calibration.known)
    assert len(model.calibration.new) == len(expected.calibration.new)
    for epoch, one in zip(results[0]["epochs"], heard.epochs, strict=True):
        assert (epoch.records, epoch.batches) == (one.records, one.batches)
    last, one = results[0]["epochs"][-1], heard.epochs[-1]
    for name in ("discriminator_auc", "shuffled_auc", "known_discriminator_auc", "known_shuffled_auc"):
        assert getattr(last, name) == pytest.approx(getattr(one, name), abs=0.02), name


def heard_rows(model: Model) -> list[int]:
    return np.flatnonzero(model.index.tags).tolist()


class Interrupted(Listener):
    """Ends all ranks behind a checkpoint, as when the machines are taken away."""

    def checkpoint_written(self, where: str, seconds: float) -> None:
        raise InterruptedError(where)


def trained_twice(group: Group, folder: Path) -> list[str]:
    """Without validation, so that log-ins are held out. The second run is interrupted after each epoch but the last."""
    train, _ = log_ins()
    artifact.save(fit_together(part(train, group), HP, None, group), folder / "first", {}, group)
    checkpoints = folder / f"checkpoints-{group.rank}"
    checkpoints.mkdir()
    for _ in range(HP.epochs):
        with contextlib.suppress(InterruptedError):
            fit_together(
                part(train, group), HP, None, group, Interrupted(), checkpoints=Checkpoints(checkpoints, "", group)
            )
    if group.rank:  # the last checkpoint of one rank is lost: all go on from the one before
        max(checkpoints.iterdir()).unlink()
    shard = fit_together(part(train, group), HP, None, group, checkpoints=Checkpoints(checkpoints, "", group))
    artifact.save(shard, folder / "second", {}, group)
    return [shard.model.encoder.prefix.tobytes().hex()]


def test_two_ranks_make_the_same_bytes_twice_also_if_interrupted(tmp_path: Path) -> None:
    results = together(tmp_path, 2, trained_twice)
    assert results[0] == results[1]
    first, second = (tmp_path / run / artifact.TENSORS for run in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    model = artifact.load(tmp_path / "first")
    expected, heard = alone(validated=False)
    assert heard.plan
    assert heard.plan.held_out
    same_history(model, expected)
    assert model.calibration
    assert expected.calibration
    assert len(model.calibration.known) == len(expected.calibration.known)


def trained_on_few(group: Group, folder: Path) -> tuple[int, int, float]:
    """One rank trains, and two have no events: with validation, early stopping and the best epoch's weights."""
    train, validation = log_ins()
    heard = Kept()
    hp = dataclasses.replace(HP, training_hosts="auto", saved_epoch="best", early_stopping_patience=2)
    checkpoints = folder / f"checkpoints-{group.rank}"
    checkpoints.mkdir()
    for listener in (Interrupted(), heard):
        with contextlib.suppress(InterruptedError):
            shard = fit_together(
                part(train, group),
                hp,
                part(validation, group),
                group,
                listener,
                checkpoints=Checkpoints(checkpoints, "", group),
            )
    artifact.save(shard, folder / "model", {}, group)
    assert heard.plan
    return len(shard.rows), heard.plan.ranks, heard.epochs[-1].discriminator_auc or 0.0


def test_ranks_without_events_neither_hang_nor_harm(tmp_path: Path) -> None:
    results = together(tmp_path, 3, trained_on_few)
    assert [rows for rows, _, _ in results] == [200, 0, 0]
    assert [ranks for _, ranks, _ in results] == [1, 1, 1]
    expected, heard = alone()
    assert results[0][2] == results[1][2] == pytest.approx(heard.epochs[-1].discriminator_auc, abs=0.01)
    same_history(artifact.load(tmp_path / "model"), expected)


def test_how_many_ranks_stand_by_changes_nothing(tmp_path: Path) -> None:
    """To the bit: those without events take no step that would count."""
    models = []
    for ranks in (2, 3):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        together(folder, ranks, trained_on_few)
        models.append((folder / "model" / artifact.TENSORS).read_bytes())
    assert models[0] == models[1]
