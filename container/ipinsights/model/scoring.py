"""Scoring: pairs in, scores and embeddings out. It needs only numpy, so a server starts without torch.

The model knows an address only by its leaf (`vocabulary`). There are fewer leaves than pairs in a request, or at most
some hundred thousand. So all leaves are encoded once, when the model is loaded, and the score of a pair is an inner
product of two rows. If that table would be too large, or take too long to compute, each request encodes its own leaves.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ipinsights import native
from ipinsights.data.addresses import Addresses, Family
from ipinsights.data.columns import Column, salvage_columns
from ipinsights.data.entities import PROBES
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.native.reader import Digests
from ipinsights.native.scoring import PairScorer, score_pairs

_CHUNK = 4096
"""Leaves encoded, or pairs scored without the kernel, at a time: their data stays in the processor's cache."""
_TABLE_BYTES = 1 << 30
_TABLE_PRODUCTS = 25_000_000_000
"""The limit for the table of encoded leaves: about a second's work. The usual 40,000 leaves of 128 take 1/40."""

UNTRAINED_MODEL = "IPINSIGHTS_UNTRAINED_MODEL"
"""The environment variable that lets commands and the server accept an untrained model."""


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
    """Scores (entity, address) pairs. It has no state besides the model, so several threads may use it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        leaves = np.arange(len(model.vocabulary.chains), dtype=np.int32)
        self._encoded = self._encode(leaves) if _table_bytes(model) else None
        self._native: PairScorer | None = None
        if self._encoded is not None and native.library() is not None:
            index, intervals = model.index, model.vocabulary.intervals
            sharing = index.sharing > 0
            self._native = PairScorer(index.tags, PROBES, sharing, intervals, model.entity, self._encoded)

    @classmethod
    def open(cls, folder: str | Path, untrained: bool = False, verify: bool = True) -> "Scorer":
        """Map the model in a folder. Raises UserError if there is none, or one that this release cannot read.

        It rejects an untrained model, which flags nothing, unless ``untrained`` accepts one. With ``verify`` it reads
        all of the file once, to find damage.
        """
        model = artifact.load(folder, verify)
        if not untrained:
            require_trained(model, folder)
        return cls(model)

    @staticmethod
    def memory(model: Model) -> int:
        """Bytes that a scorer of a model needs, memory-mapped or not."""
        return model.nbytes + _table_bytes(model)

    @property
    def family(self) -> Family:
        """The addresses that the model encodes."""
        return self._model.family

    @property
    def vector_dim(self) -> int:
        """The length of an embedding."""
        return self._model.vector_dim

    def score(self, records: Records) -> npt.NDArray[np.float32]:
        """The score of each pair, float32 [n]; higher is more normal.

        The score of an entity that training never saw depends on the address alone.
        """
        return self.score_hashed(*records.hashed())

    def score_hashed(self, digests: Digests, addresses: Addresses) -> npt.NDArray[np.float32]:
        """`score` for entities given by their `hash_names`."""
        if self._native is not None:
            return self._native(digests, addresses)
        encoded, leaves = self._leaves(addresses)
        return _products(self._model.entity, self._model.index.find_hashed(digests), encoded, leaves)

    def score_columns(self, entities: Column, addresses: Column) -> npt.NDArray[np.float32]:
        """The score of each pair of two columns of strings, as a data frame has them: float32 [n].

        NaN if the row is malformed: its address is invalid, or either value is missing or empty.
        """
        records, readable = salvage_columns(entities, addresses, self.family)
        scores = np.full(len(readable), np.nan, dtype=np.float32)
        scores[readable] = self.score(records)
        return scores

    def embed(self, records: Records) -> Embedded:
        """The scores with both embeddings of each pair."""
        return self.embed_hashed(*records.hashed())

    def embed_hashed(self, digests: Digests, addresses: Addresses) -> Embedded:
        """`embed` for entities given by their `hash_names`."""
        rows, (encoded, leaves) = self._model.index.find_hashed(digests), self._leaves(addresses)
        scores = _products(self._model.entity, rows, encoded, leaves)
        return Embedded(scores, self._model.entity[rows], encoded[leaves])

    def _leaves(self, addresses: Addresses) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """A table of encoded leaves, and the row of each address."""
        leaves = self._model.vocabulary.leaves(addresses)
        if self._encoded is not None:
            return self._encoded, leaves
        distinct, place = np.unique(leaves, return_inverse=True)
        return self._encode(distinct), place.astype(np.int32)

    def _encode(self, leaves: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """The encoding of each leaf, [n, D]."""
        encoded = np.empty((len(leaves), self._model.vector_dim), dtype=np.float32)
        for start in range(0, len(leaves), _CHUNK):
            part = slice(start, start + _CHUNK)
            encoded[part] = self._model.encoder(self._model.vocabulary.chains[leaves[part]])
        return encoded


def require_trained(model: Model, folder: str | Path) -> None:
    """Raise UserError if the model in a folder is untrained: nobody would notice that it flags nothing."""
    if model.untrained:
        raise UserError(
            f"the model in {folder} is untrained, because its training was stopped before it learnt anything: every "
            f"score would be 0. Train again, or set the environment variable {UNTRAINED_MODEL}=accept to use it"
        )


def _table_bytes(model: Model) -> int:
    """Bytes of the table of encoded leaves; 0 if there is none because of the limits."""
    leaves, dim = len(model.vocabulary.chains), model.vector_dim
    products = leaves * dim * (dim * len(model.encoder.w) + model.vocabulary.depth)
    size = 4 * leaves * dim
    return size if size <= _TABLE_BYTES and products <= _TABLE_PRODUCTS else 0


def _products(
    entity: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    encoded: npt.NDArray[np.float32],
    leaves: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32]:
    """The inner product of each pair of rows, one of either table, [n]."""
    scores = score_pairs(entity, rows, encoded, leaves)
    if scores is None:
        scores = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            np.einsum("ij,ij->i", entity[rows[part]], encoded[leaves[part]], out=scores[part])
    return scores
