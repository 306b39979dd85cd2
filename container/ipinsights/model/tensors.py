"""Named arrays in one file, in the safetensors format: nothing is pickled, and reading is mapping.

A file is written beside its place and then renamed, so there is the old one or the new one, also after a power cut.
The rules are those of the format's own library: the tensors with the largest items come first, so that each is aligned,
and they follow one another without holes or overlaps. Format: https://github.com/huggingface/safetensors#format
"""

import errno
import io
import json
import os
import reprlib
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

_ALIGNMENT = 8
_NAMES = {"u1": "U8", "i4": "I32", "u4": "U32", "i8": "I64", "u8": "U64", "f4": "F32", "f8": "F64"}
_DTYPES = {name: np.dtype(f"<{kind}") for kind, name in _NAMES.items()}


def write(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays, and texts that go with them. Raises OSError, and then leaves what was there.

    (The format's own library writes to a file of an unknown name first, which stays where the process is killed.)
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    ordered = dict(sorted(arrays.items(), key=lambda entry: -entry[1].itemsize))
    end = 0
    for name, array in ordered.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.str[1:]], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in ordered.values():
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays, each a read-only view of the mapped file, and the texts.

    Raises OSError where the file cannot be read; ValueError, KeyError or TypeError where it is not such a file.
    """
    with open_file(path) as file:
        length = os.fstat(file.fileno()).st_size
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else length
        if 8 + size > length:
            raise ValueError("the file ends within its header")
        header = json.loads(file.read(size))
        # The open file, not its path: if an update replaces it meanwhile, header and data are of one file all the same.
        data: npt.NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        if length > 8 + size:
            data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + size)
    if not isinstance(header, dict):
        raise TypeError(f"its header is {reprlib.repr(header)}, not an object")
    metadata = header.pop("__metadata__", {})
    reached = 0
    for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
        if not reached == begin <= end:
            raise ValueError(f"a tensor at bytes {begin} to {end} follows one that ends at {reached}")
        reached = end
    if 8 + size + reached != length:
        raise ValueError(f"the file has {length} bytes, and its header describes {8 + size + reached}")
    arrays: Arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat: npt.NDArray[Any] = np.frombuffer(data[begin:end], dtype=_DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays, metadata


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
