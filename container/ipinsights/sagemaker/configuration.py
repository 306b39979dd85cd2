"""The configuration of a training job: hyperparameters, channels and hosts, read from /opt/ml/input/config."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from werkzeug.http import parse_options_header

from ipinsights.data import events
from ipinsights.data.formats import CSV, JSON_LINES, PARQUET
from ipinsights.data.sources import Pipe, Source
from ipinsights.errors import UserError, brief, refusal, refusals
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.sagemaker.paths import Paths


@dataclass(frozen=True)
class Channel:
    """One channel."""

    content: str
    """What it holds."""
    required: bool = False
    content_types: tuple[str, ...] = (CSV,)
    """Those that it may be declared as; the first is the one of a channel without a declaration."""
    input_modes: tuple[str, ...] = ("File", "FastFile", "Pipe")


_LOG_INS = (CSV, JSON_LINES, PARQUET)

CHANNELS = {
    "train": Channel("CSV files (entity,IP address)", required=True, content_types=_LOG_INS),
    "validation": Channel("CSV files (entity,IP address)", content_types=_LOG_INS),
    "networks": Channel("tables of networks in iptoasn's format", input_modes=("File", "FastFile")),
    "model": Channel(
        "an earlier model.tar.gz", content_types=("application/x-sagemaker-model",), input_modes=("File",)
    ),
}
"""Channel name -> its declaration."""

_ALIASES = {"train": "training"}
"""What people call a channel, too. Capital letters do not matter either."""

logger = logging.getLogger("ipinsights")


@dataclass(frozen=True)
class Hosts:
    """The hosts of a training job, as the platform lists them, in the same order on each."""

    names: tuple[str, ...] = ("algo-1",)
    current: str = "algo-1"
    """This host's name, as log lines carry it."""
    interface: str | None = None
    """The network interface that the platform names. It may not exist."""

    @property
    def rank(self) -> int:
        """The place of this host. The first one leads."""
        return self.names.index(self.current)


@dataclass(frozen=True)
class Configuration:
    """A training job's input, checked."""

    hyperparameters: Hyperparameters
    train: Sequence[Source]
    """The files of the train channel, or its pipe."""
    validation: Sequence[Source] | None
    """Those of the validation channel; None where the job has none."""
    networks: list[Path] | None
    """Those of the networks channel, a table of who runs which addresses; None where the job has none."""
    model: Path | None
    """The folder of the model channel, an earlier artifact; None where the job has none."""
    content_types: Mapping[str, str] = field(default_factory=dict)
    """The content types of the channels that the job has, by name."""
    sharded: frozenset[str] = frozenset()
    """The channels of which each host has files of its own (ShardedByS3Key). All hosts have the others whole."""

    @property
    def source(self) -> str:
        """A digest of the names and sizes of the files to train on: it tells one data set from another, mostly."""
        sources = {"train": self.train, "validation": self.validation, "networks": self.networks}
        listed = [
            f"{use} {source} {source.stat().st_size if isinstance(source, Path) else ''}"
            for use, members in sources.items()
            for source in members or ()
        ]
        return hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()


def hosts(paths: Paths) -> Hosts:
    """Read which hosts train. Raises UserError."""
    resources = _read_json(paths.resource_config) or {}
    current = resources.get("current_host", Hosts.current)
    names = resources.get("hosts") or [current]
    if not isinstance(names, list):
        raise UserError(f"{paths.resource_config} has hosts {brief(names)}, which must be a list of names")
    for name in (current, *names):
        if not isinstance(name, str) or not re.fullmatch(r"\S+", name):  # as the metric expressions have it
            raise UserError(
                f"{paths.resource_config} has current_host {brief(name)}, which cannot be the name of a host"
            )
    if len({*names}) < len(names) or (len(names) > 1 and current not in names):
        raise UserError(
            f"{paths.resource_config} has current_host {brief(current)} and hosts {brief(names)}: each host must be in "
            "the list once"
        )
    interface = resources.get("network_interface_name")
    return Hosts(
        tuple(names) if len(names) > 1 else (current,), current, interface if isinstance(interface, str) else None
    )


def hyperparameters(paths: Paths) -> Hyperparameters:
    """Read and check a job's hyperparameters. Raises UserError."""
    values = _read_json(paths.hyperparameters)
    if values is None:
        raise UserError(f"{paths.hyperparameters} is missing: num_entity_vectors and vector_dim are required")
    return Hyperparameters.parse(
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    )


def read(paths: Paths, number_of_hosts: int = 1) -> Configuration:
    """Read and check a job's input. Of a channel that is divided among several hosts, one may have nothing.

    Raises UserError.
    """
    hp = hyperparameters(paths)
    channels = _channels(paths)

    def files(use: str) -> list[Path] | None:
        if use not in channels:
            return None
        return _files(paths, use, channels[use].name, channels[use].sharded and number_of_hosts > 1)

    def csv(use: str) -> Sequence[Source] | None:
        channel = channels.get(use)
        return [Pipe(paths.pipe(channel.name))] if channel and channel.piped else files(use)

    train = csv("train")
    return Configuration(
        hyperparameters=hp,
        train=_files(paths, "train", "train") if train is None else train,
        validation=csv("validation"),
        networks=files("networks"),
        model=paths.channel(channels["model"].name) if files("model") else None,
        content_types={use: channel.content_type for use, channel in channels.items()},
        sharded=frozenset(use for use, channel in channels.items() if channel.sharded),
    )


def is_complete(paths: Paths) -> bool:
    """Whether all three files are there and whole, as the platform writes them."""
    try:
        files = [_read_json(p) for p in (paths.hyperparameters, paths.input_data_config, paths.resource_config)]
    except UserError:
        return False
    return None not in files and {"current_host", "hosts"} <= (files[2] or {}).keys()


@dataclass(frozen=True)
class _Channel:
    name: str
    """What the job calls it."""
    piped: bool
    content_type: str
    sharded: bool = False

    @classmethod
    def check(cls, use: str, name: str, declared: Any) -> "_Channel":
        """Take what was declared of a channel. Raises UserError where it cannot be read so."""
        if not (isinstance(declared, dict) and isinstance(declared.get("ContentType") or CSV, str)):
            raise UserError(f"channel {name!r} is declared as {brief(declared)}, which is no declaration of a channel")
        if declared.get("RecordWrapperType", "None") != "None":
            raise UserError(
                f"channel {name!r} has RecordWrapperType {declared['RecordWrapperType']}: remove RecordWrapperType"
            )
        piped = declared.get("TrainingInputMode") == "Pipe"
        sharded = declared.get("S3DistributionType") == "ShardedByS3Key"
        if piped and "Pipe" not in CHANNELS[use].input_modes:
            modes = " or ".join(CHANNELS[use].input_modes)
            raise UserError(f"channel {name!r} does not support Pipe mode: use {modes} mode")
        # Parameters, such as the label_size=0 that generic CSV channels carry, change nothing.
        content_type, _ = parse_options_header(declared.get("ContentType") or CSV)
        content_type, supported = content_type.lower(), CHANNELS[use].content_types
        if use not in ("train", "validation"):
            return cls(name, piped, supported[0], sharded)  # the others are read under any type
        if content_type == "csv":
            logger.warning("Channel %r has content type 'csv', which is read as text/csv: use that name", name)
            content_type = CSV
        elif content_type not in supported:
            raise UserError(
                f"channel {name!r} has content type {brief(content_type)}; it must be one of {', '.join(supported)}"
            )
        if piped and content_type == PARQUET:
            raise UserError(
                f"channel {name!r} has Parquet, which cannot be read in Pipe mode: use File or FastFile mode"
            )
        return cls(name, piped, content_type, sharded)


def _channels(paths: Paths) -> dict[str, _Channel]:
    """The channels that the job has, by use: those declared, and, as in a tree made by hand, those with a folder."""
    declared = _read_json(paths.input_data_config) or {}
    folders = []
    with refusals("read", paths.channels), contextlib.suppress(FileNotFoundError):
        folders = [entry.name for entry in os.scandir(paths.channels) if entry.is_dir()]
    names = {name: name for name in sorted({*declared, *folders})}
    for use in CHANNELS:
        alike = next((name for name in names if name.lower() in (use, _ALIASES.get(use))), None)
        if alike and use not in names:
            logger.warning("There is no channel %r: channel %r is used instead", use, alike)
            names[use] = names.pop(alike)
    unknown = [name for name in names if name not in CHANNELS]
    if unknown:
        logger.warning(
            "Ignored unknown channels: %s. The known channels are %s.", ", ".join(unknown), ", ".join(CHANNELS)
        )
    return {use: _Channel.check(use, names[use], declared.get(names[use], {})) for use in CHANNELS if use in names}


def _files(paths: Paths, use: str, name: str, may_be_empty: bool = False) -> list[Path]:
    """The files of a channel, of which there must be one unless it may be empty.

    The platform mounts folders, and no links that leave them. One that does was made by somebody else, and messages
    would show to whoever reads them the rows of a file that only this job may read.
    """
    folder = paths.channel(name)
    files = events.find_files(folder)
    with refusals("look into", folder):
        root = folder.resolve()
        for path in [*{path.parent for path in files}, *(path for path in files if path.is_symlink())]:
            if not path.resolve().is_relative_to(root):
                raise UserError(
                    f"{path} leads out of channel {name!r} by a link: copy what it leads to, or link the whole folder"
                )
    if not files and not may_be_empty:
        raise UserError(f"channel {name!r} has no data: put {CHANNELS[use].content} in {paths.channel(name)}")
    return files


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal("read", path, error) from error
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain a JSON object")
    return content
