"""The hyperparameters, each declared once: name, type, range, default, help, tuning range and its scale.

Validation and the table in docs/hyperparameters.md are made from these declarations. Names, ranges and defaults are the
built-in's as documented (its container's own default file differs: mini_batch_size 5000, num_entity_vectors 100000,
vector_dim 128); ``ip_version`` and all that follow it are ours.
"""

import contextlib
import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipinsights.errors import UserError, brief

MAX_NEGATIVES = 500
"""The most negatives a positive may have, random and shuffled together."""

_UNBOUNDED = 2**31 - 1
"""The upper limit where AWS documents none."""

_SHOWN = 40
"""Characters of a number that an error quotes."""

VECTOR_DIM = 64
"""The length of embeddings where a shell or a notebook sets none. (A training job must set it.)"""


def completed(given: Mapping[str, object], earlier: Mapping[str, object]) -> dict[str, str]:
    """What a shell or a notebook sets, as text, with what an earlier model decides and the usual ``vector_dim``.

    ``num_entity_vectors`` and ``ip_version`` may be left open: they follow from the data (`rows_for`).
    """
    return {name: str(value) for name, value in {"vector_dim": VECTOR_DIM, **earlier, **given}.items()}


def rows_for(entities: int) -> int:
    """The number of rows that gives nearly each of so many entities one of its own."""
    return max(1, 2 * entities)


MIN_STEPS = 60
"""Optimiser steps that a training takes at least, unless somebody sets mini_batch_size."""
_RATE_OF_ONE_STEP, _HIGHEST_RATE = 0.25, 0.03
"""The learning rate, unless somebody sets it, is the former by the square root of the number of steps, and at most the
latter: Adam cannot move a weight further than the rate times the steps."""


class _DefaultFloat(float):
    """A default that `Hyperparameters.adapted` may change; what somebody sets is a plain number."""


class _DefaultInt(int):
    """The same for a whole number."""


@dataclass(frozen=True)
class Declaration:
    """What is promised of one hyperparameter."""

    name: str
    type: type[int] | type[float] | type[str]
    range: tuple[float, float] | None
    """The least and the greatest value of a number; None where there are choices."""
    default: int | float | str | None
    """None where the hyperparameter is required."""
    tuning: tuple[float, float] | None
    """The range recommended to a tuner; None where tuning it makes no sense."""
    help: str
    choices: tuple[int, ...] | tuple[str, ...] = ()
    """The only values allowed."""
    logarithmic: bool = False
    """Whether a tuner is to draw on a logarithmic scale from a range whose values are all above 0."""

    @property
    def follows_data(self) -> bool:
        """Whether `Hyperparameters.adapted` may replace the default, which it can tell from what somebody set."""
        return isinstance(self.default, _DefaultFloat | _DefaultInt)

    def parse(self, text: str) -> int | float | str:
        """Read a value. Raises ValueError with the reason."""
        value = _unquote(text) if self.type is str else self._number(text)
        if self.range and not self.range[0] <= value <= self.range[1]:  # type: ignore[operator]
            low, high = self.range
            raise ValueError(f"{self.name}={text[:_SHOWN]} is out of range: it must be in [{low:g}, {high:.10g}]")
        if self.choices and value not in self.choices:
            quoted = brief(text) if self.type is str else text[:_SHOWN]
            raise ValueError(f"{self.name}={quoted} is not one of {', '.join(map(str, self.choices))}")
        return self.type(value)

    def _number(self, text: str) -> float:
        expected = "a whole number" if self.type is int else "a number"
        try:
            value = float(_unquote(text))
        except ValueError:
            raise ValueError(f"{self.name}={brief(text)} is not {expected}") from None
        if not math.isfinite(value) or (self.type is int and value != int(value)):
            raise ValueError(f"{self.name}={brief(text)} is not {expected}")
        return value


def _declare(
    range: tuple[float, float] | None,
    help: str,
    *,
    default: int | float | str | None = None,
    tuning: tuple[float, float] | None = None,
    choices: tuple[int, ...] | tuple[str, ...] = (),
    logarithmic: bool = False,
) -> Any:
    metadata = {"range": range, "help": help, "tuning": tuning, "choices": choices, "logarithmic": logarithmic}
    if default is None:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Valid values for one training."""

    num_entity_vectors: int = _declare(
        (1, 250_000_000),
        "Rows of the entity table. Entities are hashed to rows. Twice the number of unique entities is a good value. "
        "The table takes 4 x num_entity_vectors x vector_dim bytes. Training takes three times that for the rows of "
        "the entities that it sees.",
        tuning=(10_000, 1_000_000),
        logarithmic=True,
    )
    vector_dim: int = _declare(
        (4, 4096),
        "Length of the embeddings of entities and addresses. 128 is good. Embeddings that are too long overfit.",
        tuning=(8, 256),
        logarithmic=True,
    )
    batch_metrics_publish_interval: int = _declare(
        (1, _UNBOUNDED), "Mini-batches between two log lines with the speed and the training metrics.", default=1000
    )
    epochs: int = _declare(
        (1, _UNBOUNDED), "Passes over the training data.", default=10, tuning=(1, 100), logarithmic=True
    )
    learning_rate: float = _declare(
        (1e-6, 10.0),
        "Adam's step size for the embedding tables at the start. It falls linearly to 0 over the training. The blocks "
        "of the encoder share 0.03 of it. If you do not set it and the training has few steps, it is raised to "
        f"{_RATE_OF_ONE_STEP} / sqrt(steps), at most {_HIGHEST_RATE}.",
        default=_DefaultFloat(0.001),
        tuning=(1e-4, 0.1),
        logarithmic=True,
    )
    mini_batch_size: int = _declare(
        (1, 500_000),
        "Positive samples in one optimiser step, of all hosts and GPUs together, each with its negative samples. The "
        "log counts mini-batches of this many records, negative samples included, as the built-in does, so a step "
        "counts as 1 + R + S mini-batches. If you do not set it and the training would have fewer than "
        f"{MIN_STEPS} steps, it is lowered.",
        default=_DefaultInt(10_000),
        tuning=(100, 50_000),
        logarithmic=True,
    )
    num_ip_encoder_layers: int = _declare(
        (0, 100),
        "Fully connected layers of the IP encoder. Each is a residual block. With 0 it is the sum of prefix rows.",
        default=1,
        tuning=(1, 10),
    )
    random_negative_sampling_rate: int = _declare(
        (0, MAX_NEGATIVES),
        "R: random negative samples per positive sample. Each is the entity with an address of four uniformly drawn "
        "octets. 1 <= R + S <= 500.",
        default=1,
        tuning=(0, 10),
    )
    shuffled_negative_sampling_rate: int = _declare(
        (0, MAX_NEGATIVES),
        "S: shuffled negative samples per positive sample. Each is the entity with the address of another event of its "
        "mini-batch. 1 <= R + S <= 500.",
        default=1,
        tuning=(0, 10),
    )
    weight_decay: float = _declare(
        (0.0, 10.0),
        "A step removes this share of a weight, times the learning rate. It applies to the blocks and to the table "
        "rows that the step touches. Other rows do not change. The touched rows always lose 0.1 more, so that the "
        "embedding of a rare entity stays near the typical one.",
        default=0.00001,
        tuning=(0.0, 1.0),
        logarithmic=True,
    )
    ip_version: int = _declare(
        None,
        "4: the addresses are IPv4, and anything else is an error. 6: they are IPv6 (the first 64 bits count) or IPv4.",
        default=4,
        choices=(4, 6),
    )
    seed: int = _declare(
        (0, _UNBOUNDED),
        "The seed of all random draws. The same seed, data, machine and number of threads give the same model.",
        default=0,
    )
    malformed_rows: str = _declare(
        None,
        "What the job does with malformed rows. fail: it fails, and reports their number by kind and the first of each "
        "kind. skip: it skips them, and reports the same in the log. skip_placeholders: as skip, but rows that have "
        "no address on purpose (an empty field, a placeholder such as - or NULL, the name of an AWS service) do not "
        "count towards malformed_rows_limit.",
        default="fail",
        choices=("fail", "skip", "skip_placeholders"),
    )
    malformed_rows_limit: float = _declare(
        (0.0, 1.0),
        "With malformed_rows=skip or skip_placeholders, the job still fails if more than this share of a channel's "
        "rows is malformed.",
        default=0.1,
    )
    saved_epoch: str = _declare(
        None,
        "The epoch whose weights the model has. last: the last epoch. best: the epoch with the best validation "
        "discriminator_auc, which needs a validation channel.",
        default="last",
        choices=("last", "best"),
    )
    early_stopping_patience: int = _declare(
        (0, _UNBOUNDED),
        "Training ends after this many epochs in a row without a better validation discriminator_auc, which needs a "
        "validation channel. 0: training never ends early. learning_rate falls as if all epochs followed, so combine "
        "it with saved_epoch=best.",
        default=0,
    )
    history: int = _declare(
        (0, 128),
        "Leading bits that the model keeps of every address that an entity used, with the number of its events. They "
        "serve to explain scores and to count on when training continues. 128: whole addresses (of IPv6, the first 64 "
        "bits). 24: networks of /24. 0: no list of any entity's addresses. The scores are the same. The log reports "
        "the size: about 8 bytes for each pair of an entity and an address, 12 with IPv6.",
        default=128,
    )
    held_out_share: float = _declare(
        (0.0, 0.5),
        "Without a validation channel, this share of the log-ins is kept apart from training: at most 100,000, and of "
        "little data at least 1,000, or 5 %. They tell how low ordinary log-ins score. So an answer can have a "
        "percentile, a threshold can have a rate of false alarms, and few of them score below 0. With a validation "
        "channel, its log-ins tell it. 0: nothing is kept apart. So it is with fewer than 400 log-ins, too (20 to keep "
        "apart).",
        default=0.02,
    )
    training_hosts: str = _declare(
        None,
        "Of a job on several hosts or GPUs, those that train. auto: only as many as leave each 20,000 events and 250 "
        "positives of a mini-batch, and no entity with more than a quarter of its events. Little data learns worse "
        "when it is divided. The others read. all: every host and GPU.",
        default="auto",
        choices=("auto", "all"),
    )
    device: str = _declare(
        None,
        "What the training runs on. auto: a GPU, if there is one that works and has enough memory, else the CPU; the "
        "log and manifest.json say why a GPU that is there is not used. cpu: the CPU. gpu: a GPU, or the job fails "
        "before it reads the data. A job trains on all GPUs of its hosts if each will do, else on CPUs.",
        default="auto",
        choices=("auto", "cpu", "gpu"),
    )
    checkpoint_interval_minutes: float = _declare(
        (0.0, 100_000.0),
        "If the job has a checkpoint folder, it writes a checkpoint after every epoch and, within an epoch, every so "
        "many minutes. 0: after epochs only.",
        default=10.0,
    )

    def __post_init__(self) -> None:
        values = {declaration.name: str(getattr(self, declaration.name)) for declaration in declarations()}
        _, faults = _parse(values)
        if faults:
            raise UserError(_describe(faults))

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> "Hyperparameters":
        """Read the strings of a training job. Raises one UserError that names every fault.

        Keys that start with ``_`` or ``sagemaker_``, and ``feature_dim``, are the platform's and are ignored.
        """
        own = {
            name: value
            for name, value in values.items()
            if not name.startswith(("_", "sagemaker_")) and name != "feature_dim"
        }
        parsed, faults = _parse(own)
        if faults:
            raise UserError(_describe(faults))
        return cls(**parsed)

    def adapted(self, events: int) -> "Hyperparameters":
        """What to train so many events with: what nobody set follows the data.

        The documented defaults are for many millions of events. Of 60,000 events they make 60 steps of .001, in which
        nothing is learnt; so the learning rate is raised, and the mini-batch made smaller where that is not enough.
        """
        size, rate = self.mini_batch_size, self.learning_rate
        if isinstance(size, _DefaultInt):
            size = max(1, min(int(size), -(-events * self.epochs // MIN_STEPS), events))
        steps = self.epochs * -(-events // size)
        if isinstance(rate, _DefaultFloat):
            rate = min(_HIGHEST_RATE, max(float(rate), _RATE_OF_ONE_STEP / math.sqrt(steps)))
        return dataclasses.replace(self, mini_batch_size=size, learning_rate=rate)

    def require(self, validated: bool) -> None:
        """Raise UserError where something is asked for that takes validation, and there is none."""
        for name, used in (
            ("saved_epoch=best", self.saved_epoch == "best"),
            (f"early_stopping_patience={self.early_stopping_patience}", self.early_stopping_patience > 0),
        ):
            if used and not validated:
                raise UserError(f"{name} compares epochs by their validation: give the job a validation channel")

    @property
    def tolerated(self) -> float | None:
        """The share of malformed rows that is skipped; None if none is."""
        return None if self.malformed_rows == "fail" else self.malformed_rows_limit

    @property
    def records_per_positive(self) -> int:
        """1 + R + S."""
        return 1 + self.random_negative_sampling_rate + self.shuffled_negative_sampling_rate


def declarations() -> list[Declaration]:
    """Every hyperparameter, in the order of the documentation."""
    return [
        Declaration(
            name=field.name,
            type=field.type,  # type: ignore[arg-type]  # this file has no postponed annotations: it is the class itself
            default=None if field.default is dataclasses.MISSING else field.default,
            **field.metadata,
        )
        for field in dataclasses.fields(Hyperparameters)
    ]


def _parse(values: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values by name, and a sentence for every fault."""
    known = {declaration.name: declaration for declaration in declarations()}
    parsed: dict[str, Any] = {}
    faults = []
    for name, text in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            faults.append(f"{brief(name)} is unknown" + (f"; did you mean {near[0]!r}?" if near else ""))
            continue
        try:
            parsed[name] = known[name].parse(text)
        except ValueError as error:
            faults.append(str(error))
    faults += [f"{name} is required" for name, d in known.items() if d.default is None and name not in values]
    rates: list[Any] = [
        parsed.get(name, known[name].default)
        for name in ("random_negative_sampling_rate", "shuffled_negative_sampling_rate")
        if name in parsed or name not in values
    ]
    if len(rates) == 2 and not 1 <= sum(rates) <= MAX_NEGATIVES:
        faults.append(
            "random_negative_sampling_rate + shuffled_negative_sampling_rate = "
            f"{sum(rates)} is out of range: the sum must be in [1, {MAX_NEGATIVES}]"
        )
    return parsed, faults


def _describe(faults: list[str]) -> str:
    return f"Invalid hyperparameter{'s' if len(faults) > 1 else ''}: " + "; ".join(faults)


def _unquote(text: str) -> str:
    """Undo the JSON quotes that the SageMaker SDK puts around values in script mode: '"128"' is 128."""
    stripped = text.strip()
    if stripped.startswith('"'):
        with contextlib.suppress(ValueError):  # something else in quotes, which will be out of every range
            inner = json.loads(stripped)
            return inner if isinstance(inner, str) else stripped
    return stripped
