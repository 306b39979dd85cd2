"""Reads logs and writes their log-ins, in two passes, so that memory does not grow with the logs.

The first pass reads the logs, writes each log-in into a temporary file in the output's folder, and counts the log-ins
of each minute. Then it is known when each part of a split begins. The second pass copies the lines into the parts.
"""

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ipinsights.data.events import find_files
from ipinsights.errors import UserError, refusals
from ipinsights.logs import formats
from ipinsights.logs.counting import Count
from ipinsights.logs.options import Format, Options
from ipinsights.logs.splitting import PARTS, Split
from ipinsights.logs.text import STANDARD_INPUT, Text
from ipinsights.logs.times import render

_NAME = "log-ins.csv"
_BUFFER = 1 << 20
_STAMP = slice(-21, -1)
"""Where a line has its time, of `render`'s length, before the line feed."""


@dataclass
class Part:
    """A file that was written."""

    path: Path
    count: int = 0
    first: str = ""
    """The first time, if the log-ins have times."""
    last: str = ""


@dataclass(frozen=True)
class Prepared:
    """What was read and written."""

    count: Count
    parts: Sequence[Part]
    """Those without log-ins have no file."""
    left_out: int = 0
    """Log-ins later than the split's durations."""
    options: Options = field(default_factory=Options)


def sources(names: Sequence[str], out: Path) -> list[Path | None]:
    """The files that names stand for, None for standard input. Those in ``out``, which we wrote, are left out.

    Raises UserError if there is none.
    """
    found: list[Path | None] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT:
            found.append(None)
        elif path.is_dir():
            files = [file for file in find_files(path) if out.resolve() not in file.resolve().parents]
            if not files:
                raise UserError(f"{name} holds no files with data")
            found += files
        else:
            found.append(path)
    return found


def prepare(
    files: Sequence[Path | None],
    out: Path,
    options: Options,
    split: Split | None,
    *,
    format_: Format | None = None,
    prefixed: bool = False,
    force: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Prepared:
    """Write the log-ins of files (None is standard input) into a folder.

    ``format_`` is that of all files, or each is recognised. ``prefixed``: whether an entity has its format before it,
    as in ``sshd:alice``, which several formats need. ``force``: whether to replace what was written before.
    ``progress`` is called with each number of bytes read. No file is written if there is no log-in.

    Raises UserError.
    """
    earlier = [path for path in [out / _NAME, *(out / part / _NAME for part in PARTS)] if path.exists()]
    if earlier and not force:
        raise UserError(f"{earlier[0]} exists. Name another folder, or replace it with --force")
    count = Count()
    with refusals("write to", out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out, buffering=_BUFFER) as spool:
            for line in _read(files, options, count, format_, prefixed, progress):
                spool.write(line.encode())
            if not count.kept:
                return Prepared(count, [], options=options)
            _refuse_unused(options, count)
            choose = _chooser(split, count)
            spool.seek(0)
            names = [_NAME] if split is None else [f"{part}/{_NAME}" for part in PARTS]
            written, left_out = _distribute(spool, [out / name for name in names], choose, count.first is not None)
            for path in earlier:
                path.unlink()
            for part in written:
                if part.count:
                    _partial(part.path).replace(part.path)
                else:
                    _partial(part.path).unlink()
                    if not any(part.path.parent.iterdir()):
                        part.path.parent.rmdir()  # an empty channel would be an error in training
    return Prepared(count, written, left_out, options)


def _read(
    files: Sequence[Path | None],
    options: Options,
    count: Count,
    given: Format | None,
    prefixed: bool,
    progress: Callable[[int], object],
) -> Iterator[str]:
    """The lines of all log-ins, while all rows are counted."""
    formats_read: dict[str, str] = {}
    for path in files:
        with Text(path, progress) as text:
            format_ = formats.find(text, options) if given is None or not text.first else given
            file = count.begin(text.name, format_)
            if format_ is None:
                continue
            first = formats_read.setdefault(format_.name, text.name)
            if len(formats_read) > 1 and not prefixed:
                [(one, where), *_] = formats_read.items()
                raise UserError(
                    f"{where} is a log of {one} and {first} one of {format_.name}. A name may be in both "
                    "and mean two accounts: prepare them apart, or let names begin with their format, as in "
                    f"{format_.name}:alice, with --entity-prefix"
                )
            prefix = f"{format_.name}:" * prefixed
            for row in format_.rows(text, options):
                line = count.line(file, row, prefix)
                if line:
                    yield line
            count.end(file)


def _refuse_unused(options: Options, count: Count) -> None:
    """Raise UserError if an option is given that no format uses that was read, since it would choose nothing."""
    read = {file.format.name for file in count.files if file.format}
    for format_ in formats.FORMATS.values():
        given = [name for name in format_.uses if getattr(options, name) != getattr(Options(), name)]
        if given and format_.name not in read:
            raise UserError(
                f"--{given[0]} is for {format_.name} ({format_.about}), and the logs are of {', '.join(sorted(read))}: "
                "leave it out, or name the format with --format"
            )


def _chooser(split: Split | None, count: Count) -> Callable[[int, str], int]:
    """A function that says which part a log-in is of, by its place and time. The number of parts means: of none."""
    if split is None:
        return lambda _place, _stamp: 0
    if count.first is None or count.last is None:
        places = split.by_order(count.kept)
        return lambda place, _: bisect_right(places, place)
    stamps = [render(time) for time in split.by_time(count.minutes, count.first, count.last)]
    return lambda _, stamp: bisect_right(stamps, stamp)


def _distribute(
    spool: IO[bytes], paths: Sequence[Path], choose: Callable[[int, str], int], timed: bool
) -> tuple[list[Part], int]:
    """Copy the lines into files beside their parts' (see `_partial`). Also returned is how many are of no part."""
    parts, left_out = [Part(path) for path in paths], 0
    with ExitStack() as stack:
        files = []
        for part in parts:
            part.path.parent.mkdir(parents=True, exist_ok=True)
            files.append(stack.enter_context(_partial(part.path).open("wb", buffering=_BUFFER)))
        for place, line in enumerate(spool):
            stamp = line[_STAMP].decode() if timed else ""
            chosen = choose(place, stamp)
            if chosen == len(parts):
                left_out += 1
                continue
            files[chosen].write(line)
            part = parts[chosen]
            part.first = min(part.first, stamp) if part.count else stamp
            part.last = max(part.last, stamp)
            part.count += 1
    return parts, left_out


def _partial(path: Path) -> Path:
    """What a file is called until it is complete. Training reads no file of such a name."""
    return path.with_name(f".{path.name}.partial")
