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
from ipinsights.data.homes import send
from ipinsights.distributed.group import ALONE, Group
from ipinsights.model.model import Model
from ipinsights.model.refit import PRIOR, Kept, Refit
from ipinsights.native.scoring import score_pairs
from ipinsights.training.progress import Quality
from ipinsights.training.trainer import Trainer

_CHUNK = 1 << 14
_BINS = 1 << 16

Vectors = npt.NDArray[np.float32]


class Validator:
    """The validation events, each with one fixed negative of either kind, so that epochs can be compared."""

    def __init__(
        self,
        events: Events,
        trainer: Trainer,
        refit: Refit,
        seed: int,
        earlier: Model | None = None,
        group: Group = ALONE,
    ) -> None:
        """In a ``group`` the events are those of this rank's entities, and the quality is that of all."""
        self._trainer = trainer
        self._refit = refit
        self._group = group
        rng = np.random.default_rng(seed if group.size == 1 else (seed, group.rank))
        vocabulary = trainer.vocabulary
        random = random_addresses(len(events), vocabulary.family, mapped_share(events.address, group), rng)
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
        self._kept: list[tuple[npt.NDArray[np.intp], Kept]] = []
        if earlier:
            kept = refit.kept(earlier)
            places = np.flatnonzero(np.isin(rows, kept.rows))
            self._kept.append((places, kept.of(rows[places])))
        addresses = np.concatenate([events.address, random, events.address[shuffle]])
        leaves, place = np.unique(vocabulary.leaves(addresses), return_inverse=True)
        self._chains = vocabulary.chains[leaves]
        self._places = dict(zip(("own", "random", "others'"), np.split(place.astype(np.int32), 3), strict=True))

    def quality(self, give_up: Callable[[], bool] = lambda: False) -> Quality | None:
        """How well the scores tell the events from random addresses, and from addresses of other entities' events.

        ``give_up`` is called now and then; if it returns True, on any rank, the result is None.
        """
        scores = self._scores(give_up)
        if self._group.any(scores is None) or scores is None:
            return None
        own, random, others = scores
        other, known = ~self._true_pair, self._known
        some = self._group.any(bool(known.any())) and self._group.any(not known.all())
        return Quality(
            discriminator_auc=self._auc(own, random),
            shuffled_auc=self._auc(own, others[other]),
            known_discriminator_auc=self._auc(own[known], random[known]) if some else None,
            known_shuffled_auc=self._auc(own[known], others[known & other]) if some else None,
        )

    def _scores(self, give_up: Callable[[], bool]) -> tuple[Vectors, Vectors, Vectors] | None:
        """The scores of the events, and of their entities with random addresses and with those of others."""
        encoder = self._trainer.encoder()
        moves = self._refit.moves(encoder)
        learnt = self._trainer.embeddings(self._numbers)
        entity = np.zeros_like(learnt)
        entity[:, PRIOR] = 1
        for rows, habits in self._habits:
            if give_up():
                return None
            entity[rows] = moves.moved(learnt[rows], habits)
        for rows, kept in self._kept:
            entity[rows] = kept(learnt[rows])
        encoder = self._refit.encoder(encoder)
        addresses = np.empty((len(self._chains), entity.shape[1]), dtype=np.float32)
        for begin in range(0, len(addresses), _CHUNK):
            if give_up():
                return None
            addresses[begin : begin + _CHUNK] = encoder(self._chains[begin : begin + _CHUNK])
        own, random, others = (self._score(entity, addresses, places) for places in self._places.values())
        return own, random, others

    def _auc(self, positive: Vectors, negative: Vectors) -> float | None:
        """The area under the ROC curve; None without a negative."""
        if not self._group.any(len(negative) > 0):
            return None
        return metrics.auc(positive, negative) if self._group.size == 1 else auc_of_all(positive, negative, self._group)

    def _score(self, entity: Vectors, addresses: Vectors, places: npt.NDArray[np.int32]) -> Vectors:
        rows = self._entity.astype(np.int32)
        scores = score_pairs(entity, rows, addresses, places)
        if scores is None:
            parts = range(0, len(rows), _CHUNK)
            scores = np.concatenate(
                [np.einsum("nd,nd->n", entity[rows[i : i + _CHUNK]], addresses[places[i : i + _CHUNK]]) for i in parts]
            )
        return scores


def auc_of_all(positive: Vectors, negative: Vectors, group: Group) -> float:
    """`metrics.auc` of the scores of all ranks, exactly.

    Scores are counted in bins first. Each rank then gets all scores of some neighbouring bins and compares those; of
    lower bins the number is enough.
    """
    bins = [_bins(scores) for scores in (positive, negative)]
    counts = group.sum(np.stack([np.bincount(each, minlength=_BINS) for each in bins]))
    before = np.cumsum(counts.sum(axis=0)) - counts.sum(axis=0)
    owner = before * group.size // max(1, int(counts.sum()))
    here, strange = (send(scores, owner[each], group) for scores, each in zip((positive, negative), bins, strict=True))
    lower = int(counts[1][owner < group.rank].sum())
    ordered = np.sort(strange)
    twice = sum(int(np.searchsorted(ordered, here, side=side).sum()) for side in ("left", "right"))
    pairs_twice = group.total(twice + 2 * lower * len(here))
    return pairs_twice / 2 / int(counts[0].sum()) / int(counts[1].sum())


def _bins(scores: Vectors) -> npt.NDArray[np.intp]:
    """A bin for each score, [n], of the leading bits of a float, which ascend as the scores do."""
    bits = scores.astype(np.float32).view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ascending >> np.uint32(16)).astype(np.intp)
