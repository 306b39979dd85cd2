"""Scoring: pairs in, scores and embeddings out. It needs only numpy, so a server starts without torch.

The model knows an address only by its leaf (`vocabulary`). There are fewer leaves than pairs in a request, or at most
some hundred thousand. So all leaves are encoded once, when the model is loaded, and the score of a pair is an inner
product of two rows. If that table would be too large, or take too long to compute, each request encodes its own leaves.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ipinsights import native
from ipinsights.data.addresses import Addresses, Family
from ipinsights.data.columns import Column, salvage_columns
from ipinsights.data.entities import PROBES
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.calibration import BINS, Calibration, bins
from ipinsights.model.explanation import Explanation
from ipinsights.model.model import Model
from ipinsights.native.reader import Digests
from ipinsights.native.scoring import PADDING, PairScorer, join, number_texts, score_pairs

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


class LabelForm(NamedTuple):
    """How labels become text."""

    name: str
    render: Callable[[str, list[Any]], list[bytes]]
    """Makes texts of a column's name and values."""
    end: bytes
    """Follows the last label of each pair."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The distinct values that predictions can have besides their scores."""

    values: dict[str, list[Any]]
    """The values by name of the column."""
    places: dict[str, int]
    """Which of a prediction's codes says which of the values of a column it has."""
    _texts: dict[str, "_Texts"] = field(default_factory=dict)

    @cached_property
    def percentiles(self) -> npt.NDArray[np.float64]:
        """Those of ``values``, as an array."""
        return np.array(self.values["percentile"])

    def texts(self, form: LabelForm) -> "_Texts":
        """The values as texts. They are made once for all forms of one name.

        Texts of columns side by side that have the same code become one.
        """
        if form.name not in self._texts:
            rendered = {name: form.render(name, values) for name, values in self.values.items()}
            last = [*self.values][-1]
            rendered[last] = [text + form.end for text in rendered[last]]
            runs = [(place, [*names]) for place, names in groupby(self.values, key=lambda name: self.places[name])]
            joined = [[b"".join(parts) for parts in zip(*map(rendered.get, names), strict=True)] for _, names in runs]
            every = [text for column in joined for text in column]
            self._texts[form.name] = _Texts(
                np.frombuffer(b"".join([*every, bytes(PADDING)]), dtype=np.uint8),
                np.cumsum([0, *map(len, every)], dtype=np.int64),
                np.cumsum([0, *map(len, joined)], dtype=np.int32)[:-1],
                np.array([place for place, _ in runs], dtype=np.int32),
                sum(max(map(len, column)) for column in joined),
            )
        return self._texts[form.name]


class _Texts(NamedTuple):
    """The texts of all labels, in m columns."""

    behind_one_another: npt.NDArray[np.uint8]
    """With `PADDING`."""
    starts: npt.NDArray[np.int64]
    """Where each text starts; at the end the number of bytes."""
    first: npt.NDArray[np.int32]
    """The number of each column's first text, [m]."""
    places: npt.NDArray[np.int32]
    """Which of a prediction's codes each column has, [m]."""
    longest: int
    """The most bytes that the texts of a prediction have together."""


@dataclass(frozen=True)
class Labelled:
    """The labels of n pairs, soon as text."""

    texts: _Texts
    codes: npt.NDArray[np.int32]
    """The numbers of each pair's texts, [n, m]."""
    size: int
    """How many bytes all these texts have together."""

    def behind(self, numbers: bytes, some: slice = slice(None)) -> memoryview:
        """Some pairs behind one another: of each a number, of as many with commas between them, then its texts."""
        codes, texts, starts = self.codes[some], self.texts.behind_one_another, self.texts.starts
        joined = join(numbers, codes, texts, starts, self.texts.longest)
        if joined is not None:
            return joined
        every = texts.tobytes()
        return memoryview(
            b"".join(
                b"".join([number, *(every[starts[code] : starts[code + 1]] for code in row)])
                for number, row in zip(numbers.split(b","), codes.tolist(), strict=True)
            )
        )


@dataclass(frozen=True)
class Calibrated:
    """How unusual the scores of n pairs are (`model.calibration`), and what the model knows of each pair.

    The columns are: ``percentile``, the share of ordinary log-ins that score no higher, in (0, 1]; ``entity_known``,
    whether training saw the entity, or None where entities share rows, which leaves it open; ``network_known``, the
    longest network around the address that training knew, as text, or None; and if there is a rate of false alarms,
    ``anomalous``, whether the percentile is no more than the rate, or None where too few log-ins can tell.
    """

    scores: npt.NDArray[np.float32]
    """[n]"""
    labels: Labels
    """The columns."""
    codes: npt.NDArray[np.int32]
    """Which of the labels each pair has, [n, 2]: the bin of its score and whether its entity is known; its leaf."""
    embedded: Embedded | None
    """The scores with their embeddings, if asked for."""

    def labelled(self, form: LabelForm) -> "Labelled":
        """The labels of all pairs as text."""
        texts = self.labels.texts(form)
        numbered = number_texts(self.codes, texts.places, texts.first, texts.starts)
        if numbered is None:
            codes = self.codes[:, texts.places] + texts.first
            numbered = codes, int((texts.starts[codes + 1] - texts.starts[codes]).sum())
        return Labelled(texts, *numbered)

    def below(self, rates: Sequence[float]) -> list[int]:
        """How many pairs have no more than each rate as their percentile."""
        percentiles = self.labels.percentiles
        numbers = np.bincount(self.codes[:, 0], minlength=len(percentiles))
        return [int(numbers[percentiles <= rate].sum()) for rate in rates]

    def column(self, name: str) -> list[Any]:
        """The values of a column, [n]."""
        values = self.labels.values[name]
        return [values[code] for code in self.codes[:, self.labels.places[name]].tolist()]


@dataclass(frozen=True)
class Explained:
    """Predictions of n pairs, of any kind, with what each score consists of and the events behind it."""

    predictions: Any
    """Scores (float32 [n]), `Embedded` or `Calibrated`."""
    explanations: list[Explanation]
    """[n]"""


class Scorer:
    """Scores (entity, address) pairs. Its state is the model and what it keeps of it, so several threads may use it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        leaves = np.arange(len(model.vocabulary.chains), dtype=np.int32)
        self._encoded = self._encode(leaves) if _table_bytes(model) else None
        self._labelled: dict[float | None, Labels] = {}
        self._labelling = threading.Lock()
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

    @property
    def entities(self) -> int:
        """The number of entities that training saw and that have a row of their own."""
        return self._model.index.owned

    @property
    def untrained(self) -> bool:
        """Whether every score is 0, because the training was stopped before it learnt anything."""
        return self._model.untrained

    def score(self, records: Records) -> npt.NDArray[np.float32]:
        """The score of each pair, float32 [n]; higher is more normal.

        The score of an entity that training never saw depends on the address alone.
        """
        return self.score_hashed(*records.hashed())

    def score_hashed(self, digests: Digests, addresses: Addresses) -> npt.NDArray[np.float32]:
        """`score` for entities given by their `hash_names`."""
        if self._native is not None:
            return self._native(digests, addresses)[0]
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

    def percentile_columns(self, entities: Column, addresses: Column) -> npt.NDArray[np.float64]:
        """The percentile of each pair of two columns, in (0, 1]: [n]; otherwise as `score_columns`.

        Raises UserError if the model has no calibration.
        """
        calibration = self._calibration()
        records, readable = salvage_columns(entities, addresses, self.family)
        digests, queries = records.hashed()
        known = self.knows_hashed(digests)
        percentiles = np.full(len(readable), np.nan)
        percentiles[readable] = calibration.percentile(self.score_hashed(digests, queries), known)
        return percentiles

    def embed(self, records: Records) -> Embedded:
        """The scores with both embeddings of each pair."""
        return self.embed_hashed(*records.hashed())

    def embed_hashed(self, digests: Digests, addresses: Addresses) -> Embedded:
        """`embed` for entities given by their `hash_names`."""
        rows, (encoded, leaves) = self._model.index.find_hashed(digests), self._leaves(addresses)
        scores = _products(self._model.entity, rows, encoded, leaves)
        return Embedded(scores, self._model.entity[rows], encoded[leaves])

    def knows_hashed(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Whether training saw each entity, given by its `hash_names`: bool [n].

        Where entities share rows it cannot be told, and then all count as known.
        """
        index = self._model.index
        if index.sharing:
            return np.ones(len(digests), dtype=np.bool_)
        known: npt.NDArray[np.bool_] = index.find_hashed(digests) != index.num_rows
        return known

    @property
    def calibration(self) -> Calibration | None:
        """What scores ordinary log-ins got, by which `calibrate_hashed` tells how unusual a score is."""
        return self._model.calibration

    def calibrate_hashed(
        self, digests: Digests, addresses: Addresses, rate: float | None = None, embedded: bool = False
    ) -> Calibrated:
        """How unusual the scores are, for entities given by their `hash_names`; ``rate`` is one of false alarms.

        Raises UserError if the model has no calibration.
        """
        calibration = self._calibration()
        found = self.embed_hashed(digests, addresses) if embedded else None
        if found or self._native is None:
            scores = found.scores if found else self.score_hashed(digests, addresses)
            known, leaves = self.knows_hashed(digests), self._model.vocabulary.leaves(addresses)
        else:
            scores, rows, leaves = self._native(digests, addresses)
            known = rows != self._model.index.num_rows  # where entities share rows, all have one
        codes = np.stack([bins(scores) + known * np.int32(BINS), leaves], axis=1)
        return Calibrated(scores, self._labels(calibration, rate), codes, found)

    def explain_hashed(self, digests: Digests, addresses: Addresses) -> list[Explanation]:
        """`explanation.explain` for entities given by their `hash_names`: [n]."""
        return Explanation.each(self._model, self._model.index.find_hashed(digests), addresses)

    def _calibration(self) -> Calibration:
        if self._model.calibration is None:
            raise UserError(
                "the model is not calibrated, so it cannot tell how unusual a score is: train with a validation "
                "channel, or with more log-ins (see the hyperparameter held_out_share)"
            )
        return self._model.calibration

    def _labels(self, calibration: Calibration, rate: float | None) -> Labels:
        """The values that calibrated predictions can have: the codes of `calibrate_hashed` are their places."""
        with self._labelling:
            if rate not in self._labelled:
                kinds = calibration.new, calibration.known
                percentiles = np.concatenate([kind.percentiles for kind in kinds])
                leaves = np.arange(len(self._model.vocabulary.chains), dtype=np.int32)
                sharing = self._model.index.sharing
                values: dict[str, list[Any]] = {
                    "percentile": percentiles.tolist(),
                    "entity_known": [None if sharing else known for known in (False, True) for _ in range(BINS)],
                    "network_known": self._model.vocabulary.names(leaves),
                }
                if rate is not None:
                    values["anomalous"] = [
                        bool(share <= rate) if kind.supports(rate) else None
                        for kind in kinds
                        for share in kind.percentiles
                    ]
                self._labelled[rate] = Labels(values, {name: int(name == "network_known") for name in values})
            return self._labelled[rate]

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
