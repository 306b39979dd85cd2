"""What the environment tells the server, read once when it starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ipinsights.errors import UserError

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
    threads: int = 4
    """Threads of a worker, so that /ping is answered while a large request is scored."""
    timeout: int = 60
    """Seconds for an answer, as endpoints allow."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ServerSettings":
        """Read the settings. Raises UserError."""
        return cls(
            port=_positive(environment, "SAGEMAKER_BIND_TO_PORT", cls.port),
            workers=_positive(environment, "SAGEMAKER_MODEL_SERVER_WORKERS", len(os.sched_getaffinity(0))),
            max_content_length=_positive(environment, "MAX_CONTENT_LENGTH", cls.max_content_length),
        )

    @property
    def max_payload_mb(self) -> int:
        """The payload that as many concurrent transforms as workers may have."""
        return max(1, min(6, BATCH_PAYLOAD_MB // self.workers, self.max_content_length >> 20))


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"environment variable {name}={text!r} must be a whole number above 0")
    return int(text)
