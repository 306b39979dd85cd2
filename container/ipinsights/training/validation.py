"""Validation during training: how well the model so far tells observed pairs from fabricated ones.

It measures the score that the model would serve if training ended here, with counting in it (`model.refit`). The counts
are taken once; each epoch solves the systems of the entities that validation asks for.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ipinsights import metrics
from ipinsights.data.addresses import mapped_share, random_addresses
from ipinsights.data.events import Events
from ipinsights.model.model import Model
from ipinsights.model.refit import PRIOR, Refit
from ipinsights.native.scoring import score_pairs
from ipinsights.training.progress import Quality
from ipinsights.training.trainer import Trainer

_CHUNK = 1 << 14

Vectors = npt.NDArray[np.float32]


class Validator:
    """The validation events, each with one fixed negative of either kind, so that epochs can be compared."""

    def __init__(self, events: Events, trainer: Trainer, refit: Refit, seed: int, earlier: Model | None = None) -> None:
        self._trainer = trainer
        self._refit = refit
        rng = np.random.default_rng(seed)
        vocabulary = trainer.vocabulary
        random = random_addresses(len(events), vocabulary.family, mapped_share(events.address), rng)
        shuffle = rng.permutation(len(events))
        self._true_pair = events.entity[shuffle] == events.entity
        rows, self._entity = np.unique(events.entity, return_inverse=True)
        self._numbers = trainer.entities.number[rows]
        known = self._numbers < len(trainer.entities.met)
        self._known = known[self._entity]
        self._habits = [
            (np.searchsorted(rows, habits.rows), habits)
            for habits in refit.counts.habits(refit.counts.history.of_entities(rows))
        ]
        self._kept: list[tuple[npt.NDArray[np.intp], Vectors]] = []
        if earlier:
            kept, added = refit.kept(earlier)
            places = np.flatnonzero(np.isin(rows, kept))
            self._kept.append((places, added[np.searchsorted(kept, rows[places])]))
        addresses = np.concatenate([events.address, random, events.address[shuffle]])
        leaves, place = np.unique(vocabulary.leaves(addresses), return_inverse=True)
        self._chains = vocabulary.chains[leaves]
        self._places = dict(zip(("own", "random", "others'"), np.split(place.astype(np.int32), 3), strict=True))

    def quality(self, give_up: Callable[[], bool] = lambda: False) -> Quality | None:
        """How well the scores tell the events from random addresses, and from addresses of other entities' events.

        ``give_up`` is called now and then; if it returns True, the result is None.
        """
        encoder = self._trainer.encoder()
        moves = self._refit.moves(encoder)
        learnt = self._trainer.embeddings(self._numbers)
        entity = np.zeros_like(learnt)
        entity[:, PRIOR] = 1
        for rows, habits in self._habits:
            if give_up():
                return None
            entity[rows] = learnt[rows] + moves(habits)
        for rows, added in self._kept:
            entity[rows] = learnt[rows] + added
        encoder = self._refit.encoder(encoder)
        addresses = np.empty((len(self._chains), entity.shape[1]), dtype=np.float32)
        for begin in range(0, len(addresses), _CHUNK):
            if give_up():
                return None
            addresses[begin : begin + _CHUNK] = encoder(self._chains[begin : begin + _CHUNK])
        own, random, others = (self._score(entity, addresses, places) for places in self._places.values())
        other, known = ~self._true_pair, self._known
        some = known.any() and not known.all()
        return Quality(
            discriminator_auc=metrics.auc(own, random),
            shuffled_auc=metrics.auc(own, others[other]) if other.any() else None,
            known_discriminator_auc=metrics.auc(own[known], random[known]) if some else None,
            known_shuffled_auc=metrics.auc(own[known], others[known & other])
            if some and (known & other).any()
            else None,
        )

    def _score(self, entity: Vectors, addresses: Vectors, places: npt.NDArray[np.int32]) -> Vectors:
        rows = self._entity.astype(np.int32)
        scores = score_pairs(entity, rows, addresses, places)
        if scores is None:
            parts = range(0, len(rows), _CHUNK)
            scores = np.concatenate(
                [np.einsum("nd,nd->n", entity[rows[i : i + _CHUNK]], addresses[places[i : i + _CHUNK]]) for i in parts]
            )
        return scores
