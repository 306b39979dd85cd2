"""Embeddings to look at: which entities and networks are alike, on a map and in a list.

The score is the inner product of both embeddings, so what points the same way scores alike: nearness is the cosine.
A map shows the plane in which unit vectors differ most, the first two principal components (Pearson 1901). t-SNE
(van der Maaten and Hinton, JMLR 2008) keeps neighbours together instead, and distances between groups then say nothing.

An artifact holds hashes of entities, not their names: the names must be given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.data.addresses import Addresses, render
from ipinsights.errors import UserError
from ipinsights.model.model import Model

Vectors = npt.NDArray[np.float32]
Method = Literal["pca", "tsne"]

UNKNOWN = "not known"
"""The group of what the model has no network of."""

_CHUNK = 4096
_PERPLEXITY = 30


@dataclass(frozen=True)
class Embeddings:
    """n vectors with their names."""

    names: list[str]
    vectors: Vectors
    """[n, D]"""
    groups: list[str]
    """The provider of each (such as AS3320), or its /8 (IPv6: /12) where the model has no table, or `UNKNOWN`."""
    known: npt.NDArray[np.bool_]
    """Whether training saw it, [n]."""

    def __len__(self) -> int:
        return len(self.names)

    def of_known(self) -> "Embeddings":
        """Those that training saw. All others have the same vector."""
        return self if self.known.all() else self._where(np.flatnonzero(self.known))

    def sample(self, most: int, seed: int) -> "Embeddings":
        """So many of them at most, in their order."""
        if len(self) <= most:
            return self
        return self._where(np.sort(np.random.default_rng((seed, 0xE3BED)).choice(len(self), most, replace=False)))

    def _where(self, chosen: npt.NDArray[np.intp]) -> "Embeddings":
        names, groups = ([texts[place] for place in chosen.tolist()] for texts in (self.names, self.groups))
        return Embeddings(names, self.vectors[chosen], groups, self.known[chosen])

    def nearest(self, vector: Vectors, most: int) -> list[tuple[int, float]]:
        """The places of those whose vectors have the largest cosine with a vector, [D], and the cosines."""
        cosines = unit(self.vectors) @ unit(vector[None])[0]
        order = np.argsort(-cosines, kind="stable")[:most]
        return list(zip(order.tolist(), cosines[order].tolist(), strict=True))


def of_entities(model: Model, names: pa.StringArray) -> Embeddings:
    """Of entities, given by their names. Those that training never saw all have the same vector.

    The group of an entity is that of the address that it used most, as far as the model keeps its history.
    """
    rows = model.index.find(names)
    known = rows < model.index.num_rows
    addresses, kept = _most_used(model, rows)
    groups = np.full(len(rows), UNKNOWN, dtype=object)
    groups[kept] = _groups(model, addresses[kept])
    return Embeddings(names.to_pylist(), np.asarray(model.entity[rows]), groups.tolist(), known)


def of_addresses(model: Model, addresses: Addresses) -> Embeddings:
    """Of addresses of the model's family."""
    leaves = model.vocabulary.leaves(addresses)
    distinct, place = np.unique(leaves, return_inverse=True)
    names = model.vocabulary.names(distinct)
    known = np.array([name is not None for name in names], dtype=np.bool_)[place]
    return Embeddings(
        render(addresses, model.family), _encode(model, distinct)[place], _groups(model, addresses).tolist(), known
    )


def of_networks(model: Model) -> Embeddings:
    """Of all known networks. One that the model's table divides occurs once for each of its providers."""
    vocabulary = model.vocabulary
    starts, leaves = vocabulary.intervals
    distinct, first = np.unique(leaves, return_index=True)
    names = vocabulary.names(distinct)
    kept = np.array([name is not None for name in names], dtype=np.bool_)
    groups = _groups(model, starts[first[kept]]).tolist()
    known = [name for name in names if name is not None]
    return Embeddings(known, _encode(model, distinct[kept]), groups, np.ones(len(known), dtype=np.bool_))


def unit(vectors: Vectors) -> Vectors:
    """The same directions at length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


@dataclass(frozen=True)
class Map:
    """Places of n vectors in the plane."""

    points: npt.NDArray[np.float64]
    """[n, 2]"""
    shares: tuple[float, float] | None
    """The share of the variance along either axis; None where the axes mean nothing."""

    @classmethod
    def of(cls, vectors: Vectors, how: Method = "pca", seed: int = 0) -> "Map":
        """Map the directions of vectors, [n, D]. Raises UserError if the library for it is not installed."""
        if not len(vectors):
            return cls(np.zeros((0, 2)), None)
        directions = unit(vectors).astype(np.float64)
        return cls(_tsne(directions, seed), None) if how == "tsne" else cls._pca(directions)

    @classmethod
    def _pca(cls, directions: npt.NDArray[np.float64]) -> "Map":
        centred = directions - directions.mean(axis=0)
        left, singular, _ = np.linalg.svd(centred, full_matrices=False)
        points = np.zeros((len(directions), 2))
        axes = min(2, len(singular))
        points[:, :axes] = left[:, :axes] * singular[:axes]
        largest = np.abs(points).argmax(axis=0)
        points *= np.where(points[largest, [0, 1]] < 0, -1, 1)  # either sign is right: choose one, for repetitions
        variance = np.append(singular[:axes] ** 2, [0.0, 0.0])[:2] / max(float((singular**2).sum()), 1e-30)
        return cls(points, (float(variance[0]), float(variance[1])))


def _tsne(directions: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install scikit-learn, or use the map pca") from None
    if len(directions) < 3:
        raise UserError(f"t-SNE needs at least 3 points, and there are {len(directions)}: use the map pca")
    perplexity = min(_PERPLEXITY, (len(directions) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    points: npt.NDArray[np.float64] = tsne.fit_transform(directions).astype(np.float64)
    return points


def _encode(model: Model, leaves: npt.NDArray[np.int32]) -> Vectors:
    """The encoding of each leaf, [n, D]."""
    chains = model.vocabulary.chains
    parts = [model.encoder(chains[leaves[begin : begin + _CHUNK]]) for begin in range(0, len(leaves), _CHUNK)]
    return np.concatenate([np.zeros((0, model.vector_dim), dtype=np.float32), *parts])


def _most_used(model: Model, rows: npt.NDArray[np.int32]) -> tuple[Addresses, npt.NDArray[np.bool_]]:
    """The address, or the network, that each entity used most, and whether the model keeps it: [n] each."""
    addresses, kept = np.zeros(len(rows), dtype=model.family.dtype), np.zeros(len(rows), dtype=np.bool_)
    history = model.counted.history if model.counted else None
    if history is None or history.length < model.vocabulary.levels[0]:
        return addresses, kept
    for number, row in enumerate(rows.tolist()):
        place = history.place(row)
        if place.stop > place.start:
            addresses[number] = history.addresses[place][history.counts[place].argmax()]
            kept[number] = True
    return addresses, kept


def _groups(model: Model, addresses: Addresses) -> npt.NDArray[np.object_]:
    """The group of each address, [n]."""
    networks, family = model.vocabulary.networks, model.family
    if networks is not None:
        place = networks.find(addresses)
        provider = np.where(place >= 0, np.append(networks.labels[0], 0)[place], 0)
        values, code = np.unique(provider, return_inverse=True)
        texts = [f"AS{value}" if value else UNKNOWN for value in values.tolist()]
    else:
        bits = family.dtype.type(family.width - model.vocabulary.levels[0])
        values, code = np.unique(addresses >> bits << bits, return_inverse=True)
        texts = [f"{text}/{model.vocabulary.levels[0]}" for text in render(values, family)]
    return np.array(texts, dtype=object)[code]


def largest_groups(groups: Sequence[str], most: int) -> list[str]:
    """The groups with the most members, the largest first; of equal ones the first by name. Never `UNKNOWN`."""
    names, counts = np.unique([group for group in groups if group != UNKNOWN], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [str(name) for name in names[order]]
