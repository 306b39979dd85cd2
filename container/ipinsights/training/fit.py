"""Training: events in, a model out.

`fit` draws mini-batches of shuffled events, adds negative samples, and takes one optimiser step a mini-batch. The
learning rate falls linearly to 0. `fit` can continue from an earlier model, or resume from the checkpoint of an
interrupted training. It can be stopped at any time and then returns the model so far. It writes no log lines: it calls
a `Listener`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.homes import Home, buckets, send
from ipinsights.data.networks import Networks
from ipinsights.distributed.group import ALONE, Group, OtherHostFailed
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.machine import require_memory
from ipinsights.model.calibration import Calibration
from ipinsights.model.counting import Counts
from ipinsights.model.countries import COORDINATES_A_COUNTRY
from ipinsights.model.history import History
from ipinsights.model.model import RESERVED, Model
from ipinsights.model.profile import Profile
from ipinsights.model.refit import Refit
from ipinsights.model.vocabulary import Vocabulary, levels_for
from ipinsights.training import placement
from ipinsights.training.batches import Entities
from ipinsights.training.checkpoint import Checkpoint, Checkpoints, Whole, digest_of, subject_of
from ipinsights.training.holdout import hold_out, mixed
from ipinsights.training.progress import Ended, Ending, Listener, Plan, Quality
from ipinsights.training.trainer import Trainer
from ipinsights.training.validation import Validator

GRACE_SECONDS = 30
"""For so long after a stop request, the model so far is still validated."""
LAST_CHECKPOINT_BYTES = 4 << 30
"""A stopped training writes a last checkpoint, unless it is larger: there may not be time for it."""
_CHUNK = 1 << 20
"""Events that are hashed at a time."""


def fit(
    train: Events,
    hyperparameters: Hyperparameters,
    validation: Events | None = None,
    listener: Listener | None = None,
    device: str | None = None,
    networks: Networks | None = None,
    *,
    earlier: Model | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Model:
    """Train a model on observed pairs.

    Entities of both event sets are rows of one index, whose size must be ``num_entity_vectors``. Hyperparameters left
    at their defaults are adapted to the number of events (`Hyperparameters.adapted`). With a table of networks the
    encoder knows providers and countries. `Hyperparameters.device` chooses the ``device``, in torch's words, unless it
    is given. On the CPU, training uses as many threads as torch is set to.

    With an ``earlier`` model, training continues from it and keeps what it learnt; the events' index must extend the
    model's. With ``checkpoints``, training resumes from the newest and writes new ones. ``stop`` is called after every
    step. Once it returns True, `fit` returns the model so far. Without any step, this is the earlier model, or a
    blank one.

    Raises UserError if training on the events is impossible, if they do not fit the earlier model or the checkpoint,
    and if the machine has too little memory.
    """
    hyperparameters.require(validated=validation is not None)
    check(len(train), train.index, None if validation is None else len(validation), hyperparameters, earlier)
    if earlier and not earlier.vocabulary.events:  # a blank one: between zeros all gradients are zero
        earlier = None
    require_memory(4 * (hyperparameters.num_entity_vectors + 1) * hyperparameters.vector_dim)
    return learn(
        train,
        hyperparameters,
        validation,
        listener or Listener(),
        device,
        networks,
        earlier,
        checkpoints,
        stop,
        ALONE,
    )


def learn(
    train: Events,
    hyperparameters: Hyperparameters,
    validation: Events | None,
    listener: Listener,
    device: str | None,
    networks: Networks | None,
    earlier: Model | None,
    checkpoints: Checkpoints | None,
    stop: Callable[[], bool],
    group: Group,
    home: Home | None = None,
    digest_of_earlier: str | None = None,
) -> Model:
    """`fit` of one rank of a group, once it is sure that there is something to learn.

    Events, index, earlier model and result have the rows of this rank's entities, which ``home`` numbers among those of
    all. ``digest_of_earlier`` is that of the whole earlier model.
    """
    stopping = _Stopping(stop, group)
    table = 4 * (train.index.num_rows + 1) * hyperparameters.vector_dim
    _require_memory(table, group)
    before = earlier.vocabulary if earlier else None
    family = FAMILIES[hyperparameters.ip_version]
    history = History.of(train, family)
    levels = before.levels if before else levels_for(family, *_recurrence(history, group))
    every, told = train, History.none(family)
    if validation is None:
        train, history, apart = hold_out(train, history, hyperparameters.held_out_share, group)
        told = History.of(apart, family)
    else:
        apart = validation
    events = group.total(len(train))
    hp = hyperparameters.adapted(events)
    countries = hp.vector_dim // COORDINATES_A_COUNTRY
    vocabulary = Vocabulary.build(
        train.address, family, networks, levels, earlier=before, group=group, countries=countries
    )
    if earlier and earlier.counted:
        history = earlier.counted.history.plus(history, family)
        told = earlier.counted.apart.plus(told, family)
    profile = Profile.of(every, vocabulary, group)
    entities = Entities.of(train, train.index.num_rows, earlier)
    memory = placement.memory(hp, vocabulary, len(train), len(entities.met), group.size)
    _require_memory(table + memory, group)
    place = placement.choose(device, hp, vocabulary, len(train), memory, group)
    threads = max(1, torch.get_num_threads() // group.beside)
    seen = entities.number[apart.entity] < len(entities.met)
    listener.training_planned(
        Plan(
            hp,
            vocabulary,
            profile,
            place.device.type,
            place.step,
            threads,
            place.slower_because,
            memory,
            before,
            held_out=0 if validation is not None else group.total(len(apart)),
            unseen=group.total(int((~seen).sum())),
            ranks=group.total(int(len(train) > 0)),
        )
    )
    with _one_torch_thread(place.step == "native"), _memory_errors(), place.current:
        learnt_before = earlier.learnt_alone() if earlier else None
        trainer = Trainer(train, hp, vocabulary, entities, place, threads, learnt_before, group, home)
        refit = Refit(Counts(vocabulary, history, group), group)
        validator = None
        if validation is not None:
            validator = Validator(validation, trainer, refit, hp.seed, earlier, group)
        saver = None
        if checkpoints:
            before_all = {"entity": earlier.entity, **vars(earlier.encoder)} if earlier else None
            chosen = {"countries": np.array(vocabulary.countries)} if vocabulary.countries else None
            whole = {
                "table_of_entities": digest_of({"tags": home.index.tags if home else train.index.tags}),
                "training_data": _digest(train, home, group),
                "validation_data": None if validation is None else _digest(validation, home, group),
                "table_of_networks": digest_of(vars(networks)) if networks else None,
                "choice_of_countries": digest_of(chosen) if chosen else None,
                "earlier_model": digest_of_earlier or (digest_of(before_all) if before_all else None),
            }
            subject = subject_of(
                hp,
                place.device.type,
                events,
                whole,
                training_data={"entity": train.entity, "address": train.address},
                validation_data={"entity": validation.entity, "address": validation.address} if validation else None,
                table_of_networks=vars(networks) if networks else None,
                earlier_model=before_all,
                choice_of_countries=chosen,
                **({"rank": {"rank_of": np.array([group.rank, group.size])}} if group.size > 1 else {}),
            )
            trainers = home.homes.ranks if home else 1
            saver = _Saver(checkpoints, trainer, subject, hp.checkpoint_interval_minutes, listener, group, trainers)
            saver.resume()
        ending = _run(trainer, validator, hp, listener, stopping, saver)
        learnt, summary = trainer.model()
        listener.training_ended(dataclasses.replace(ending, saved=summary or ending.saved))
        if not (ending.epochs or ending.steps):
            shape = train.index.num_rows, hp.vector_dim, hp.num_ip_encoder_layers
            return earlier.keeping(hp.history) if earlier else Model.blank(vocabulary.family, *shape)
        ordinary = apart.entity[seen], apart.address[seen]
        model = refit.model(learnt, hp.seed, earlier, ordinary, stopping.impatient)
        if model is None:
            listener.uncounted()
            return learnt
        model = model.telling(told)
        if not group.any(bool(seen.any())):
            return model.keeping(hp.history)
        calibration = Calibration.of(model.score_rows, refit.counts, *ordinary, hp.seed, group)
        listener.calibrated(calibration)
        return dataclasses.replace(model, calibration=calibration).keeping(hp.history)


@contextmanager
def _one_torch_thread(wanted: bool) -> Iterator[None]:
    """The kernel has its own threads, and torch's remaining work is too short to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn torch's out-of-memory errors into MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        raise


def _run(
    trainer: Trainer,
    validator: Validator | None,
    hp: Hyperparameters,
    listener: Listener,
    stopping: "_Stopping",
    saver: "_Saver | None",
) -> Ending:
    """Train epoch after epoch. Returns how training ended, with a summary of an interrupted epoch."""
    position, cut_off = trainer.position, None
    if position.steps:
        cut_off = trainer.summary(None)
    while position.epoch < hp.epochs and not trainer.out_of_patience and not stopping.asked():
        whole = trainer.run(listener, stopping.asked, saver.write_if_due if saver else lambda: None)
        if trainer.diverged and stopping() and trainer.keeps_best:
            break
        quality = validator.quality(stopping.impatient) if validator else Quality()
        summary = trainer.summary(quality)
        if not whole or quality is None:
            cut_off = summary
            break
        cut_off = None
        trainer.end_epoch(summary)
        listener.epoch_done(summary)
        if saver and not stopping():
            saver.write()
    ended: Ended = "all_epochs"
    if position.epoch < hp.epochs:
        ended = "early_stopping" if trainer.out_of_patience else "stopped"
    if saver and stopping():
        saver.write_last()
    return Ending(position.epoch, position.steps, ended, cut_off)


class _Stopping:
    """Whether training was asked to stop, and whether that was long ago. All ranks of a group have the same answer."""

    def __init__(self, stop: Callable[[], bool], group: Group) -> None:
        self._stop = stop
        self._group = group
        self._since = math.inf

    def asked(self) -> bool:
        """Ask all ranks."""
        if self._since == math.inf and self._group.any(self._stop()):
            self._since = time.monotonic()
        return self._since < math.inf

    def __call__(self) -> bool:
        """What is known. A rank that is alone may ask at any time."""
        return self.asked() if self._group.size == 1 else self._since < math.inf

    def impatient(self) -> bool:
        """Whether no time is left for optional work."""
        return self() and time.monotonic() - self._since > GRACE_SECONDS


class _Saver:
    """Writes checkpoints of a training, and resumes from one."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        trainer: Trainer,
        subject: dict[str, Any],
        minutes: float,
        listener: Listener,
        group: Group,
        trainers: int,
    ) -> None:
        self._checkpoints = checkpoints
        self._group = group
        self._trainers = trainers
        self._trainer = trainer
        self._subject = subject
        self._minutes = minutes
        self._listener = listener
        self._last = -1
        """Steps taken at the last checkpoint."""

    def resume(self) -> None:
        """Resume from the newest checkpoint, if there is one. Raises UserError if it belongs to another training."""
        whole, damaged = self._checkpoints.newest()
        if whole:
            as_it_was = self._as_it_was(whole)
            alike = as_it_was and whole.ranks == self._group.size
            alike = alike and not self._group.any([*whole.parts] != [self._group.rank])
            error = None
            for part in whole.parts.values():
                try:
                    part.require(self._subject, self._checkpoints.folder, alike)
                except UserError as fault:
                    error = fault
            self._group.agree(error)
            self._trainer.thaw(whole, as_it_was)
            self._last = whole.steps
            if not as_it_was:
                self._listener.resharded(whole.ranks)
        position = self._trainer.position
        if whole or damaged:
            self._listener.resumed(position.epoch, position.steps, damaged)

    def _as_it_was(self, whole: Whole) -> bool:
        """Whether the same ranks train that wrote a checkpoint, and have read their own parts."""
        group = self._group
        before = whole.trainers or (self._trainers if whole.ranks == group.size else 0)
        alike = (whole.ranks > 1) == (group.size > 1) and before == self._trainers
        return alike and not group.any(group.rank < self._trainers and group.rank not in whole.parts)

    def write_if_due(self) -> None:
        """Write a checkpoint if the interval has passed. In a group, the leader's clock decides."""
        due = self._checkpoints.due(self._minutes)
        if self._group.any(due and self._group.leads):
            self.write()

    def write_last(self) -> None:
        """Write a checkpoint if that does not take long."""
        checkpoint = self._trainer.freeze(self._subject)
        large = self._group.any(checkpoint.nbytes > LAST_CHECKPOINT_BYTES)
        if checkpoint.steps != self._last and not large:
            self._write(checkpoint)

    def write(self) -> None:
        """Write a checkpoint."""
        self._write(self._trainer.freeze(self._subject))

    def _write(self, checkpoint: Checkpoint) -> None:
        """Report a failure, for example a full disk, but go on: it is no reason to lose the training."""
        if self._trainer.diverged:  # training soon reports this
            return
        began = time.monotonic()
        try:
            path = self._checkpoints.write(checkpoint)
            self._last = checkpoint.steps
        except (OSError, OtherHostFailed) as error:
            self._listener.checkpoint_failed(error)
        else:
            self._listener.checkpoint_written(str(path), time.monotonic() - began)


def _digest(events: Events, home: Home | None, group: Group) -> str:
    """A digest of all ranks' events, in whatever order: a sum of hashes, each of an entity's row and an address."""
    total = np.zeros(1, dtype=np.uint64)
    row_of = np.append(home.rows, home.index.num_rows) if home else None  # the unknown has the number after the last
    for begin in range(0, len(events), _CHUNK):
        rows, address = (each[begin : begin + _CHUNK] for each in (events.entity, events.address))
        if row_of is not None:
            rows = row_of[np.minimum(rows, len(row_of) - 1)]
        total += mixed(mixed(rows.astype(np.uint64)) ^ address.astype(np.uint64)).sum(dtype=np.uint64)
    return f"{int(group.sum(total.view(np.int64)).view(np.uint64)[0]):016x}"


def _require_memory(needed: int, group: Group) -> None:
    """`require_memory` of what all ranks of a host need together. What one host lacks, all hear of."""
    error = None
    together = group.total_here(needed)
    try:
        require_memory(together)
    except UserError as fault:
        error = fault
    group.agree(error)


def _recurrence(history: History, group: Group) -> tuple[float, int]:
    """`History.recurring` and `History.distinct_addresses` of all ranks' entities."""
    if group.size == 1:
        return history.recurring, history.distinct_addresses
    recurring = 1 - group.total(len(history)) / max(1, group.total(history.events))
    addresses = np.unique(history.addresses)
    addresses = send(addresses, buckets(addresses) % group.size, group)
    return recurring, group.total(len(np.unique(addresses)))


def check(
    events: int, index: EntityIndex, validation: int | None, hyperparameters: Hyperparameters, earlier: Model | None
) -> None:
    """Raise UserError if there is nothing to learn from so many events, or if the earlier model does not fit."""
    if earlier:
        earlier.require(hyperparameters)
        before = earlier.encoder.prefix[:, -RESERVED:]
        if earlier.vocabulary.events and not earlier.counted and before.any():
            raise UserError(
                "the earlier model was made by a release that did not count: it can be served, but training cannot "
                "continue from it. Train once without it"
            )
    if not events:
        raise UserError("there are no training events: the train channel has no rows")
    if index.owned + index.sharing == 1:
        raise UserError(
            "all training events belong to one entity: the model learns by comparing entities, so the train channel "
            "must have several"
        )
    if validation == 0:
        raise UserError("there are no validation events: the validation channel has no rows")
