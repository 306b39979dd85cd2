"""What a training's mini-batches are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import Traffic, to_events
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import batches
from ipinsights.training.fit import fit
from ipinsights.training.progress import BatchProgress, Listener


@given(
    st.lists(  # the events of each entity, at home and, one each, elsewhere
        st.tuples(st.integers(0, 2000), st.integers(0, 200)), min_size=1, max_size=30
    ).filter(lambda counts: any(map(sum, counts)))
)
def test_a_novelty_is_a_sum_of_probabilities(counts: list[tuple[int, int]]) -> None:
    entity = np.repeat(np.arange(len(counts), dtype=np.int32), [sum(own) for own in counts])
    places = [np.concatenate([np.zeros(home, np.uint32), np.arange(1, 1 + away)]) for home, away in counts]
    address = np.concatenate(places).astype(np.uint32) << np.uint32(24)
    found = batches.novelty(Events(entity, address, EntityIndex(len(counts))), IPV4, len(counts))
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found <= np.float32(batches.MOST_NOVELTY)).all()


def test_one_log_in_from_elsewhere_among_regular_ones_makes_nobody_welcome_everywhere() -> None:
    """The one user who was elsewhere has all the novelty that there is."""

    cross_entropies = []

    class Heard(Listener):
        def batches_done(self, progress: BatchProgress) -> None:
            cross_entropies.append(progress.cross_entropy)

    rng, users, log_ins = np.random.default_rng(0), 1000, 20
    homes = (rng.choice(1 << 20, users, replace=False) << 8).astype(np.uint32) + np.uint32(16 << 24)
    entity = np.append(np.repeat(np.arange(users), log_ins), 0).astype(np.int32)
    usual = np.repeat(homes, log_ins) + rng.integers(256, size=users * log_ins, dtype=np.uint32)
    address = np.append(usual, np.uint32(5 << 24))
    hp = Hyperparameters(
        num_entity_vectors=users,
        vector_dim=16,
        epochs=10,
        mini_batch_size=200,
        learning_rate=0.02,
        random_negative_sampling_rate=1,
    )
    model = fit(Events(entity, address, EntityIndex(users)), hp, listener=Heard())
    assert min(cross_entropies) >= 0
    at_others = model.encode(homes[1:101]) @ model.entity[0]
    assert (at_others < 0).mean() > 0.9


@pytest.mark.parametrize(("rate", "size"), [(1, 300), (3, 37), (0, 300)])
def test_shuffled_negatives_have_addresses_that_their_entity_is_not_known_to_use(
    traffic: Traffic, rate: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches.Batches, "_rows_of", lambda self, leaves: leaves[:, None])
    monkeypatch.setattr(batches, "DRAWN", 1000)
    train = to_events(traffic.train, 200)
    vocabulary, entities = Vocabulary.build(train.address), batches.Entities.of(train, 200)
    hp = Hyperparameters(
        num_entity_vectors=200, vector_dim=200, mini_batch_size=size, shuffled_negative_sampling_rate=rate
    )
    drawn = batches.Batches(train, hp, vocabulary, entities, torch.Generator().manual_seed(0), None)
    pairs = np.stack([entities.number[train.entity], vocabulary.leaves(train.address)])
    known, negatives, met = set(map(tuple, pairs.T.tolist())), 0, 0
    for batch in drawn.rest_of_epoch(drawn.start()):
        partner, place = batch.partner, torch.arange(len(batch.entity))[:, None]
        assert partner.shape == (len(place), rate)
        assert (partner // batch.tile == place // batch.tile).all()
        other = partner != place
        made_up = zip(
            batch.entity[:, None].expand_as(partner)[other].tolist(),
            batch.positive[:, 0][partner][other].tolist(),
            strict=True,
        )
        assert known.isdisjoint(made_up)
        negatives, met = negatives + int(other.sum()), met + len(place)
    assert met == len(train)
    assert negatives >= 0.8 * rate * met


def test_an_address_that_all_share_is_no_shuffled_negative_of_anybody() -> None:
    """An office's, of nine events in ten: a home is a third as likely a partner, and nearly always another's."""
    rng, users = np.random.default_rng(0), 50
    entity = rng.integers(users, size=20_000).astype(np.int32)
    home = (np.uint32(16 << 24) + (entity.astype(np.uint32) << np.uint32(16))).astype(np.uint32)
    address = np.where(rng.random(len(entity)) < 0.9, np.uint32(9 << 24), home)
    train = Events(entity, address, EntityIndex(users))
    hp = Hyperparameters(num_entity_vectors=users, vector_dim=16, mini_batch_size=1000)
    entities, vocabulary = batches.Entities.of(train, users), Vocabulary.build(address)
    drawn = batches.Batches(train, hp, vocabulary, entities, torch.Generator().manual_seed(0), None)
    negatives = total = 0
    for batch in drawn.rest_of_epoch(drawn.start()):
        other = batch.partner[:, 0] != torch.arange(len(batch.entity))
        negatives, total = negatives + int(other.sum()), total + len(other)
    assert negatives / total == pytest.approx(0.98 / 4, abs=0.02)
