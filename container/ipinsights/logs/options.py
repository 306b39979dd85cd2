"""What the readers are told, and what a format is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ipinsights.logs.rows import Row
from ipinsights.logs.text import Text
from ipinsights.logs.times import Clock


@dataclass(frozen=True)
class Options:
    """What the readers are told."""

    clock: Clock = field(default_factory=Clock)
    resource: str | None = None
    """Access logs: the request that is a log-in, literally or as a regular expression."""
    status: frozenset[str] | None = None
    """Access logs: the statuses of a log-in; None for all below 400."""
    forwarded: bool = False
    """Access logs: take the client's address from X-Forwarded-For."""
    cloudtrail: Literal["console", "all"] = "console"
    """CloudTrail: log-ins to the console only, or all API calls."""
    entity: str | None = None
    """Tables: the name of the entities' column, or its number from 1; None to find it by its name."""
    address: str | None = None
    time: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    """Tables: columns and the values that they must have, in any case of letters."""


@dataclass(frozen=True)
class Format:
    """A format of logs."""

    name: str
    """As ``--format`` names it."""
    about: str
    """What it is, for people."""
    knows: Callable[[Text, Options], bool]
    """Whether a text begins as this format does."""
    rows: Callable[[Text, Options], Iterator[Row]]
    """The rows of a text, which may be long: one at a time."""
    uses: tuple[str, ...] = ()
    """The options that no other format uses."""
