"""Scoring: pairs in, scores and embeddings out. It needs numpy alone, so a server starts without torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipinsights.addresses import Family
from ipinsights.model import Model
from ipinsights.records import Records

_CHUNK = 4096
"""Pairs scored at a time: what they need stays in the processor's cache."""


@dataclass(frozen=True)
class Embedded:
    """Scores of n pairs with the embeddings whose inner products they are."""

    scores: npt.NDArray[np.float32]
    """[n]"""
    entity: npt.NDArray[np.float32]
    """[n, D]"""
    ip: npt.NDArray[np.float32]
    """[n, D]"""


class Scorer:
    """Scores (entity, address) pairs. It holds no state besides the model and may serve several threads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        model.vocabulary.chains, model.vocabulary.intervals  # noqa: B018  # derived once, before the first request

    @property
    def family(self) -> Family:
        """The addresses that the model encodes."""
        return self._model.family

    def score(self, records: Records) -> npt.NDArray[np.float32]:
        """The score of each pair, float32 [n]: the higher, the more normal.

        An entity never seen scores as the typical one.
        """
        rows = self._model.index.find(records.entities)
        scores = np.empty(len(records), dtype=np.float32)
        for start in range(0, len(records), _CHUNK):
            part = slice(start, start + _CHUNK)
            encoded = self._model.encode(records.addresses[part])
            np.einsum("ij,ij->i", self._model.entity[rows[part]], encoded, out=scores[part])
        return scores

    def embed(self, records: Records) -> Embedded:
        """The scores with both embeddings of each pair."""
        entity = self._model.entity[self._model.index.find(records.entities)]
        encoded = self._model.encode(records.addresses)
        return Embedded(np.einsum("ij,ij->i", entity, encoded), entity, encoded)
