"""A group whose ranks are threads of one process: for tests of what ranks compute together, many in a second."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from ipinsights.distributed.group import Array, Group, OtherHostFailed, Scalar

Result = TypeVar("Result")


class Threads(Group):
    """One of several ranks."""

    def __init__(self, rank: int, processes: Sequence[int], barrier: threading.Barrier, given: list[Any]) -> None:
        """Of hosts that have so many ``processes``."""
        size = sum(processes)
        self.rank, self.size = rank, size
        self.hosts = tuple(f"algo-{number}" for number in range(1, size + 1))
        places = [(host, process) for host, number in enumerate(processes) for process in range(number)]
        (self.host, self.process), self.processes = places[rank], processes
        self._barrier = barrier
        self._given = given

    def _all(self, mine: Any) -> list[Any]:
        """What each rank gives."""
        self._barrier.wait(60)
        self._given[self.rank] = mine
        self._barrier.wait(60)
        return list(self._given)

    def sum(self, array: Array[Scalar]) -> Array[Scalar]:
        assert np.dtype(array.dtype).kind in "if", f"gloo cannot sum {array.dtype}"
        arrays = self._all(array)
        assert len({each.shape for each in arrays}) == 1
        summed: Array[Scalar] = np.sum(arrays, axis=0, dtype=array.dtype)
        return summed

    def add(self, tensor: torch.Tensor) -> None:
        tensor.copy_(torch.from_numpy(self.sum(tensor.numpy().copy())))

    def exchange(self, parts: Sequence[Array[Scalar]]) -> list[Array[Scalar]]:
        assert len(parts) == self.size
        given = [theirs[self.rank] for theirs in self._all(parts)]
        assert len({(each.dtype, each.shape[1:]) for each in given}) == 1
        return [each.copy() for each in given]

    def agree(self, error: Exception | None) -> None:
        errors = self._all(error)
        if error:
            raise error
        for host, theirs in zip(self.hosts, errors, strict=True):
            if theirs:
                raise OtherHostFailed(host, type(theirs).__name__, str(theirs))


def in_threads(ranks: int, function: Callable[[Group], Result], processes: Sequence[int] | None = None) -> list[Result]:
    """What a function returns on each of so many ranks, each on a host unless hosts have so many ``processes``."""
    barrier = threading.Barrier(ranks)
    given: list[Any] = [None] * ranks

    def run(rank: int) -> Result:
        try:
            return function(Threads(rank, processes or [1] * ranks, barrier, given))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(run, rank) for rank in range(ranks)]
        errors = [future.exception() for future in futures]
        first = next((e for e in errors if e and not isinstance(e, threading.BrokenBarrierError)), None)
        if first:
            raise first
        return [future.result() for future in futures]
