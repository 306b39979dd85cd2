"""The native step: `step.cpp` behind the face of `step.TorchStep`, which says what it computes."""

import ctypes
import weakref

import torch

from ipinsights.training import step
from ipinsights.training.step import Batch, Gradients, Parameters, RowGradients, TorchStep

_TABLES = ("entity", "prefix")
_FIELDS = ("entity", "typical", "prefix", "w", "b")


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("dim", "levels", "blocks", "threads")]


class _Parameters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _FIELDS]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("size", "group", "random_rate", "shuffled_rate", "tile")),
        *((name, ctypes.c_void_p) for name in ("entity", "novelty", "positive", "random")),
    ]


class _Rate(ctypes.Structure):
    _fields_ = [("step", ctypes.c_float), ("keep", ctypes.c_float)]


class _Update(ctypes.Structure):
    _fields_ = [
        *((name, _Rate) for name in ("table", "typical", "block")),
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "deviation", "epsilon")),
    ]


class NativeStep:
    """Takes steps on parameters of float32 on the CPU, with a number of threads."""

    def __init__(
        self, native: ctypes.CDLL, parameters: Parameters, levels: int, weight_decay: float, threads: int
    ) -> None:
        _, blocks, dim = parameters.b.shape
        for name in _FIELDS:
            _pointer(getattr(parameters, name), torch.float32)
        self._native = native
        self._shape = _Shape(dim, levels, blocks, threads)
        self._parameters = parameters  # keeps the memory that the handle points to
        self._torch = TorchStep(parameters, weight_decay)
        self.totals = self._torch.totals
        native.ipinsights_step_new.restype = ctypes.c_void_p
        native.ipinsights_step_touched.restype = ctypes.c_int64
        pointers = _Parameters(*(getattr(parameters, name).data_ptr() for name in _FIELDS))
        self._handle = ctypes.c_void_p(native.ipinsights_step_new(ctypes.byref(self._shape), ctypes.byref(pointers)))
        weakref.finalize(self, native.ipinsights_step_delete, self._handle)

    def run(self, batch: Batch, learning_rate: float) -> None:
        """Learn from a batch."""
        rates = self._torch.next_rates(learning_rate)
        update = _Update(
            *(_Rate(*rate) for rate in (rates.table, rates.typical, rates.block)),
            step.BETA1,
            step.BETA2,
            rates.deviation,
            step.EPSILON,
        )
        self._run(batch, update, self.totals)

    def gradients(self, batch: Batch) -> Gradients:
        """What the batch would teach."""
        totals = torch.zeros_like(self.totals)
        self._run(batch, None, totals)
        _, blocks, dim = self._parameters.b.shape
        tables = {}
        for prefix, name in enumerate(_TABLES):
            count = self._native.ipinsights_step_touched(self._handle, prefix)
            rows, values = torch.empty(count, dtype=torch.int64), torch.empty(count, dim)
            self._native.ipinsights_step_rows(self._handle, prefix, _pointer(rows), _pointer(values))
            tables[name] = RowGradients(rows, values)
        typical, w, b = torch.empty(dim), torch.empty(blocks, dim, dim), torch.empty(blocks, dim)
        self._native.ipinsights_step_dense(self._handle, _pointer(typical), _pointer(w), _pointer(b))
        return Gradients(tables["entity"], typical, tables["prefix"], w, b, totals)

    def apply(self, gradients: Gradients, learning_rate: float) -> None:
        """Learn that."""
        self._torch.apply(gradients, learning_rate)
        self._native.ipinsights_step_pack(self._handle)

    def wait(self) -> None:
        """All is done already."""

    def resume(self, steps: int) -> None:
        """Go on after so many steps, with parameters that were set from outside."""
        self._torch.resume(steps)
        self._native.ipinsights_step_pack(self._handle)

    def score(self, entity: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The scores of n pairs."""
        scores = torch.empty(len(entity))
        self._native.ipinsights_step_score(
            self._handle,
            ctypes.c_int64(len(entity)),
            _pointer(entity, torch.int32),
            _pointer(rows, torch.int32),
            _pointer(scores),
        )
        return scores

    def _run(self, batch: Batch, update: _Update | None, totals: torch.Tensor) -> None:
        native = _Batch(
            len(batch.entity),
            batch.group,
            batch.random.shape[1],
            batch.shuffled_rate,
            batch.tile,
            *(
                _pointer(array, kind)
                for array, kind in (
                    (batch.entity, torch.int32),
                    (batch.novelty, torch.float32),
                    (batch.positive, torch.int32),
                    (batch.random, torch.int32),
                )
            ),
        )
        self._native.ipinsights_step_run(
            self._handle,
            ctypes.byref(native),
            ctypes.byref(update) if update else None,
            _pointer(totals, torch.float64),
        )


def rows_with_dropout(
    native: ctypes.CDLL, leaves: torch.Tensor, drawn: torch.Tensor, hidden: torch.Tensor, chains: torch.Tensor
) -> torch.Tensor:
    """What `batches.PrefixIndex` says: leaves int32 [n], drawn float32 [n], to int32 [n, L]."""
    count, levels = len(leaves), chains.shape[1]
    rows = torch.empty(count, levels, dtype=torch.int32)
    native.ipinsights_rows(
        ctypes.c_int64(count),
        ctypes.c_int64(levels),
        _pointer(leaves, torch.int32),
        _pointer(drawn, torch.float32),
        _pointer(hidden, torch.float32),
        _pointer(chains, torch.int32),
        _pointer(rows),
    )
    return rows


def _pointer(array: torch.Tensor, dtype: torch.dtype | None = None) -> ctypes.c_void_p:
    """Where a tensor's numbers are. They must lie as the kernel reads them."""
    if dtype not in (None, array.dtype) or not array.is_contiguous() or array.device.type != "cpu":
        raise TypeError(f"the kernel needs contiguous {dtype} on the CPU, not {array.dtype} on {array.device}")
    return ctypes.c_void_p(array.data_ptr())
