"""The native kernel: C++ loops for work in which numpy and torch are slow, compiled when the package is built.

It is never compiled at run time. If the compiler was missing, or the processor lacks instructions that the code needs,
`library` returns None and `why_absent` the reason. Every caller then has a slower path that computes the same.

``native.h`` has every function and its contract, and `interface` has the same for ctypes. Each .cpp has a .py beside
it, except ``step.cpp``: `ipinsights.training.native_step` calls it, because that module has the tensors.
"""

import ctypes
import functools
import zlib
from pathlib import Path

LIBRARY = "_native.so"
"""The library's file name on every system: ctypes loads it, Python does not import it."""


def sources() -> int:
    """A digest of the C++ sources in this folder. A library contains the digest of the sources it was compiled from.

    The build calls this before the dependencies of the package are installed, so this file imports none.
    """
    digest = 0
    for path in sorted([*_FOLDER.glob("*.h"), *_FOLDER.glob("*.cpp")]):
        digest = zlib.crc32(path.read_bytes(), digest)
    return digest


def library() -> ctypes.CDLL | None:
    """The loaded kernel; None if there is none for this machine."""
    return _load()[0]


def why_absent() -> str:
    """Why `library` is None, to follow "because" in a log line; empty if it is not None."""
    return _load()[1]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return load(_FOLDER / LIBRARY)


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library in a file, with its functions declared; None and the reason if it cannot be used."""
    if not path.exists():
        return None, "the native kernel was not compiled at installation, because there was no C++ compiler"
    try:
        found = ctypes.CDLL(str(path))
        compiled_from = ctypes.c_uint32(found.ipinsights_sources()).value
    except OSError as error:
        return None, f"the native kernel cannot be loaded ({error})"
    except AttributeError:
        compiled_from = 0
    if compiled_from != sources():
        return None, "the native kernel was built from other sources: install again (pip install, or make)"
    if not found.ipinsights_supported():
        return None, "this processor lacks AVX2 or FMA, for which the native kernel was compiled"
    from ipinsights.native import interface

    return interface.declare(found), ""


_FOLDER = Path(__file__).parent
