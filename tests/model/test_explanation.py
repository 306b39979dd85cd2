import dataclasses
from ipaddress import IPv4Network
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Traffic, to_events
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV6
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.explanation import PARTS, Explanation, KnownNetwork, explain
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit

HP = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=2, mini_batch_size=500, held_out_share=0)
SEEN = ("popularity", "habit", "affinity")
STRANGER = "nobody has seen me"


@pytest.fixture(scope="module")
def networks() -> Networks:
    """A provider for every second /8, in one of two countries."""
    first = (np.arange(0, 256, 2) << 24).astype(np.uint32)
    countries = np.where(np.arange(len(first)) % 2, int.from_bytes(b"DE", "big"), int.from_bytes(b"NA", "big"))
    labels = np.stack([64_500 + np.arange(len(first)), countries]).astype(np.uint32)
    return Networks(first, first + np.uint32((1 << 24) - 1), labels)


@pytest.fixture(scope="module")
def model(traffic: Traffic, networks: Networks) -> Model:
    return fit(to_events(traffic.train, 200), HP, networks=networks)


def explained(model: Model, pairs: Records, number: int) -> list[Explanation]:
    """The first of some pairs."""
    texts = addresses.render(pairs.addresses[:number], model.family)
    return [explain(model, *pair) for pair in zip(pairs.entities[:number].to_pylist(), texts, strict=True)]


def adds_up(explanation: Explanation) -> bool:
    """Whether the parts sum to the score, to the rounding of float32."""
    size = sum(map(abs, explanation.parts.values()))
    return abs(sum(explanation.parts.values()) - explanation.score) <= 1e-5 * max(1, size)


def test_the_score_is_that_of_the_scorer(model: Model, traffic: Traffic) -> None:
    for pairs in (traffic.train, traffic.normal, traffic.attacks):
        found = [explanation.score for explanation in explained(model, pairs, 100)]
        some = Records(pairs.entities[:100], pairs.addresses[:100])
        np.testing.assert_allclose(found, Scorer(model).score(some), atol=1e-5)


@given(data=st.data())
def test_the_parts_add_up_to_the_score(model: Model, traffic: Traffic, data: st.DataObject) -> None:
    """Of any entity and any address, known or not."""
    known = st.sampled_from(traffic.train.addresses.tolist())
    row = data.draw(st.integers(0, 200))
    address = data.draw(known | st.integers(0, 2**32 - 1))
    explanation = Explanation.of(model, row, address)
    assert adds_up(explanation)
    assert explanation.seen == (model.index.tags[row] != 0 if row < 200 else False)
    assert set(explanation.parts) == (set(SEEN) if explanation.seen else {"prior"})
    alone = explanation.networks[0].events if explanation.networks else 0
    assert explanation.uses <= alone <= explanation.events  # type: ignore[operator]  # all are kept


def test_the_parts_are_what_they_say(model: Model, traffic: Traffic) -> None:
    learnt = Scorer(model.learnt_alone())
    both = Records(
        pa.concat_arrays([traffic.normal.entities[:100], traffic.attacks.entities[:100]]),
        np.concatenate([traffic.normal.addresses[:100], traffic.attacks.addresses[:100]]),
    )
    found = explained(model, both, 200)
    weights = [(1 + (one.events or 0) / 500) ** -0.5 for one in found]
    assert len(set(weights)) > 1
    np.testing.assert_allclose([one.parts["affinity"] for one in found], weights * learnt.score(both), atol=1e-4)
    same_address = [explain(model, name, addresses.render(both.addresses[:1])[0]) for name in ("user_1", "user_2")]
    assert same_address[0].popularity == same_address[1].popularity
    own, strange = (np.mean([one.parts["habit"] for one in part]) for part in (found[:100], found[100:]))
    assert own > 0 > strange


def test_events_are_those_of_plain_counting(model: Model, traffic: Traffic) -> None:
    entities, address = np.array(traffic.train.entities.to_pylist()), traffic.train.addresses
    for pairs in (traffic.train, traffic.normal):
        some = zip(pairs.entities[:50].to_pylist(), pairs.addresses[:50].tolist(), strict=True)
        for (name, value), found in zip(some, explained(model, pairs, 50), strict=True):
            own = address[entities == name]
            assert (found.events, found.addresses) == (len(own), len(np.unique(own)))
            assert found.uses == np.count_nonzero(own == value)
            networks = [IPv4Network(one.network) for one in found.networks]
            lengths = [network.prefixlen for network in networks]
            assert lengths == sorted(model.vocabulary.levels[: len(lengths)], reverse=True)
            for one, network in zip(found.networks, networks, strict=True):
                first, last = int(network.network_address), int(network.broadcast_address)
                inside = (first <= address) & (address <= last)
                assert first <= value <= last
                assert one.entities == len(np.unique(entities[inside]))
                assert one.events == np.count_nonzero(inside & (entities == name))


def test_events_that_were_kept_apart_are_told_too(traffic: Traffic) -> None:
    model = fit(to_events(traffic.train, 200), dataclasses.replace(HP, held_out_share=0.3))
    assert model.counted is not None
    apart = model.counted.apart
    entities, address = np.array(traffic.train.entities.to_pylist()), traffic.train.addresses
    rows, only = model.index.find(traffic.train.entities), 0
    for row, value in zip(apart.entities.tolist(), apart.addresses, strict=True):
        found = Explanation.of(model, row, int(value))
        own = address[rows == row]
        assert (found.events, found.addresses) == (len(own), len(np.unique(own)))
        assert found.uses == np.count_nonzero(own == value) > 0
        only += value not in model.counted.history.addresses[model.counted.history.place(row)]
        for network in found.networks:
            first, last = (int(IPv4Network(network.network)[end]) for end in (0, -1))
            assert network.events == np.count_nonzero((first <= own) & (own <= last))
            assert network.entities is not None
            assert network.entities <= len(np.unique(entities[(first <= address) & (address <= last)]))
    assert only > 10  # such an account would seem never to have been there


def test_an_entity_never_seen_has_a_prior_and_no_events(model: Model, traffic: Traffic) -> None:
    text = addresses.render(traffic.train.addresses[:1])[0]
    found = explain(model, STRANGER, text)
    assert (found.seen, found.events, found.addresses, found.uses) == (False, 0, 0, 0)
    assert {one.events for one in found.networks} == {0}
    assert all(one.entities for one in found.networks)
    assert found.parts == {"prior": found.prior}
    forgotten = model.without(model.index.own_rows(pa.array(["user_1"], pa.string())))
    assert explain(forgotten, "user_1", text) == found


def test_an_unknown_address_has_the_networks_that_are_known(model: Model, traffic: Traffic) -> None:
    octets = set((traffic.train.addresses >> 24).tolist())
    unknown = next(octet for octet in range(256) if octet not in octets)
    found = explain(model, "user_1", f"{unknown}.1.2.3")
    assert found.networks == ()
    assert found.uses == 0
    assert found.events


@pytest.mark.parametrize("bits", [16, 0])
def test_what_is_not_kept_is_none(model: Model, traffic: Traffic, bits: int) -> None:
    less = model.keeping(bits)
    for whole, found in zip(*(explained(one, traffic.train, 50) for one in (model, less)), strict=True):
        assert found.parts == whole.parts
        assert (found.addresses, found.uses) == (None, None)
        assert found.events == (whole.events if bits else None)
        for one, kept in zip(whole.networks, found.networks, strict=True):
            is_kept = 0 < int(one.network.split("/")[1]) <= bits
            assert kept == (one if is_kept else dataclasses.replace(one, events=None))
    assert explain(less, STRANGER, "10.1.2.3").events == 0


def test_networks_that_were_not_counted_have_no_number_of_entities(model: Model, traffic: Traffic) -> None:
    """Training that continues from /16s cannot count longer ones, even if it knows them."""
    events = to_events(traffic.train, 200)
    continued = fit(dataclasses.replace(events, index=model.index), HP, earlier=model.keeping(16))
    for one in explained(continued, traffic.train, 20):
        for network in one.networks:
            is_counted = int(network.network.split("/")[1]) <= 16
            assert (network.entities is not None) == (network.events is not None) == is_counted


@pytest.mark.parametrize("name", ["user_1", STRANGER])
def test_without_counting_affinity_is_the_whole_score(model: Model, traffic: Traffic, name: str) -> None:
    found = explain(model.learnt_alone(), name, addresses.render(traffic.train.addresses[:1])[0])
    assert {part: getattr(found, part) for part in PARTS if part != "affinity"} == dict.fromkeys(
        ("popularity", "habit", "prior")
    )
    assert adds_up(found)
    assert found.seen == (name != STRANGER)
    nothing = None if found.seen else 0
    assert (found.events, found.addresses, found.uses) == (nothing,) * 3
    assert {(one.entities, one.events) for one in found.networks} == {(None, nothing)}


def test_provider_and_country_are_told_where_they_are_known(model: Model, traffic: Traffic) -> None:
    octet = next(octet for octet in (traffic.train.addresses >> 24).tolist() if octet % 4 == 2)
    found = explain(model, "user_1", f"{octet}.1.2.3")
    assert (found.provider, found.country) == (64_500 + octet // 2, "DE")
    other = explain(model, "user_1", f"{octet + 1}.1.2.3")
    assert (other.provider, other.country) == (None, None)
    without = dataclasses.replace(model.vocabulary, networks=None, labels=())
    assert Explanation.of(Model.blank(without.family, 3, 8, 1), 0, 0).provider is None


def test_a_saved_model_explains_the_same(model: Model, traffic: Traffic, tmp_path: Path) -> None:
    artifact.save(model, tmp_path, {})
    loaded = artifact.load(tmp_path)
    assert explained(loaded, traffic.normal, 20) == explained(model, traffic.normal, 20)


def test_ipv6(traffic: Traffic) -> None:
    texts = [f"2001:db8:{number % 7:x}:{number % 3:x}::{number}" for number in range(300)]
    address, _ = addresses.parse(pa.array(texts, pa.string()), IPV6)
    index = EntityIndex(20)
    entity = index.claim(pa.array([f"user_{number % 7}" for number in range(300)]))
    hp = Hyperparameters(num_entity_vectors=20, vector_dim=8, epochs=1, ip_version=6)
    model = fit(Events(entity, address, index), hp)
    found = explain(model, "user_1", "2001:db8:1:1::77")
    own = [number for number in range(300) if number % 7 == 1]
    assert (found.events, found.addresses, found.uses) == (len(own), 3, sum(number % 3 == 1 for number in own))
    assert found.networks[0] == KnownNetwork("2001:db8:1:1::/64", 1, found.uses)
    assert found.networks[-1].network == "2000::/12"
    assert adds_up(found)
    assert adds_up(explain(model, STRANGER, "10.1.2.3"))


@pytest.mark.parametrize("text", ["10.1.2.256", "2001:db8::1", ""])
def test_what_is_no_address_is_refused(model: Model, text: str) -> None:
    with pytest.raises(UserError, match="IPv4"):
        explain(model, "user_1", text)
