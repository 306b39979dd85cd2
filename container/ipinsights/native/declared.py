"""The library's functions with their parameters, so that an array of another type, or with gaps, is an error."""

import ctypes
import functools
from typing import Any

import numpy as np

from ipinsights import native


class Tables(ctypes.Structure):
    """``Tables`` of ``scoring.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tags", "starts", "values", "entity", "ip")),
        *((name, ctypes.c_int64) for name in ("num_rows", "probes", "sharing", "wide", "intervals", "dim")),
    )


def library() -> ctypes.CDLL | None:
    """`native.library` with its functions declared."""
    found = native.library()
    return None if found is None else _declared(found)


@functools.cache
def _declared(native: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the parameters, so that an array of another type, or with gaps, is an error."""
    number = ctypes.c_int64
    flag, u8, i32, u32, u64, f32 = map(array_of, (np.bool_, np.uint8, np.int32, np.uint32, np.uint64, np.float32))
    native.ipinsights_read_lines.argtypes = [ctypes.c_char_p, number, u64, u32]
    native.ipinsights_read_lines.restype = number
    native.ipinsights_read_instances.argtypes = [ctypes.c_char_p, number, ctypes.c_bool, u64, u32]
    native.ipinsights_read_instances.restype = number
    native.ipinsights_score.argtypes = [f32, i32, f32, i32, number, number, f32]
    native.ipinsights_score_hashed.argtypes = [ctypes.POINTER(Tables), u64, ctypes.c_void_p, number, f32]
    native.ipinsights_append_scores.argtypes = [ctypes.c_char_p, number, f32, number, u8]
    native.ipinsights_append_scores.restype = number
    native.ipinsights_parse_quads.argtypes = [u8, i32, number, u32, flag]
    native.ipinsights_hash.argtypes = [u8, i32, number, u64]
    native.ipinsights_find_rows.argtypes = [u32, number, number, u64, number, i32]
    native.ipinsights_find_intervals_32.argtypes = [u32, number, i32, u32, number, i32]
    native.ipinsights_find_intervals_64.argtypes = [u64, number, i32, u64, number, i32]
    for name in ("score", "score_hashed", "parse_quads", "hash", "find_rows", "find_intervals_32", "find_intervals_64"):
        getattr(native, f"ipinsights_{name}").restype = None
    return native


def array_of(kind: type[np.generic]) -> type[ctypes.c_void_p]:
    """A parameter that is the address of an array of a type, without gaps.

    As numpy's ndpointer, in less than half its time; a request of one row has a dozen of them.
    """
    dtype = np.dtype(kind)

    class Array(ctypes.c_void_p):
        @classmethod
        def from_param(cls, array: Any) -> Any:
            if array.dtype != dtype or not array.flags.c_contiguous:
                raise TypeError(f"an array of {dtype} without gaps is needed, not of {array.dtype}")
            return ctypes.c_void_p(array.ctypes.data)

    return Array
