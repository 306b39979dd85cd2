"""The settings of the server, each environment variable declared once: name, default, allowed values, help.

The table in docs/serving.md is made from these declarations. Names that begin with ``SAGEMAKER_`` are the platform's or
its toolkits'; those that begin with ``IPINSIGHTS_`` are ours.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ipinsights.errors import UserError
from ipinsights.machine import usable_cores
from ipinsights.sagemaker import media

BATCH_PAYLOAD_MB = 100
"""Batch Transform's limit on MaxConcurrentTransforms x MaxPayloadInMB."""
_USUAL_PAYLOAD_MB = 6
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Variable:
    """What is promised of one environment variable."""

    name: str
    default: str
    """As the table shows it."""
    help: str
    read: Callable[[str], Any]
    """The setting that a text is. Raises ValueError with what it must be."""


def _declared(default: Any, name: str, help_: str, read: Callable[[str], Any], shown: str | None = None) -> Any:
    variable = Variable(name, str(default) if shown is None else shown, help_, read)
    return dataclasses.field(default=default, metadata={"variable": variable})


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return read


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return text.lower()

    return read


def _flag(text: str) -> bool:
    return _one_of("true", "false")(text) == "true"


def _accept(text: str) -> str:
    try:
        media.writer(text)
    except UserError as error:
        raise ValueError(f"is refused: {error}") from error
    return text


@dataclass(frozen=True)
class ServerSettings:
    """The server's settings with their defaults."""

    port: int = _declared(8080, "SAGEMAKER_BIND_TO_PORT", "the port", _whole(1, 65535))
    workers: int = _declared(
        1,
        "SAGEMAKER_MODEL_SERVER_WORKERS",
        "worker processes; they share one memory-mapped copy of the model. On a serverless endpoint set 1",
        _whole(1, 1000),
        shown="one a core",
    )
    threads: int = _declared(
        128,
        "SAGEMAKER_MODEL_SERVER_THREADS",
        "requests that a worker holds at a time, of which it scores two. `/ping` is one of them, so it waits where all "
        "are taken",
        _whole(2, 900),
    )
    timeout: int = _declared(
        60,
        "SAGEMAKER_MODEL_SERVER_TIMEOUT",
        "seconds for which a client may send nothing of a body that has not ended, or take nothing of an answer; and "
        "after which a worker that shows no sign of life is replaced. Scoring itself has no limit, so asynchronous "
        "inference may take its hour",
        _whole(1, 3600),
    )
    max_content_length: int = _declared(
        BATCH_PAYLOAD_MB << 20,
        "MAX_CONTENT_LENGTH",
        "bytes of a request's body at most; asynchronous inference may send 1073741824",
        _whole(1, _MOST),
    )
    default_accept: str = _declared(
        media.JSON,
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
        "what is answered where a request leaves the choice",
        _accept,
    )
    malformed_rows: str = _declared(
        "fail",
        "IPINSIGHTS_MALFORMED_ROWS",
        "what a row that cannot be read does. `fail`: the request is answered with 400 (and a Batch Transform job "
        'fails). `mark`: the row keeps its place in the answer, as `{"dot_product":null,"error":"..."}`, or as `nan` '
        "in CSV, and the access log counts it",
        _one_of("fail", "mark"),
    )
    access_log: bool = _declared(
        True,
        "IPINSIGHTS_ACCESS_LOG",
        "a line of JSON for every request, but for good pings and for what is no HTTP",
        _flag,
        shown="true",
    )
    batch: bool = _declared(
        False,
        "SAGEMAKER_BATCH",
        "`true` in a Batch Transform job: answers in lines end with a line feed, so that those to parts of a file can "
        "be put behind one another",
        _flag,
        shown="",
    )
    payload_mb: int | None = _declared(
        None,
        "SAGEMAKER_MAX_PAYLOAD_IN_MB",
        "set in a Batch Transform job that asks for it; `/execution-parameters` then offers no more concurrent "
        "requests than the limit of 100 MB leaves",
        _whole(0, BATCH_PAYLOAD_MB),
        shown="",
    )
    transforms: int | None = _declared(
        None,
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS",
        "likewise; the payload is then what that limit leaves",
        _whole(1, BATCH_PAYLOAD_MB),
        shown="",
    )
    multi_model: bool = _declared(
        False,
        "SAGEMAKER_MULTI_MODEL",
        "`true` on a multi-model endpoint: models come and go by `/models`, in one worker",
        _flag,
        shown="",
    )
    models_memory_mb: int | None = _declared(
        None,
        "IPINSIGHTS_MODELS_MEMORY_MB",
        "what the models of a multi-model endpoint may take together. For more, those longest not asked are put aside, "
        "and opened again when they are",
        _whole(1, _MOST),
        shown="4/5 of what is free",
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ServerSettings":
        """Read the settings; an empty variable is as good as none. Raises UserError."""
        found: dict[str, Any] = {"workers": usable_cores()}
        for field, variable in declarations().items():
            text = environment.get(variable.name, "")
            if text:
                try:
                    found[field] = variable.read(text)
                except ValueError as error:
                    raise UserError(f"environment variable {variable.name}={text!r} {error}") from error
        settings = cls(**found)
        # Another worker would not know the models that this one was told of.
        return dataclasses.replace(settings, workers=1) if settings.multi_model else settings

    @property
    def scoring_slots(self) -> int:
        """Requests that a worker scores at a time: two; the only worker of many models one a core, if that is more."""
        return min(self.threads - 1, max(2, usable_cores()) if self.multi_model else 2)

    @property
    def concurrent_transforms(self) -> int:
        """Requests that Batch Transform should send at a time."""
        return self.transforms or min(self.workers, BATCH_PAYLOAD_MB // (self.payload_mb or 1))

    @property
    def max_payload_mb(self) -> int:
        """The payload that so many concurrent transforms may have: 6 MB, as is usual, or what the limits leave."""
        if self.payload_mb is not None:
            return self.payload_mb
        left = BATCH_PAYLOAD_MB // self.concurrent_transforms
        return max(1, min(_USUAL_PAYLOAD_MB, left, self.max_content_length >> 20))


def declarations() -> dict[str, Variable]:
    """The variable of each setting, by its field."""
    return {field.name: field.metadata["variable"] for field in dataclasses.fields(ServerSettings)}
