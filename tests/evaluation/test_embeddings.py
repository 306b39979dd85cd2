import numpy as np
import pyarrow as pa
import pytest

from conftest import Traffic, to_events
from ipinsights.data.addresses import IPV4, IPV6, parse
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.evaluation import embeddings
from ipinsights.evaluation.embeddings import UNKNOWN, Embeddings, Map, largest_groups, unit
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.training.fit import fit

pytestmark = pytest.mark.slow

HP = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=1)
TABLE = Networks(
    np.array([0, 64 << 24], np.uint32),
    np.array([(64 << 24) - 1, (200 << 24) - 1], np.uint32),
    np.array([[7, 3320], [0, 0]], np.uint32),
)


@pytest.fixture(scope="module")
def model(traffic: Traffic) -> Model:
    return fit(to_events(traffic.train, 200), HP)


def test_an_entity_has_the_group_of_the_address_that_it_used_most() -> None:
    """Twice from one address, which counts, and once from each of three in another network."""
    where = parse(pa.array(["10.0.0.1", "11.0.0.1", "10.0.0.1", "11.0.0.2", "11.0.0.3"] * 40), IPV4)[0]
    index = EntityIndex(200)
    where = np.append(where, parse(pa.array(["12.0.0.1"] * 20), IPV4)[0])
    events = Events(index.claim(pa.array(["a"] * 200 + ["other"] * 20)), where, index)
    small = fit(events, HP)
    assert embeddings.of_entities(small, pa.array(["a", "b"])).groups == ["10.0.0.0/8", UNKNOWN]
    assert embeddings.of_entities(small, pa.array(["a", "b"])).known.tolist() == [True, False]
    assert embeddings.of_entities(small.keeping(0), pa.array(["a"])).groups == [UNKNOWN]


def test_groups_are_providers_where_the_model_has_a_table(traffic: Traffic) -> None:
    with_table = fit(to_events(traffic.train, 200), HP, networks=TABLE)
    found = embeddings.of_addresses(with_table, parse(pa.array(["10.0.0.1", "100.0.0.1", "220.0.0.1"]), IPV4)[0])
    assert found.groups == ["AS7", "AS3320", UNKNOWN]
    assert found.names == ["10.0.0.1", "100.0.0.1", "220.0.0.1"]
    networks = embeddings.of_networks(with_table)
    first = np.array([int(name.split(".")[0]) for name in networks.names])
    assert [group for group, octet in zip(networks.groups, first, strict=True) if octet >= 200] == [UNKNOWN] * int(
        (first >= 200).sum()
    )
    assert {"AS7", "AS3320"} <= set(networks.groups)


def test_vectors_are_those_of_the_model(model: Model, traffic: Traffic) -> None:
    addresses = np.unique(traffic.normal.addresses)[:50]
    np.testing.assert_allclose(embeddings.of_addresses(model, addresses).vectors, model.encode(addresses), atol=1e-6)
    names = traffic.normal.entities.unique()
    np.testing.assert_array_equal(embeddings.of_entities(model, names).vectors, model.entity[model.index.find(names)])
    networks = embeddings.of_networks(model)
    starts, leaves = model.vocabulary.intervals
    texts = model.vocabulary.names(leaves)
    for name, vector in list(zip(networks.names, networks.vectors, strict=True))[::97]:
        at = starts[texts.index(name)]
        np.testing.assert_allclose(vector, model.encode(np.array([at]))[0], atol=1e-6)


def test_groups_of_ipv6_have_its_shortest_prefix() -> None:
    where = parse(pa.array(["2001:db8::1", "2a00:1450::1"] * 60), IPV6)[0]
    index = EntityIndex(10)
    events = Events(index.claim(pa.array(["a", "b"] * 60)), where, index)
    small = fit(events, Hyperparameters(num_entity_vectors=10, vector_dim=8, epochs=1, ip_version=6))
    assert embeddings.of_entities(small, pa.array(["a", "b"])).groups == ["2000::/12", "2a00::/12"]


def test_a_map_keeps_what_differs_most() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 8)).astype(np.float32) * 0.01
    vectors[:, 0] += 1
    vectors[:150, 1] += 0.5
    vectors[150:, 2] -= 0.3
    found = Map.of(vectors)
    assert found.shares is not None
    assert found.shares[0] > 0.95 > 0.05 > found.shares[1]
    assert abs(found.points[:150, 0].mean() - found.points[150:, 0].mean()) > 10 * found.points[:150, 0].std()
    np.testing.assert_array_equal(found.points, Map.of(vectors).points)
    np.testing.assert_allclose(found.points, Map.of(3 * vectors).points, atol=1e-5)  # only directions count


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.ones((5, 4)), np.zeros((3, 4)), np.eye(2), np.ones((4, 1))])
def test_a_map_of_little_is_a_map(vectors: np.ndarray) -> None:
    found = Map.of(vectors.astype(np.float32))
    assert found.points.shape == (len(vectors), 2)
    assert np.isfinite(found.points).all()
    assert found.shares is not None
    assert 0 <= sum(found.shares) <= 1 + 1e-9


def test_a_sample_keeps_names_with_their_vectors() -> None:
    every = Embeddings(
        [f"n{n}" for n in range(99)], np.arange(99, dtype=np.float32)[:, None], ["g"] * 99, np.ones(99, bool)
    )
    some = every.sample(10, seed=1)
    assert [f"n{int(value)}" for value in some.vectors[:, 0]] == some.names
    assert len(some) == 10
    assert some.names == every.sample(10, seed=1).names != every.sample(10, seed=2).names
    assert every.sample(99, seed=1) is every
    half = Embeddings(every.names, every.vectors, every.groups, np.arange(99) % 2 > 0)
    assert half.of_known().names == every.names[1::2]
    assert half.of_known().vectors[:, 0].tolist() == [*range(1, 99, 2)]
    assert every.of_known() is every


def test_the_nearest_point_the_same_way() -> None:
    vectors = np.array([[1, 0], [0, 1], [5, 0.1], [-1, 0], [0, 0]], np.float32)
    every = Embeddings(list("abcde"), vectors, ["g"] * 5, np.ones(5, bool))
    found = every.nearest(np.array([2, 0], np.float32), 3)
    assert [place for place, _ in found] == [0, 2, 1]
    assert [cosine for _, cosine in found] == pytest.approx([1, 0.9998, 0], abs=1e-4)
    assert np.linalg.norm(unit(vectors), axis=1).tolist() == pytest.approx([1, 1, 1, 1, 0])


def test_the_largest_groups_come_first() -> None:
    groups = ["b", "a", "a", UNKNOWN, UNKNOWN, UNKNOWN, "c", "b"]
    assert largest_groups(groups, 2) == ["a", "b"]
    assert largest_groups([UNKNOWN], 2) == []
