"""The settings of the server, each environment variable declared once: name, default, allowed values, help.

The table in docs/serving.md is made from these declarations. Names that begin with ``SAGEMAKER_`` are the platform's or
its toolkits'; those that begin with ``IPINSIGHTS_`` are ours.
"""

import dataclasses
import ipaddress
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ipinsights.errors import UserError
from ipinsights.machine import available_memory, usable_cores
from ipinsights.model.scoring import UNTRAINED_MODEL
from ipinsights.sagemaker import media
from ipinsights.sagemaker.paths import Paths

BATCH_PAYLOAD_MB = 100
"""Batch Transform's limit on MaxConcurrentTransforms x MaxPayloadInMB."""
_USUAL_PAYLOAD_MB = 6
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    name: str
    default: str
    """As the table shows it."""
    help: str
    read: Callable[[str], Any]
    """Converts the text. Raises ValueError that says what it must be."""


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


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ValueError("is not a number between 0 and 1")
    return share


def _ip_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address") from None


def _folder(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("must be a path that begins with /")
    return text


def _accept(text: str) -> str:
    try:
        media.writer(text)
    except UserError as error:
        raise ValueError(f"is rejected: {error}") from error
    return text


@dataclass(frozen=True)
class ServerSettings:
    """The server's settings with their defaults."""

    port: int = _declared(8080, "SAGEMAKER_BIND_TO_PORT", "the port that the server listens on", _whole(1, 65535))
    address: str = _declared(
        "0.0.0.0",  # noqa: S104  # the platform asks from outside of the container
        "IPINSIGHTS_BIND_ADDRESS",
        "the address that the server listens on. The default means every IPv4 interface, which the platform needs. "
        "`127.0.0.1`: only programs of this machine can ask",
        _ip_address,
    )
    workers: int = _declared(
        1,
        "SAGEMAKER_MODEL_SERVER_WORKERS",
        "worker processes. They share one memory-mapped copy of the model. Set 1 on a serverless endpoint",
        _whole(1, 1000),
        shown="one per core",
    )
    threads: int = _declared(
        128,
        "SAGEMAKER_MODEL_SERVER_THREADS",
        "requests that a worker accepts at a time. It scores two of them at a time (the only worker of many models one "
        "a core, if that is more). `/ping` is a request, too, so it waits if all threads are busy",
        _whole(2, 900),
    )
    timeout: int = _declared(
        60,
        "SAGEMAKER_MODEL_SERVER_TIMEOUT",
        "seconds after which the server gives up a client that sends no more of its request's body, or reads no more "
        "of its answer. After as many seconds without a sign of life, and 10 at least, a worker is replaced. "
        "Scoring has no time limit, "
        "so asynchronous inference may take its hour",
        _whole(1, 3600),
    )
    max_content_length: int = _declared(
        BATCH_PAYLOAD_MB << 20,
        "MAX_CONTENT_LENGTH",
        "the largest request body in bytes. Asynchronous inference may send 1073741824",
        _whole(1, _MOST),
    )
    default_accept: str = _declared(
        media.JSON,
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
        "the format of the answer if the request does not choose one",
        _accept,
    )
    malformed_rows: str = _declared(
        "fail",
        "IPINSIGHTS_MALFORMED_ROWS",
        "what the server does with malformed rows. `fail`: it rejects the request with 400, and a Batch Transform job "
        'fails. `mark`: a malformed row keeps its place in the answer, as `{"dot_product":null,"error":"..."}`, or as '
        "`nan` in CSV, and the access log counts it",
        _one_of("fail", "mark"),
    )
    max_false_alarms: float | None = _declared(
        None,
        "IPINSIGHTS_MAX_FALSE_ALARMS",
        "the share of ordinary log-ins that may be flagged, such as 0.001. An answer with `calibrated=True` then has "
        "`anomalous`: whether the percentile is no more than this. It is null if the model was calibrated by too few "
        "log-ins to tell",
        _share,
        shown="",
    )
    requests_memory_mb: int | None = _declared(
        None,
        "IPINSIGHTS_REQUESTS_MEMORY_MB",
        "memory that requests may take together, in MB, divided among the workers. "
        "[What happens beyond it](operations.md#memory)",
        _whole(1, _MOST),
        shown="half of the free memory; 1/10 on a multi-model endpoint",
    )
    untrained_model: str = _declared(
        "reject",
        UNTRAINED_MODEL,
        "what the server, `ipinsights score` and `ipinsights evaluate` do with an untrained model, which scores every "
        "pair 0: a training that is stopped before it learns anything leaves one. `reject`: they report it, and the "
        "server does not start. `accept`: they use it",
        _one_of("reject", "accept"),
    )
    verify_model: bool = _declared(
        True,
        "IPINSIGHTS_VERIFY_MODEL",
        "whether the server reads all of a model when it loads it, to compare it with its checksums. `false`: it "
        "starts at once however large the model is, and does not notice [damage](operations.md#damaged-models)",
        _flag,
        shown="true",
    )
    access_log: bool = _declared(
        True,
        "IPINSIGHTS_ACCESS_LOG",
        "a line of JSON for every request, except for successful pings and for what is not HTTP",
        _flag,
        shown="true",
    )
    quote_data: bool = _declared(
        True,
        "IPINSIGHTS_QUOTE_DATA",
        "whether messages of the server and of training jobs quote entities, addresses and malformed rows: in logs, "
        "answers and the failure file. `false`: they say where a row is and of which kind it is. See "
        "[privacy](../SECURITY.md#privacy)",
        _flag,
        shown="true",
    )
    batch: bool = _declared(
        False,
        "SAGEMAKER_BATCH",
        "`true` in a Batch Transform job. Answers in lines then end with a line feed, so that the answers to the parts "
        "of a file can be joined",
        _flag,
        shown="",
    )
    payload_mb: int | None = _declared(
        None,
        "SAGEMAKER_MAX_PAYLOAD_IN_MB",
        "set in a Batch Transform job that chooses its payload. `/execution-parameters` then offers only as many "
        "concurrent requests as the limit of 100 MB allows",
        _whole(0, BATCH_PAYLOAD_MB),
        shown="",
    )
    transforms: int | None = _declared(
        None,
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS",
        "set in a Batch Transform job that chooses its concurrency. The payload is then what that limit allows",
        _whole(1, BATCH_PAYLOAD_MB),
        shown="",
    )
    multi_model: bool = _declared(
        False,
        "SAGEMAKER_MULTI_MODEL",
        "`true` on a multi-model endpoint. The platform loads and unloads models by `/models`, in one worker",
        _flag,
        shown="",
    )
    models_memory_mb: int | None = _declared(
        None,
        "IPINSIGHTS_MODELS_MEMORY_MB",
        "memory that the models of a multi-model endpoint may take together, in MB. If a further model does not fit, "
        "the least recently used model is evicted. A request for an evicted model loads it again",
        _whole(1, _MOST),
        shown="4/5 of the free memory",
    )
    models_folder: str = _declared(
        "/opt/ml/models",
        "IPINSIGHTS_MODELS_FOLDER",
        "the folder in which the models of a multi-model endpoint must lie. The platform puts them into the default. "
        "`POST /models` rejects any other path. `/` allows every folder",
        _folder,
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ServerSettings":
        """Read the settings; an empty variable counts as not set. Raises UserError."""
        found: dict[str, Any] = {"workers": usable_cores(), "models_folder": str(Paths.from_environment().models)}
        for field, variable in declarations().items():
            if environment.get(variable.name, ""):
                found[field] = _read(variable, environment)
        settings = cls(**found)
        free = available_memory()
        if settings.requests_memory_mb is None and free is not None:
            megabytes = max(1, free // (10 if settings.multi_model else 2) >> 20)
            settings = dataclasses.replace(settings, requests_memory_mb=megabytes)
        # Another worker would not know the models that this one has loaded.
        return dataclasses.replace(settings, workers=1) if settings.multi_model else settings

    @property
    def bind(self) -> str:
        """Address and port, as in a URL."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

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


def quotes_data(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether messages may quote the data: the one setting that training jobs have, too. Raises UserError."""
    variable = declarations()["quote_data"]
    return bool(_read(variable, environment)) if environment.get(variable.name, "") else ServerSettings.quote_data


def _read(variable: Variable, environment: Mapping[str, str]) -> Any:
    text = environment[variable.name]
    try:
        return variable.read(text)
    except ValueError as error:
        raise UserError(f"environment variable {variable.name}={text!r} {error}") from error


def declarations() -> dict[str, Variable]:
    """The variable of each setting, by its field."""
    return {field.name: field.metadata["variable"] for field in dataclasses.fields(ServerSettings)}
