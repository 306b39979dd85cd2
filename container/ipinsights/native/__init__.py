"""The native kernel: loops in C++ for what numpy and torch cannot do at speed, compiled when the package is built.

Never compiled at run time. Where the compiler was missing, or the processor lacks what the code was compiled for,
`library` gives None with the reason in `why_absent`, and every caller has a slower path that computes the same.

``native.h`` has every function and its contract, and `interface` the same for ctypes. A .py lies beside each .cpp, but
for ``step.cpp``: `ipinsights.training.native_step` calls that, since it holds tensors.
"""

import ctypes
import functools
import zlib
from pathlib import Path

LIBRARY = "_native.so"
"""The library's file, on every system: ctypes loads it, and no Python imports it."""


def sources() -> int:
    """A digest of the C++ sources that lie here: which ones a library was compiled from, and which ones it should be.

    The build calls this before the package has any of its dependencies, so this file imports none.
    """
    digest = 0
    for path in sorted([*_FOLDER.glob("*.h"), *_FOLDER.glob("*.cpp")]):
        digest = zlib.crc32(path.read_bytes(), digest)
    return digest


def library() -> ctypes.CDLL | None:
    """The loaded kernel; None where there is none for this machine."""
    return _load()[0]


def why_absent() -> str:
    """Why `library` is None, to follow "because" in a log line; empty where it is there."""
    return _load()[1]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return load(_FOLDER / LIBRARY)


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library in a file, with its functions declared; None with the reason where it cannot be used."""
    if not path.exists():
        return None, "the native kernel was not compiled when the package was installed, for want of a C++ compiler"
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
