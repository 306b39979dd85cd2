import dataclasses

import numpy as np
import pytest

from conftest import Traffic, to_events
from ipinsights import metrics, training
from ipinsights.errors import UserError
from ipinsights.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.scoring import Scorer
from ipinsights.training import BatchProgress, EpochSummary, Listener, fit

HP = Hyperparameters(
    num_entity_vectors=200,
    vector_dim=16,
    epochs=3,
    mini_batch_size=256,
    learning_rate=0.01,
    random_negative_sampling_rate=2,
    shuffled_negative_sampling_rate=1,
)


class Recorder(Listener):
    def __init__(self) -> None:
        self.batches: list[BatchProgress] = []
        self.epochs: list[EpochSummary] = []

    def batches_done(self, progress: BatchProgress) -> None:
        self.batches.append(progress)

    def epoch_done(self, summary: EpochSummary) -> None:
        self.epochs.append(summary)


@pytest.fixture(scope="module")
def train(traffic: Traffic) -> Events:
    return to_events(traffic.train, HP.num_entity_vectors)


def test_the_model_tells_attacks_from_log_ins(traffic: Traffic, train: Events) -> None:
    scorer = Scorer(fit(train, HP))
    assert metrics.auc(scorer.score(traffic.normal), scorer.score(traffic.attacks)) > 0.9


def test_the_same_seed_gives_the_same_model_and_another_another(train: Events) -> None:
    one, same = fit(train, HP, device="cpu"), fit(train, HP, device="cpu")
    other = fit(train, dataclasses.replace(HP, seed=1), device="cpu")
    assert (one.entity == same.entity).all()
    assert (one.encoder.prefix == same.encoder.prefix).all()
    assert not (one.entity == other.entity).all()


def test_batches_are_counted_as_the_built_in_does(train: Events) -> None:
    """A step on mini_batch_size positives is 1 + R + S mini-batches; prints come at 0, i, 2 i, ... of them."""
    recorder = Recorder()
    fit(train, dataclasses.replace(HP, batch_metrics_publish_interval=7), listener=recorder)
    steps = -(-len(train) // HP.mini_batch_size)
    for epoch, summary in enumerate(recorder.epochs):
        assert summary.epoch == epoch
        assert summary.batches == 4 * steps
        assert summary.records == 4 * len(train)
        assert [p.batch for p in recorder.batches if p.epoch == epoch] == list(range(0, summary.batches, 7))


def test_training_starts_at_chance_and_learns(train: Events) -> None:
    recorder = Recorder()
    fit(train, HP, listener=recorder)
    assert recorder.batches[0].cross_entropy == pytest.approx(np.log(2), abs=1e-3)
    losses = [summary.cross_entropy for summary in recorder.epochs]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5


def test_validation_is_against_one_random_address_whatever_training_uses(traffic: Traffic, train: Events) -> None:
    recorder = Recorder()
    hp = dataclasses.replace(HP, random_negative_sampling_rate=0, shuffled_negative_sampling_rate=3)
    validation = to_events(traffic.normal, HP.num_entity_vectors)
    model = fit(train, hp, validation, recorder)
    drawn = np.random.default_rng(hp.seed).integers(1 << 32, size=len(validation), dtype=np.uint32)
    real, made_up = (
        (model.entity[validation.entity] * model.encode(address)).sum(1) for address in (validation.address, drawn)
    )
    assert recorder.epochs[-1].discriminator_auc == pytest.approx(metrics.auc(real, made_up), abs=1e-6)


def test_without_validation_there_is_no_auc(train: Events) -> None:
    recorder = Recorder()
    fit(train, HP, listener=recorder)
    assert [summary.discriminator_auc for summary in recorder.epochs] == [None] * HP.epochs


@pytest.mark.parametrize(
    "changes",
    [
        {"mini_batch_size": 1, "epochs": 1},
        {"mini_batch_size": 500_000},
        {"num_ip_encoder_layers": 0},
        {"num_ip_encoder_layers": 100, "vector_dim": 4},
        {"shuffled_negative_sampling_rate": 0},
        {"random_negative_sampling_rate": 0},
        {"random_negative_sampling_rate": 400, "shuffled_negative_sampling_rate": 100, "epochs": 1},
        {"num_entity_vectors": 1},
        {"weight_decay": 10.0},
    ],
    ids=str,
)
def test_the_ends_of_the_documented_ranges_train(train: Events, changes: dict[str, int]) -> None:
    hp = dataclasses.replace(HP, **changes)
    few = Events(train.entity[:300] % hp.num_entity_vectors, train.address[:300])
    recorder = Recorder()
    model = fit(few, hp, listener=recorder)
    assert np.isfinite(model.entity).all()
    assert np.isfinite(model.encode(few.address)).all()
    assert len(recorder.epochs) == hp.epochs


def test_what_stays_visible_under_dropout_is_a_chain(train: Events) -> None:
    """A hidden prefix hides all longer ones, and one met c times is hidden with probability 1 / (1 + c)."""
    torch = training.torch
    vocabulary = training.Vocabulary.build(train.address)
    index = training._PrefixIndex(vocabulary, torch.device("cpu"))
    leaf = int(np.argmax(vocabulary.chain_counts[:, -1] == 2))  # a /24 met twice
    rows = index.rows_with_dropout(torch.full((30_000,), leaf), torch.Generator().manual_seed(0)).numpy()
    levels = np.arange(len(vocabulary.levels))
    known = rows != levels
    assert (np.diff(known.astype(int), axis=1) <= 0).all()
    assert (rows[known] == np.broadcast_to(vocabulary.chains[leaf], rows.shape)[known]).all()
    assert known.mean(0) == pytest.approx(1 - 1 / (1 + vocabulary.chain_counts[leaf]), abs=0.02)


def test_no_events_are_the_users_fault() -> None:
    with pytest.raises(UserError, match="holds no rows"):
        fit(Events(np.zeros(0, np.int32), np.zeros(0, np.uint32)), HP)


def test_divergence_is_told(train: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the documented ranges is known to diverge, so the tables start at infinity here."""
    monkeypatch.setattr(training, "INITIAL_SCALE", float("inf"))
    with pytest.raises(UserError, match="lower learning_rate"):
        fit(train, HP)
