"""Splits log-ins into those to train on, to validate with, and the latest, by time.

By shares of the log-ins, or by durations. Durations before the word ``rest`` count from the first log-in, those behind
it from the last. A duration in days (``7d``) counts whole days of the calendar in UTC, one in hours (``36h``) hours.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipinsights.errors import UserError, brief
from ipinsights.logs.times import DAY

PARTS = "train", "validation", "latest"
REST = "rest"
NONE = "none"
MINUTE = 60
"""The log-ins of a minute are not parted by shares."""

_HOUR = 3600
_SHARE = re.compile(r"\d{1,6}(?:\.\d{1,6})?")
_DURATION = re.compile(r"([1-9]\d{0,5})([dh])")


@dataclass(frozen=True)
class Split:
    """What each of `PARTS` is."""

    shares: Sequence[float] = ()
    """Shares of the log-ins, if these decide."""
    durations: Sequence[str] = ()
    """Durations, of which one may be `REST`, otherwise."""

    @classmethod
    def parse(cls, text: str) -> "Split | None":
        """Read ``8:1:1``, ``7d:1d:2d`` or ``rest:1d:1d``; None for ``none``. Raises UserError for anything else."""
        if text == NONE:
            return None
        parts = re.split("[:,]", text)
        if len(parts) == len(PARTS):
            if all(_SHARE.fullmatch(part) for part in parts) and float(parts[0]) > 0:
                return cls(shares=[float(part) for part in parts])
            if all(_DURATION.fullmatch(part) or part == REST for part in parts) and parts.count(REST) < 2:
                return cls(durations=parts)
        raise UserError(
            f"--split is {brief(text)}: it must be three shares for {', '.join(PARTS)} such as 8:1:1, or three "
            f"durations such as 7d:1d:2d (from the first log-in) or {REST}:1d:1d (until the last), or {NONE}"
        )

    def by_order(self, count: int) -> list[int]:
        """How many of ``count`` log-ins without times precede each part but the first. Raises UserError."""
        if not self.shares:
            raise UserError("the log-ins have no times, so they can be split by shares only, such as --split 8:1:1")
        whole = sum(self.shares)
        return [round(count * sum(self.shares[: part + 1]) / whole) for part in range(len(PARTS) - 1)]

    def by_time(self, minutes: Mapping[int, int], first: int, last: int) -> list[int]:
        """When each part but the first begins, and when the last ends: seconds.

        ``minutes`` has the number of log-ins of each minute since 1970, ``first`` and ``last`` are the first and last
        log-in's times.
        """
        if self.shares:
            return [*(min(cut, last + 1) for cut in self._cuts(minutes)), last + 1]
        rest = self.durations.index(REST) if REST in self.durations else len(PARTS)
        begins = [first]
        for duration in self.durations[:rest]:
            begins.append(_after(begins[-1], duration, 1))
        ends = [last + 1]
        for duration in reversed(self.durations[rest + 1 :]):
            ends.append(_after(ends[-1], duration, -1))
        if rest == len(PARTS):
            return begins[1:]
        cuts = [*begins[1:], *reversed(ends)]
        if sorted(cuts) != cuts or cuts[0] < first or (rest == 0 and cuts[0] == first):
            raise UserError(
                f"the log-ins cover {(last - first) / _HOUR:.1f} hours, too few for --split {':'.join(self.durations)}"
            )
        return cuts

    def _cuts(self, minutes: Mapping[int, int]) -> list[int]:
        times = sorted(minutes)
        until = [0]  # how many log-ins there are before each minute
        for minute in times:
            until.append(until[-1] + minutes[minute])
        cuts = []
        for before in self.by_order(until[-1]):
            place = bisect_right(until, before) - 1  # until[place] is the most that is not above
            if place < len(times) and until[place + 1] - before < before - until[place]:
                place += 1
            cuts.append(times[place] * MINUTE if place < len(times) else (times[-1] + 1) * MINUTE)
        return cuts


def _after(time: int, duration: str, sign: int) -> int:
    """The end of a duration from a time on, or back."""
    count, unit = int(duration[:-1]), duration[-1]
    if unit == "h":
        return time + sign * count * _HOUR
    # The day that has begun counts as the first.
    return (time // DAY + count) * DAY if sign > 0 else (-(-time // DAY) - count) * DAY
