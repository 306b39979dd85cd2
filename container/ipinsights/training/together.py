"""Training on several ranks: every event goes home, each rank learns its own entities, and the encoder is everybody's.

How many ranks train follows from the data. Divided, little data is learnt worse: the shuffled negatives of a rank are
of few entities. And it needs no more than one rank.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.homes import Home, Homes, Loads, loads
from ipinsights.data.networks import Networks
from ipinsights.distributed.group import Group
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Counted, Model
from ipinsights.model.shard import Shard
from ipinsights.training.checkpoint import Checkpoints, digest_of
from ipinsights.training.fit import check, learn
from ipinsights.training.progress import Listener

LEAST_EVENTS, LEAST_POSITIVES, MOST_OF_ONE = 20_000, 250, 0.25
"""What a rank that trains should have: so many events, so many positives of a mini-batch, and of no bucket of entities
more than that share of its events (docs/distributed.md)."""


def fit_together(
    train: Events,
    hyperparameters: Hyperparameters,
    validation: Events | None,
    group: Group,
    listener: Listener | None = None,
    device: str | None = None,
    networks: Networks | None = None,
    *,
    earlier: Model | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Shard:
    """Train a model on the events of all ranks of a group, each of which has read some. Returns this rank's part of it.

    It is as `fit`, and every rank must call it with the same hyperparameters, index, networks and earlier model.
    ``stop`` may return True on any rank. The result depends on the events, the seed and the number of ranks, and not on
    who has read what.

    Raises UserError as `fit` does. What is wrong on one rank raises `OtherHostFailed` on the others.
    """
    hyperparameters.require(validated=validation is not None)
    index = train.index
    before = digest_of({"entity": earlier.entity, **vars(earlier.encoder)}) if earlier else None
    for what, digest in (
        ("the presence of validation events", str(validation is None)),
        ("the hyperparameters", str(hyperparameters)),
        ("the table of networks", digest_of(vars(networks)) if networks else ""),
        ("the earlier model", f"{before} {digest_of({'tags': earlier.index.tags})}" if earlier else ""),
    ):
        group.require_same(what, digest)
    validated = None if validation is None else group.total(len(validation))
    check(group.total(len(train)), index, validated, hyperparameters, earlier)
    if earlier and not earlier.vocabulary.events:
        earlier = None
    load = loads(train, group)
    homes = Homes.of(load, ranks_that_train(load, hyperparameters, group.size))
    train = homes.bring(train, group)
    validation = None if validation is None else homes.bring(validation, group)
    rows = _rows(train, validation, earlier, homes, group)
    own = EntityIndex(max(1, len(rows)), _tags(index, rows), index.sharing)
    part = _part(earlier, rows, own) if earlier else None
    model = learn(
        _numbered(train, rows, own),
        hyperparameters,
        None if validation is None else _numbered(validation, rows, own),
        listener or Listener(),
        device,
        networks,
        part,
        checkpoints,
        stop,
        group,
        Home(homes, rows, index),
        before,
    )
    if model.untrained:  # it has learnt of no entity, and must know none
        return Shard(model, rows[:0], EntityIndex(index.num_rows))
    unchanged = earlier and part and model.vocabulary is part.vocabulary
    return Shard(model, rows, earlier.index if earlier and unchanged else index)


def ranks_that_train(load: Loads, hyperparameters: Hyperparameters, size: int) -> int:
    """How many of so many ranks train. ``load`` are the events of each bucket of entities."""
    if hyperparameters.training_hosts == "all":
        return size
    events = int(load.sum())
    most = min(
        events // LEAST_EVENTS,
        hyperparameters.adapted(max(1, events)).mini_batch_size // LEAST_POSITIVES,
        int(MOST_OF_ONE * events) // max(1, int(load.max())),
    )
    return min(max(1, most), size)


def _rows(
    train: Events, validation: Events | None, earlier: Model | None, homes: Homes, group: Group
) -> npt.NDArray[np.int32]:
    """The rows of the table whose entities are at home here: those with events, and those known from before."""
    found = [np.unique(train.entity)]
    if validation is not None:
        found.append(np.unique(validation.entity[validation.entity < train.index.num_rows]))
    if earlier:
        known = np.flatnonzero(earlier.index.tags).astype(np.int32)
        found.append(known[homes.rank_of(known) == group.rank])
    return np.unique(np.concatenate(found))


def _tags(index: EntityIndex, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    """The owners of these rows. A table has one row at least, which nobody may own."""
    return index.tags[rows] if len(rows) else np.zeros(1, dtype=np.uint32)


def _numbered(events: Events, rows: npt.NDArray[np.int32], own: EntityIndex) -> Events:
    """The events with the numbers of their entities among the ``rows``. The unknown has the one after the last."""
    number = np.searchsorted(rows, events.entity).astype(np.int32)
    number[events.entity == events.index.num_rows] = own.num_rows
    return dataclasses.replace(events, entity=number, index=own)


def _part(model: Model, rows: npt.NDArray[np.int32], own: EntityIndex) -> Model:
    """The part of a whole model that has these rows."""
    entity = model.entity[np.append(rows, -1)] if len(rows) else model.entity[[-1, -1]]
    index = EntityIndex(own.num_rows, _tags(model.index, rows), model.index.sharing)
    counted = model.counted
    if counted:
        here = np.isin(counted.rows, rows)
        history, apart = (part.of_entities(rows) for part in (counted.history, counted.apart))
        counted = Counted(
            np.searchsorted(rows, counted.rows[here]).astype(np.int32),
            counted.learnt[np.append(here, True)],
            counted.weights[here],
            counted.entities,
            *(
                dataclasses.replace(part, rows=np.searchsorted(rows, part.rows).astype(np.int32))
                for part in (history, apart)
            ),
        )
    return dataclasses.replace(model, index=index, entity=entity, counted=counted)
