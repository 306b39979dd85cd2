import dataclasses

import numpy as np
import pytest

from conftest import Traffic, to_events
from ipinsights import evaluation, metrics, training
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
    other = np.random.default_rng(hp.seed + 1).integers(1 << 32, size=len(validation), dtype=np.uint32)
    real, made_up, otherwise = (
        (model.entity[validation.entity] * model.encode(a)).sum(1) for a in (validation.address, drawn, other)
    )
    auc = recorder.epochs[-1].discriminator_auc
    assert auc == pytest.approx(metrics.auc(real, made_up), abs=2e-5)  # ties of rounding fall either way
    assert auc != pytest.approx(metrics.auc(real, otherwise), abs=2e-5)


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
        {"weight_decay": 10.0, "learning_rate": 1.0},
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


def test_what_a_training_is_made_of(train: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch and every rate of one training, as they reach the step."""
    batches: list[training.Batch] = []
    rates: list[float] = []
    gradients, apply = training.gradients, training.Optimiser.apply

    def watched_gradients(table: object, encoder: object, batch: training.Batch) -> object:
        batches.append(batch)
        return gradients(table, encoder, batch)

    def watched_apply(self: training.Optimiser, learnt: object, rate: float) -> None:
        rates.append(rate)
        apply(self, learnt, rate)

    monkeypatch.setattr(training, "gradients", watched_gradients)
    monkeypatch.setattr(training.Optimiser, "apply", watched_apply)
    vocabulary = fit(train, HP).vocabulary
    levels, steps = len(vocabulary.levels), len(batches)

    # The rate falls linearly over the whole training.
    assert steps == HP.epochs * -(-len(train) // HP.mini_batch_size)
    assert rates == pytest.approx([HP.learning_rate * (1 - t / steps) for t in range(steps)])

    # Each epoch holds every event once, in an order of its own.
    epochs = [batches[e * steps // HP.epochs : (e + 1) * steps // HP.epochs] for e in range(HP.epochs)]
    orders = [np.concatenate([batch.entity.numpy() for batch in epoch]) for epoch in epochs]
    for order in orders:
        assert (np.sort(order) == np.sort(train.entity)).all()
    assert not (orders[0] == orders[1]).all()
    assert not (orders[0] == train.entity).all()

    # Negatives: shifts move everybody; random addresses differ and are mostly unknown in depth.
    assert all(k % len(batch.entity) for batch in batches for k in batch.shifts)
    assert all(len(batch.shifts) == 1 and batch.random.shape[1] == 2 for batch in batches)
    random = np.concatenate([batch.random.reshape(-1, levels).numpy() for batch in batches])
    assert len(np.unique(random[:, 0])) > 50
    assert (random[:, -1] == levels - 1).mean() > 0.9

    # Some known prefixes of positives are hidden: as many as the counts say, give or take sampling.
    chains = vocabulary.chains[vocabulary.leaves(train.address)]
    counts = vocabulary.chain_counts[vocabulary.leaves(train.address)]
    positive = np.concatenate([batch.positive.numpy() for batch in epochs[0]])
    unknown = np.arange(levels)
    hidden = (positive == unknown).mean(0) - (chains == unknown).mean(0)
    assert hidden == pytest.approx(np.where(counts > 0, 1 / (1 + counts), 0).mean(0), abs=0.01)
    assert hidden[-1] > 0.01


def test_the_index_on_the_device_is_the_vocabularys(train: Events) -> None:
    torch, vocabulary = training.torch, training.Vocabulary.build(train.address)
    index = training._PrefixIndex(vocabulary, torch.device("cpu"))
    starts = vocabulary.intervals[0].astype(np.int64)
    queries = np.unique(np.clip(np.concatenate([starts, starts - 1, starts + 1, [2**32 - 1]]), 0, 2**32 - 1))
    assert (index.leaves(torch.from_numpy(queries)).numpy() == vocabulary.leaves(queries.astype(np.uint32))).all()


def test_the_encoder_starts_as_the_sum_of_small_prefix_rows(train: Events) -> None:
    trainer = training._Trainer(train, HP, training.Vocabulary.build(train.address), training.torch.device("cpu"))
    rows = training.torch.arange(18).view(2, 9)
    expected = trainer.encoder.prefix[rows].sum(1)
    training.torch.testing.assert_close(trainer.encoder(rows), expected)
    assert float(trainer.encoder.w1.std()) == pytest.approx((2 / HP.vector_dim) ** 0.5, rel=0.2)
    assert float(trainer.table.std()) == pytest.approx(0.01, rel=0.1)


def test_the_documented_defaults_learn_who_is_who(traffic: Traffic, train: Events) -> None:
    """Not only which addresses anybody uses: epsilon and steps must suit a mini-batch of any size."""
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=20, learning_rate=0.01)
    scorer = Scorer(fit(train, hp))
    random, others = evaluation.evaluate(scorer, traffic.normal, threshold=0.0)
    assert random.auc > 0.95
    assert others.auc > 0.9


def test_empty_validation_is_the_users_fault(train: Events) -> None:
    with pytest.raises(UserError, match="the validation channel holds no rows"):
        fit(train, HP, Events(np.zeros(0, np.int32), np.zeros(0, np.uint32)))


def test_divergence_is_told(train: Events) -> None:
    with pytest.raises(UserError, match="lower learning_rate"):
        fit(train, dataclasses.replace(HP, learning_rate=10.0, num_ip_encoder_layers=100))
