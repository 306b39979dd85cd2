"""What the environment tells the server, read once when it starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ipinsights.errors import UserError
from ipinsights.events import usable_cores
from ipinsights.sagemaker import media

BATCH_PAYLOAD_MB = 100
"""Batch Transform's limit on MaxConcurrentTransforms x MaxPayloadInMB."""


@dataclass(frozen=True)
class ServerSettings:
    """The server's settings with their defaults."""

    port: int = 8080
    """``SAGEMAKER_BIND_TO_PORT``"""
    workers: int = 1
    """``SAGEMAKER_MODEL_SERVER_WORKERS``; one a processor core by default."""
    max_content_length: int = BATCH_PAYLOAD_MB << 20
    """``MAX_CONTENT_LENGTH``: bytes of a request's body at most."""
    threads: int = 32
    """Threads of a worker: more than ``scoring_slots``, so that /ping is answered while all of those are taken."""
    scoring_slots: int = 2
    """Requests that a worker scores at a time; others wait."""
    timeout: int = 60
    """Seconds without a sign of life after which a worker is replaced."""
    batch: bool = False
    """``SAGEMAKER_BATCH``: the server works for a Batch Transform job."""
    default_accept: str = media.JSON
    """``SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT``: what is answered where a request leaves the choice."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ServerSettings":
        """Read the settings. Raises UserError."""
        return cls(
            port=_whole(environment, "SAGEMAKER_BIND_TO_PORT", cls.port, high=65535),
            workers=_whole(environment, "SAGEMAKER_MODEL_SERVER_WORKERS", usable_cores()),
            max_content_length=_whole(environment, "MAX_CONTENT_LENGTH", cls.max_content_length),
            batch=environment.get("SAGEMAKER_BATCH", "").lower() == "true",
            default_accept=_accept(environment, "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", cls.default_accept),
        )

    @property
    def concurrent_transforms(self) -> int:
        """Requests that Batch Transform should send at a time."""
        return min(self.workers, BATCH_PAYLOAD_MB)

    @property
    def max_payload_mb(self) -> int:
        """The payload that so many concurrent transforms may have: 6 MB, as is usual, or what the limits leave."""
        return max(1, min(6, BATCH_PAYLOAD_MB // self.concurrent_transforms, self.max_content_length >> 20))


def _whole(environment: Mapping[str, str], name: str, default: int, high: int = 2**31 - 1) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= high:
        raise UserError(f"environment variable {name}={text!r} must be a whole number from 1 to {high}")
    return int(text)


def _accept(environment: Mapping[str, str], name: str, default: str) -> str:
    text = environment.get(name) or default
    try:
        media.writer(text)
    except UserError as error:
        raise UserError(f"environment variable {name}: {error}") from error
    return text
