"""The benchmarks of speed: the yardstick learns, and the tables come out; `test_quality` has the others."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import literal, reading, training
from benchmarks.pieces import Ours
from conftest import Traffic, no_events, to_events
from ipinsights import metrics
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters

REPOSITORY = Path(__file__).parents[1]
EVERY_STEP = {"random_negative_sampling_rate": 5, "batch_metrics_publish_interval": 7}
SMALL = Hyperparameters(num_entity_vectors=200, vector_dim=16, mini_batch_size=500, learning_rate=0.01, **EVERY_STEP)


def measure(*options: str) -> list[list[str]]:
    """The cells of the rows that a run prints, run as a process since it sets torch's number of threads."""
    command = [sys.executable, "-m", "benchmarks.training", "--synthetic", "--users", "60", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_literal_trainer_learns(traffic: Traffic, sparse: bool) -> None:
    train = to_events(traffic.train, 200)
    trainer = literal.Trainer(train, SMALL, sparse)
    steps = list(itertools.islice(trainer.steps(), 3 * -(-len(train) // 500)))
    assert sum(positives for positives, _ in steps) == 3 * len(train)
    assert steps[-1][1] < 0.7 * np.log(2)
    known, attacks = (
        trainer.score(train.index.find(pairs.entities), pairs.addresses) for pairs in (traffic.normal, traffic.attacks)
    )
    assert metrics.auc(known, attacks) > 0.6


def test_the_literal_loss_is_the_mean_cross_entropy_of_a_positive_and_its_negatives(traffic: Traffic) -> None:
    trainer = literal.Trainer(to_events(traffic.train, 200), SMALL, sparse=False)
    with torch.no_grad():
        trainer.model.entity.weight.zero_()
    assert next(trainer.steps())[1] == pytest.approx(np.log(2))


def test_our_training_does_the_steps_it_is_told_to_and_stops(traffic: Traffic) -> None:
    ours = Ours(to_events(traffic.train, 200), SMALL)
    first, second = ours.run(3), ours.run(5)
    assert (first.positives, second.positives) == (1500, 2500)
    assert first.seconds > 0
    assert second.cross_entropy < first.cross_entropy
    ours.close()


def test_an_error_in_our_training_is_told(traffic: Traffic) -> None:
    with pytest.raises(UserError, match="no training events"):
        Ours(no_events(), SMALL).run(1)
    with pytest.raises(ValueError, match="too few epochs"):
        Ours(to_events(traffic.train, 200), dataclasses.replace(SMALL, epochs=1)).run(1000)


def test_namesakes_spread_over_half_the_table() -> None:
    events = training.spread_events(rows=1000, users=100, synthetic=True)
    assert len(np.unique(events.entity)) == 500
    assert events.entity.max() >= 900
    assert events.index.num_rows == 1000


def test_speed_has_a_row_a_contender() -> None:
    header, _, *rows = measure("--rounds", "2", "--piece", "2000", "--batch", "500")
    assert [row[0] for row in rows] == ["literal, dense Adam", "literal, SparseAdam", "**ours**"]
    assert all(len(row) == len(header) and all(row) for row in rows)
    assert rows[0][3] == rows[1][2] == "1.00"


def test_what_does_not_fit_side_by_side_takes_turns_and_dense_adam_is_left_out() -> None:
    options = ["--rounds", "1", "--piece", "500", "--batch", "500", "--memory", "0", "--dense-limit", "0"]
    dense, sparse, ours = measure(*options)[2:]
    assert "left out" in dense[1]
    assert sparse[2] == "1.00"
    assert ours[3] == ""


def test_quality_has_a_row_a_contender() -> None:
    header, _, *rows = measure("--quality", "--batch", "500", "--epochs", "2")
    assert len(rows) == 3
    assert all(len(row) == len(header) for row in rows)
    assert all(0.5 < float(row[header.index("AUC")]) < 1 for row in rows)


def test_a_table_too_small_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--synthetic", "--rows", "100"])
    assert "--rows must be" in capsys.readouterr().err


def test_reading_has_a_row_a_reader(capsys: pytest.CaptureFixture[str]) -> None:
    reading.main(["--synthetic", "--users", "60", "--rounds", "1"])
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 3
    assert all(row.count("|") == header.count("|") for row in rows)
