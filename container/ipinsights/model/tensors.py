"""Named arrays in one file, in the safetensors format: nothing is pickled, and reading is mapping.

A file is written beside its place and then renamed, so there is the old one or the new one, also after a power cut.
The rules are those of the format's own library: the tensors with the largest items come first, so that each is aligned,
and they follow one another without holes or overlaps. Format: https://github.com/huggingface/safetensors#format

The header also holds a checksum of each tensor, so that damage is noticed. It is XXH3 of 128 bits, because that is as
fast as the memory and overlooks one damage in 2**128. It proves no origin: who can write a file can write checksums.
"""

import errno
import io
import json
import math
import os
import reprlib
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import xxhash

Arrays = dict[str, npt.NDArray[Any]]

_ALIGNMENT = 8
_NAMES = {"u1": "U8", "i4": "I32", "u4": "U32", "i8": "I64", "u8": "U64", "f4": "F32", "f8": "F64"}
_DTYPES = {name: np.dtype(f"<{kind}") for kind, name in _NAMES.items()}
_TEXTS, _CHECKSUMS = "__metadata__", "checksums"
_NO_CHECKSUM = "0" * 32
"""As long as a checksum: it stands in the header until the tensor is written."""
_LONGEST_HEADER = 100_000_000
"""Bytes. The format's own library has the same limit."""
_LONGEST_AXIS = 1 << 48
_PIECE = 1 << 18
"""Bytes that are read, and then verified, at a time: they stay in the processor's cache."""


class _Place(NamedTuple):
    """What the header says of a tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    """The first byte, counted from the end of the header."""
    end: int


@dataclass(frozen=True)
class Streamed:
    """An array that comes in pieces along its first axis, so that nobody holds all of it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Iterator[npt.NDArray[Any]]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    path: Path, arrays: Mapping[str, npt.NDArray[Any] | Streamed], texts: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Write arrays, and texts that go with them. Returns the arrays' checksums.

    Raises OSError, and then leaves what was there. (The format's own library writes to a file of an unknown name first,
    which stays where the process is killed.)
    """
    ordered = in_order(arrays)
    texts = texts or {}
    checksums = dict.fromkeys(ordered, _NO_CHECKSUM)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_header_of(ordered, texts, checksums))
            for name, array in ordered.items():
                checksums[name] = _write(file, name, array)
            file.seek(0)
            file.write(_header_of(ordered, texts, checksums))  # as long as the one before
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return checksums


def in_order(arrays: Mapping[str, npt.NDArray[Any] | Streamed]) -> dict[str, npt.NDArray[Any] | Streamed]:
    """The arrays in the order in which they are written."""
    return dict(sorted(arrays.items(), key=lambda entry: -entry[1].itemsize))


def _header_of(
    arrays: Mapping[str, npt.NDArray[Any] | Streamed], texts: Mapping[str, str], checksums: Mapping[str, str]
) -> bytes:
    proof = json.dumps({**checksums, _TEXTS: _checksum_of_texts(texts)})
    header: dict[str, Any] = {_TEXTS: {**texts, _CHECKSUMS: proof}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.str[1:]], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _write(file: BinaryIO, name: str, array: npt.NDArray[Any] | Streamed) -> str:
    """Write an array where the file is. Returns its checksum."""
    pieces = array.pieces if isinstance(array, Streamed) else iter([array])
    digest = xxhash.xxh3_128(f"{array.dtype.str} {array.shape}\n".encode())
    begin = file.tell()
    for piece in pieces:
        # The first call makes a vector of a scalar, which is what is written.
        text = np.ascontiguousarray(piece, dtype=array.dtype).reshape(-1).view(np.uint8).data
        digest.update(text)
        file.write(text)
    if file.tell() - begin != array.nbytes:
        raise ValueError(f"tensor {name!r} came as {file.tell() - begin} bytes, and {array.nbytes} were announced")
    return digest.hexdigest()


class File:
    """An open file. It is a context manager, and what is mapped stays when it is closed."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the header and map the rest. Raises OSError, and ValueError or TypeError if the file is damaged."""
        self._file = file
        length = os.fstat(file.fileno()).st_size
        header, self._start = _header(file, length)
        texts = header.pop(_TEXTS, {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{_TEXTS} in its header is {reprlib.repr(texts)}, not an object of texts")
        self._places = {name: _place(name, entry) for name, entry in header.items()}
        _require_tiling(self._places, self._start, length)
        self.checksums = _checksums(texts.pop(_CHECKSUMS, None), texts, self._places)
        """By the tensors' names; None in a file that another program wrote, or release 0.1.0."""
        self.texts: dict[str, str] = texts
        """What was written with the arrays."""
        # The open file, not its path: if an update replaces it meanwhile, header and data are of one file all the same.
        data: npt.NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        if length > self._start:
            data = np.memmap(file, dtype=np.uint8, mode="r", offset=self._start)
        self.arrays: Arrays = {}
        """Each is a read-only view of the mapped file."""
        for name, place in self._places.items():
            flat: npt.NDArray[Any] = np.frombuffer(data[place.begin : place.end], dtype=place.dtype)
            self.arrays[name] = flat.reshape(place.shape)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file. Raises as the constructor does."""
        file = open_file(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def verify(self, finite: bool = False) -> None:
        """Read all of the file, and raise ValueError if a tensor does not have its checksum.

        With ``finite`` also if a value is infinite or no number.
        """
        for name, place in sorted(self._places.items(), key=lambda entry: entry[1].begin):
            found = _checksum(place.dtype, place.shape, self._pieces(name, finite and place.dtype.kind == "f"))
            if self.checksums is not None and self.checksums[name] != found:
                raise ValueError(f"tensor {name!r} does not have the checksum that was written with it")

    def parts(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """The values of a tensor in a row, a part at a time. Each part but the first begins with the last value before.

        They are not the mapped ones: so what is read once takes no memory.
        """
        dtype = self._places[name].dtype
        before: npt.NDArray[Any] = np.zeros(0, dtype)
        for piece in self._pieces(name):
            part = np.concatenate([before, np.frombuffer(piece, dtype)])
            yield part
            before = part[-1:]

    def _pieces(self, name: str, finite: bool = False) -> Iterator[memoryview]:
        """The bytes of a tensor, one piece after another in the same buffer.

        They are read, not mapped: so the process does not hold the whole file, and one that is cut short meanwhile is
        an error here rather than the end of the process.
        """
        place = self._places[name]
        size = place.end - place.begin
        buffer = np.empty(min(_PIECE, size), dtype=np.uint8)
        for begin in range(0, size, _PIECE):
            piece = buffer[: size - begin]
            if _read_at(self._file, self._start + place.begin + begin, piece.data) != len(piece):
                raise ValueError(f"the file ends within tensor {name!r}: something has cut it short meanwhile")
            if finite and not np.isfinite(piece.view(place.dtype)).all():
                raise ValueError(f"tensor {name!r} has a value that is infinite or no number")
            yield piece.data


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays, each a read-only view of the mapped file, and the texts. What has checksums is verified.

    Raises OSError where the file cannot be read; ValueError or TypeError where it is damaged.
    """
    with File.open(path) as file:
        file.verify()
        return file.arrays, file.texts


def open_file(path: Path) -> BinaryIO:
    """Open a plain file to read it. Anything else is an OSError: a pipe would block, and a device may have no end."""
    file = io.BufferedReader(io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return file


def publish(temporary: Path, path: Path) -> None:
    """Put a finished file in its place."""
    temporary.chmod(0o644)  # whoever trains, anyone may serve
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _header(file: BinaryIO, length: int) -> tuple[dict[str, Any], int]:
    """The header of a file of so many bytes, and where the tensors start."""
    start = file.read(8)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else length
    if 8 + size > length:
        raise ValueError("the file ends within its header")
    if size > _LONGEST_HEADER:
        raise ValueError(f"its header has {size:,} bytes, more than {_LONGEST_HEADER:,}")
    try:
        header = json.loads(file.read(size))
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise TypeError(f"its header is {reprlib.repr(header)}, not an object")
    return header, 8 + size


def _place(name: str, entry: Any) -> _Place:
    """A tensor's entry of the header."""
    try:
        place = _Place(_DTYPES[entry["dtype"]], tuple(entry["shape"]), *entry["data_offsets"])
    except (KeyError, TypeError):
        place = None
    if place is None or not all(type(number) is int for number in (*place.shape, place.begin, place.end)):
        raise ValueError(f"its header describes tensor {name!r} as {reprlib.repr(entry)}")
    return place


def _require_tiling(places: Mapping[str, _Place], start: int, length: int) -> None:
    """Raise ValueError unless each tensor has its own bytes, and they fill a file from ``start`` to its end."""
    reached = 0
    for name, place in sorted(places.items(), key=lambda entry: (entry[1].begin, entry[1].end)):
        if not reached == place.begin <= place.end:
            raise ValueError(
                f"tensor {name!r} at bytes {place.begin} to {place.end} follows one that ends at {reached}"
            )
        reached = place.end
    if start + reached != length:
        raise ValueError(f"the file has {length} bytes, and its header describes {start + reached}")
    for name, (dtype, shape, begin, end) in places.items():
        if not all(0 <= size < _LONGEST_AXIS for size in shape) or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"tensor {name!r} has {end - begin} bytes, not those of {dtype} {reprlib.repr(shape)}")


def _checksums(proof: str | None, texts: Mapping[str, str], names: Iterable[str]) -> dict[str, str] | None:
    """The tensors' checksums as they stand in the header; None without any."""
    if proof is None:
        return None
    try:
        found = json.loads(proof)
    except (RecursionError, ValueError):
        found = None
    if not isinstance(found, dict) or found.keys() != {*names, _TEXTS}:
        raise ValueError("the checksums in its header are not those of its tensors")
    if found.pop(_TEXTS) != _checksum_of_texts(texts):
        raise ValueError("the texts in its header do not have the checksum that was written with them")
    return found


def _read_at(file: BinaryIO, at: int, buffer: memoryview) -> int:
    """Fill a buffer from a place in a file. Returns the number of bytes read, fewer only at the file's end."""
    done = 0
    while done < len(buffer):
        count = os.preadv(file.fileno(), [buffer[done:]], at + done)
        if not count:
            break
        done += count
    return done


def _checksum(dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[memoryview]) -> str:
    """The checksum of a tensor: of its type and shape, and of its bytes."""
    digest = xxhash.xxh3_128(f"{dtype.str} {shape}\n".encode())
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _checksum_of_texts(texts: Mapping[str, str]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(texts, sort_keys=True).encode())
