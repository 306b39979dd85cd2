"""What the platform tells a training job: hyperparameters, channels and hosts, read from /opt/ml/input/config."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from werkzeug.http import parse_options_header

from ipinsights import events
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.sagemaker.paths import Paths


@dataclass(frozen=True)
class Channel:
    """What is promised of one channel."""

    content: str
    """What it holds."""
    required: bool = False
    content_types: tuple[str, ...] = ("text/csv",)
    input_modes: tuple[str, ...] = ("File", "FastFile", "Pipe")


CHANNELS = {
    "train": Channel("CSV files (entity,IP address)", required=True),
    "validation": Channel("CSV files (entity,IP address)"),
    "networks": Channel("tables of networks in iptoasn's format", input_modes=("File", "FastFile")),
    "model": Channel(
        "an earlier model.tar.gz", content_types=("application/x-sagemaker-model",), input_modes=("File",)
    ),
}
"""Channel name -> what is promised of it."""


@dataclass(frozen=True)
class Configuration:
    """A training job's input, checked."""

    provided: dict[str, str]
    """The hyperparameters as they came."""
    hyperparameters: Hyperparameters
    train: list[Path]
    """The files of the train channel."""
    validation: list[Path] | None
    """Those of the validation channel; None where the job has none."""
    networks: list[Path] | None
    """Those of the networks channel, a table of who runs which addresses; None where the job has none."""
    model: Path | None
    """The folder of the model channel, an earlier artifact; None where the job has none."""
    host: str
    """This host's name, as log lines carry it."""


def read(paths: Paths) -> Configuration:
    """Read and check a job's input. Raises UserError."""
    values = _read_json(paths.hyperparameters)
    if values is None:
        raise UserError(f"{paths.hyperparameters} is missing: num_entity_vectors and vector_dim must be given")
    provided = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    resources = _read_json(paths.resource_config) or {}
    if len(resources.get("hosts", [])) > 1:
        raise UserError("training on several hosts is not supported by this release: set the instance count to 1")
    channels = _read_json(paths.input_data_config) or {}

    def optional(name: str) -> list[Path] | None:
        present = name in channels or paths.channel(name).is_dir()
        return _channel(paths, name, channels.get(name, {})) if present else None

    return Configuration(
        provided=provided,
        hyperparameters=Hyperparameters.parse(provided),
        train=_channel(paths, "train", channels.get("train", {})),
        validation=optional("validation"),
        networks=optional("networks"),
        model=paths.channel("model") if optional("model") else None,
        host=resources.get("current_host", "algo-1"),
    )


def is_complete(paths: Paths) -> bool:
    """Whether all three files are there and whole, as the platform writes them."""
    try:
        files = [_read_json(p) for p in (paths.hyperparameters, paths.input_data_config, paths.resource_config)]
    except UserError:
        return False
    return None not in files and {"current_host", "hosts"} <= (files[2] or {}).keys()


def _channel(paths: Paths, name: str, declared: dict[str, Any]) -> list[Path]:
    """The files of a channel, of which there must be one."""
    mode = declared.get("TrainingInputMode", "File")
    if mode == "Pipe":
        raise UserError(f"channel {name!r} comes in Pipe mode; use File or FastFile mode")
    # Parameters, such as the label_size=0 that generic CSV channels carry, change nothing.
    content_type, _ = parse_options_header(declared.get("ContentType") or "text/csv")
    if content_type.lower() != "text/csv" and name not in (
        "networks",
        "model",
    ):  # tables of networks come under any type
        raise UserError(f"channel {name!r} has content type {content_type!r}; it must be text/csv")
    files = events.find_files(paths.channel(name))
    if not files:
        raise UserError(f"channel {name!r} has no data: put {CHANNELS[name].content} in {paths.channel(name)}")
    return files


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content
