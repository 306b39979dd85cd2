import dataclasses
import logging
from collections.abc import Sequence

import pytest

from ipinsights.hyperparameters import Hyperparameters
from ipinsights.sagemaker.reporting import FEW_VALIDATED, TrainingReport
from ipinsights.training.progress import Ending, EpochSummary

HP = Hyperparameters(num_entity_vectors=10, vector_dim=4, epochs=3)


@pytest.fixture(autouse=True)
def _propagating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("ipinsights"), "propagate", True)


def warnings(
    caplog: pytest.LogCaptureFixture,
    aucs: Sequence[tuple[float, float | None]],
    saved: int = -1,
    hp: Hyperparameters = HP,
    validated: int = FEW_VALIDATED,
) -> list[str]:
    """The warnings of a training with these discriminator and shuffled AUCs, epoch by epoch."""
    caplog.clear()
    report = TrainingReport("algo-1", hp, 1000, validated)
    summaries = [
        EpochSummary(
            epoch=number,
            records=100,
            batches=1,
            seconds=1.0,
            accuracy=0.9,
            cross_entropy=0.1,
            discriminator_auc=discriminator_auc,
            shuffled_auc=shuffled_auc,
        )
        for number, (discriminator_auc, shuffled_auc) in enumerate(aucs)
    ]
    for summary in summaries:
        report.epoch_done(summary)
    report.training_ended(Ending(len(aucs), 0, "all_epochs", summaries[saved]))
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_model_that_cannot_tell_whose_address_is_whose_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = warnings(caplog, [(0.9, 0.7), (0.9, 0.55)])
    assert warning.startswith("validation shuffled_auc is 0.550, and .5 is guessing: ")
    assert not warnings(caplog, [(0.9, 0.55), (0.9, 0.7)])  # the last epoch is saved
    assert not warnings(caplog, [(0.9, 0.6)])
    assert not warnings(caplog, [(0.9, None)])
    without = dataclasses.replace(HP, shuffled_negative_sampling_rate=0)  # of which training warns when it begins
    assert not warnings(caplog, [(0.9, 0.5)], hp=without)


def test_a_fall_of_the_validated_metric_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    falling = [(0.9, 0.8), (0.95, 0.8), (0.92, 0.8)]
    assert warnings(caplog, falling) == [
        "validation discriminator_auc fell from 0.950 in epoch 1 to 0.920 in epoch 2, whose weights are saved: set "
        "saved_epoch=best, or train for fewer epochs"
    ]
    best = dataclasses.replace(HP, saved_epoch="best")
    assert not warnings(caplog, falling, saved=1, hp=best)
    assert not warnings(caplog, [(0.9, 0.8), (0.95, 0.8), (0.935, 0.8)])


def test_few_validation_events_are_no_reason_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings(caplog, [(0.95, 0.5), (0.6, 0.5)], validated=FEW_VALIDATED - 1)
