import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from conftest import Traffic, lose_after, no_events, to_events
from distributed.threads import in_threads
from ipinsights import machine, metrics, native
from ipinsights.data.addresses import IPV4, IPV6, Addresses, random_addresses
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.distributed.group import Group, OtherHostFailed
from ipinsights.errors import UserError
from ipinsights.evaluation import comparison
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import RESERVED, Model
from ipinsights.model.refit import PRIOR
from ipinsights.model.scoring import Scorer
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import batches, gpu_step, placement, trainer
from ipinsights.training import fit as training_fit
from ipinsights.training.fit import fit
from ipinsights.training.native_step import NativeStep
from ipinsights.training.progress import BatchProgress, Ending, EpochSummary, Listener, Plan
from ipinsights.training.step import Batch, Step, TorchStep

HP = Hyperparameters(
    num_entity_vectors=200,
    vector_dim=16,
    epochs=3,
    mini_batch_size=256,
    learning_rate=0.01,
    random_negative_sampling_rate=2,
    shuffled_negative_sampling_rate=1,
    held_out_share=0,
)


class Recorder(Listener):
    def __init__(self) -> None:
        self.batches: list[BatchProgress] = []
        self.epochs: list[EpochSummary] = []
        self.endings: list[Ending] = []

    def batches_done(self, progress: BatchProgress) -> None:
        self.batches.append(progress)

    def epoch_done(self, summary: EpochSummary) -> None:
        self.epochs.append(summary)

    def training_ended(self, ending: Ending) -> None:
        self.endings.append(ending)


def auc_of(epoch: EpochSummary) -> float:
    """Of an epoch that was validated."""
    assert epoch.discriminator_auc is not None
    return epoch.discriminator_auc


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
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    model = fit(train, hp, validation, recorder)
    drawn, other = (
        random_addresses(len(validation), IPV4, 0.0, np.random.default_rng(seed)) for seed in (hp.seed, hp.seed + 2)
    )
    real, made_up, otherwise = (
        (model.entity[validation.entity] * model.encode(a)).sum(1) for a in (validation.address, drawn, other)
    )
    auc = recorder.epochs[-1].discriminator_auc
    assert auc == pytest.approx(metrics.auc(real, made_up), abs=2e-5)  # ties of rounding fall either way
    assert auc != pytest.approx(metrics.auc(real, otherwise), abs=2e-5)


def test_shuffled_auc_sees_what_training_without_shuffled_negatives_loses(traffic: Traffic, train: Events) -> None:
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    seen = {}
    for rate in (0, 1):
        recorder = Recorder()
        fit(train, dataclasses.replace(HP, shuffled_negative_sampling_rate=rate, epochs=10), validation, recorder)
        seen[rate] = recorder.epochs[-1]
    without, with_ = seen[0], seen[1]
    assert min(auc_of(without), auc_of(with_)) > 0.97
    assert without.shuffled_auc is not None
    assert with_.shuffled_auc is not None
    # Counting repairs most of it, and leaves several times as many pairs in the wrong order.
    assert 1 - without.shuffled_auc > 4 * (1 - with_.shuffled_auc)


def test_validation_of_one_entity_has_no_shuffled_auc(train: Events) -> None:
    recorder = Recorder()
    one = Events(train.entity[:1].repeat(5), train.address[:5], train.index)
    fit(train, dataclasses.replace(HP, epochs=1), one, recorder)
    assert recorder.epochs[0].shuffled_auc is None


def test_an_entity_that_training_never_met_has_the_prior_alone(train: Events) -> None:
    model = fit(train, HP)
    strangers = np.setdiff1d(np.arange(HP.num_entity_vectors + 1), train.entity)
    assert len(strangers) > 50
    assert (model.entity[strangers] == model.entity[-1]).all()
    assert np.flatnonzero(model.entity[-1]).tolist() == [HP.vector_dim + PRIOR]
    # What all share is which addresses are in use: log-ins of anybody are likelier than addresses at random.
    random = random_addresses(len(train), IPV4, 0.0, np.random.default_rng(0))
    assert metrics.auc(model.encode(train.address) @ model.entity[-1], model.encode(random) @ model.entity[-1]) > 0.65


def test_novelty_is_larger_for_those_who_are_always_elsewhere() -> None:
    home, abroad = np.full(50, 10 << 24), np.arange(50) << 24
    events = Events(
        np.repeat([0, 1, 2], [50, 50, 5]).astype(np.int32),
        np.concatenate([home, abroad, abroad[:5]]).astype(np.uint32),
        EntityIndex(4),
    )
    novelty = batches.novelty(events, IPV4, 4)
    mean = 55 / 105
    expected = [(0 + 10 * mean) / 60, (50 + 10 * mean) / 60, (5 + 10 * mean) / 15, mean]
    assert novelty == pytest.approx(batches.NOVELTY * np.array(expected) / mean)
    wide = Events(events.entity, events.address.astype(np.uint64) << np.uint64(32), events.index)
    assert batches.novelty(wide, dataclasses.replace(IPV6, levels=(8, 64)), 4) == pytest.approx(novelty)


def test_nobody_was_anywhere_once() -> None:
    events = Events(np.zeros(4, np.int32), np.full(4, 1 << 24, np.uint32), EntityIndex(2))
    assert np.isfinite(batches.novelty(events, IPV4, 2)).all()


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
def test_the_ends_of_the_documented_ranges_train(train: Events, changes: dict[str, Any]) -> None:
    hp = dataclasses.replace(HP, **changes)
    few = Events(train.entity[:300] % hp.num_entity_vectors, train.address[:300], EntityIndex(hp.num_entity_vectors))
    recorder = Recorder()
    model = fit(few, hp, listener=recorder)
    assert np.isfinite(model.entity).all()
    assert np.isfinite(model.encode(few.address)).all()
    assert len(recorder.epochs) == hp.epochs


def test_what_stays_visible_under_dropout_is_a_chain(train: Events) -> None:
    """A hidden prefix hides all longer ones, and one met c times is hidden with probability 1 / (1 + c)."""
    vocabulary = Vocabulary.build(train.address)
    leaf = int(np.argmax(vocabulary.chain_counts[:, -1] == 2))  # a /24 met twice
    leaves = torch.full((30_000,), leaf, dtype=torch.int32)
    rows, same = (
        batches.PrefixIndex(vocabulary, torch.device("cpu"), native)
        .rows_with_dropout(leaves, torch.Generator().manual_seed(0))
        .numpy()
        for native in (native.library(), None)
    )
    assert (rows == same).all()
    levels = np.arange(len(vocabulary.levels))
    known = rows != levels
    assert (np.diff(known.astype(int), axis=1) <= 0).all()
    assert (rows[known] == np.broadcast_to(vocabulary.chains[leaf], rows.shape)[known]).all()
    assert known.mean(0) == pytest.approx(1 - 1 / (1 + vocabulary.chain_counts[leaf]), abs=0.02)


def test_no_events_are_the_users_fault() -> None:
    with pytest.raises(UserError, match="the train channel has no rows"):
        fit(no_events(), HP)


def test_what_a_training_is_made_of(train: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch and every rate of one training, as they reach the step."""
    met: list[Batch] = []
    rates: list[float] = []
    for kind in (NativeStep, TorchStep):
        run = kind.run

        def watched(self: Step, batch: Batch, rate: float, run: Callable[..., None] = run) -> None:
            met.append(batch)
            rates.append(rate)
            run(self, batch, rate)

        monkeypatch.setattr(kind, "run", watched)
    vocabulary = fit(train, HP, device="cpu").vocabulary
    levels, steps = len(vocabulary.levels), len(met)

    # The rate falls linearly over the whole training.
    assert steps == HP.epochs * -(-len(train) // HP.mini_batch_size)
    assert rates == pytest.approx([HP.learning_rate * (1 - t / steps) for t in range(steps)])

    # Each epoch holds every event once, in an order of its own.
    numbers = batches.Entities.of(train, HP.num_entity_vectors).number[train.entity]
    epochs = [met[e * steps // HP.epochs : (e + 1) * steps // HP.epochs] for e in range(HP.epochs)]
    orders = [np.concatenate([batch.entity.numpy() for batch in epoch]) for epoch in epochs]
    for order in orders:
        assert (np.sort(order) == np.sort(numbers)).all()
    assert not (orders[0] == orders[1]).all()
    assert not (orders[0] == numbers).all()

    # Negatives: a shuffled one each; random addresses differ and are mostly unknown in depth.
    assert all(batch.shuffled_rate == 1 and batch.random.shape[1] == 2 for batch in met)
    assert all(len(batch.random) == -(-len(batch.entity) // batch.group) for batch in met)
    random = np.concatenate([batch.random.reshape(-1, levels).numpy() for batch in met])
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


def test_the_encoder_starts_as_the_sum_of_small_prefix_rows_that_leave_room_for_counting(train: Events) -> None:
    vocabulary = Vocabulary.build(train.address)
    entities = batches.Entities.of(train, HP.num_entity_vectors)
    p = trainer.Trainer(
        train, HP, vocabulary, entities, placement.Placement(torch.device("cpu"), "torch"), 1
    ).parameters
    rows = torch.arange(18).view(2, 9)
    torch.testing.assert_close(p.encoder(rows), p.encoder.prefix[rows].sum(1))
    for table in (p.entity[:-1, 0], p.encoder.prefix):
        assert float(table[:, :-RESERVED].std()) == pytest.approx(0.01, rel=0.1)
        assert not table[:, -RESERVED:].any()
    assert not p.entity[-1].any()
    assert not p.typical.any()


def test_rows_that_nobody_meets_take_no_memory(traffic: Traffic, train: Events) -> None:
    """Ten thousand times the rows: the same training, announced with what it takes to number them."""

    class Planned(Recorder):
        def training_planned(self, plan: Plan) -> None:
            self.memory = plan.memory

    small, large = Planned(), Planned()
    model = fit(train, HP, listener=small)
    many = dataclasses.replace(HP, num_entity_vectors=10_000 * HP.num_entity_vectors)
    wide = fit(train, many, listener=large)
    assert large.memory - small.memory == 5 * (many.num_entity_vectors - HP.num_entity_vectors)
    assert (wide.entity[:200][np.unique(train.entity)] == model.entity[np.unique(train.entity)]).all()
    assert (wide.entity[200:] == wide.entity[-1]).all()


def test_a_gpu_with_too_little_memory_is_passed_over_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.cuda
    monkeypatch.setattr(placement, "gpu_fault", lambda group: "")
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (4_000_000_000, 16_000_000_000))
    assert placement._best_device(4_000_000_000) == (torch.device("cuda"), "")
    place, because = placement._best_device(6_000_000_000)
    assert place.type == "cpu"
    assert because.startswith("the GPU has 4,000 MB free, and training there needs 6,000 MB")


def test_a_gpu_that_cannot_be_used_is_passed_over_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver may be too old for torch, itself too old, or broken by what was tried on it."""
    cuda, cpu = torch.cuda, torch.device("cpu")
    on_cpu: placement.StepName = "native" if native.library() else "torch"

    def choose(device: str | None = None) -> placement.Placement:
        return placement.choose(device, HP, Vocabulary.blank(IPV4), 100, 0)

    monkeypatch.setattr(cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    chosen = choose()
    assert (chosen.device, chosen.step) == (cpu, on_cpu)
    assert chosen.slower_because.startswith("the GPU's driver is too old for this torch")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with")

    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", fails)
    told = placement.Placement(cpu, on_cpu, "the GPU cannot be used (CUDA error: no kernel image is available)")
    assert choose() == told
    monkeypatch.setattr(placement, "_best_device", lambda *_: (torch.device("meta"), ""))
    monkeypatch.setattr(gpu_step, "why_not", lambda *_: "something is slow")
    assert choose() == told
    assert choose("meta") == placement.Placement(torch.device("meta"), "torch", "something is slow")
    monkeypatch.setattr(gpu_step, "why_not", lambda *_: "")
    assert choose("meta") == placement.Placement(torch.device("meta"), "graph")


def test_the_documented_defaults_learn_who_is_who(traffic: Traffic, train: Events) -> None:
    """With nothing set but what must be: by default the steps would be too few and too small for so few events."""
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, held_out_share=0)
    model = fit(train, hp)
    for whole_or_part in (model, model.learnt_alone()):
        random, others = comparison.evaluate(Scorer(whole_or_part), traffic.normal, threshold=0.0)
        assert random.auc > 0.97
        assert others.auc > 0.96
    as_set = dataclasses.replace(hp, mini_batch_size=10_000, learning_rate=0.001)
    little = fit(train, as_set)
    _, others = comparison.evaluate(Scorer(little.learnt_alone()), traffic.normal, threshold=0.0)
    assert others.auc < 0.85  # what is set is done
    _, others = comparison.evaluate(Scorer(little), traffic.normal, threshold=0.0)
    assert others.auc > 0.96  # but counting needs no steps


def test_providers_are_known_where_their_prefixes_are_not(traffic: Traffic) -> None:
    """Two providers own every second /16; entities move within their provider to networks never seen."""
    rng = np.random.default_rng(0)
    first = (np.arange(1 << 8) << 16).astype(np.uint32) + np.uint32(20 << 24)
    networks = Networks(first, first + np.uint32(65535), np.stack([np.arange(256) % 2 + 1, np.full(256, 17477)]))
    networks = dataclasses.replace(networks, labels=networks.labels.astype(np.uint32))
    entity = rng.integers(40, size=4000).astype(np.int32)
    seen = rng.integers(64, size=4000) * 2 + entity % 2  # the first half of the networks
    address = (first[seen] + rng.integers(1 << 16, size=4000)).astype(np.uint32)
    train = Events(entity, address, EntityIndex(80))
    later = entity[:1000]
    unseen = 128 + rng.integers(64, size=1000) * 2
    own = (first[unseen + later % 2] + 77).astype(np.uint32)
    foreign = (first[unseen + 1 - later % 2] + 77).astype(np.uint32)
    hp = dataclasses.replace(HP, num_entity_vectors=80, epochs=20)
    aucs = []
    for table in (None, networks):
        model = fit(train, hp, networks=table)
        scores = [(model.entity[later] * model.encode(address)).sum(1) for address in (own, foreign)]
        aucs.append(metrics.auc(*scores))
    assert aucs[0] == pytest.approx(0.5, abs=0.15)
    assert aucs[1] > 0.95


def test_a_new_provider_at_home_is_more_normal_than_one_abroad() -> None:
    """Every network is of another provider, and every second one is in the other country."""
    rng = np.random.default_rng(0)
    first = (np.arange(1 << 8) << 16).astype(np.uint32) + np.uint32(20 << 24)
    labels = np.stack([np.arange(256) + 1, np.arange(256) % 2 + 1]).astype(np.uint32)
    networks = Networks(first, first + np.uint32(65535), labels)
    entity = np.repeat(np.arange(40, dtype=np.int32), 30)
    own = rng.integers(64, size=(40, 3)) * 2 + np.arange(40)[:, None] % 2  # three networks of the first half
    seen = own[entity, rng.integers(3, size=len(entity))]
    train = Events(entity, (first[seen] + rng.integers(50, size=len(entity))).astype(np.uint32), EntityIndex(80))
    train.index.tags[:40] = np.arange(1, 41)
    unseen = 128 + rng.integers(64, size=len(entity)) * 2
    home, abroad = ((first[unseen + (entity + other) % 2] + 77).astype(np.uint32) for other in (0, 1))
    hp = dataclasses.replace(HP, num_entity_vectors=80, epochs=5)
    model = fit(train, hp, networks=networks)
    scores = [model.score_rows(entity, address) for address in (home, abroad)]
    assert metrics.auc(*scores) > 0.99


def test_ipv6_and_ipv4_of_an_account_are_learnt_together() -> None:
    rng = np.random.default_rng(0)
    entity = rng.integers(50, size=6000).astype(np.int32)
    networks = (np.uint64(0x2001) << np.uint64(48)) + rng.integers(1 << 32, size=50, dtype=np.uint64) * np.uint64(65536)
    quads = np.uint64(0x2002 << 48) + rng.integers(1 << 16, size=50, dtype=np.uint64) * np.uint64(1 << 32)
    own = np.where(rng.random(6000) < 0.5, networks[entity], quads[entity]) + rng.integers(
        256, size=6000, dtype=np.uint64
    )
    hp = dataclasses.replace(HP, num_entity_vectors=100, ip_version=6, epochs=10)
    model = fit(Events(entity, own, EntityIndex(100)), hp)

    def score(entity: npt.NDArray[np.integer], address: Addresses) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = (model.entity[entity] * model.encode(address)).sum(1)
        return scores

    for places in (networks, quads):
        yours = score(np.arange(50), places)
        theirs = score(np.arange(50), np.roll(places, 1))
        assert metrics.auc(yours, theirs) > 0.95
    random = random_addresses(1000, IPV6, 0.5, rng)
    assert metrics.auc(score(entity, own), score(np.arange(1000) % 50, random)) > 0.99


def test_empty_validation_is_the_users_fault(train: Events) -> None:
    with pytest.raises(UserError, match="the validation channel has no rows"):
        fit(train, HP, no_events())


@pytest.mark.parametrize("layers", [1, 100])
def test_the_highest_learning_rate_does_not_diverge(train: Events, layers: int) -> None:
    model = fit(train, dataclasses.replace(HP, epochs=1, learning_rate=10.0, num_ip_encoder_layers=layers))
    assert np.isfinite(model.encode(train.address)).all()


def test_divergence_is_told(train: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "INITIAL_SCALE", 1e25)  # scores overflow
    with pytest.raises(UserError, match="lower learning_rate"):
        fit(train, HP)


def test_a_stop_returns_what_is_learnt_so_far(traffic: Traffic, train: Events) -> None:
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    steps = -(-len(train) // HP.mini_batch_size)

    class Stopper(Recorder):
        def __init__(self, after: int) -> None:
            super().__init__()
            self.left = after

        def step_done(self, epoch: int, positives: int) -> None:
            self.left -= 1

        def stop(self) -> bool:
            return self.left <= 0

    for after in (steps - 1, steps, steps + 5):
        stopper = Stopper(after)
        model = fit(train, HP, validation, stopper, stop=stopper.stop)
        [ending] = stopper.endings
        assert (ending.epochs, ending.steps) == divmod(after, steps)
        assert ending.ended == "stopped"
        assert len(stopper.epochs) == after // steps
        saved = ending.saved
        assert saved is not None
        assert saved.epoch == after // steps - (after % steps == 0)
        assert saved.discriminator_auc is not None
        assert saved.discriminator_auc > 0.9
        assert metrics.auc(Scorer(model).score(traffic.normal), Scorer(model).score(traffic.attacks)) > 0.85


def test_a_stop_gives_validation_up_where_it_takes_long(
    traffic: Traffic, train: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipinsights.training.fit.GRACE_SECONDS", -1)
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    listener = Recorder()
    steps = -(-len(train) // HP.mini_batch_size)
    asked = iter(range(1_000_000))
    fit(train, HP, validation, listener, stop=lambda: next(asked) >= steps)  # the last step of the epoch is taken
    assert not listener.epochs
    [ending] = listener.endings
    assert (ending.epochs, ending.steps) == (0, steps)
    assert ending.saved is not None
    assert ending.saved.discriminator_auc is None


def test_a_stop_before_the_first_step_leaves_a_blank_model(traffic: Traffic, train: Events) -> None:
    model = fit(train, HP, stop=lambda: True)
    assert not Scorer(model).score(traffic.normal).any()


SOON_WORSE = dataclasses.replace(
    HP, learning_rate=0.1, random_negative_sampling_rate=0, shuffled_negative_sampling_rate=3
)
"""Trained with these the model knows less and less of random addresses."""


def test_the_best_epoch_is_saved_where_that_is_asked_for(traffic: Traffic, train: Events) -> None:
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    hp = dataclasses.replace(SOON_WORSE, epochs=8)
    models, recorders = {}, {}
    for saved_epoch in ("last", "best"):
        recorders[saved_epoch] = Recorder()
        asked = dataclasses.replace(hp, saved_epoch=saved_epoch)
        models[saved_epoch] = fit(train, asked, validation, recorders[saved_epoch])
    epochs = recorders["best"].epochs
    best = max(epochs, key=auc_of)
    assert best.epoch < 7
    [of_best], [of_last] = (recorders[saved_epoch].endings for saved_epoch in ("best", "last"))
    assert of_best.saved == best
    assert of_last.saved is not None
    assert of_last.saved.epoch == 7
    assert _validated(models["best"], validation, hp) == pytest.approx(best.discriminator_auc, abs=2e-5)
    assert _validated(models["last"], validation, hp) == pytest.approx(epochs[-1].discriminator_auc, abs=2e-5)


def _validated(model: Model, validation: Events, hp: Hyperparameters) -> float:
    random = random_addresses(len(validation), IPV4, 0.0, np.random.default_rng(hp.seed))
    real, made_up = ((model.entity[validation.entity] * model.encode(a)).sum(1) for a in (validation.address, random))
    return metrics.auc(real, made_up)


def test_patience_ends_training(traffic: Traffic, train: Events) -> None:
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    hp = dataclasses.replace(SOON_WORSE, epochs=50, early_stopping_patience=2, saved_epoch="best")
    recorder = Recorder()
    fit(train, hp, validation, recorder)
    aucs = [auc_of(epoch) for epoch in recorder.epochs]
    best = int(np.argmax(aucs))
    assert len(aucs) == best + 3 < 50


@pytest.mark.parametrize("changes", [{"saved_epoch": "best"}, {"early_stopping_patience": 1}], ids=str)
def test_what_needs_validation_says_so(train: Events, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="give the job a validation channel"):
        fit(train, dataclasses.replace(HP, **changes))


def test_a_lost_loss_is_told(train: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_after(0, monkeypatch)
    with pytest.raises(UserError, match="the training loss is no longer a number: lower learning_rate"):
        fit(train, HP)


def test_stopped_with_a_lost_loss_it_has_the_best_epoch(
    traffic: Traffic, train: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    hp, recorder = dataclasses.replace(HP, saved_epoch="best"), Recorder()
    steps = -(-len(train) // HP.mini_batch_size)
    lose_after(steps + 2, monkeypatch)
    asked = iter(range(1_000_000))
    model = fit(train, hp, validation, recorder, stop=lambda: next(asked) >= steps + 5)
    [ending] = recorder.endings
    assert ending.saved == recorder.epochs[0]
    assert np.isfinite(model.entity).all()


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried", "something else"])
def test_memory_that_torch_misses_is_missing_memory(
    message: str, train: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("ipinsights.training.fit.Trainer", fails)
    with pytest.raises(MemoryError if "allocate" in message else RuntimeError):
        fit(train, HP)


def test_one_entity_is_nobody_to_tell_from(traffic: Traffic) -> None:
    one = Records(pa.array(["alice"] * 50), traffic.train.addresses[:50])
    with pytest.raises(UserError, match="all training events belong to one entity"):
        fit(to_events(one, 200), HP)


def test_what_does_not_fit_the_memory_is_refused_before_it_is_taken(
    train: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = EntityIndex(1000)
    events = Events(train.entity, train.address, index)
    hp = dataclasses.replace(HP, num_entity_vectors=250_000_000, vector_dim=4096)
    with pytest.raises(
        UserError, match=r"needs 4,096,000 MB of memory, and this machine has [\d,]+ MB free: lower num_e"
    ):
        fit(events, hp)
    wide = dataclasses.replace(
        HP,
        vector_dim=4096,
        mini_batch_size=500_000,
        random_negative_sampling_rate=499,
        shuffled_negative_sampling_rate=1,
    )
    many = Events(np.tile(train.entity, 200)[:500_000], np.tile(train.address, 200)[:500_000], train.index)
    monkeypatch.setattr(machine, "available_memory", lambda: 9_000_000_000)
    with pytest.raises(UserError, match=r"and this machine has 9,000 MB free: .* vector_dim or mini_batch_size"):
        fit(many, wide)


def test_the_ranks_of_a_host_need_their_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks on the first host need 7 GB of 6 GB. On hosts of their own each would do."""

    def needed(group: Group) -> str:
        try:
            training_fit._require_memory([3_000_000_000, 4_000_000_000, 5_000_000_000][group.rank], group)
        except (UserError, OtherHostFailed) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    monkeypatch.setattr(machine, "available_memory", lambda: 6_000_000_000)
    assert in_threads(3, needed) == ["", "", ""]
    told = in_threads(3, needed, [2, 1])
    assert told[0].startswith("UserError: training needs 7,000 MB of memory, and this machine has 6,000 MB free")
    assert told[2].startswith("OtherHostFailed: host algo-1 failed: training needs 7,000 MB")
