"""Training ends with counting: what validation sees of it, what the model keeps, and how training goes on from it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from conftest import Traffic, to_events, two_countries
from ipinsights import metrics, native
from ipinsights.data import addresses
from ipinsights.data.addresses import FAMILIES, IPV4, random_addresses
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.evaluation import comparison
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.counting import Counts
from ipinsights.model.history import History
from ipinsights.model.model import RESERVED, Encoder, Model
from ipinsights.model.refit import CONSTANT, POPULARITY, PRIOR, Refit
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit
from ipinsights.training.progress import EpochSummary, Listener

HP = Hyperparameters(
    num_entity_vectors=200, vector_dim=16, epochs=3, mini_batch_size=256, learning_rate=0.01, held_out_share=0
)


class Recorder(Listener):
    def __init__(self) -> None:
        self.epochs: list[EpochSummary] = []
        self.was_uncounted = False
        self.steps = 0

    def step_done(self, epoch: int, positives: int) -> None:
        self.steps += 1

    def epoch_done(self, summary: EpochSummary) -> None:
        self.epochs.append(summary)

    def uncounted(self) -> None:
        self.was_uncounted = True


@pytest.fixture(scope="module")
def train(traffic: Traffic) -> Events:
    return to_events(traffic.train, HP.num_entity_vectors)


@pytest.fixture(scope="module")
def model(train: Events) -> Model:
    return fit(train, HP, device="cpu")


@pytest.fixture(scope="module")
def with_strangers(traffic: Traffic) -> Records:
    """Later log-ins, and those of a hundred strangers."""
    strangers = pa.array([f"stranger {number}" for number in range(100)])
    where = traffic.normal.addresses
    return Records(pa.concat_arrays([traffic.normal.entities, strangers]), np.concatenate([where, where[:100]]))


def found(records: Records, index: EntityIndex) -> Events:
    return Events(index.find(records.entities), records.addresses, index)


def go_on(earlier: Model, records: Records, hp: Hyperparameters = HP, **given: Any) -> Model:
    index = EntityIndex(earlier.index.num_rows, earlier.index.tags.copy(), earlier.index.sharing)
    events = Events(index.claim(records.entities), records.addresses, index)
    return fit(events, hp, earlier=earlier, device="cpu", **given)


def history_of(model: Model) -> History:
    assert model.counted is not None
    return model.counted.history


# Training leaves room for counting


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("countries", [0, 2])
def test_training_leaves_the_reserved_coordinates_at_0(
    layers: int, kernel: bool, countries: int, train: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sides of the product and in the blocks, so that what is written there goes through unchanged."""
    networks = two_countries() if countries else None
    reserved = RESERVED + countries
    if not kernel:
        monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(Refit, "model", lambda *_, **__: None)
    hp = dataclasses.replace(HP, num_ip_encoder_layers=layers, weight_decay=0.1)
    learnt = fit(train, hp, device="cpu", networks=networks)
    assert len(learnt.vocabulary.countries) == countries
    assert learnt.entity[:, :-reserved].any()
    assert not learnt.entity[:, -reserved:].any()
    assert not learnt.encoder.prefix[:, -reserved:].any()
    assert not learnt.encoder.w[:, -reserved:].any()
    assert not learnt.encoder.w[:, :, -reserved:].any()
    assert not learnt.encoder.b[:, -reserved:].any()


def test_without_time_to_count_it_has_what_it_learnt(train: Events, model: Model, traffic: Traffic) -> None:
    """A stop is long ago as soon as it is asked for."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ipinsights.training.fit.GRACE_SECONDS", -1)
        steps = HP.epochs * -(-len(train) // HP.mini_batch_size)
        learnt = fit(train, HP, None, recorder, "cpu", stop=lambda: recorder.steps == steps)
    assert recorder.was_uncounted
    assert learnt.counted is None
    np.testing.assert_allclose(
        Scorer(learnt).score(traffic.normal), Scorer(model.learnt_alone()).score(traffic.normal), atol=1e-5
    )
    recorder = Recorder()
    fit(train, dataclasses.replace(HP, epochs=1), None, recorder)
    assert not recorder.was_uncounted


# The history that a model keeps


@pytest.mark.parametrize("version", [4, 6])
def test_how_much_history_is_kept_changes_no_score(version: int, traffic: Traffic) -> None:
    family, index = FAMILIES[version], EntityIndex(HP.num_entity_vectors)
    train, normal = (
        addresses.parse(pa.array(addresses.render(part.addresses), pa.string()), family)[0]
        for part in (traffic.train, traffic.normal)
    )
    events = Events(index.claim(traffic.train.entities), train, index)
    hp = dataclasses.replace(HP, ip_version=version, epochs=1)
    models = {bits: fit(events, dataclasses.replace(hp, history=bits), device="cpu") for bits in (0, 1, 24, 128)}
    asked = Records(traffic.normal.entities, normal)
    for kept in models.values():
        assert (Scorer(kept).score(asked) == Scorer(models[128]).score(asked)).all()
        assert (kept.learnt_alone().entity == models[128].learnt_alone().entity).all()
    for bits, expected in ((1, 1), (24, 24), (128, family.width)):
        history = history_of(models[bits])
        assert history.length == expected
        same = History.of(events, family, expected)
        for name in ("rows", "starts", "addresses", "counts"):
            assert (getattr(history, name) == getattr(same, name)).all()
    assert len(history_of(models[0])) == 0


def test_what_is_not_kept_is_not_in_the_files(traffic: Traffic, tmp_path: Path) -> None:
    """Of an address only the bits that are kept can be read in the history."""
    model = fit(to_events(traffic.train, 200), dataclasses.replace(HP, epochs=1, history=16))
    artifact.save(model, tmp_path, {})
    loaded, manifest = artifact.read(tmp_path)
    assert manifest["history"] == {
        "bits": 16,
        "pairs": len(history_of(model)),
        "bytes": history_of(model).nbytes,
    }
    assert not (history_of(loaded).addresses & np.uint32(0xFFFF)).any()


# What validation sees


@pytest.mark.parametrize("saved_epoch", ["last", "best"])
def test_validation_sees_the_score_that_is_served(
    saved_epoch: str, train: Events, traffic: Traffic, tmp_path: Path
) -> None:
    """The area printed for the saved epoch is what `evaluate` finds in the saved model."""
    hp = dataclasses.replace(
        HP, saved_epoch=saved_epoch, random_negative_sampling_rate=0, shuffled_negative_sampling_rate=3
    )
    recorder = Recorder()
    model = fit(train, dataclasses.replace(hp, learning_rate=0.1), found(traffic.normal, train.index), recorder)
    artifact.save(model, tmp_path, {})
    random, _ = comparison.evaluate(Scorer.open(tmp_path), traffic.normal, 0.0, hp.seed)
    areas = [epoch.discriminator_auc for epoch in recorder.epochs]
    assert len(set(areas)) == len(areas)
    printed = areas[-1] if saved_epoch == "last" else max(area for area in areas if area is not None)
    assert random.auc == pytest.approx(printed, abs=2e-5)  # ties of rounding fall either way


@pytest.mark.parametrize("history", [0, 16, 128])
def test_validation_sees_what_is_served_when_training_goes_on(history: int, train: Events, traffic: Traffic) -> None:
    """Also of entities whose habits only the earlier model knows."""
    earlier = fit(train, dataclasses.replace(HP, history=history), device="cpu")
    names = np.array(traffic.train.entities.to_pylist())
    some = np.isin(names, sorted(set(names.tolist()))[:40])
    recorder = Recorder()
    later = go_on(
        earlier,
        Records(pa.array(names[some]), traffic.train.addresses[some]),
        validation=found(traffic.normal, earlier.index),
        listener=recorder,
    )
    random, _ = comparison.evaluate(Scorer(later), traffic.normal, 0.0, HP.seed)
    assert random.auc == pytest.approx(recorder.epochs[-1].discriminator_auc, abs=2e-5)


def test_known_entities_are_validated_apart_where_there_are_others(train: Events, with_strangers: Records) -> None:
    """All together, before the threshold is found: it moves the known ones, and is found for the saved model alone."""
    recorder = Recorder()
    model = fit(train, dataclasses.replace(HP, epochs=1), found(with_strangers, train.index), recorder)
    [epoch] = recorder.epochs
    validation = found(with_strangers, train.index)
    rng = np.random.default_rng(HP.seed)
    random = random_addresses(len(validation), IPV4, 0.0, rng)
    shuffle = rng.permutation(len(validation))
    known = validation.entity < HP.num_entity_vectors
    popularity = Counts(model.vocabulary, history_of(model)).popularity
    chain = model.vocabulary.chains[model.vocabulary.leaves(random[:1])][0]
    threshold = popularity[chain].sum() + popularity[-1] - model.encode(random[:1])[0, POPULARITY]
    own, made_up, shuffled = (
        model.score_rows(validation.entity, address) + np.where(known, threshold, 0)
        for address in (validation.address, random, validation.address[shuffle])
    )
    assert (~known).sum() == 100
    other = validation.entity[shuffle] != validation.entity
    assert epoch.discriminator_auc == pytest.approx(metrics.auc(own, made_up), abs=2e-5)
    assert epoch.shuffled_auc == pytest.approx(metrics.auc(own, shuffled[other]), abs=2e-5)
    assert epoch.known_discriminator_auc == pytest.approx(metrics.auc(own[known], made_up[known]), abs=2e-5)
    assert epoch.known_shuffled_auc == pytest.approx(metrics.auc(own[known], shuffled[known & other]), abs=2e-5)
    assert epoch.known_discriminator_auc != pytest.approx(epoch.discriminator_auc, abs=1e-4)


@pytest.mark.parametrize("who", ["known", "strangers"])
def test_without_others_known_entities_are_all_there_is(who: str, train: Events, traffic: Traffic) -> None:
    records = traffic.normal
    if who == "strangers":
        records = Records(pa.array([f"stranger {name}" for name in records.entities.to_pylist()]), records.addresses)
    recorder = Recorder()
    model = fit(train, dataclasses.replace(HP, epochs=1), found(records, train.index), recorder)
    [epoch] = recorder.epochs
    assert epoch.known_discriminator_auc is None
    assert epoch.known_shuffled_auc is None
    random, _ = comparison.evaluate(Scorer(model), records, 0.0, HP.seed)
    assert epoch.discriminator_auc == pytest.approx(random.auc, abs=2e-5)


# Going on


def test_going_on_counts_both_and_nothing_twice(model: Model, train: Events, traffic: Traffic) -> None:
    """With the same data again, and steps too small to change anything, it is counting in all events."""
    still = dataclasses.replace(HP, learning_rate=1e-6, epochs=1)
    later = go_on(model, traffic.train, still)
    doubled, once = history_of(later), history_of(model)
    assert (doubled.counts == 2 * once.counts).all()
    for name in ("rows", "starts", "addresses"):
        assert (getattr(doubled, name) == getattr(once, name)).all()
    assert not later.learnt_alone().entity[:, -RESERVED:].any()
    np.testing.assert_allclose(later.learnt_alone().entity, model.learnt_alone().entity, atol=1e-3)
    expected = Refit(Counts(later.vocabulary, doubled)).model(model.learnt_alone(), HP.seed)
    assert expected is not None
    now, counted_once = Scorer(later).score(traffic.normal), Scorer(expected).score(traffic.normal)
    np.testing.assert_allclose(now, counted_once, atol=0.05)
    for coordinate in (POPULARITY, CONSTANT, PRIOR):
        before, after = (some.encode(traffic.normal.addresses)[:, coordinate] for some in (expected, later))
        np.testing.assert_allclose(after - after.mean(), before - before.mean(), atol=1e-4)
    # How many entities use a network does not depend on the number of their events.
    before, after = (some.encode(traffic.normal.addresses)[:, PRIOR] for some in (model, later))
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert np.corrcoef(now, Scorer(model).score(traffic.normal))[0, 1] > 0.98


def test_going_on_twice_is_like_going_on_once(model: Model, traffic: Traffic) -> None:
    """The history of three trainings, and entities that came with any of them."""
    names = np.array(traffic.train.entities.to_pylist())
    parts = [Records(pa.array(names[start::3]), traffic.train.addresses[start::3]) for start in range(3)]
    index = EntityIndex(HP.num_entity_vectors)
    hp = dataclasses.replace(HP, epochs=1)
    chain = fit(Events(index.claim(parts[0].entities), parts[0].addresses, index), hp)
    for part in parts[1:]:
        chain = go_on(chain, part, hp)
    assert visits(chain, names) == visits(model, names)


def visits(model: Model, names: npt.NDArray[np.str_]) -> list[tuple[list[int], list[int]]]:
    """The addresses of each entity and how often it came from there."""
    history, places = history_of(model), model.index.own_rows(pa.array(np.unique(names)))
    own = [history.place(row) for row in places.tolist()]
    return [(history.addresses[rows].tolist(), history.counts[rows].tolist()) for rows in own]


def test_with_less_history_on_either_side_both_have_less(train: Events, traffic: Traffic) -> None:
    hp = dataclasses.replace(HP, epochs=1)
    earlier = fit(train, dataclasses.replace(hp, history=24), device="cpu")
    later = go_on(earlier, traffic.train, hp)
    assert history_of(later).length == 24
    assert history_of(later).events == 2 * len(train)
    scorer = Scorer(later)
    assert metrics.auc(scorer.score(traffic.normal), scorer.score(traffic.attacks)) > 0.9


def test_a_model_of_a_release_that_did_not_count_is_no_beginning(model: Model, traffic: Traffic) -> None:
    prefix = np.array(model.encoder.prefix)
    prefix[:, -1] = 0.5
    encoder = Encoder(prefix, model.encoder.w, model.encoder.b)
    uncounted = dataclasses.replace(model, encoder=encoder, counted=None)
    with pytest.raises(UserError, match=r"made by a release that did not count: it can be served, .* without it"):
        go_on(uncounted, traffic.train)
    learnt = go_on(model.learnt_alone(), traffic.train, dataclasses.replace(HP, epochs=1))  # which had no time to
    assert history_of(learnt).events == len(traffic.train)


def test_a_forgotten_entity_is_not_counted_when_training_goes_on(model: Model, traffic: Traffic) -> None:
    names = np.array(traffic.train.entities.to_pylist())
    [row] = model.index.own_rows(pa.array(["user_1"]))
    forgotten = model.without(np.array([row]))
    others = names != "user_1"
    later = go_on(forgotten, Records(pa.array(names[others]), traffic.train.addresses[others]))
    assert history_of(later).place(int(row)) == slice(0, 0)
    assert (later.entity[row] == later.entity[-1]).all()
    assert later.counted is not None
    assert row not in later.counted.rows


def test_whole_addresses_are_known_where_they_recur_and_as_long_as_training_goes_on() -> None:
    """Two hosts of one /24 are told apart by their last bits alone."""
    rng = np.random.default_rng(0)
    entity = rng.integers(20, size=4000).astype(np.int32)
    own = (rng.integers(1 << 16) << 16) + np.arange(20) * 5
    train = Events(entity, own[entity].astype(np.uint32), EntityIndex(40))
    hp = dataclasses.replace(HP, num_entity_vectors=40, epochs=5)
    model = fit(train, hp)
    assert model.vocabulary.levels[-1] == 32
    everyone = np.arange(20)
    for some in (model, fit(train, hp, earlier=model)):
        assert some.vocabulary.levels == model.vocabulary.levels
        mine, theirs = (some.score_rows(everyone, address.astype(np.uint32)) for address in (own, np.roll(own, 1)))
        assert mine.min() > theirs.max()
