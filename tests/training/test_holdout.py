"""Which log-ins are kept apart from training."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data.addresses import FAMILIES, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.model.history import History
from ipinsights.training import holdout
from ipinsights.training.holdout import hold_out


def some_events(family: Family, size: int, entities: int, addresses: int, seed: int) -> Events:
    rng = np.random.default_rng(seed)
    index = EntityIndex(entities + 1, np.arange(1, entities + 2, dtype=np.uint32) * 7919)
    address = rng.integers(1, addresses + 1, size).astype(family.dtype) << family.dtype.type(family.width - 24)
    return Events(rng.integers(0, entities, size).astype(np.int32), address, index)


def pairs(events: Events) -> collections.Counter[tuple[int, int]]:
    return collections.Counter(zip(events.entity.tolist(), events.address.tolist(), strict=True))


@given(
    st.sampled_from(list(FAMILIES.values())),
    st.integers(1, 400),
    st.integers(1, 40),
    st.integers(1, 30),
    st.floats(0.01, 0.5),
    st.integers(0, 1000),
)
def test_events_are_parted_and_every_entity_keeps_some(
    family: Family, size: int, entities: int, addresses: int, share: float, seed: int
) -> None:
    events = some_events(family, size, entities, addresses, seed)
    rest, history, apart = hold_out(events, History.of(events, family), share)
    assert pairs(rest) + pairs(apart) == pairs(events)
    assert set(rest.entity.tolist()) == set(events.entity.tolist())
    for name, array in vars(History.of(rest, family)).items():
        assert np.array_equal(getattr(history, name), array)
    if max(share, holdout.DEAR) * size < holdout.LEAST:
        assert not len(apart)


@given(st.sampled_from(list(FAMILIES.values())), st.integers(0, 1000))
def test_the_order_of_the_events_changes_nothing(family: Family, seed: int) -> None:
    events = some_events(family, 300, 20, 9, seed)
    order = np.random.default_rng(seed).permutation(len(events))
    turned = dataclasses.replace(events, entity=events.entity[order], address=events.address[order])
    history = History.of(events, family)
    assert pairs(hold_out(events, history, 0.2)[2]) == pairs(hold_out(turned, history, 0.2)[2])


@pytest.mark.parametrize("family", FAMILIES.values())
def test_as_many_as_asked_for_are_kept_apart(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    events = some_events(family, 50_000, 500, 40, 0)
    history = History.of(events, family)
    for share in (0.02, 0.3):
        assert len(hold_out(events, history, share)[2]) == pytest.approx(share * 50_000, rel=0.1)
    monkeypatch.setattr(holdout, "MOST", 300)
    assert len(hold_out(events, history, 0.3)[2]) == pytest.approx(300, rel=0.2)
    assert not len(hold_out(events, history, 0.0)[2])


@pytest.mark.parametrize(
    ("size", "expected"), [(300, 0), (2_000, 100), (20_000, 1_000), (40_000, 1_000), (60_000, 1_200)]
)
def test_of_little_data_a_larger_share_is_kept_apart(size: int, expected: int) -> None:
    """1,000 log-ins, or 5 % where that is less."""
    events = some_events(FAMILIES[4], size, size // 20, 40, 0)
    history = History.of(events, FAMILIES[4])
    assert len(hold_out(events, history, 0.02)[2]) == pytest.approx(expected, rel=0.15)
    assert not len(hold_out(events, history, 0.0)[2])


def test_how_many_pairs_are_decided_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[4]
    events = some_events(family, 2000, 5, 3, 0)
    at_once = pairs(hold_out(events, History.of(events, family), 0.2)[2])
    monkeypatch.setattr(holdout, "_CHUNK", 7)
    assert pairs(hold_out(events, History.of(events, family), 0.2)[2]) == at_once
