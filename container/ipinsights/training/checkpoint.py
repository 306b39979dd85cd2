"""Checkpoints: the state of a training between two steps. From it, training resumes as if nothing had interrupted it.

Each is one file with checksums. It holds everything that later steps depend on. A file is written whole or not at all.
A file damaged later (only half copied back from a store, for example) is skipped for the one before it. The last two
are kept.
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ipinsights.data.entities import EntityIndex
from ipinsights.distributed.group import ALONE, Group
from ipinsights.errors import UserError, refusal
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, checks, tensors
from ipinsights.model.model import Encoder, Model
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training.progress import EpochSummary, Position

FORMAT_VERSION = 2
KEPT = 2
"""Checkpoints kept: one more than needed, in case the newest is damaged."""

_NAME = "checkpoint-{}.safetensors"
_DIGITS = 12
_STEPS = "[0-9]" * _DIGITS
_UNDECISIVE = (
    "batch_metrics_publish_interval",
    "checkpoint_interval_minutes",
    "device",  # what it came to is compared
    "history",
    "malformed_rows",
    "malformed_rows_limit",
    "training_hosts",
)
"""Hyperparameters that may change: their effect on the result shows in the data."""


@dataclass(frozen=True)
class Weights:
    """The learnt weights so far."""

    entity: npt.NDArray[np.float32]
    """The rows of the trained entities and of the typical entity, [M + 1, D]."""
    prefix: npt.NDArray[np.float32]
    """This and the following: see `model.Encoder`."""
    w: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]

    def model(self, vocabulary: Vocabulary, index: EntityIndex, met: npt.NDArray[np.intp]) -> Model:
        """The model with these weights."""
        return Model.learnt(vocabulary, index, met, self.entity, Encoder(self.prefix, self.w, self.b))


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps. After reading, arrays are views of the file."""

    subject: Mapping[str, Any]
    """What identifies the training: see `subject_of`."""
    vocabulary: Vocabulary
    index: EntityIndex
    met: npt.NDArray[np.intp]
    """The entity rows that are trained, [M]."""
    parameters: Mapping[str, npt.NDArray[np.float32]]
    """All of `step.Parameters`, by name."""
    position: Position
    totals: npt.NDArray[np.float64]
    """The totals of the epoch so far, as in `step.Gradients`, [3]."""
    seconds: float
    """Duration of the epoch so far."""
    last: EpochSummary | None
    """The last complete epoch."""
    best: EpochSummary | None
    """The epoch with the best validation."""
    best_weights: Weights | None
    """Its weights, if the best epoch is saved."""
    steps: int
    """Steps taken in all epochs."""
    source: str = ""
    """The `Checkpoints.source` of the folder that it was written to."""

    @property
    def nbytes(self) -> int:
        """The approximate size."""
        best = vars(self.best_weights).values() if self.best_weights else ()
        return sum(array.nbytes for array in (*self.parameters.values(), *best))

    @property
    def weights(self) -> Weights:
        """The weights after the last step."""
        p = self.parameters
        entity = p["entity"][:, 0] + p["typical"][0]
        return Weights(entity, p["prefix"][:, 0], p["w"][0], p["b"][0])

    def model(self) -> Model:
        """The model to save, if training ended here."""
        return (self.best_weights or self.weights).model(self.vocabulary, self.index, self.met)

    def made_with(self, hyperparameters: Hyperparameters) -> bool:
        """Whether the hyperparameters, adapted to the same number of events, give the same training."""
        return not self._changed(_decisive(hyperparameters.adapted(self.subject["number_of_events"])))

    def require(self, subject: Mapping[str, Any], folder: Path) -> None:
        """Raise UserError unless this checkpoint is of exactly this training."""
        other = self._changed(subject["hyperparameters"])
        if self.subject["device"] != subject["device"]:
            other.append(f"the device was {self.subject['device']} and is {subject['device']}")
        other += [
            f"the {name.replace('_', ' ')} has changed"
            for name, value in subject.items()
            if name not in ("hyperparameters", "device") and self.subject.get(name) != value
        ]
        if other:
            raise UserError(
                f"the checkpoints in {folder} belong to another training: {'; '.join(other)}. Resume with the same "
                "hyperparameters and data, or use an empty checkpoint folder"
            )

    def _changed(self, hyperparameters: Mapping[str, Any]) -> list[str]:
        before = self.subject["hyperparameters"]
        return [
            f"{name} was {before.get(name)} and is {value}"
            for name, value in hyperparameters.items()
            if before.get(name) != value
        ]


class Checkpoints:
    """A folder of checkpoints. It leaves other files alone, and those that another job writes at the same time."""

    def __init__(self, folder: Path, source: str = "", group: Group = ALONE) -> None:
        """``source`` is a text that identifies the data before it is read.

        Each rank of a ``group`` has files of its own, whose names are unique, since platforms may keep those of all
        hosts in one place.
        """
        self.folder = folder
        self.source = source
        self._ranks = f"-{group.rank:05d}-of-{group.size:05d}" if group.size > 1 else ""
        self._pattern = _NAME.format(_STEPS + self._ranks)
        self._written = time.monotonic()
        self._old = [*folder.glob(self._pattern), *folder.glob(f".{self._pattern}.tmp")]
        self._whole: list[Path] = []

    def newest(self, limit: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The newest undamaged checkpoint, and for each newer one the reason why it is damaged.

        With a ``limit``, those after more steps do not count. Raises UserError if one has another format version, if
        all are of another number of hosts, or if the system cannot read one (which may be temporary).
        """
        damaged = []
        found_here = sorted(self.folder.glob(self._pattern), reverse=True)
        if not found_here:
            self._require_no_other()
        for path in found_here:
            if limit is not None and int(path.name.split("-")[1][:_DIGITS]) > limit:
                continue
            try:
                found = _read(path)
            except (IsADirectoryError, RecursionError, ValueError, KeyError, TypeError) as error:
                damaged.append(f"{path}: {error}")
            except OSError as error:
                raise refusal("read the checkpoint", path, error) from error
            else:
                self._whole = [path]
                return found, damaged
        return None, damaged

    def _require_no_other(self) -> None:
        """Raise UserError if there are checkpoints of another number of hosts, from which training cannot go on."""
        others = [path.name for path in self.folder.glob(_NAME.format(f"{_STEPS}*")) if not self._is_of_us(path.name)]
        if others:
            found = re.search(r"-of-(\d+)\.", others[0])
            number = found[1] if found else "1"
            raise UserError(
                f"the checkpoints in {self.folder} are those of a training on {int(number)} host"
                f"{'s' * (int(number) > 1)}: resume with that number, or use an empty checkpoint folder"
            )

    def _is_of_us(self, name: str) -> bool:
        """Whether a checkpoint is of the same number of hosts."""
        return name.partition("-of-")[2] == _NAME.format(self._ranks).partition("-of-")[2]

    def due(self, minutes: float) -> bool:
        """Whether the last one was written at least so many minutes ago; never with 0."""
        return 0 < minutes <= (time.monotonic() - self._written) / 60

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove those no longer needed. If it raises OSError, nothing has changed."""
        path = self.folder / _NAME.format(f"{checkpoint.steps:0{_DIGITS}d}{self._ranks}")
        try:
            _write(checkpoint, path, self.source)
        finally:
            self._written = time.monotonic()  # after a failure too, the next one waits for its time
        whole = [*(kept for kept in self._whole if kept != path), path]
        self._whole, self._old = whole[-KEPT:], self._old + whole[:-KEPT]
        for old in self._old:
            if old not in self._whole:
                with contextlib.suppress(OSError):  # it only costs space
                    old.unlink(missing_ok=True)
        self._old = []
        return path


def subject_of(
    hyperparameters: Hyperparameters, device: str, events: int, **data: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What determines the steps of a training: hyperparameters, and a digest of the arrays of each part of the data.

    The hyperparameters must be adapted to the number of events.
    """
    return {
        "hyperparameters": _decisive(hyperparameters),
        "device": device,
        "number_of_events": events,
        **{name: digest_of(arrays) if arrays is not None else None for name, arrays in data.items()},
    }


def _decisive(hyperparameters: Hyperparameters) -> dict[str, Any]:
    values = dataclasses.asdict(hyperparameters)
    return {name: value for name, value in values.items() if name not in _UNDECISIVE}


def _write(checkpoint: Checkpoint, path: Path, source: str) -> None:
    known, described = artifact.describe(checkpoint.vocabulary, checkpoint.index)
    position = checkpoint.position
    arrays = {
        **known,
        **{f"state.{name}": array for name, array in checkpoint.parameters.items()},
        "met": checkpoint.met,
        "totals": checkpoint.totals,
        "epoch_began": position.epoch_began,
        "drew": position.drew,
    }
    if checkpoint.best_weights:
        arrays |= {f"best.{name}": array for name, array in vars(checkpoint.best_weights).items()}
    text = {
        "format_version": FORMAT_VERSION,
        "subject": checkpoint.subject,
        **described,
        "source": source,
        "epoch": position.epoch,
        "steps": position.steps,
        "all_steps": checkpoint.steps,
        "seconds": checkpoint.seconds,
        "last": checkpoint.last and dataclasses.asdict(checkpoint.last),
        "best": checkpoint.best and dataclasses.asdict(checkpoint.best),
    }
    tensors.write(path, arrays, {"checkpoint": json.dumps(text)})


def _read(path: Path) -> Checkpoint:
    """Raises UserError if it has another format version.

    Raises ValueError, KeyError, TypeError or RecursionError if it is damaged.
    """
    with tensors.File.open(path) as file:
        file.verify(finite=True)
        if "checkpoint" not in file.texts:
            raise ValueError("it holds no checkpoint")
        arrays, text = file.arrays, json.loads(file.texts["checkpoint"])
    if text["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {text['format_version']}, not {FORMAT_VERSION}: resume with the release "
            "that wrote it, or use an empty checkpoint folder"
        )
    if file.checksums is None:
        raise ValueError("it has no checksums")
    vocabulary, index = artifact.restore(arrays, text)
    _require_fit(arrays, text, vocabulary, index)

    def group(name: str) -> dict[str, npt.NDArray[Any]]:
        return {key.removeprefix(name): array for key, array in arrays.items() if key.startswith(name)}

    best = group("best.")
    return Checkpoint(
        subject=text["subject"],
        vocabulary=vocabulary,
        index=index,
        met=arrays["met"],
        parameters=group("state."),
        position=Position(text["epoch"], text["steps"], arrays["epoch_began"], arrays["drew"]),
        totals=arrays["totals"],
        seconds=text["seconds"],
        last=EpochSummary(**text["last"]) if text["last"] else None,
        best=EpochSummary(**text["best"]) if text["best"] else None,
        best_weights=Weights(**best) if best else None,
        steps=text["all_steps"],
        source=text["source"],
    )


def _require_fit(arrays: tensors.Arrays, text: Mapping[str, Any], vocabulary: Vocabulary, index: EntityIndex) -> None:
    """Raise ValueError or TypeError unless the parts of a checkpoint fit together."""
    for name in ("epoch", "steps", "all_steps", "subject.number_of_events"):
        checks.whole(text, name, 0)
    if not isinstance(text["subject"].get("hyperparameters"), dict):
        raise TypeError("'subject.hyperparameters' is not an object")
    met = checks.tensor(arrays, "met", np.int64, (None,))
    if len(met) and not (met[0] >= 0 and met[-1] < index.num_rows and (met[1:] > met[:-1]).all()):
        raise ValueError(f"tensor 'met' has rows that do not ascend from 0 to {index.num_rows}")
    typical = checks.tensor(arrays, "state.typical", np.float32, (3, None))
    blocks = checks.tensor(arrays, "state.b", np.float32, (3, None, typical.shape[1])).shape[1]
    rows, prefixes, dim = len(met) + 1, vocabulary.num_rows, typical.shape[1]
    why = f"{len(met)} in 'met', {prefixes} rows of the vocabulary, {dim} columns of 'state.typical', {blocks} blocks"
    checks.tensor(arrays, "state.entity", np.float32, (rows, 3, dim), why)
    checks.tensor(arrays, "state.prefix", np.float32, (prefixes, 3, dim), why)
    checks.tensor(arrays, "state.w", np.float32, (3, blocks, dim, dim), why)
    if any(name.startswith("best.") for name in arrays):
        checks.tensor(arrays, "best.entity", np.float32, (rows, dim), why)
        checks.tensor(arrays, "best.prefix", np.float32, (prefixes, dim), why)
        checks.tensor(arrays, "best.w", np.float32, (blocks, dim, dim), why)
        checks.tensor(arrays, "best.b", np.float32, (blocks, dim), why)
    checks.tensor(arrays, "totals", np.float64, (3,))
    for name in ("epoch_began", "drew"):
        checks.tensor(arrays, name, np.uint8, (None,))


def digest_of(parts: Mapping[str, Any]) -> str:
    """A digest of named arrays in any order. It ignores those that are None."""
    digest = xxhash.xxh3_128()
    for name, part in sorted(parts.items()):
        if part is None:
            continue
        array = np.ascontiguousarray(part)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
