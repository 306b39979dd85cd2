"""Training that goes on from an earlier model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from conftest import Traffic, two_countries
from ipinsights import metrics
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training.batches import Entities
from ipinsights.training.fit import fit
from ipinsights.training.placement import Placement
from ipinsights.training.progress import Listener
from ipinsights.training.trainer import Trainer

HP = Hyperparameters(num_entity_vectors=300, vector_dim=16, epochs=4, mini_batch_size=256, learning_rate=0.01)

ADDRESSES = npst.arrays(np.uint32, st.integers(1, 60), elements=st.integers(0, 1023).map(lambda n: n << 18))


def part(traffic: Records, names: set[str]) -> Records:
    kept = np.array([name in names for name in traffic.entities.to_pylist()])
    return Records(traffic.entities.filter(pa.array(kept)), traffic.addresses[kept])


@pytest.fixture(scope="module")
def halves(traffic: Traffic) -> tuple[set[str], set[str]]:
    names = sorted(set(traffic.train.entities.to_pylist()))
    return set(names[:60]), set(names[60:])


@pytest.fixture(scope="module")
def earlier(traffic: Traffic, halves: tuple[set[str], set[str]]) -> Model:
    """A model of the first entities alone."""
    index = EntityIndex(HP.num_entity_vectors)
    records = part(traffic.train, halves[0])
    return fit(Events(index.claim(records.entities), records.addresses, index), HP)


def go_on(
    earlier: Model,
    records: Records,
    hp: Hyperparameters = HP,
    networks: Networks | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Model:
    index = EntityIndex(earlier.index.num_rows, earlier.index.tags.copy(), earlier.index.sharing)
    events = Events(index.claim(records.entities), records.addresses, index)
    return fit(events, hp, networks=networks, earlier=earlier, stop=stop)


def learnt_so_far(earlier: Model, records: Records, steps: int) -> Model:
    """What training has learnt after so many steps."""
    index = EntityIndex(earlier.index.num_rows, earlier.index.tags.copy(), earlier.index.sharing)
    events = Events(index.claim(records.entities), records.addresses, index)
    vocabulary = Vocabulary.build(events.address, levels=earlier.vocabulary.levels, earlier=earlier.vocabulary)
    entities, place = Entities.of(events, index.num_rows, earlier), Placement(torch.device("cpu"), "torch")
    trainer = Trainer(events, HP, vocabulary, entities, place, 1, earlier.learnt_alone())
    taken = iter(range(1, 1_000_000))
    if steps:
        trainer.run(Listener(), lambda: next(taken) == steps, lambda: None)
    return trainer.model()[0]


def auc(model: Model, traffic: Traffic, names: set[str]) -> float:
    scorer = Scorer(model)
    return metrics.auc(scorer.score(part(traffic.normal, names)), scorer.score(part(traffic.attacks, names)))


def test_before_the_first_step_it_is_the_earlier_model(
    earlier: Model, traffic: Traffic, halves: tuple[set[str], set[str]], tmp_path: Path
) -> None:
    """Of what is new, counting knows the places, but no embedding does yet: that would be no model."""
    artifact.save(earlier, tmp_path, {})
    new = part(traffic.train, halves[1])
    first = go_on(artifact.load(tmp_path), new, dataclasses.replace(HP, history=16), stop=lambda: True)
    for records in (traffic.normal, traffic.attacks, new):
        assert (Scorer(first).score(records) == Scorer(earlier).score(records)).all()
    assert first.counted is not None
    assert first.counted.history.length == 16  # as it is set now


def test_what_earlier_trainings_kept_apart_is_still_told_and_not_counted(
    earlier: Model, traffic: Traffic, halves: tuple[set[str], set[str]]
) -> None:
    """With as many bits of an address as are kept of what was counted."""
    continued = go_on(earlier.keeping(16), traffic.train, dataclasses.replace(HP, epochs=1, held_out_share=0.05))
    every = [part(traffic.train, halves[0]), traffic.train]
    assert earlier.counted is not None
    assert continued.counted is not None
    assert 0 < earlier.counted.apart.events < continued.counted.apart.events
    assert continued.counted.history.events + continued.counted.apart.events == sum(map(len, every))
    assert continued.counted.history.length == continued.counted.apart.length == 16
    name = sorted(halves[0])[0]
    assert continued.explain(name, "10.0.0.1").events == sum(some.entities.to_pylist().count(name) for some in every)


def test_training_starts_from_what_the_earlier_model_has_learnt(
    earlier: Model, traffic: Traffic, halves: tuple[set[str], set[str]], tmp_path: Path
) -> None:
    """Also for entities and prefixes that have just got a row: they begin as what stood for them."""
    artifact.save(earlier, tmp_path, {})
    mapped = artifact.load(tmp_path)
    new = part(traffic.train, halves[1])
    first = learnt_so_far(mapped, new, steps=0)
    assert first.vocabulary.num_rows > earlier.vocabulary.num_rows
    assert first.index.owned > earlier.index.owned
    for records in (traffic.normal, traffic.attacks, new):
        now, before = (Scorer(model).score(records) for model in (first, earlier.learnt_alone()))
        np.testing.assert_allclose(now, before, atol=2e-5)
    later = learnt_so_far(mapped, new, steps=1)
    assert (Scorer(later).score(new) != Scorer(first).score(new)).any()


def test_it_learns_the_new_and_keeps_the_old(
    earlier: Model, traffic: Traffic, halves: tuple[set[str], set[str]]
) -> None:
    old, new = halves
    before = auc(earlier, traffic, old)
    assert auc(earlier, traffic, new) < 0.9  # of strangers it knows no place
    later = go_on(earlier, part(traffic.train, new))
    assert auc(later, traffic, new) > 0.93
    assert auc(later, traffic, old) > before - 0.02


def test_what_was_learnt_counts(earlier: Model, traffic: Traffic, halves: tuple[set[str], set[str]]) -> None:
    """A few more log-ins of entities that are known: from nothing they would teach little."""
    few = part(traffic.train, halves[0])
    few = Records(few.entities[:300], few.addresses[:300])
    index = EntityIndex(HP.num_entity_vectors)
    alone = fit(Events(index.claim(few.entities), few.addresses, index), HP)
    assert auc(go_on(earlier, few), traffic, halves[0]) > auc(alone, traffic, halves[0]) + 0.05


def test_from_a_blank_model_it_begins_anew(traffic: Traffic) -> None:
    """As one has it that was stopped too early."""
    blank = Model.blank(IPV4, HP.num_entity_vectors, HP.vector_dim, HP.num_ip_encoder_layers)
    names = set(traffic.train.entities.to_pylist())
    assert auc(go_on(blank, traffic.train), traffic, names) > 0.93


def test_entities_that_share_are_not_counted_twice(traffic: Traffic) -> None:
    hp = dataclasses.replace(HP, num_entity_vectors=70)
    index = EntityIndex(70)
    first = fit(Events(index.claim(traffic.train.entities), traffic.train.addresses, index), hp)
    assert first.index.sharing == 30
    again = go_on(first, traffic.train, hp)
    assert (again.index.owned, again.index.sharing) == (70, 30)


@pytest.mark.parametrize(
    "changes",
    [{"num_entity_vectors": 400}, {"vector_dim": 8}, {"num_ip_encoder_layers": 2}, {"ip_version": 6}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_shapes_are_refused_with_the_value_to_set(
    earlier: Model, traffic: Traffic, changes: dict[str, Any]
) -> None:
    [name] = changes
    was = getattr(HP, name)
    with pytest.raises(
        UserError, match=f"the earlier model has {name}={was}, not {changes[name]}: set {name} to {was}"
    ):
        go_on(earlier, traffic.train, dataclasses.replace(HP, **changes))


@given(ADDRESSES, ADDRESSES)
def test_counts_add_up(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> None:
    """What is known is a part of what all events at once would have told: it may lack what either half saw once."""
    whole = Vocabulary.build(np.concatenate([one, other]))
    added = Vocabulary.build(other, earlier=Vocabulary.build(one))
    assert added.events == whole.events
    for level in range(len(IPV4.levels)):
        known, counts = added.counted(level)
        all_known, all_counts = whole.counted(level)
        place = np.searchsorted(all_known, known)
        assert (all_known[place] == known).all()
        assert (counts <= all_counts[place]).all()
        found = np.unique(other >> np.uint32(32 - IPV4.levels[level]), return_counts=True)
        seen = dict(zip(*found, strict=True))
        before, counted = Vocabulary.build(one).counted(level)
        for prefix, count in zip(known.tolist(), counts.tolist(), strict=True):
            earlier = counted[before == prefix].sum()
            assert count == earlier + seen.get(prefix, 0)


@given(ADDRESSES, ADDRESSES)
def test_every_row_goes_on_from_its_own(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> None:
    earlier = Vocabulary.build(one)
    later = Vocabulary.build(other, earlier=earlier)
    origins = later.origins(earlier)
    depth = later.depth
    assert (origins[:depth] == np.arange(depth)).all()
    leaves, before = (v.chains[v.leaves(np.concatenate([one, other]))] for v in (later, earlier))
    assert (origins[leaves] == before).all()  # so every address begins with the sum that it had


def test_providers_are_added_too() -> None:
    networks = two_countries()
    first = networks.first
    one, other = first[[0, 0, 1, 1, 2]], first[[2, 2, 3, 3, 3]]
    bare, with_table = Vocabulary.build(one), Vocabulary.build(one, networks=networks)

    later = Vocabulary.build(other, networks=networks, earlier=with_table)
    assert later.labels[0].values.tolist() == [1, 2, 3, 4]
    assert later.labels[0].counts.tolist() == [2, 2, 2, 3]
    assert later.origins(with_table).min() >= 0

    kept = Vocabulary.build(other, earlier=with_table)  # no new table: that of the earlier model serves
    assert kept.labels[0].values.tolist() == [1, 2]
    assert kept.depth == with_table.depth

    given_now = Vocabulary.build(other, networks=networks, earlier=bare, countries=2)
    assert given_now.countries == ()  # all coordinates have been learnt
    origins = given_now.origins(bare)
    levels = len(IPV4.levels)
    assert (origins[levels : levels + 2] == -1).all()
    assert (origins[-len(given_now.labels[1].values) :] == -1).all()


def test_countries_keep_their_coordinates() -> None:
    """Of two countries the other one is the more frequent now."""
    networks = two_countries()
    first = networks.first
    one, other = first[[0, 0, 2, 2, 1, 1]], first[[1, 3, 5, 7, 7, 3]]
    before = Vocabulary.build(one, networks=networks, countries=1)
    for table in (None, networks):
        later = Vocabulary.build(other, networks=table, earlier=before, countries=1)
        assert later.countries == before.countries == (1,)
        assert later.labels[1].counts.tolist() == [4, 8]
        assert later.labels[1].values[later.country_rows - later.num_rows].tolist() == [1]
    assert Vocabulary.build(other, networks=networks, countries=1).countries == (2,)
    assert set(Vocabulary.build(one, networks=networks, countries=5).countries) == {1, 2}


def test_a_first_table_of_networks_may_come_later(
    earlier: Model, traffic: Traffic, halves: tuple[set[str], set[str]]
) -> None:
    first = (np.arange(256) << 24).astype(np.uint32)
    labels = np.stack([np.arange(256) % 9 + 1, np.arange(256) % 3 + 1]).astype(np.uint32)
    networks = Networks(first, first + np.uint32((1 << 24) - 1), labels)
    model = go_on(earlier, part(traffic.train, halves[1]), networks=networks)
    assert auc(model, traffic, halves[1]) > 0.93
    again = go_on(model, part(traffic.train, halves[0]))
    assert again.vocabulary.depth == earlier.vocabulary.depth + 2
    assert auc(again, traffic, halves[0]) > 0.93
