"""Several ranks train one encoder: each takes steps of its own, and now and then they combine what their rows moved.

An entity's row is on one rank, so it needs no exchange. The encoder is on all. Between two exchanges each rank moves
its copy. Then a prefix row becomes

    base + s * sum over ranks r of moved_r,    s = H (1 - product of (1 - t_r / H)) / sum of t_r,

where t_r of the H steps of rank r touched the row. The numerator is how many of H steps would have touched it if all
ranks' mini-batches had been one. So a row that all ranks touch in every step moves by the mean, and a row that one rank
met once moves as there. A plain mean would forget what few ranks learn, and a sum would go too far where many learn the
same: both are measurably worse (docs/distributed.md). The dense parameters move by the mean, weighted by the steps that
each rank took. Adam's running means stay where they are.

This is local SGD (Stich, ICLR 2019) with a mean for sparse rows. Nothing waits for an exchange in every step, which
would take longer than the step.
"""

import ctypes
import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ipinsights.distributed.group import Group
from ipinsights.training import native_step
from ipinsights.training.step import Parameters, Step

PARTS = 8
"""Exchanges an epoch, where there is enough between them."""
POSITIVES = 8
"""Positives of a rank for each prefix row between two exchanges, at least: then exchanging takes about 4 % of the time
at 10 Gbit/s."""
_LISTEN = 1.0
"""Seconds between two questions whether any rank was asked to stop."""
_NEARLY_ALL = 1 - 1e-6


def period(steps: int, mini_batch_size: int, ranks: int, rows: int) -> int:
    """The steps between two exchanges, in epochs of so many ``steps``, of ``ranks`` that train ``rows`` prefix rows."""
    enough = POSITIVES * rows / (mini_batch_size / ranks)
    return max(1, min(steps, math.ceil(max(steps / PARTS, enough))))


class Union:
    """Keeps the encoder of one rank in step with those of the others."""

    def __init__(
        self,
        group: Group,
        parameters: Parameters,
        step: Step,
        steps: int,
        every: int,
        native: ctypes.CDLL | None = None,
    ) -> None:
        """Epochs have so many ``steps``, and after ``every`` of them, and at their ends, encoders are combined."""
        self._group = group
        self._native = native
        self._parameters = parameters
        self._step = step
        self._steps = steps
        self._every = every
        self._touches = torch.zeros(len(parameters.prefix), dtype=torch.int32, device=parameters.prefix.device)
        step.count(self._touches)
        self._since = self._own = 0
        self._listen_after, self._gap, self._listened = 1, 1, time.monotonic()
        self.totals: npt.NDArray[np.float64] = np.zeros(3)
        """`Step.totals` of all ranks, as of the last exchange."""
        self.stopped = False
        """Whether a rank was asked to stop."""
        self.sent = 0
        """Bytes that this rank gave to exchanges."""
        self.begin()

    def begin(self) -> None:
        """All ranks' encoders are the same now."""
        self._base = [weight.clone() for weight in self._weights()]
        self._touches.zero_()
        self._since = self._own = 0

    def stepped(self, took: bool, position: int, number: int, stop: Callable[[], bool]) -> bool:
        """A step is over: of this epoch the ``position``-th, of all the ``number``-th, which this rank ``took`` or not.

        ``stop`` asks all ranks whether any is to stop; then it is called about once a second. Returns whether the
        encoders were combined: after every period, at the end of an epoch, and where training stops.
        """
        self._since += 1
        self._own += took
        due = position % self._every == 0 or position == self._steps
        self._listen_after -= 1
        if not self._listen_after:
            self.stopped = stop()
            due |= self.stopped
            self._wait_to_listen()
        if due:
            self.combine(number)
        return due

    def combine(self, number: int) -> None:
        """Combine the encoders after so many steps in all."""
        group, steps = self._group, self._since
        share = self._own / max(1, group.total(self._own))
        touched = self._touches.float()
        counts = torch.stack([touched, torch.log1p(-(touched / steps).clamp(max=_NEARLY_ALL))])
        group.add(counts)
        touched, missed = counts
        rows = touched.nonzero().view(-1)
        scale = -torch.expm1(missed[rows]) * steps / touched[rows]
        dense = list(zip(self._weights(), self._base, strict=True))[1:]
        shape = len(rows), self._base[0].shape[1]
        sizes = [math.prod(shape), *(now.numel() for now, _ in dense)]
        flat = torch.empty(sum(sizes), device=touched.device)
        first, *others = torch.split(flat, sizes)
        self._moves(rows, first.view(shape))
        for (now, before), part in zip(dense, others, strict=True):
            torch.sub(now, before, out=part.view(now.shape)).mul_(share)
        self.sent += flat.nbytes + counts.nbytes
        group.add(flat)
        self._moved(rows, first.view(shape), scale)
        for (now, base), part in zip(dense, others, strict=True):
            now.copy_(base.add_(part.view(base.shape)))
        self._touches.zero_()
        self._since = self._own = 0
        self._step.resume(number)
        self.add_up()

    def _moves(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        """How far prefix rows have moved since all ranks had the same."""
        table, base = self._parameters.prefix, self._base[0]
        if self._native:
            native_step.moves(self._native, rows, table, base, to)
        else:
            torch.sub(table.index_select(0, rows), base.index_select(0, rows), out=to)

    def _moved(self, rows: torch.Tensor, by: torch.Tensor, scale: torch.Tensor) -> None:
        """Move them from there."""
        table, base = self._parameters.prefix, self._base[0]
        if self._native:
            native_step.moved(self._native, rows, by, scale, table, base)
        else:
            base.index_add_(0, rows, by * scale[:, None])
            table.copy_(base)

    def add_up(self) -> None:
        """Learn the totals of all ranks."""
        self.totals = self._group.sum(self._step.totals.numpy(force=True).copy())

    def _weights(self) -> list[torch.Tensor]:
        """The encoder's weights, as views."""
        p = self._parameters
        return [p.prefix, p.typical[0], p.w[0], p.b[0]]

    def _wait_to_listen(self) -> None:
        """The leader's clock decides after how many steps the ranks speak again, at the same step all of them."""
        now = time.monotonic()
        faster = _LISTEN / max(now - self._listened, 1e-3)
        gap = min(max(1, int(self._gap * min(faster, 4.0))), 1 << 20)
        self._listened = now
        self._gap = self._listen_after = self._group.total(gap if self._group.leads else 0)
