"""Times of logs, as whole seconds since 1970 began in UTC. Fractions of a second are cut off.

What is no time raises ValueError.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from ipinsights.errors import UserError, brief

DAY = 86400

_MONTHS = {name: number for number, name in enumerate(re.findall("...", "JanFebMarAprMayJunJulAugSepOctNovDec"), 1)}
_SYSLOG = re.compile(r"([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d)")
_NUMBER = re.compile(r"(\d{9,30})|\d{9,30}\.\d*|\d(?:\.\d*)?[eE]\+?\d{1,2}")
_AMERICAN = re.compile(r"\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d\d:\d\d [AP]M")
_DOTNET = re.compile(r"/Date\((-?\d+)(?:[+-]\d{4})?\)/")
_UNITS = ((1e11, 1), (1e14, 1_000), (1e17, 1_000_000), (1e20, 1_000_000_000))
"""Numbers below a limit count so many parts of a second. They are the times up to the year 5138 in each unit."""
_LAST = int(datetime.max.replace(tzinfo=UTC).timestamp()) - 1
_SLACK = DAY
"""A syslog line may be so much younger than its file's last change: its time zone may not be known."""
_BACK = 180 * DAY
"""More than a log's lines ever go back in time."""
_DISORDER = 7 * DAY


class Clock:
    """Reads times. What a text leaves open is decided here: the time zone, and the form of a column's times."""

    def __init__(self, zone: tzinfo = UTC, year: int | None = None, form: str | None = None) -> None:
        """``zone`` is that of times without one, ``year`` that of a log's first line, ``form`` is for strptime.

        Raises UserError if strptime cannot read what strftime writes in that form.
        """
        if form:
            try:
                datetime.strptime(datetime.now(UTC).strftime(form), form)
            except (re.error, ValueError) as error:
                raise UserError(f"--time-format is {brief(form)}, in which no time can be read: {error}") from None
        self.zone, self.year, self.form = zone, year, form
        self.zone_assumed = False
        """Whether it has read a time without a zone."""
        self.years: dict[str, int] = {}
        """The year that was assumed for the last line of a log without years, by the log's name."""
        self.iso = lru_cache(1 << 14)(self._iso)
        self.cell = lru_cache(1 << 14)(self._cell)
        self.minute = lru_cache(1 << 14)(self._minute)

    def _iso(self, text: str) -> int:
        """A time in ISO 8601."""
        if text.endswith((" UTC", " GMT")):
            text = f"{text[:-4]}+00:00"
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"not a time in ISO 8601: {brief(text)}") from None
        return self.moment(time)

    def _cell(self, text: str) -> int:
        """A time of a table: in the given form, or in ISO 8601, or as a number of seconds or of milliseconds.

        So are the forms that PowerShell writes: ``/Date(1767323045000)/`` and the American ``1/2/2026 3:04:05 AM``.
        """
        text = text.strip()
        if self.form:
            try:
                return self.moment(datetime.strptime(text, self.form))
            except ValueError:
                raise ValueError(f"not a time of the form {brief(self.form)}: {brief(text)}") from None
        if found := _NUMBER.fullmatch(text):
            return number(int(text) if found[1] else float(text))
        if found := _DOTNET.fullmatch(text):
            return _since_1970(int(found[1]) // 1000)
        if _AMERICAN.fullmatch(text):
            try:
                return self.moment(datetime.strptime(text, "%m/%d/%Y %I:%M:%S %p"))
            except ValueError:
                raise ValueError(f"not month/day/year: {brief(text)}. Give the form of times, --time-format") from None
        return self._iso(text)

    def _minute(self, text: str, offset: str) -> int:
        """The minute of an access log's time, ``02/Jan/2026:03:04`` and ``+0100``."""
        day, month, rest = text.split("/")
        year, hour, minute = rest.split(":")
        shift = (int(offset[1:3]) * 60 + int(offset[3:])) * (-60 if offset[0] == "-" else 60)
        try:
            time = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), tzinfo=UTC)
        except (KeyError, ValueError):
            raise ValueError(f"not a time: {brief(text)}") from None
        return _since_1970(int(time.timestamp()) - shift)

    def moment(self, time: datetime) -> int:
        """A time as Python has it."""
        if time.tzinfo is None:
            self.zone_assumed = True
            time = time.replace(tzinfo=self.zone)
        try:
            return _since_1970(int(time.replace(microsecond=0).timestamp()))
        except OverflowError:  # at the ends of the calendar
            raise ValueError(f"not a time: {time}") from None

    def syslog(self, modified: float, name: str) -> Callable[[str], int]:
        """A function that reads the times of one log, ``Jan  2 03:04:05``, which name no year.

        Each line is of the latest year in which it is not younger than the log, which was ``modified`` then. Where the
        clock has a year, the first line is of that year, and each other of the first year in which it is not a week
        older than the line before.

        The function raises UserError that begins with the log's ``name`` if the lines' years do not fit together.
        """
        last: int | None = None

        def read(text: str) -> int:
            nonlocal last
            if not (found := _SYSLOG.fullmatch(text)) or found[1] not in _MONTHS:
                raise ValueError(f"not a time: {brief(text)}")
            month, rest = _MONTHS[found[1]], [int(part) for part in found.groups()[1:]]
            self.zone_assumed = True
            if self.year is None:
                newest = datetime.fromtimestamp(modified + _SLACK, self.zone).year
                time = self._in_a_year([*range(newest, newest - 9, -1)], month, rest, lambda t: t <= modified + _SLACK)
            elif last is None:
                time = self._in_a_year([self.year], month, rest, lambda _: True)
            else:
                before, first = last, datetime.fromtimestamp(last, self.zone).year - 1
                time = self._in_a_year([*range(first, first + 10)], month, rest, lambda t: t >= before - _DISORDER)
            if last is not None and time < last - _BACK:
                raise UserError(
                    f"{name}: its times name no year, and at {brief(text)} they go back by {(last - time) // DAY} "
                    "days: it covers more than a year, or was changed after its last line. Give the first line's year, "
                    "--year"
                )
            last = time
            self.years[name] = datetime.fromtimestamp(time, self.zone).year
            return time

        return lru_cache(1 << 10)(read) if self.year is None else read

    def _in_a_year(self, years: list[int], month: int, rest: list[int], fits: Callable[[int], bool]) -> int:
        """The time in the first of the years in which there is such a day and which fits."""
        day, hour, minute, second = rest
        for year in years:
            try:
                time = int(datetime(year, month, day, hour, minute, tzinfo=self.zone).timestamp()) + second
            except ValueError:  # 29 February
                continue
            if fits(time):
                return time
        raise ValueError(f"no such day in {'that year' if len(years) == 1 else 'these years'}")


def number(value: float) -> int:
    """A time as a number of seconds since 1970, or of thousandths, millionths or billionths, by its size."""
    for limit, parts in _UNITS:
        if value < limit:
            return _since_1970(int(value // parts))
    raise ValueError(f"not a time: {value:g}")


@lru_cache(1 << 14)
def _minutes(minute: int) -> str:
    return (datetime(1970, 1, 1) + timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:")


@lru_cache(1 << 14)
def render(time: int) -> str:
    """A time in ISO 8601 in UTC: 2026-01-02T03:04:05Z. Such texts are of one length, and sort as their times do."""
    return f"{_minutes(time // 60)}{time % 60:02}Z"


def _since_1970(time: int) -> int:
    if not 0 <= time <= _LAST:
        raise ValueError("a time before 1970 or after 9999")
    return time
