"""The native step: `step.cpp` with the interface of `step.TorchStep`, which specifies the result."""

import ctypes
import weakref

import torch

from ipinsights.native import interface
from ipinsights.training import step
from ipinsights.training.step import Batch, Gradients, Parameters, RowGradients, TorchStep

_TABLES = ("entity", "prefix")
_PARAMETERS = ("entity", "typical", "prefix", "square", "w", "b")


class NativeStep:
    """Takes steps on float32 parameters on the CPU, with several threads."""

    def __init__(
        self, native: ctypes.CDLL, parameters: Parameters, levels: int, weight_decay: float, threads: int
    ) -> None:
        _, blocks, dim = parameters.b.shape
        pointers = interface.Parameters(*(_pointer(getattr(parameters, name), torch.float32) for name in _PARAMETERS))
        self._native = native
        self._parameters = parameters  # keeps the memory that the handle points to
        self._torch = TorchStep(parameters, weight_decay)
        self.totals = self._torch.totals
        shape = interface.Shape(dim, parameters.learnt, levels, blocks, threads)
        self._handle = native.ipinsights_step_new(shape, pointers)
        weakref.finalize(self, native.ipinsights_step_delete, self._handle)

    def run(self, batch: Batch, learning_rate: float) -> None:
        """Take one optimiser step on a batch."""
        rates = self._torch.next_rates(learning_rate)
        update = interface.Update(
            *(interface.Rate(*rate) for rate in (rates.entity, rates.prefix, rates.typical, rates.block)),
            step.MOST_SOURCES,
            1 - step.BETA1,
            1 - step.BETA2,
            rates.deviation,
            step.EPSILON,
        )
        self._run(batch, update, self.totals)

    def gradients(self, batch: Batch) -> Gradients:
        """The gradients of a batch."""
        totals = torch.zeros_like(self.totals)
        self._run(batch, None, totals)
        _, blocks, dim = self._parameters.b.shape
        tables = {}
        for prefix, name in enumerate(_TABLES):
            count = self._native.ipinsights_step_touched(self._handle, prefix)
            rows, sources = torch.empty(2, count, dtype=torch.int64)
            values = torch.empty(count, dim)
            self._native.ipinsights_step_rows(self._handle, prefix, rows.numpy(), sources.numpy(), values.numpy())
            tables[name] = RowGradients(rows, sources, values)
        typical, w, b = torch.empty(dim), torch.empty(blocks, dim, dim), torch.empty(blocks, dim)
        self._native.ipinsights_step_dense(self._handle, typical.numpy(), w.numpy(), b.numpy())
        return Gradients(tables["entity"], typical, tables["prefix"], w, b, totals)

    def apply(self, gradients: Gradients, learning_rate: float) -> None:
        """Take one optimiser step with given gradients."""
        self._torch.apply(gradients, learning_rate)
        self._native.ipinsights_step_pack(self._handle)

    def wait(self) -> None:
        """Nothing to wait for: `run` returns when the step is done."""

    def resume(self, steps: int) -> None:
        """Resume after so many steps, with parameters that were set from outside."""
        self._torch.resume(steps)
        self._native.ipinsights_step_pack(self._handle)

    def count(self, touches: torch.Tensor) -> None:
        """Count the steps that touch each prefix row, from now on."""
        self._touches = touches  # keeps the memory that the handle points to
        self._native.ipinsights_step_count(self._handle, touches.numpy())
        self._torch.count(touches)

    def score(self, entity: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The scores of n pairs."""
        scores = torch.empty(len(entity))
        self._native.ipinsights_step_score(self._handle, len(entity), entity.numpy(), rows.numpy(), scores.numpy())
        return scores

    def _run(self, batch: Batch, update: interface.Update | None, totals: torch.Tensor) -> None:
        native = interface.Batch(
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
                    (batch.partner, torch.int32),
                )
            ),
        )
        self._native.ipinsights_step_run(self._handle, native, update, totals.numpy())


def moves(native: ctypes.CDLL, rows: torch.Tensor, table: torch.Tensor, base: torch.Tensor, to: torch.Tensor) -> None:
    """How far some rows, int64 [n], of a table [P, D] have moved from ``base``, [P, D]: ``to`` [n, D]."""
    arrays = (array.numpy() for array in (rows, table, base, to))
    native.ipinsights_moves(len(rows), base.shape[1], *arrays)


def moved(
    native: ctypes.CDLL,
    rows: torch.Tensor,
    by: torch.Tensor,
    scale: torch.Tensor,
    table: torch.Tensor,
    base: torch.Tensor,
) -> None:
    """Move rows of ``base`` ``by``, [n, D], times ``scale``, [n], and set the weights of the table to it."""
    arrays = (array.numpy() for array in (rows, by, scale, table, base))
    native.ipinsights_moved(len(rows), base.shape[1], *arrays)


def rows_with_dropout(
    native: ctypes.CDLL, leaves: torch.Tensor, drawn: torch.Tensor, hidden: torch.Tensor, chains: torch.Tensor
) -> torch.Tensor:
    """As `batches.PrefixIndex.rows_with_dropout`: leaves int32 [n], drawn float32 [n], to int32 [n, L]."""
    count, levels = len(leaves), chains.shape[1]
    rows = torch.empty(count, levels, dtype=torch.int32)
    arrays = (array.numpy() for array in (leaves, drawn, hidden, chains, rows))
    native.ipinsights_rows(count, levels, *arrays)
    return rows


def _pointer(array: torch.Tensor, dtype: torch.dtype) -> ctypes.c_void_p:
    """The address of a tensor's numbers. Raises TypeError if the kernel cannot read their layout."""
    if array.dtype != dtype or not array.is_contiguous() or array.device.type != "cpu":
        raise TypeError(f"the kernel needs contiguous {dtype} on the CPU, not {array.dtype} on {array.device}")
    return ctypes.c_void_p(array.data_ptr())
