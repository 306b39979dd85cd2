"""The state of a training, and how an epoch changes it: parameters, optimiser, and the position in the events.

Everything lies on one device. `Trainer.freeze` turns it into a checkpoint, and `Trainer.thaw` resumes from one.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ipinsights import native
from ipinsights.data.events import Events
from ipinsights.data.homes import Home
from ipinsights.distributed.group import ALONE, Group
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Encoder, Model, learnt_dim
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import resharding
from ipinsights.training.batches import DRAWN, Batches, Entities, seed_of
from ipinsights.training.checkpoint import Checkpoint, Weights, Whole
from ipinsights.training.dropout import as_learnt, on_average
from ipinsights.training.gpu_step import GpuStep
from ipinsights.training.native_step import NativeStep
from ipinsights.training.placement import Placement
from ipinsights.training.progress import BatchProgress, EpochSummary, Listener, Quality
from ipinsights.training.step import Batch, Parameters, Step, TorchStep
from ipinsights.training.union import Union, period

INITIAL_SCALE = 0.01
"""Standard deviation of the tables at the start: small, so that scores start near 0."""
_LINE = 16
"""Floats in a cache line."""
_STATE = tuple(field.name for field in dataclasses.fields(Parameters))


class Trainer:
    """A training in progress."""

    def __init__(
        self,
        train: Events,
        hp: Hyperparameters,
        vocabulary: Vocabulary,
        entities: Entities,
        place: Placement,
        threads: int,
        earlier: Model | None = None,
        group: Group = ALONE,
        home: Home | None = None,
    ) -> None:
        """The native step uses so many ``threads``. With an ``earlier`` model, training continues from it.

        In a ``group`` the events and the entities are those of this rank, whose ``home`` it is, and the encoder is that
        of all (`union`).
        """
        self._hp = hp
        self._group, self._home = group, home
        self.vocabulary = vocabulary
        self.index = train.index
        self.entities = entities
        self._events = group.total(len(train))
        generator = torch.Generator(place.device).manual_seed(hp.seed)
        self.parameters = _initial_parameters(hp, vocabulary, entities, generator, earlier)
        if group.size > 1:  # all ranks' encoders begin alike, and what they draw from now on is their own
            _as_on_the_leader(self.parameters.prefix, group)
            generator.manual_seed(seed_of(hp.seed, group.rank))
        library = native.library() if place.step == "native" else None
        self.batches = Batches(train, hp, vocabulary, entities, generator, library, group)
        self.step: Step
        if library:
            self.step = NativeStep(library, self.parameters, vocabulary.depth, hp.weight_decay, threads)
        elif place.step == "graph":
            self.step = GpuStep(self.parameters, hp.weight_decay)
        else:
            self.step = TorchStep(self.parameters, hp.weight_decay)
        self._union: Union | None = None
        if group.size > 1:
            steps, trainers = self.batches.steps_per_epoch, group.total(int(len(train) > 0))
            every = period(steps, hp.mini_batch_size, trainers, vocabulary.num_rows)
            self._union = Union(group, self.parameters, self.step, steps, every, library)
        self.position = self.batches.start()
        self._seconds = 0.0
        self.last: EpochSummary | None = None
        """The last complete epoch."""
        self.best: EpochSummary | None = None
        """The complete epoch with the best validation; the first, if there is no validation."""
        self._best_weights: Weights | None = None

    @property
    def out_of_patience(self) -> bool:
        """Whether training must end early, because too many epochs were no better than the best."""
        patience = self._hp.early_stopping_patience
        return patience > 0 and self.best is not None and self.position.epoch - 1 - self.best.epoch >= patience

    def run(self, listener: Listener, stop: Callable[[], bool], save: Callable[[], object]) -> bool:
        """Take the remaining steps of the current epoch; after each, ``save`` may freeze the training.

        In a group of ranks, ``save`` and reports come where encoders are combined, and ``stop`` must ask all ranks.
        Returns whether all steps were taken; False if ``stop`` returned True before.
        """
        hp, position = self._hp, self.position
        steps = hp.epochs * self.batches.steps_per_epoch
        per_step, interval = hp.records_per_positive, hp.batch_metrics_publish_interval
        next_print = -(-position.steps * per_step // interval) * interval
        began, before = time.perf_counter() - self._seconds, (time.perf_counter(), self._records)
        for batch in self._rest_of_epoch():
            number = position.epoch * self.batches.steps_per_epoch + position.steps
            if batch:
                self.step.run(batch, hp.learning_rate * (1 - number / steps))
            position.steps += 1
            self._seconds = time.perf_counter() - began
            listener.step_done(position.epoch, len(batch.entity) if batch else 0)
            if self._union and not self._union.stepped(batch is not None, position.steps, number + 1, stop):
                continue
            if next_print < position.steps * per_step:
                cross_entropy, accuracy = self._means()
                now = (time.perf_counter(), self._records)
                speed = (now[1] - before[1]) / (now[0] - before[0])
                before = now
            while next_print < position.steps * per_step:  # a step may cover several prints
                listener.batches_done(BatchProgress(position.epoch, next_print, accuracy, cross_entropy, speed))
                next_print += interval
            if self._union.stopped if self._union else stop():
                break
            if position.steps == self.batches.steps_per_epoch:
                break  # the next checkpoint is due after validation, and has the same number of steps
            pause = time.perf_counter()
            save()
            began += time.perf_counter() - pause
        self.step.wait()
        self._seconds = time.perf_counter() - began
        return position.steps == self.batches.steps_per_epoch

    def _rest_of_epoch(self) -> Iterator[Batch | None]:
        """A mini-batch for each remaining step of the epoch; None for a step in which this rank has none."""
        yield from self.batches.rest_of_epoch(self.position)
        while self.position.steps < self.batches.steps_per_epoch:
            yield None

    def summary(self, quality: Quality | None) -> EpochSummary:
        """The result of the current epoch so far."""
        cross_entropy, accuracy = self._means()
        return EpochSummary(
            epoch=self.position.epoch,
            records=self._records,
            batches=self.position.steps * self._hp.records_per_positive,
            seconds=self._seconds,
            accuracy=accuracy,
            cross_entropy=cross_entropy,
            **dataclasses.asdict(quality or Quality()),
        )

    def end_epoch(self, summary: EpochSummary) -> None:
        """Move on to the next epoch."""
        self.last = summary
        if self.best is None or (summary.discriminator_auc or 0) > (self.best.discriminator_auc or 0):
            self.best = summary
            if self._hp.saved_epoch == "best":
                self._best_weights = self._weights(copy=True)
        self.batches.next_epoch(self.position)
        self.step.totals.zero_()
        if self._union:
            self._union.totals[:] = 0
        self._seconds = 0.0

    def model(self) -> tuple[Model, EpochSummary | None]:
        """The model to save if training ends here, and its epoch; None for an incomplete one."""
        if self._best_weights:
            weights, summary = self._best_weights, self.best
        else:
            weights = self._weights()
            summary = None if self.position.steps else self.last
        return weights.model(self.vocabulary, self.index, self.entities.met), summary

    @property
    def keeps_best(self) -> bool:
        """Whether it holds the best epoch's weights."""
        return self._best_weights is not None

    @property
    def diverged(self) -> bool:
        """Whether the loss is no longer a number."""
        return not math.isfinite(sum(self._totals))

    @property
    def _totals(self) -> list[float]:
        """The totals of the epoch so far, of all ranks."""
        return (self._union or self.step).totals.tolist()

    def freeze(self, subject: dict[str, Any]) -> Checkpoint:
        """The present state of the training, as views that later steps change."""
        return Checkpoint(
            subject=subject,
            vocabulary=self.vocabulary,
            index=self.index,
            met=self.entities.met,
            parameters={name: getattr(self.parameters, name).numpy(force=True) for name in _STATE},
            position=self.position,
            totals=self.step.totals.numpy(force=True),
            seconds=self._seconds,
            last=self.last,
            best=self.best,
            best_weights=self._best_weights,
            steps=self.position.epoch * self.batches.steps_per_epoch + self.position.steps,
            rows=self._home.rows if self._home else None,
            trainers=self._home.homes.ranks if self._home else 1,
        )

    def thaw(self, whole: Whole, as_it_was: bool) -> None:
        """Resume from a checkpoint of the same training. All ranks must call it.

        If ranks are ``as_it_was``, each one that trains has read its own part, and all goes on as it would have. Else
        what ranks have in common comes to all, and entities come home (`resharding`).
        """
        part = whole.parts.get(self._group.rank) if as_it_was else None
        if self._group.any(part is None):
            self._reshard(whole)
        if part:
            self._take(part)
        self.step.resume(whole.steps)
        self.last, self.best = whole.last, whole.best
        self._seconds = whole.facts["seconds"]
        if self._union:
            self._union.begin()
            self._union.add_up()

    def _take(self, part: Checkpoint) -> None:
        """The state that this rank had."""
        for name in _STATE:
            array = part.parameters[name]
            for ours, theirs in zip(getattr(self.parameters, name).split(DRAWN), _split(array), strict=True):
                ours.copy_(torch.from_numpy(theirs))
        self.position = part.position
        self.step.totals.copy_(torch.from_numpy(part.totals.copy()))
        if part.best_weights:  # as copies: views would keep the file in memory
            self._best_weights = Weights(**{name: array.copy() for name, array in vars(part.best_weights).items()})

    def _reshard(self, whole: Whole) -> None:
        """The state of the same training on other ranks."""
        arrays = {name: getattr(self.parameters, name).numpy(force=True) for name in _STATE}
        met = self.entities.met if self._home is None else self._home.rows[self.entities.met]
        self._best_weights = resharding.bring(whole, self._group, self._home, met, arrays)
        for name, array in arrays.items():
            parameter = getattr(self.parameters, name)
            if parameter.device.type != "cpu":  # else it is the same memory
                parameter.copy_(torch.from_numpy(array))
        self.position = self.batches.begin_anew(whole.facts["epoch"], whole.facts["steps"], whole.steps)
        totals = self._group.sum(sum((part.totals for part in whole.parts.values()), np.zeros(3)))
        self.step.totals.copy_(torch.from_numpy(totals if self._group.leads else np.zeros(3)))

    @property
    def _records(self) -> int:
        """Records of the epoch so far, positives and negatives."""
        return min(self.position.steps * self._hp.mini_batch_size, self._events) * self._hp.records_per_positive

    def embeddings(self, numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """The embeddings of some entities so far, by their numbers: a copy, [n, D]."""
        chosen = torch.from_numpy(numbers.astype(np.int64)).to(self.parameters.entity.device)
        rows = self.parameters.entity[:, 0].index_select(0, chosen) + self.parameters.typical[0]
        embedded: npt.NDArray[np.float32] = rows.numpy(force=True)
        return embedded

    def encoder(self) -> Encoder:
        """The encoder to score with, in numpy arrays. On the CPU later steps change its blocks."""
        learnt = self._encoder()
        return dataclasses.replace(learnt, prefix=on_average(learnt.prefix, self.vocabulary))

    def _encoder(self, copy: bool = False) -> Encoder:
        """The encoder as training has it. On the CPU its arrays are views that later steps change, unless ``copy``."""
        arrays = {name: array.numpy(force=True) for name, array in vars(self.parameters.encoder).items()}
        return Encoder(**{name: array.copy() if copy else array for name, array in arrays.items()})

    def _weights(self, copy: bool = False) -> Weights:
        """What is learnt so far, `_encoder` with it."""
        return Weights(self.parameters.entities.numpy(force=True), **vars(self._encoder(copy)))

    def _means(self) -> tuple[float, float]:
        """Mean cross entropy and accuracy of the epoch so far. Raises UserError if training has diverged."""
        if self.diverged:
            raise UserError(
                "the training loss is no longer a number: lower learning_rate (and, if the job has checkpoints, "
                "use an empty checkpoint folder)"
            )
        cross_entropy, right, records = self._totals
        return cross_entropy / records, right / records


def _as_on_the_leader(weights: torch.Tensor, group: Group) -> None:
    """Set weights, on every rank, to what the leader drew: GPUs of two models draw other numbers from one seed."""
    drawn = weights.clone() if group.leads else torch.zeros_like(weights)
    group.add(drawn)
    weights.copy_(drawn)


def _initial_parameters(
    hp: Hyperparameters,
    vocabulary: Vocabulary,
    entities: Entities,
    generator: torch.Generator,
    earlier: Model | None,
) -> Parameters:
    """Entities and prefixes start with small random differences, and blocks as the identity.

    Parameters of an earlier model start with their values there. A new entity starts as the typical entity, and a new
    prefix as its level's unknown row. So at first the model equals the earlier one.
    """
    device, dim, blocks = generator.device, hp.vector_dim, hp.num_ip_encoder_layers
    prefix = _zeros(device, vocabulary.num_rows, dim)
    entity = _zeros(device, len(entities.met) + 1, 3, dim)
    learnt = learnt_dim(dim, vocabulary)
    for rows in (*torch.split(prefix, DRAWN), *torch.split(entity[:-1, 0], DRAWN)):  # the last is the typical entity
        noise = torch.randn(len(rows), dim, generator=generator, device=device)
        rows[:] = noise.mul_(INITIAL_SCALE)
        rows[:, learnt:] = 0  # and so they stay: what is 0 on both sides of a product has no gradient
    parameters = Parameters(
        entity=entity,
        typical=_zeros(device, 3, dim),
        prefix=prefix,
        square=_zeros(device, vocabulary.num_rows),
        w=_zeros(device, 3, blocks, dim, dim),
        b=_zeros(device, 3, blocks, dim),
    )
    if earlier:
        typical = earlier.entity[-1]
        for place, met in zip(torch.split(entity[:-1], DRAWN), _split(entities.met), strict=True):
            place[:, 0] = torch.from_numpy(earlier.entity[met] - typical)
        parameters.typical[0] = torch.from_numpy(typical.copy())
        origins = vocabulary.origins(earlier.vocabulary)
        unknown = np.array(earlier.encoder.prefix[: earlier.vocabulary.depth])
        every = torch.split(prefix, DRAWN), _split(origins), _split(vocabulary.row_counts)
        for place, rows_before, counts in zip(*every, strict=True):
            known = rows_before >= 0
            at = rows_before[known]
            rows = earlier.encoder.prefix[at]
            learnt_rows = as_learnt(rows, counts[known], unknown[earlier.vocabulary.level_of_row[at]])
            place[torch.from_numpy(known)] = torch.from_numpy(learnt_rows).to(device)
        parameters.w[0] = torch.from_numpy(earlier.encoder.w.copy())
        parameters.b[0] = torch.from_numpy(earlier.encoder.b.copy())
    return parameters


def _zeros(device: torch.device, *shape: int) -> torch.Tensor:
    """Zeros; on the CPU they start at a cache line, and memory is allocated only when first used."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device)
    size = math.prod(shape)
    memory = np.zeros(size + _LINE, dtype=np.float32)
    first = -memory.ctypes.data % (4 * _LINE) // 4
    return torch.from_numpy(memory[first : first + size].reshape(shape))


def _split(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Parts of an array along its first axis, as copies, cut as `torch.split` cuts a tensor."""
    for begin in range(0, max(1, len(array)), DRAWN):
        yield array[begin : begin + DRAWN].copy()
