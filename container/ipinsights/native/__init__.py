"""The native kernel: loops in C++ for what numpy and torch cannot do at speed, compiled when the package is built.

Never compiled at run time. Where the compiler was missing, or the processor lacks what the code was compiled for,
`library` gives None with the reason in `why_absent`, and every caller has a slower path that computes the same.

A .py lies beside each .cpp, but for ``step.cpp``: `ipinsights.training.native_step` calls that, since it holds tensors.
"""

import ctypes
import functools
import importlib.machinery
from pathlib import Path

_STEM = "_native"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    folder = Path(__file__).parent
    candidates = [folder / (_STEM + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        return None, "the native kernel was not compiled when the package was installed, for want of a C++ compiler"
    try:
        native = ctypes.CDLL(str(found))
    except OSError as error:
        return None, f"the native kernel cannot be loaded ({error})"
    if not native.ipinsights_supported():
        return None, "this processor lacks AVX2 or FMA, for which the native kernel was compiled"
    return native, ""


def library() -> ctypes.CDLL | None:
    """The loaded kernel; None where there is none for this machine."""
    return _load()[0]


def why_absent() -> str:
    """Why `library` is None, to follow "because" in a log line; empty where it is there."""
    return _load()[1]
