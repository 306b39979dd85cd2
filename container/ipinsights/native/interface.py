"""``native.h`` for ctypes: an array of the wrong type, or with gaps, raises an error instead of a crash.

`FUNCTIONS` has the result and the parameters of each function. A test compares this file with the header.
"""

import ctypes
from typing import Any

import numpy as np


class Tables(ctypes.Structure):
    """The tables needed for scoring."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tags", "starts", "values", "entity", "ip")),
        *((name, ctypes.c_int64) for name in ("num_rows", "probes", "sharing", "wide", "intervals", "dim")),
    )


class Shape(ctypes.Structure):
    """The shape of a training's parameters, and the number of threads."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("dim", "learnt", "levels", "blocks", "threads"))


class Parameters(ctypes.Structure):
    """The addresses of the parameters."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("entity", "typical", "prefix", "square", "w", "b"))


class Batch(ctypes.Structure):
    """The positive samples of a step and their negatives."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "group", "random_rate", "shuffled_rate", "tile")),
        *((name, ctypes.c_void_p) for name in ("entity", "novelty", "positive", "random", "partner")),
    )


class Rate(ctypes.Structure):
    """`step.Rate`."""

    _fields_ = tuple((name, ctypes.c_float) for name in ("step", "decay"))


class Update(ctypes.Structure):
    """The numbers of one step of Adam."""

    _fields_ = (
        *((name, Rate) for name in ("entity", "prefix", "typical", "block")),
        *((name, ctypes.c_float) for name in ("most_sources", "mean_share", "square_share", "deviation", "epsilon")),
    )


def array_of(kind: type[np.generic]) -> type[ctypes.c_void_p]:
    """A parameter type: the address of an array of one dtype, without gaps.

    It does what numpy's ndpointer does in less than half the time. A request of one row converts a dozen arrays.
    """
    dtype = np.dtype(kind)

    class Array(ctypes.c_void_p):
        @classmethod
        def from_param(cls, array: Any) -> Any:
            if array.dtype != dtype or not array.flags.c_contiguous:
                raise TypeError(f"an array of {dtype} without gaps is needed, not of {array.dtype}")
            return ctypes.c_void_p(array.ctypes.data)

    return Array


FLAGS, U8, I32, U32, I64, U64, F32, F64 = map(
    array_of, (np.bool_, np.uint8, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64)
)
_TEXT, _ANY, _FLAG, _NUMBER = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_bool, ctypes.c_int64
_STEP = ctypes.c_void_p

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "supported": (ctypes.c_int, []),
    "sources": (ctypes.c_uint32, []),
    "read_lines": (_NUMBER, [_TEXT, _NUMBER, U64, U32]),
    "read_instances": (_NUMBER, [_TEXT, _NUMBER, _FLAG, U64, U32]),
    "parse_quads": (None, [U8, I32, _NUMBER, U32, FLAGS]),
    "hash": (None, [U8, I32, _NUMBER, U64]),
    "find_rows": (None, [U32, _NUMBER, _NUMBER, U64, _NUMBER, I32]),
    "find_intervals_32": (None, [U32, _NUMBER, I32, U32, _NUMBER, I32]),
    "find_intervals_64": (None, [U64, _NUMBER, I32, U64, _NUMBER, I32]),
    "score": (None, [F32, I32, F32, I32, _NUMBER, _NUMBER, F32]),
    "sum_rows": (None, [F32, I32, _NUMBER, _NUMBER, _NUMBER, F32]),
    "add_rows": (None, [F32, I32, _NUMBER, _NUMBER, F32]),
    "score_hashed": (None, [ctypes.POINTER(Tables), U64, _ANY, _NUMBER, F32, I32, I32]),
    "append_scores": (_NUMBER, [_TEXT, _NUMBER, F32, _NUMBER, U8]),
    "number_texts": (_NUMBER, [I32, _NUMBER, _NUMBER, I32, I32, _NUMBER, I64, I32]),
    "join": (_NUMBER, [_TEXT, _NUMBER, I32, _NUMBER, _NUMBER, U8, I64, U8]),
    "rows": (None, [_NUMBER, _NUMBER, I32, F32, F32, I32, I32]),
    "moves": (None, [_NUMBER, _NUMBER, I64, F32, F32, F32]),
    "moved": (None, [_NUMBER, _NUMBER, I64, F32, F32, F32, F32]),
    "step_new": (_STEP, [ctypes.POINTER(Shape), ctypes.POINTER(Parameters)]),
    "step_delete": (None, [_STEP]),
    "step_pack": (None, [_STEP]),
    "step_count": (None, [_STEP, I32]),
    "step_run": (None, [_STEP, ctypes.POINTER(Batch), ctypes.POINTER(Update), F64]),
    "step_touched": (_NUMBER, [_STEP, _FLAG]),
    "step_rows": (None, [_STEP, _FLAG, I64, I64, F32]),
    "step_dense": (None, [_STEP, F32, F32, F32]),
    "step_score": (None, [_STEP, _NUMBER, I32, I32, F32]),
}
"""Each function, named without the library's prefix, with its result and its parameters."""

PREFIX = "ipinsights_"


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the results and parameters of a library's functions to ctypes."""
    for name, (result, parameters) in FUNCTIONS.items():
        function = getattr(library, PREFIX + name)
        function.restype, function.argtypes = result, parameters
    return library
