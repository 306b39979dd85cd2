"""The ranks of a training, and what they do together. A training on one host is a group of one.

A rank is a process. A host has one of them, or one for each of its GPUs; ranks are numbered host by host.

Every method but the last three is collective: all ranks call it, in the same order. Arrays go in and come out as numpy
arrays; only `Group.add` takes what a device holds. Sums of floats run in an order that the number of ranks alone
decides, and all ranks get the same bits.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from ipinsights.errors import UserError

if TYPE_CHECKING:
    import torch

Scalar = TypeVar("Scalar", bound=np.generic)
Array = npt.NDArray[Scalar]
Number = TypeVar("Number", int, float)


class OtherHostFailed(Exception):
    """Another host has failed, and says why in its own failure file. The text names it."""

    def __init__(self, host: str, kind: str, text: str) -> None:
        """``kind`` is the name of the class of the exception there, and ``text`` its own."""
        super().__init__(f"host {host} failed: {text or kind}")
        self.kind = kind


class OtherHostStopped(Exception):  # no error: it was asked for
    """Another host was asked to stop before all had come together. The text names it."""


class Group:
    """A group of one rank: whatever it computes is of all."""

    rank = 0
    size = 1
    hosts: Sequence[str] = ("algo-1",)
    """How messages call each rank: by its host, and by its GPU where the host has several."""
    host = 0
    """The number of this rank's host."""
    process = 0
    """The number of this rank on its host."""
    processes: Sequence[int] = (1,)
    """How many ranks each host has."""

    @property
    def leads(self) -> bool:
        """Whether this rank is the leader, which alone prints metrics and writes the model."""
        return self.rank == 0

    def sum(self, array: Array[Scalar]) -> Array[Scalar]:
        """The sum of the ranks' arrays, of one shape. It may be computed in place."""
        return array

    def add(self, tensor: "torch.Tensor") -> None:
        """Put in place of a tensor, contiguous and on any device, the sum of the ranks' tensors, of one shape."""

    def exchange(self, parts: Sequence[Array[Scalar]]) -> list[Array[Scalar]]:
        """What each rank has for this one. Part r goes to rank r, [n, ...]: of any n, 0 too, and else of one shape."""
        return list(parts)

    def gather(self, array: Array[Scalar]) -> list[Array[Scalar]]:
        """All ranks' arrays, on every rank: as in `exchange`, of any length."""
        return self.exchange([array] * self.size)

    def collect(self, array: Array[Scalar]) -> list[Array[Scalar]]:
        """All ranks' arrays on the leader, as in `exchange`. Other ranks get arrays of length 0."""
        return self.exchange([array if rank == 0 else array[:0] for rank in range(self.size)])

    def broadcast(self, array: Array[Scalar]) -> Array[Scalar]:
        """The leader's array, on every rank. Other ranks give one of the same type and number of axes."""
        parts = [array if self.leads else array[:0]] * self.size
        return self.exchange(parts)[0]

    def total(self, number: Number) -> Number:
        """The sum of whole numbers or of floats."""
        summed: Number = self.sum(np.array([number]))[0].item()
        return summed

    @property
    def beside(self) -> int:
        """How many ranks this host has."""
        return self.processes[self.host]

    def total_here(self, number: Number) -> Number:
        """The sum over the ranks of this host."""
        first = sum(self.processes[: self.host])
        summed: Number = np.concatenate(self.gather(np.array([number])))[first : first + self.beside].sum().item()
        return summed

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.total(int(flag)))

    def reason(self, text: str) -> str:
        """The ``text`` of the first rank that has one, with the name of its host; empty where none has one."""
        if self.size == 1:
            return text
        texts = [array.tobytes().decode() for array in self.gather(np.frombuffer(text.encode(), dtype=np.uint8))]
        return next((f"on host {host} {given}" for host, given in zip(self.hosts, texts, strict=True) if given), "")

    def agree(self, error: Exception | None) -> None:
        """Go on only if all ranks can. Raises the ``error`` where there is one, and `OtherHostFailed` elsewhere."""
        if error:
            raise error

    def require_same(self, what: str, digest: str) -> None:
        """Raise UserError, on all ranks, unless all have the same ``digest`` of something that all must have alike."""
        theirs = [array.tobytes() for array in self.gather(np.frombuffer(digest.encode(), dtype=np.uint8))]
        other = next((host for host, found in zip(self.hosts, theirs, strict=True) if found != theirs[0]), None)
        if other:
            raise UserError(f"{what} is not the same on all hosts: {other} has another one than {self.hosts[0]}")

    def fail(self, reason: str) -> None:
        """Leave because of a failure. All other ranks are told, and end too."""

    def leave(self) -> None:
        """Leave without a word: from now on nobody minds if this rank is gone."""

    def close(self) -> None:
        """Leave when the work is done. Not collective, either."""


ALONE = Group()
