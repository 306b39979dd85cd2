"""A channel to events: what is logged of it, how long it is waited for, and what becomes of its malformed rows."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from ipinsights.data import events
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.formats import CSV
from ipinsights.data.malformed import spared
from ipinsights.data.sources import Source, size
from ipinsights.distributed.group import ALONE, Group
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.sagemaker import reporting, stopping

_REMINDER, _PATIENCE = 60, 15 * 60
"""Seconds between two log lines that a channel is waited for, and those after which it is not."""

logger, own = logging.getLogger("ipinsights"), logging.getLogger(reporting.OWN)


def read(
    name: str,
    sources: Sequence[Source],
    index: EntityIndex,
    hp: Hyperparameters,
    content_type: str = CSV,
    group: Group = ALONE,
    sharded: bool = False,
) -> Events:
    """Read a channel; that of training gives new entities a row in the ``index``. No sources hold no events.

    Each rank of a ``group`` reads its share, of its host's own files if the channel is ``sharded``.
    Raises UserError where it has no rows, too many malformed ones, or does not come; and what `stopping.check` raises.
    """
    total = size(sources)
    if group.size > 1 and not sharded:  # or events would be dropped or doubled, if a file came as the hosts copied them
        files = [(file.name, file.stat().st_size) for file in sources if isinstance(file, Path)]
        group.require_same(f"the list of files in channel {name!r}", xxhash.xxh3_128_hexdigest(repr(files).encode()))
    if sources:
        logger.info("Reading channel %r%s", name, f": {total / 1e6:,.1f} MB" if total else "")
    with reporting.progress_bar(total, "B", f"reading {name}", shown=not group.process) as bar:
        data = events.read(
            sources,
            index,
            FAMILIES[hp.ip_version],
            claim=name == "train",
            channel=name,
            content_type=content_type,
            tolerated=hp.tolerated,
            spared=spared(hp.malformed_rows),
            progress=_Reception(name, bar),
            group=group,
            divided=not sharded,
        )
    skipped, rows = data.malformed.count, data.malformed.count + len(data)
    if skipped:
        own.warning(
            "Channel %r: skipped %s malformed rows of %s (%.2g%%): %s: %s",
            name,
            f"{skipped:,}",
            f"{rows:,}",
            100 * skipped / rows,
            data.malformed.told,
            data.malformed,
        )
    if data.removed.ports or data.removed.mapped:
        own.info(
            "Channel %r: read %s addresses without the port behind them, and %s IPv4 addresses written ::ffff:a.b.c.d",
            name,
            f"{data.removed.ports:,}",
            f"{data.removed.mapped:,}",
        )
    if group.any(bool(sources)) and not group.total(len(data)):
        raise UserError(f"channel {name!r} has no rows" + (" except malformed ones" if skipped else ""))
    return data


class _Reception:
    """Hears of a channel's bytes as they come, or do not."""

    def __init__(self, name: str, bar: Any) -> None:
        self._name = name
        self._bar = bar
        self._heard = time.monotonic()
        self._remind_after = 0.0

    def __call__(self, size: int) -> None:
        stopping.check()
        self._bar.update(size)
        now = time.monotonic()
        if size:
            self._heard, self._remind_after = now, _REMINDER
            return
        silence = now - self._heard
        if silence >= _PATIENCE:
            raise UserError(f"channel {self._name!r} delivered no data for {_PATIENCE // 60} minutes")
        if silence >= self._remind_after:
            logger.info("Waiting for data in channel %r for %.0f s so far", self._name, silence)
            self._remind_after += _REMINDER
