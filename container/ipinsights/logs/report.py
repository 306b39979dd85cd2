"""Says what was read and written, in lines for people."""

from collections.abc import Iterator

from ipinsights.data.malformed import brief_path
from ipinsights.logs import access
from ipinsights.logs.counting import File, Reason
from ipinsights.logs.preparation import Prepared
from ipinsights.logs.times import DAY, render

_FILES = 40
"""Files that are listed one by one."""
_FEW_ADDRESSES, _FEW_LOG_INS = 10, 100


def lines(prepared: Prepared) -> Iterator[str]:
    """The files that were read, what was dropped and why, the log-ins, and the files that were written."""
    count = prepared.count
    for file in count.files[:_FILES]:
        yield f"{brief_path(file.name)}: {_of_file(file)}"
    rest = count.files[_FILES:]
    if rest:
        kept, dropped, malformed, other = (
            sum(getattr(file, name) for file in rest) for name in ("kept", "dropped", "malformed", "other")
        )
        yield f"{len(rest):,} more files: {_counts(kept, dropped, malformed, other)}"
    reasons = [(dropped.reason, reason) for dropped, reason in count.dropped.items()]
    yield from _table("dropped", reasons)
    yield from _table("malformed", list(count.malformed.items()))
    if not count.kept:
        return
    ipv4, ipv6 = len(count.ipv4), len(count.ipv6)
    span = "" if count.first is None or count.last is None else f", {render(count.first)} to {render(count.last)}"
    yield ""
    yield (
        f"{_number(count.kept, 'log-in')} of {_number(len(count.entities), 'entity', 'entities')} from "
        f"{_number(ipv4 + ipv6, 'address', 'addresses')} ({ipv4:,} IPv4, {ipv6:,} IPv6){span}"
    )
    for part in prepared.parts:
        when = f", {part.first} to {part.last}" if part.first else ""
        yield f"{part.path}: {_number(part.count, 'log-in')}{when}" + ("" if part.count else ", so not written")
    if prepared.left_out:
        yield f"{_number(prepared.left_out, 'log-in')} later than the split's durations: not written"


def notes(prepared: Prepared) -> Iterator[str]:
    """What a person should know about log-ins that were kept, a sentence or more each."""
    count, clock = prepared.count, prepared.options.clock
    for year in sorted(set(clock.years.values())):
        first, *more = [brief_path(name) for name, its_year in clock.years.items() if its_year == year]
        others = f" and {len(more)} more" if more else ""
        how = "--year sets it" if clock.year is None else "as --year said of the first line"
        yield f"The times in {first}{others} name no year. The last log-in was taken to be of {year} ({how})."
    if clock.zone_assumed and str(clock.zone) == "UTC":
        yield "Some times name no time zone and were taken to be in UTC. --time-zone sets another."
    if not count.kept:
        return
    if count.first is None:
        yield "The log-ins have no times, so they are split in their order."
    elif count.last is not None and count.last - count.first < DAY:
        hours = (count.last - count.first) / 3600
        yield f"The log-ins cover {hours:.1f} hours. A model of habits needs days, better weeks."
    if len(count.entities) == 1:
        yield "There is one entity. A model compares entities: it needs several, better hundreds."
    addresses = len(count.ipv4) + len(count.ipv6)
    if addresses < _FEW_ADDRESSES:
        few = f"is {addresses} address" if addresses == 1 else f"are {addresses} addresses"
        yield f"There {few}: too few to learn networks from."
    if prepared.options.resource is None and any(file.format is access.FORMAT and file.kept for file in count.files):
        yield "Each request of a user counts as a log-in. --resource keeps those that are one."
    if len(count.ipv6):
        yield "Some addresses are IPv6: train with the hyperparameter ip_version=6."
    for part in prepared.parts:
        if not part.count:
            yield f"{part.path.parent.name} got no log-in. See --split."
    for format_ in dict.fromkeys(file.format for file in count.files if file.format):
        if not any(file.kept for file in count.files if file.format is format_):
            yield f"No log-in was kept of the logs of format {format_.name}."
    if count.dropped and count.kept < _FEW_LOG_INS:
        dropped, reason = max(count.dropped.items(), key=lambda item: item[1].count)
        if reason.count > count.kept and dropped.advice:
            yield f"Most rows are {dropped.reason}. {dropped.advice}"


def why_none(prepared: Prepared) -> str:
    """Why no log-in was kept, and what to do."""
    count = prepared.count
    if count.dropped:
        most, reason = max(count.dropped.items(), key=lambda item: item[1].count)
        return f"no log-in was kept: {reason.count:,} {most.reason}. {most.advice}".rstrip(". ")
    other = sum(file.other for file in count.files)
    return f"no log-in was kept: there is none in {_number(other, 'row')}"


def _of_file(file: File) -> str:
    if file.format is None:
        return "empty"
    return f"{file.format.name}, {_counts(file.kept, file.dropped, file.malformed, file.other)}"


def _counts(kept: int, dropped: int, malformed: int, other: int) -> str:
    parts = [_number(kept, "log-in")]
    parts += [f"{number:,} {name}" for number, name in ((dropped, "dropped"), (malformed, "malformed")) if number]
    parts += [_number(other, "other row")] * bool(other)
    return ", ".join(parts)


def _table(head: str, reasons: list[tuple[str, Reason]]) -> Iterator[str]:
    if reasons:
        yield ""
        width = max(len(head), *(len(name) for name, _ in reasons))
        yield f"{head:{width}} {'rows':>12}  first"
        for name, reason in sorted(reasons, key=lambda item: -item[1].count):
            yield f"{name:{width}} {reason.count:12,}  {reason.first}"


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
