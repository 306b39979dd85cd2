"""Scoring: pairs in, scores and embeddings out. It needs numpy alone, so a server starts without torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ipinsights import artifact
from ipinsights.addresses import Family
from ipinsights.model import Model
from ipinsights.records import Column, Records, salvage_columns

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

    @classmethod
    def open(cls, folder: str | Path) -> "Scorer":
        """Map the model in a folder. Raises UserError where there is none, or one this release cannot read."""
        return cls(artifact.load(Path(folder))[0])

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

    def score_columns(self, entities: Column, addresses: Column) -> npt.NDArray[np.float32]:
        """The score of each pair of two columns of strings, as a data frame has them: float32 [n].

        NaN where the row cannot be read: its address is not one, or either is missing or empty.
        """
        records, readable = salvage_columns(entities, addresses, self.family)
        scores = np.full(len(readable), np.nan, dtype=np.float32)
        scores[readable] = self.score(records)
        return scores

    def embed(self, records: Records) -> Embedded:
        """The scores with both embeddings of each pair."""
        entity = self._model.entity[self._model.index.find(records.entities)]
        encoded = self._model.encode(records.addresses)
        return Embedded(np.einsum("ij,ij->i", entity, encoded), entity, encoded)
