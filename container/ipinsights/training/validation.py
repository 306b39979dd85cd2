"""Validation during training: how well the model so far tells observed pairs from fabricated ones."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ipinsights import metrics
from ipinsights.data.addresses import mapped_share, random_addresses
from ipinsights.data.events import Events
from ipinsights.training.trainer import Trainer

_CHUNK = 1 << 17


class Validator:
    """The validation events, each with one fixed negative of either kind, so that epochs can be compared."""

    def __init__(self, events: Events, trainer: Trainer, seed: int) -> None:
        self._trainer = trainer
        rng = np.random.default_rng(seed)
        vocabulary, device = trainer.vocabulary, trainer.parameters.typical.device
        random = random_addresses(len(events), vocabulary.family, mapped_share(events.address), rng)
        shuffle = rng.permutation(len(events))
        self._true_pair = events.entity[shuffle] == events.entity
        self._entity = torch.from_numpy(trainer.entities.number[events.entity]).to(device)
        self._leaves = {
            name: torch.from_numpy(vocabulary.leaves(address)).to(device)
            for name, address in (("own", events.address), ("random", random), ("others'", events.address[shuffle]))
        }

    def aucs(self, give_up: Callable[[], bool] = lambda: False) -> tuple[float, float | None] | None:
        """The areas under the ROC curve of observed against random addresses, and against addresses of other events.

        Only other events of another entity count; without any, the area is None. ``give_up`` is called now and then;
        if it returns True, the result is None.
        """
        scores = []
        for kind in ("own", "random", "others'"):
            parts = self._score(kind, give_up)
            if parts is None:
                return None
            scores.append(parts)
        own, random, others = scores
        others = others[~self._true_pair]
        return metrics.auc(own, random), metrics.auc(own, others) if len(others) else None

    def _score(self, kind: str, give_up: Callable[[], bool]) -> npt.NDArray[np.float32] | None:
        step, index = self._trainer.step, self._trainer.batches.index
        scores = []
        for entity, leaf in zip(
            torch.split(self._entity, _CHUNK), torch.split(self._leaves[kind], _CHUNK), strict=True
        ):
            if give_up():
                return None
            scores.append(step.score(entity, index.rows(leaf)))
        return torch.cat(scores).numpy(force=True)
