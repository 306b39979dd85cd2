import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conftest import Traffic, to_events
from ipinsights.data.addresses import IPV4
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.refit import Refit
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import dropout
from ipinsights.training.fit import fit

ADDRESSES = hnp.arrays(
    np.uint32, st.integers(1, 40), elements=st.sampled_from([1, 2, 1 << 8, 1 << 16, 1 << 30, 3 << 30])
)


@given(ADDRESSES, st.sampled_from([IPV4.levels, (8,), (8, 32)]), st.integers(0, 9))
def test_a_row_of_one_event_scores_with_half_of_what_it_has_learnt(
    addresses: npt.NDArray[np.uint32], levels: tuple[int, ...], seed: int
) -> None:
    vocabulary = Vocabulary.build(addresses, levels=levels)
    learnt = np.random.default_rng(seed).normal(size=(vocabulary.num_rows, 5)).astype(np.float32)
    before = learnt.copy()
    served = dropout.on_average(learnt, vocabulary)
    assert (learnt == before).all()
    for row, (events, level) in enumerate(zip(vocabulary.row_counts, vocabulary.level_of_row, strict=True)):
        expected = (learnt[row] + learnt[level]) / 2 if events == 1 else learnt[row]
        np.testing.assert_allclose(served[row], expected, atol=1e-6)
    unknown = served[vocabulary.level_of_row]
    np.testing.assert_allclose(dropout.as_learnt(served, vocabulary.row_counts, unknown), learnt, atol=1e-5)


def test_so_does_a_trained_model_and_training_goes_on_from_what_it_scores(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=1, mini_batch_size=500, held_out_share=0)
    train = to_events(traffic.train, 200)
    model = fit(train, hp)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ipinsights.training.checkpoint.on_average", lambda prefix, _: prefix.copy())
        raw = fit(train, hp).learnt_alone().encoder.prefix
    served = model.learnt_alone().encoder.prefix
    once = model.vocabulary.row_counts == 1
    assert 100 < once.sum() < len(once) - 100
    assert (served[~once] == raw[~once]).all()
    unknown = raw[model.vocabulary.level_of_row[once]]
    np.testing.assert_allclose(served[once], (raw[once] + unknown) / 2, atol=1e-6)

    # With steps too small to change anything, every row is what it was, whether there are more events of it or not.
    monkeypatch.setattr(Refit, "model", lambda *_, **__: None)
    still = dataclasses.replace(hp, learning_rate=1e-6)
    some = Events(train.entity[:100], train.address[:100], train.index)
    for events in (train, some):
        later = fit(events, still, earlier=model)
        assert later.vocabulary.num_rows == model.vocabulary.num_rows
        assert (later.vocabulary.row_counts[once] == 2).mean() == pytest.approx(len(events) / len(train), abs=0.02)
        np.testing.assert_allclose(later.encoder.prefix, served, atol=1e-3)
