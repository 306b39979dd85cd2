"""Checkpoints: the state of a training between two steps. From it, training resumes as if nothing had interrupted it.

Each is one file with checksums. It holds everything that later steps depend on. A file is written whole or not at all.
A file damaged later (only half copied back from a store, for example) is skipped for the one before it. The last two
are kept.

Of several ranks each writes its part: a file of its own. The parts are read by whoever has them, each by one rank, and
are whole if all are there and of the same moment (`resharding` brings them to another number of ranks).
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
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
from ipinsights.training.dropout import on_average
from ipinsights.training.progress import EpochSummary, Position

FORMAT_VERSION = 4
KEPT = 2
"""Checkpoints kept: one more than needed, in case the newest is damaged."""

_NAME = "checkpoint-{}.safetensors"
_FILE = re.compile(r"checkpoint-([0-9]{12})(?:-([0-9]{5})-of-([0-9]{5}))?\.safetensors")
"""Steps, and of several ranks: which one, of how many."""
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
    """This and the following: see `model.Encoder`. As training has them, not to score with (`dropout`)."""
    w: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]

    def model(self, vocabulary: Vocabulary, index: EntityIndex, met: npt.NDArray[np.intp]) -> Model:
        """The model with these weights."""
        return Model.learnt(vocabulary, index, met, self.entity, self.encoder(vocabulary))

    def encoder(self, vocabulary: Vocabulary) -> Encoder:
        """The encoder to score with."""
        return Encoder(on_average(self.prefix, vocabulary), self.w, self.b)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps, or a rank's part of it. Once read, arrays are views of the file."""

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
    rows: npt.NDArray[np.int32] | None = None
    """The rows of the whole table that this rank's table has, ascending; None where it is the whole table."""
    trainers: int | None = 1
    """How many ranks train: None where it is not known, in a part from before it was written down."""

    @property
    def met_rows(self) -> npt.NDArray[np.integer[Any]]:
        """The rows of the whole table that are trained here, [M]."""
        return self.met if self.rows is None else self.rows[self.met]

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
        return Weights(entity, p["prefix"], p["w"][0], p["b"][0])

    def require(self, subject: Mapping[str, Any], folder: Path, as_it_was: bool) -> None:
        """Raise UserError unless this checkpoint is of exactly this training.

        Unless ranks are ``as_it_was``, what counts is the whole, and not what each rank has of it.
        """
        other = _changed(self.subject, subject["hyperparameters"])
        if self.subject["device"] != subject["device"]:
            other.append(f"the device was {self.subject['device']} and is {subject['device']}")
        ours, theirs = dict(subject), dict(self.subject)
        whole = ours.pop("whole"), theirs.pop("whole", None)
        if not as_it_was:
            if not whole[1]:
                raise UserError(
                    f"the checkpoints in {folder} were written by a release whose checkpoints are for as many hosts as "
                    "wrote them: resume with that number, or use an empty checkpoint folder"
                )
            count = "number_of_events"
            ours, theirs = {count: ours[count], **whole[0]}, {count: theirs[count], **whole[1]}
        other += [
            f"the {name.replace('_', ' ')} has changed"
            for name, value in ours.items()
            if name not in ("hyperparameters", "device") and theirs.get(name) != value
        ]
        if other:
            raise UserError(
                f"the checkpoints in {folder} belong to another training: {'; '.join(other)}. Resume with the same "
                "hyperparameters and data, or use an empty checkpoint folder"
            )


@dataclass(frozen=True)
class Whole:
    """A checkpoint of all ranks, of which this one has read some parts."""

    parts: Mapping[int, Checkpoint]
    """What this rank has read, by the rank that wrote it. Every part is on one rank."""
    ranks: int
    """How many wrote it."""
    facts: Mapping[str, Any]
    """What is the same in all parts, and thus known on all ranks: see `_facts_of`."""

    @property
    def steps(self) -> int:
        """Steps taken in all epochs."""
        return int(self.facts["all_steps"])

    @property
    def trainers(self) -> int | None:
        """How many ranks train: see `Checkpoint`."""
        trainers: int | None = self.facts.get("trainers", 1 if self.ranks == 1 else None)
        return trainers

    @property
    def last(self) -> EpochSummary | None:
        """The last complete epoch."""
        return _summary(self.facts["last"])

    @property
    def best(self) -> EpochSummary | None:
        """The epoch with the best validation."""
        return _summary(self.facts["best"])

    def made_with(self, hyperparameters: Hyperparameters) -> bool:
        """Whether the hyperparameters, adapted to the same number of events, give the same training."""
        subject = self.facts["subject"]
        return not _changed(subject, _decisive(hyperparameters.adapted(subject["number_of_events"])))


class Checkpoints:
    """A folder of checkpoints. It leaves other files alone, and those that another job writes at the same time."""

    def __init__(self, folder: Path, source: str = "", group: Group = ALONE) -> None:
        """``source`` is a text that identifies the data before it is read.

        Each rank of a ``group`` writes files of its own, whose names are unique, since platforms may keep those of all
        hosts in one place.
        """
        self.folder = folder
        self.source = source
        self._group = group
        self._ranks = f"-{group.rank:05d}-of-{group.size:05d}" if group.size > 1 else ""
        self._written = time.monotonic()
        self._old = [path for path in folder.iterdir() if _steps_and_part(_published(path.name))]
        self._whole: list[tuple[int, int]] = []
        """Steps and ranks of the checkpoints to keep."""

    def newest(self) -> tuple[Whole | None, list[str]]:
        """The newest checkpoint that is whole, and for each newer one the reason why it is not. All ranks must call it.

        Raises UserError if one has another format version, or if the system cannot read one (which may be temporary).
        """
        told = []
        here = [part for path in self.folder.iterdir() if (part := _steps_and_part(path.name))]
        have: dict[tuple[int, int], dict[int, list[int]]] = {}
        for rank, listed in enumerate(self._group.gather(np.array(sorted(here), dtype=np.int64).reshape(-1, 3))):
            for steps, ranks, part in listed.tolist():
                have.setdefault((steps, ranks), {}).setdefault(part, []).append(rank)
        for steps, ranks in sorted(have, key=lambda each: (each[0], each[1] == self._group.size, each), reverse=True):
            holders = have[steps, ranks]
            if lacking := [str(part + 1) for part in range(ranks) if part not in holders]:
                told.append(
                    f"of the checkpoint after {steps} steps, which {ranks} hosts wrote, no host has the part of host "
                    f"{', '.join(lacking)}"
                )
                continue
            readers = {part: _reader(part, ranks_with, self._group.size) for part, ranks_with in holders.items()}
            found, damaged = self._read(steps, ranks, readers)
            told += damaged
            if found:
                self._whole = [(steps, ranks)]
                return found, told
        return None, told

    def _read(self, steps: int, ranks: int, readers: Mapping[int, int]) -> tuple[Whole | None, list[str]]:
        """Read the parts of a checkpoint, each on one rank. If they are no whole, on any rank, the reasons are told."""
        group = self._group
        parts: dict[int, Checkpoint] = {}
        damaged: list[str] = []
        refused: UserError | None = None
        for part in sorted(part for part, reader in readers.items() if reader == group.rank):
            path = self.folder / _name(steps, part, ranks)
            try:
                parts[part] = _read(path)
            except (IsADirectoryError, RecursionError, ValueError, KeyError, TypeError) as error:
                damaged.append(f"{path}: {error}")
            except OSError as error:
                refused = refusal("read the checkpoint", path, error)
            except UserError as error:
                refused = error
        group.agree(refused)
        damaged = [text for texts in _told("\n".join(damaged), group) for text in texts.splitlines()]
        if damaged:
            return None, damaged
        if ranks > 1:
            moments = " ".join(_told(" ".join(map(_moment, parts.values())), group))
            if len({*moments.split()}) > 1:
                return None, [f"the {ranks} parts of the checkpoint after {steps} steps are not of the same moment"]
        [facts] = filter(None, _told(json.dumps(_facts_of(parts[0])) if 0 in parts else "", group))
        return Whole(parts, ranks, json.loads(facts)), []

    def due(self, minutes: float) -> bool:
        """Whether the last one was written at least so many minutes ago; never with 0."""
        return 0 < minutes <= (time.monotonic() - self._written) / 60

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, each rank its part, and remove those no longer needed. All ranks must call it.

        If it raises OSError, or OtherHostFailed because it does so elsewhere, those before it are still there.
        """
        path = self.folder / _NAME.format(f"{checkpoint.steps:012d}{self._ranks}")
        error: OSError | None = None
        try:
            _write(checkpoint, path, self.source)
        except OSError as fault:
            error = fault
        self._written = time.monotonic()  # after a failure too, the next one waits for its time
        self._old.append(path)
        self._group.agree(error)
        new = checkpoint.steps, self._group.size
        self._whole = [*(kept for kept in self._whole if kept != new), new][-KEPT:]
        unneeded = [old for old in self._old if (_steps_and_part(old.name) or ())[:2] not in self._whole]
        for old in unneeded:
            with contextlib.suppress(OSError):  # it only costs space
                old.unlink(missing_ok=True)
        self._old = [old for old in self._old if old not in unneeded]
        return path


def _name(steps: int, part: int, ranks: int) -> str:
    """The name of a part."""
    return _NAME.format(f"{steps:012d}" + (f"-{part:05d}-of-{ranks:05d}" if ranks > 1 else ""))


def _published(name: str) -> str:
    """The name that a file under way is to get."""
    return name[1:].removesuffix(".tmp") if name.startswith(".") and name.endswith(".tmp") else name


def _steps_and_part(name: str) -> tuple[int, int, int] | None:
    """Steps, ranks and part of a checkpoint's name; None if it is none."""
    found = _FILE.fullmatch(name)
    if not found:
        return None
    steps, part, ranks = (int(number or 0) for number in found.groups())
    return (steps, ranks or 1, part) if part < (ranks or 1) else None


def _reader(part: int, ranks: Sequence[int], size: int) -> int:
    """Which of the ``ranks`` that have a part reads it: who has its number, so that the parts are divided."""
    return part % size if part % size in ranks else ranks[0]


def _told(text: str, group: Group) -> list[str]:
    """What each rank says, on all of them."""
    return [each.tobytes().decode() for each in group.gather(np.frombuffer(text.encode(), dtype=np.uint8))]


def _moment(part: Checkpoint) -> str:
    """A digest of what all parts of one moment have alike, and of no other moment: the epoch, the encoder's weights.

    No weight changes between an epoch's last step and the next epoch, but the best epoch may.
    """
    digest = xxhash.xxh3_128(f"{part.position.epoch} {part.position.steps}".encode())
    p = part.parameters
    for array in (p["prefix"], p["typical"][0], p["w"][0], p["b"][0]):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def subject_of(
    hyperparameters: Hyperparameters,
    device: str,
    events: int,
    whole: Mapping[str, str | None],
    **data: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What determines the steps of a training: hyperparameters, and a digest of the arrays of each part of the data.

    The hyperparameters must be adapted to the number of events. ``whole`` has digests of the data of all ranks, which
    do not depend on how many there are, nor on the order of events.
    """
    return {
        "whole": dict(whole),
        "hyperparameters": _decisive(hyperparameters),
        "device": device,
        "number_of_events": events,
        **{name: digest_of(arrays) if arrays is not None else None for name, arrays in data.items()},
    }


def _changed(subject: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> list[str]:
    before = subject["hyperparameters"]
    return [
        f"{name} was {before.get(name)} and is {value}"
        for name, value in hyperparameters.items()
        if before.get(name) != value
    ]


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
    if checkpoint.rows is not None:
        arrays["rows"] = checkpoint.rows
    text = {"format_version": FORMAT_VERSION, **described, "source": source, **_facts_of(checkpoint)}
    tensors.write(path, arrays, {"checkpoint": json.dumps(text)})


def _facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says in words."""
    return {
        "subject": checkpoint.subject,
        "epoch": checkpoint.position.epoch,
        "steps": checkpoint.position.steps,
        "all_steps": checkpoint.steps,
        "seconds": checkpoint.seconds,
        "last": checkpoint.last and dataclasses.asdict(checkpoint.last),
        "best": checkpoint.best and dataclasses.asdict(checkpoint.best),
        **({"trainers": checkpoint.trainers} if checkpoint.trainers is not None else {}),
    }


def _summary(described: Mapping[str, Any] | None) -> EpochSummary | None:
    return EpochSummary(**described) if described else None


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
        last=_summary(text["last"]),
        best=_summary(text["best"]),
        best_weights=Weights(**best) if best else None,
        steps=text["all_steps"],
        source=text["source"],
        rows=arrays.get("rows"),
        trainers=text.get("trainers"),
    )


def _require_fit(arrays: tensors.Arrays, text: Mapping[str, Any], vocabulary: Vocabulary, index: EntityIndex) -> None:
    """Raise ValueError or TypeError unless the parts of a checkpoint fit together."""
    for name in ("epoch", "steps", "all_steps", "subject.number_of_events"):
        checks.whole(text, name, 0)
    if not all(isinstance(text["subject"].get(name, {}), dict) for name in ("hyperparameters", "whole")):
        raise TypeError("'subject.hyperparameters' or 'subject.whole' is not an object")
    if "trainers" in text:
        checks.whole(text, "trainers", 1)
    met = checks.tensor(arrays, "met", np.int64, (None,))
    if len(met) and not (met[0] >= 0 and met[-1] < index.num_rows and (met[1:] > met[:-1]).all()):
        raise ValueError(f"tensor 'met' has rows that do not ascend from 0 to {index.num_rows}")
    if "rows" in arrays:  # of a table that has one row at least, which nobody may own
        found = checks.tensor(arrays, "rows", np.int32, (None,))
        most = checks.whole(text, "subject.hyperparameters.num_entity_vectors", 1)
        if len(found) != len(index.tags) and (len(found), len(met), len(index.tags)) != (0, 0, 1):
            raise ValueError(f"tensor 'rows' has {len(found)} rows, and the table {len(index.tags)}")
        if len(found) and not (found[0] >= 0 and found[-1] < most and (found[1:] > found[:-1]).all()):
            raise ValueError(f"tensor 'rows' has rows that do not ascend from 0 to {most}")
    typical = checks.tensor(arrays, "state.typical", np.float32, (3, None))
    blocks = checks.tensor(arrays, "state.b", np.float32, (3, None, typical.shape[1])).shape[1]
    rows, prefixes, dim = len(met) + 1, vocabulary.num_rows, typical.shape[1]
    why = f"{len(met)} in 'met', {prefixes} rows of the vocabulary, {dim} columns of 'state.typical', {blocks} blocks"
    checks.tensor(arrays, "state.entity", np.float32, (rows, 3, dim), why)
    checks.tensor(arrays, "state.prefix", np.float32, (prefixes, dim), why)
    checks.tensor(arrays, "state.square", np.float32, (prefixes,), why)
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
