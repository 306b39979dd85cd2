"""A checkpoint for other ranks than those that wrote it: another number of hosts, or others of them that train.

What belongs to an entity (its row with Adam's means, and its row of the best epoch) goes to the entity's new home. The
encoder's weights were the same on all ranks. **Adam's means of the encoder were each rank's own: all ranks get their
mean over the ranks that have any.** (A rank has none for a prefix that it never met, and without events it has none at
all.) The rest of the epoch is drawn anew, so it uses some events twice and others not at all; the number of steps stays
as it is.

Each rank reads what `checkpoint.Checkpoints` gave it to read. Rows travel in windows, and no rank holds more than its
own part of the table.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.homes import Home, send
from ipinsights.distributed.group import Group
from ipinsights.errors import AlgorithmError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.model.shard import Shard
from ipinsights.training.checkpoint import Weights, Whole

WINDOW = 64 << 20
"""Bytes of a table that are on their way at a time, about."""
_ENCODER = ("prefix", "square", "typical", "w", "b")

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def bring(
    whole: Whole, group: Group, home: Home | None, met: npt.NDArray[np.integer], parameters: Mapping[str, Floats]
) -> Weights | None:
    """Fill the ``parameters`` of each rank (`step.Parameters`, by name). All ranks must call it.

    ``met`` are the rows of the whole table that are trained on this rank, ascending, [M]. Without a ``home`` all are.
    Returns the weights of the best epoch, if the checkpoint has them. Raises AlgorithmError if it lacks a row.
    """
    first = whole.parts.get(0)
    for name in _ENCODER:
        _bring_means(whole, group, name, parameters[name])
    best, given = None, first.best_weights if first else None
    if group.any(given is not None):
        weights = {"prefix": parameters["prefix"], "w": parameters["w"][0], "b": parameters["b"][0]}
        encoder = {
            name: _on_all(getattr(given, name) if given else None, to.shape, group) for name, to in weights.items()
        }
        entity = np.empty_like(parameters["entity"][:, 0])
        entity[-1:] = _on_all(given.entity[-1:] if given else None, entity[-1:].shape, group)
        best = Weights(entity, **encoder)
    parameters["entity"][-1] = 0  # no event has this row
    filled = 0
    for rows, state in _come_home(whole, group, home, best is not None, parameters["entity"].shape[2]):
        places = np.searchsorted(met, rows)
        parameters["entity"][places] = state[:, :3]
        if best:
            best.entity[places] = state[:, 3]
        filled += len(rows)
    if group.any(filled != len(met)):
        raise AlgorithmError("the checkpoint does not have the rows of just those entities that are trained")
    return best


def model(whole: Whole, group: Group, hp: Hyperparameters) -> Shard | None:
    """What this rank has read of a checkpoint, as its part of the model to save if training had ended there.

    It was made with these hyperparameters. All ranks must call it. None, on all, if the leader has read nothing, or if
    the parts do not tell whose rows they have.
    """
    parts = list(whole.parts.values())
    nameless = whole.ranks > 1 and any(part.rows is None for part in parts)
    if group.any(nameless) or not group.any(group.leads and bool(parts)):
        return None
    owners = [np.flatnonzero(part.index.tags) for part in parts]
    rows = [own if part.rows is None else part.rows[own] for own, part in zip(owners, parts, strict=True)]
    tags = [part.index.tags[own] for own, part in zip(owners, parts, strict=True)]
    index = EntityIndex(hp.num_entity_vectors, sharing=max((part.index.sharing for part in parts), default=0))
    all_rows, all_tags = (
        np.concatenate(group.collect(np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)))
        for arrays, dtype in ((rows, np.int32), (tags, np.uint32))
    )
    index.tags[all_rows] = all_tags
    if not parts:
        nothing = Model.blank(FAMILIES[hp.ip_version], 1, hp.vector_dim, hp.num_ip_encoder_layers)
        return Shard(nothing, np.zeros(0, dtype=np.int32), index)
    weights = [part.best_weights or part.weights for part in parts]
    met = np.concatenate([part.met_rows for part in parts]).astype(np.int32)
    order = np.argsort(met)
    entity = np.concatenate([each.entity[:-1] for each in weights])[order]
    entity = np.concatenate([entity, weights[0].entity[-1:]])
    vocabulary, own = parts[0].vocabulary, EntityIndex(max(1, len(met)))
    return Shard(Model(vocabulary, own, entity, weights[0].encoder(vocabulary)), met[order], index)


def _bring_means(whole: Whole, group: Group, name: str, parameter: Floats) -> None:
    """Fill a parameter of the encoder: the weights are those of any part, and the means are their mean."""
    means = slice(0 if name == "square" else 1, None)

    def rows_of(array: Floats) -> Floats:
        """[n, 1 or 3, ...]: weights if there are any, then means, that of the square last."""
        return array[:, None] if name in ("prefix", "square") else array[None]

    ours = rows_of(parameter)
    parts = {number: rows_of(part.parameters[name]) for number, part in whole.parts.items()}
    for window in _windows(ours):
        summed, having = np.zeros_like(ours[window]), np.zeros(len(ours[window]), dtype=np.float32)
        for number, part in parts.items():
            state = part[window]
            summed[:, means] += state[:, means]
            having += state[:, -1].reshape(len(state), -1).any(axis=1)
            if number == 0:
                summed[:, : means.start] = state[:, : means.start]
        summed, having = group.sum(summed), np.maximum(group.sum(having), 1)
        summed[:, means] /= having.reshape(-1, *[1] * (summed.ndim - 1))
        ours[window] = summed


def _on_all(array: Floats | None, shape: tuple[int, ...], group: Group) -> Floats:
    """On all ranks the array that one of them gives."""
    found = np.empty(shape, dtype=np.float32)
    for window in _windows(found):
        found[window] = group.sum(np.zeros_like(found[window]) if array is None else np.array(array[window]))
    return found


def _windows(array: Floats) -> Iterator[slice]:
    size = max(1, WINDOW // max(1, array[:1].nbytes))
    for begin in range(0, len(array), size):
        yield slice(begin, begin + size)


def _come_home(whole: Whole, group: Group, home: Home | None, best: bool, dim: int) -> Iterator[tuple[Rows, Floats]]:
    """Rows of the whole table, [n], and what comes home of them: weights, means, and best weights, [n, 3 or 4, D]."""
    size = max(1, WINDOW // (16 * dim))
    pieces = [
        (part, slice(begin, begin + size)) for part in whole.parts.values() for begin in range(0, len(part.met), size)
    ]
    rounds = max(int(number[0]) for number in group.gather(np.array([len(pieces)])))
    nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 3 + best, dim), dtype=np.float32)
    for turn in range(rounds):
        rows, state = nothing
        if turn < len(pieces):
            part, window = pieces[turn]
            rows, state = part.met_rows[window].astype(np.int64), part.parameters["entity"][:-1][window]
            if best and part.best_weights:
                state = np.concatenate([state, part.best_weights.entity[:-1][window, None]], axis=1)
        to = home.homes.rank_of(rows) if home else np.zeros(len(rows), dtype=np.int64)
        yield send(rows, to, group), send(state, to, group)
