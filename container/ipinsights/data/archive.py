"""Takes single files out of a tar archive, plain or gzip, which is read once, from its first byte to its last.

An archive decides nothing but the contents of the files that are asked for. We choose where they go, and read past
everything else, so links, devices and paths in it have no effect. Memory is constant. (Python's tarfile reads whole
headers of any declared size into memory, and its filters have been got around.)

The formats are those of POSIX and GNU tar: https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

import io
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from ipinsights.data.sources import Stream
from ipinsights.errors import UserError, brief, refusals

_BLOCK = 512
_PIECE = 1 << 20
_LONGEST_EXTENSION = 1 << 20
"""Bytes of a header that holds a long name or other properties of the member that follows."""
_FILES = (b"0", b"\0", b"7")
"""Types of members that are plain files. The last means one that should be in one piece on the disk."""
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Types of members that have no data, whatever size they declare: links, devices, folders and pipes."""
_EXTENSION, _LONG_NAME, _SPARSE = b"x", b"L", b"S"
_IGNORED = (b"g", b"K")
"""Types of headers that tell nothing of a single member, or only where its link leads."""


def extract(archive: Path, names: Collection[str], folder: Path) -> None:
    """Write the plain files of an archive that have one of the ``names`` into a folder, under that name.

    They may lie in any one folder of the archive. A path that climbs or is absolute does not count. Raises UserError if
    the archive is damaged or cannot be read, if one of the names is there twice or is no plain file, or if the disk has
    no room for a file of the size that is declared.
    """
    with refusals("unpack", archive), Stream(io.FileIO(archive), "it") as text:
        try:
            for path, size in _members(text, names):
                _require_space(folder, path, size)
                with (folder / path.name).open("xb") as file:
                    for piece in _pieces(text, size):
                        file.write(piece)
        except (UserError, _DamagedError) as error:
            raise UserError(f"cannot unpack {archive}: {error}") from None


class _DamagedError(Exception):
    """The archive is not as it should be. The text says what is wrong."""


def _require_space(folder: Path, path: PurePosixPath, size: int) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < size and disk.f_blocks:  # some file systems tell nothing
        raise UserError(
            f"{_quoted(path)} has {size / 1e6:,.1f} MB, and in {folder} {free / 1e6:,.1f} MB are free. Free some, or "
            "set TMPDIR to a folder on a larger volume"
        )


def _members(text: Stream, names: Collection[str]) -> Iterator[tuple[PurePosixPath, int]]:
    """The paths and sizes of the files of these names. Whoever gets one reads its data before the next one."""
    found: dict[str, PurePosixPath] = {}
    properties: dict[str, str] = {}
    while (header := text.read(_BLOCK)).strip(b"\0"):
        kind, size = _checked(header), _number(header[124:136])
        if kind in (_EXTENSION, _LONG_NAME):
            if size > _LONGEST_EXTENSION:
                raise _DamagedError(f"it has a header of {size:,} bytes")
            data = b"".join(_pieces(text, size))
            properties |= _properties(data) if kind == _EXTENSION else {"path": _text(data)}
            _skip(text, -size % _BLOCK)
            continue
        if kind in _IGNORED:
            _skip(text, size + -size % _BLOCK)
            continue
        path = PurePosixPath(properties.get("path") or _name(header))
        size = _decimal(properties["size"]) if "size" in properties else size
        if kind == _SPARSE or "sparse" in properties:
            raise _DamagedError(f"{_quoted(path)} is stored as a sparse file: pack it without --sparse")
        if path.name in names and not path.is_absolute() and ".." not in path.parts:
            if kind not in _FILES:
                raise _DamagedError(f"{_quoted(path)} is a link, or something else than a file: pack the file itself")
            other = found.get(path.name) or next((p for p in found.values() if p.parent != path.parent), None)
            if other:
                raise _DamagedError(f"it has {_quoted(other)} and {_quoted(path)}: pack one model")
            found[path.name] = path
            yield path, size
            _skip(text, -size % _BLOCK)
        elif kind not in _WITHOUT_DATA:
            _skip(text, size + -size % _BLOCK)
        properties = {}
    if len(header) < _BLOCK:
        raise _DamagedError("it is truncated")
    while text.read(_PIECE):  # gzip's checksum stands behind the archive's end
        pass


def _pieces(text: Stream, size: int) -> Iterator[bytes]:
    """So many bytes."""
    while size:
        piece = text.read(min(size, _PIECE))
        if not piece:
            raise _DamagedError("it is truncated")
        size -= len(piece)
        yield piece


def _skip(text: Stream, size: int) -> None:
    for _ in _pieces(text, size):
        pass


def _checked(header: bytes) -> bytes:
    """The type of a member, if its header's checksum is right."""
    if len(header) < _BLOCK:
        raise _DamagedError("it is truncated")
    if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise _DamagedError("it is no tar archive, plain or gzip, or it is damaged")
    return header[156:157]


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or, as GNU tar has it where they do not suffice, binary."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise _DamagedError("it is no tar archive, plain or gzip, or it is damaged")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise _DamagedError("a member has no size")
    return int(text)


def _name(header: bytes) -> str:
    """The path in a header."""
    name, prefix = _text(header[:100]), _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _quoted(path: PurePosixPath) -> str:
    return brief(str(path))


def _properties(data: bytes) -> dict[str, str]:
    """What counts here of a pax header: records of ``length key=value`` and a line feed; the length counts all that."""
    found = {}
    start = 0
    while start < len(data):
        digits = data[start : start + 21].partition(b" ")[0]
        end = start + _decimal(digits.decode(errors="replace"))
        key, equals, value = data[start + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise _DamagedError("a pax header is damaged")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode(errors="surrogateescape")
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = ""
        start = end
    return found
