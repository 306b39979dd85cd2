"""Sources of text: files and named pipes, plain or gzip, read once from the first byte to the last.

No seek, no memory map, no second opening: this suits file systems that fetch data while it is read. The first bytes of
a source decide whether it is gzip, not its name.
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

from ipinsights.errors import UserError, refusal

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_GZIP = b"\x1f\x8b"
_BUFFER = 1 << 17
_QUIET = 1000
"""Milliseconds without a byte after which a pipe's reader is notified."""
_LOOK_AGAIN = 0.25
"""Seconds between two checks for a pipe that does not exist yet."""


@dataclass(frozen=True)
class Pipe:
    """A named pipe. It can be read once, to its end, and may appear after reading has begun."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = Path | Pipe
"""A path means a file."""


def size(sources: Sequence[Source]) -> int | None:
    """The size of all sources on disk, in bytes; None if one is a pipe. Raises UserError if one cannot be asked."""
    files = [source for source in sources if isinstance(source, Path)]
    if len(files) < len(sources):
        return None
    total = 0
    for file in files:
        with _named(str(file)):
            total += file.stat().st_size
    return total


class Stream:
    """A source's bytes in order, decompressed if they are gzip (of any number of members). A context manager."""

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        self.name = name
        """Its name in errors."""
        self._raw = _Onward(raw)

    @property
    def taken(self) -> int:
        """Bytes read from the source so far, before decompression."""
        return self._raw.taken

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end. Raises UserError if it cannot read or decompress them."""
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
    """Open a source. ``idle`` is called about once a second while a pipe has no data; its exceptions end the wait.

    Raises UserError if the source cannot be opened.
    """
    name = str(source)
    with _named(name):
        return Stream(io.FileIO(source) if isinstance(source, Path) else _PipeEnd(source.path, idle), name)


class _Onward(io.RawIOBase):
    """A raw stream that reads forward only, counts its bytes, and can return its beginning before that is read."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.taken = 0
        self._raw = raw
        self._ahead = b""

    def first(self, size: int) -> bytes:
        """The first ``size`` bytes, fewer if there are no more. Call it before any read."""
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
    """The reading end of a named pipe. It does not block for long, so a job can be stopped while it waits."""

    def __init__(self, path: Path, idle: Callable[[], object]) -> None:
        while not path.exists():
            idle()
            time.sleep(_LOOK_AGAIN)
        super().__init__(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        self._idle = idle
        self._ready = select.poll()
        self._ready.register(self, select.POLLIN)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        # A read before the other end is opened would look like the end of the data; until then poll reports nothing.
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
        raise refusal("read", name, error) from error
