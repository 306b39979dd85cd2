"""The model: an entity table, an IP encoder, and their inner product.

The score of (entity, address) is <e, phi(a)>: e is the entity's row of a table, phi(a) the encoding of the address.
Higher is more normal. Training learns the log odds that the pair was observed rather than fabricated: every row is the
typical entity, learnt from all events, plus what sets this entity apart. After training, counting is written into the
same tables (`refit`). So the score has more parts (`explanation`), and 0 is the threshold that was found for their sum.
An entity that training never saw uses the last row, which then has the prior alone.

The encoder starts from networks: s is the sum of the address's rows, one a level, of the prefix table (`vocabulary`).
An unknown prefix uses its level's unknown row, so an unseen address backs off to its longest known prefix. Then come
``num_ip_encoder_layers`` residual blocks, x <- x + W relu(x) + b, of one fully connected layer each.

This file computes with numpy arrays to score and with torch tensors to validate. (`step` trains with the same sum,
written out together with its gradient.) Symbols: E entity rows, P prefix rows, L levels, B blocks, D ``vector_dim``;
every array is float32.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.data.addresses import Addresses, Family
from ipinsights.data.columns import salvage_columns
from ipinsights.data.entities import EntityIndex
from ipinsights.data.frames import ADDRESS, ENTITY, Frame, columns, like
from ipinsights.errors import UserError, brief, refusals
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.calibration import Calibration
from ipinsights.model.history import History
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.native.scoring import sum_rows

if TYPE_CHECKING:
    from ipinsights.model.explanation import Explanation
    from ipinsights.model.scoring import Embedded, Scorer

RESERVED = 3
"""The last coordinates of all embeddings are for counting (`refit`): training leaves them at 0. In front of them each
of the vocabulary's countries has one, too: see `learnt_dim`."""

_CHUNK = 1 << 14
_AT_ONCE = 1 << 10
"""Addresses that are encoded together: what their levels sum to stays in the cache."""

Array = Any
"""A numpy array or a torch tensor; all arrays of one call are of the same kind."""


def learnt_dim(vector_dim: int, vocabulary: Vocabulary) -> int:
    """The number of coordinates that training uses, the first ones."""
    return vector_dim - RESERVED - len(vocabulary.countries)


@dataclass(frozen=True)
class Encoder:
    """The parameters of phi."""

    prefix: Array
    """[P, D]: the L unknown rows, then the known prefixes, then providers and countries if a table was given."""
    w: Array
    """[B, D, D]"""
    b: Array
    """[B, D]"""

    def __call__(self, rows: Array) -> Array:
        """Encode n addresses, given as their prefix rows (int [n, L]): [n, D]."""
        if len(rows) > _AT_ONCE and isinstance(rows, np.ndarray):
            parts = (slice(begin, begin + _AT_ONCE) for begin in range(0, len(rows), _AT_ONCE))
            return np.concatenate([self(rows[part]) for part in parts])
        x = sum_rows(self.prefix, rows) if isinstance(rows, np.ndarray) else None
        if x is None:
            x = self.prefix[rows[:, 0]]
            for level in range(1, rows.shape[1]):
                x += self.prefix[rows[:, level]]
        for w, b in zip(self.w, self.b, strict=True):
            x = x + (x * (x > 0)) @ w.T + b
        return x


@dataclass(frozen=True)
class Counted:
    """What counting (`refit`) wrote into a model: from the learnt rows and the history it follows again."""

    rows: npt.NDArray[np.int32]
    """The rows of the entity table that it moved, ascending, [M]."""
    learnt: npt.NDArray[np.float32]
    """What they were before, and last the typical entity's, [M + 1, D]."""
    weights: npt.NDArray[np.float32]
    """What of each was kept, as a factor in (0, 1]: [M]."""
    entities: npt.NDArray[np.int64]
    """The number of distinct entities under each known prefix, [K]."""
    history: History
    """As much as is kept of what was counted."""
    apart: History
    """As much of an address of the log-ins that training kept apart, to calibrate by. Nothing counts them, but whoever
    asks where an entity came from is told of them, too. Their entities all have a history."""

    def without(self, rows: npt.NDArray[np.integer[Any]]) -> "Counted":
        """All of other entities than those of the given rows."""
        kept = ~np.isin(self.rows, rows)
        learnt = self.learnt[np.append(kept, True)]
        history, apart = (part.without(rows) for part in (self.history, self.apart))
        rows, weights = self.rows[kept], self.weights[kept]
        return dataclasses.replace(self, rows=rows, learnt=learnt, weights=weights, history=history, apart=apart)

    def keeping(self, family: Family, bits: int) -> "Counted":
        """The same with no more than so many bits of an address; with 0 without addresses."""
        history, apart = (
            part.cut(family, bits) if bits else History.none(family) for part in (self.history, self.apart)
        )
        return dataclasses.replace(self, history=history, apart=apart)

    def own(self, row: int) -> tuple[Addresses, npt.NDArray[np.int64]]:
        """The addresses of an entity, ascending, and its log-ins from each; none for an entity without any."""
        (addresses, counts), (more, also) = (
            (part.addresses[place], part.counts[place].astype(np.int64))
            for part in (self.history, self.apart)
            for place in [part.place(row)]
        )
        if not len(more):
            return addresses, counts
        every, at = np.unique(np.append(addresses, more), return_inverse=True)
        return every, np.bincount(at, np.append(counts, also)).astype(np.int64)

    def users(self, first: int, last: int) -> int:
        """The number of entities with a log-in from an address in a range."""
        rows = [part.users(first, last) for part in (self.history, self.apart)]
        return len(np.union1d(*rows))


@dataclass(frozen=True)
class Model:
    """A trained model, in numpy arrays that may be memory-mapped."""

    vocabulary: Vocabulary
    index: EntityIndex
    """The owner of each row of ``entity``."""
    entity: npt.NDArray[np.float32]
    """[E + 1, D]; the last row is used for every entity that training never saw. Without counting it is the typical
    entity's."""
    encoder: Encoder
    counted: Counted | None = None
    """What counting wrote into the tables, and from what; None where it did not."""
    calibration: Calibration | None = None
    """What scores ordinary log-ins get; None where there were too few to tell."""

    @classmethod
    def learnt(
        cls,
        vocabulary: Vocabulary,
        index: EntityIndex,
        met: npt.NDArray[np.intp],
        rows: npt.NDArray[np.float32],
        encoder: Encoder,
    ) -> "Model":
        """The model with the trained entity rows ``met`` [M], whose embeddings are ``rows`` [M + 1, D].

        The last of ``rows`` is the typical entity. All other entity rows get it.
        """
        entity = np.empty((index.num_rows + 1, rows.shape[1]), dtype=np.float32)
        entity[:] = rows[-1]
        entity[met] = rows[:-1]
        return cls(vocabulary, index, entity, encoder)

    @classmethod
    def blank(cls, family: Family, num_entity_vectors: int, dim: int, blocks: int) -> "Model":
        """An untrained model: every score is 0."""
        vocabulary = Vocabulary.blank(family)
        shapes = {"prefix": (vocabulary.num_rows, dim), "w": (blocks, dim, dim), "b": (blocks, dim)}
        encoder = Encoder(**{name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()})
        entity = np.zeros((num_entity_vectors + 1, dim), dtype=np.float32)
        return cls(vocabulary, EntityIndex(num_entity_vectors), entity, encoder)

    @property
    def events(self) -> int:
        """Events that it was trained on."""
        return self.vocabulary.events

    @property
    def untrained(self) -> bool:
        """Whether it has learnt nothing, like a blank one: every score is 0, so it flags nothing."""
        return self.events == 0

    def without(self, rows: npt.NDArray[np.integer[Any]]) -> "Model":
        """The model in which the owners of these entity rows, int [n], are forgotten: all that belongs to a row goes.

        A forgotten entity is one that training never saw. No other entity's row changes. What all entities have taught
        stays: the encoder, the counts of prefixes and the typical entity.
        """
        entity = np.array(self.entity)
        entity[rows] = entity[-1]
        counted = self.counted and self.counted.without(rows)
        return dataclasses.replace(self, index=self.index.without(rows), entity=entity, counted=counted)

    @property
    def fixed(self) -> dict[str, int]:
        """The hyperparameters that a training which continues from this model cannot change."""
        blocks, dim = self.encoder.b.shape
        return {
            "num_entity_vectors": self.index.num_rows,
            "vector_dim": dim,
            "num_ip_encoder_layers": blocks,
            "ip_version": self.family.version,
        }

    def require(self, hyperparameters: Hyperparameters) -> None:
        """Raise UserError unless training with these hyperparameters can continue from this model."""
        for name, value in self.fixed.items():
            asked = getattr(hyperparameters, name)
            if asked != value:
                raise UserError(f"the earlier model has {name}={value}, not {asked}: set {name} to {value}")

    @property
    def vector_dim(self) -> int:
        """D, the length of an embedding."""
        return int(self.entity.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that scores need, memory-mapped or not.

        ``counted`` is not among them: scoring never reads it, so of a mapped model it takes no memory.
        """
        arrays = [self.entity, self.index.tags, self.encoder.prefix, self.encoder.w, self.encoder.b]
        return sum(int(array.nbytes) for array in arrays) + self.vocabulary.nbytes

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return self.vocabulary.family

    def learnt_alone(self) -> "Model":
        """The model before counting was written into it: what was learnt, with zeros in the reserved coordinates."""
        if self.counted is None:
            return self
        entity, prefix = np.empty_like(self.entity), np.array(self.encoder.prefix)
        entity[:] = self.counted.learnt[-1]
        entity[self.counted.rows] = self.counted.learnt[:-1]
        prefix[:, learnt_dim(self.vector_dim, self.vocabulary) :] = 0
        encoder = dataclasses.replace(self.encoder, prefix=prefix)
        return dataclasses.replace(self, entity=entity, encoder=encoder, counted=None)

    def keeping(self, bits: int) -> "Model":
        """The model with no more than so many bits of an address in its history; with 0 without history."""
        if self.counted is None:
            return self
        return dataclasses.replace(self, counted=self.counted.keeping(self.family, bits))

    def telling(self, apart: History) -> "Model":
        """The model that also tells of the log-ins of some of its entities that training kept apart."""
        if self.counted is None:
            return self
        apart = apart.cut(self.family, self.counted.history.length)
        return dataclasses.replace(self, counted=dataclasses.replace(self.counted, apart=apart))

    def score_rows(self, rows: npt.NDArray[np.integer], addresses: Addresses) -> npt.NDArray[np.float32]:
        """The score of n pairs of an entity's row and an address: [n]. For many, `scoring.Scorer` is faster."""
        scores = np.empty(len(rows), dtype=np.float32)
        for begin in range(0, len(rows), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            np.einsum("nd,nd->n", self.entity[rows[part]], self.encode(addresses[part]), out=scores[part])
        return scores

    def encode(self, addresses: Addresses) -> npt.NDArray[np.float32]:
        """The embedding of each address (of the family's type, [n]): [n, D]."""
        rows = self.vocabulary.chains[self.vocabulary.leaves(addresses)]
        encoded: npt.NDArray[np.float32] = self.encoder(rows)
        return encoded

    # What a notebook asks. Data frames are of pandas or polars, Arrow tables, or dicts of columns; ``entity`` and
    # ``address`` name their columns of strings. A new column is of the frame's kind.

    def score(self, frame: Frame, entity: str = ENTITY, address: str = ADDRESS) -> Any:
        """The score of each row of a data frame, float32: higher is more normal, below 0 looks fabricated.

        NaN for a row without an entity or a readable address. Raises UserError if a column is missing, and TypeError if
        it holds other values than strings.
        """
        return like(frame, "score", self._scorer.score_columns(*columns(frame, entity, address)))

    def percentile(self, frame: Frame, entity: str = ENTITY, address: str = ADDRESS) -> Any:
        """How unusual each row of a data frame is: the share of ordinary log-ins that score no higher, in (0, 1].

        It is as `score` in all else. Raises UserError if the model is not calibrated.
        """
        names, texts = columns(frame, entity, address)
        return like(frame, "percentile", self._scorer.percentile_columns(names, texts))

    def embed(self, frame: Frame, entity: str = ENTITY, address: str = ADDRESS) -> "Embedded":
        """Both embeddings of each row of a data frame, with their inner products, which are the scores.

        Raises UserError if a row is malformed.
        """
        names, texts = columns(frame, entity, address)
        records, readable = salvage_columns(names, texts, self.family)
        if not readable.all():
            row = int(np.argmin(readable))
            pair = [list(column)[row] for column in (names, texts)]
            raise UserError(f"row {row} (counted from 0) cannot be read: {brief(pair)} is no entity and address")
        return self._scorer.embed(records)

    def explain(self, entity: str, address: str) -> "Explanation":
        """Why an entity and an address have their score (`explanation.explain`)."""
        from ipinsights.model.explanation import explain  # which imports this module

        return explain(self, entity, address)

    def knows(self, entity: str) -> bool | None:
        """Whether training saw an entity; None where entities share rows, which leaves it open."""
        if self.index.sharing:
            return None
        return bool(self.index.find(pa.array([entity], pa.string()))[0] < self.index.num_rows)

    def save(self, folder: str | Path) -> None:
        """Write the model into a folder (`artifact.save`), without facts about its training. Raises UserError."""
        from ipinsights.model import artifact

        with refusals("write the model to", folder):
            artifact.save(self, Path(folder), {})

    @cached_property
    def _scorer(self) -> "Scorer":
        from ipinsights.model.scoring import Scorer

        return Scorer(self)
