"""Where text comes from: files and named pipes, plain or gzip, read on from the first byte to the last.

Nothing is sought, mapped or opened twice, so file systems that fetch what is read as it is read do well. Whether a
source is gzip its first bytes say, not its name.
"""

import gzip
import io
import os
import select
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from ipinsights.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_GZIP = b"\x1f\x8b"
_BUFFER = 1 << 17
_QUIET = 1000
"""Milliseconds without a byte after which a pipe's reader hears of it."""
_LOOK_AGAIN = 0.25
"""Seconds between two looks for a pipe that is not there yet."""


@dataclass(frozen=True)
class Pipe:
    """A named pipe, to be read once, to its end. It may appear after the reading has begun."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = Path | Pipe
"""A path is that of a file."""


def size(sources: Sequence[Source]) -> int | None:
    """The bytes of all sources as they lie on disk; None where one is a pipe."""
    files = [source for source in sources if isinstance(source, Path)]
    return sum(file.stat().st_size for file in files) if len(files) == len(sources) else None


class Stream:
    """A source's bytes in order, unpacked where they are gzip (of any number of members). Closes as a context does."""

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        self.name = name
        """What errors call it."""
        self._raw = _Onward(raw)

    @property
    def taken(self) -> int:
        """Bytes read so far, as they come, packed or not."""
        return self._raw.taken

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end. Raises UserError, where it cannot be read or unpacked."""
        with _named(self.name):
            return self._text.read(size)

    @cached_property
    def _text(self) -> BinaryIO:
        plain = io.BufferedReader(self._raw, _BUFFER)
        text = gzip.GzipFile(fileobj=plain, mode="rb") if self._raw.first(len(_GZIP)) == _GZIP else plain
        return cast("BinaryIO", text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._raw.close()


def stream(source: Source, idle: Callable[[], object] = lambda: None) -> Stream:
    """Open a source. ``idle`` is called about once a second while a pipe has nothing: what it raises ends the wait.

    Raises UserError where the source cannot be opened.
    """
    name = str(source)
    with _named(name):
        return Stream(io.FileIO(source) if isinstance(source, Path) else _PipeEnd(source.path, idle), name)


class _Onward(io.RawIOBase):
    """A raw stream that only reads on, counts what it read, and can say how it begins before that is read."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.taken = 0
        self._raw = raw
        self._ahead = b""

    def first(self, size: int) -> bytes:
        """The first ``size`` bytes, fewer if there are no more; to be asked for before anything is read."""
        buffer = bytearray(size)
        while len(self._ahead) < size and (count := self._raw.readinto(buffer)):
            self._ahead += buffer[:count]
            del buffer[:count]
        return self._ahead

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        if self._ahead:
            count = io.BytesIO(self._ahead).readinto(buffer)
            self._ahead = self._ahead[count:]
        else:
            count = self._raw.readinto(buffer) or 0
        self.taken += count
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PipeEnd(io.FileIO):
    """The end of a named pipe that `readinto` reads. It does not block for long, or nobody could stop a job in it."""

    def __init__(self, path: Path, idle: Callable[[], object]) -> None:
        while not path.exists():
            idle()
            time.sleep(_LOOK_AGAIN)
        super().__init__(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        self._idle = idle
        self._ready = select.poll()
        self._ready.register(self, select.POLLIN)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        # To read before anybody has opened the other end would look like the end; until then Linux has nothing to say.
        while not self._ready.poll(_QUIET):
            self._idle()
        return super().readinto(buffer)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Add the source's name to errors of the system and of gzip."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is a truncated or damaged gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
