"""The kernels for GPUs interpreted on the CPU, as Triton can, and a stand-in for CUDA graphs. Needs Triton."""

import functools
import os
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training import gpu_step
from training.gpu_kernels import INTERPRET, KERNELS

with patch.dict(os.environ, INTERPRET):
    pytest.importorskip("triton", reason="there is no Triton")
    from ipinsights.training import gpu_kernels as gpu_kernels


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, which has no types
    """What `gpu.CudaGraphs` does, on the CPU: operations on places in memory, done again without any Python between."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's, which has no types
        self.done: list[Callable[[], None]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}

        def again() -> None:
            for place, value in zip(places, tree_leaves(func(*args, **kwargs)), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)

        if func._schema.is_mutable:
            self.keep(args[0], kwargs.get("out"))
        results = func(*args, **kwargs)
        places = tree_leaves(results)
        self.done.append(again)
        return results

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record, and undo what was done meanwhile: a CUDA graph does not do what it records."""
        self.done, self.before = [], []
        with pytest.MonkeyPatch.context() as patched, self:
            for name in KERNELS:
                patched.setattr(gpu_kernels, name, Launcher(self, getattr(gpu_kernels, name)))
            work()
        for place, value in reversed(self.before):
            place.copy_(value)
        done = self.done

        def play() -> None:
            for do in done:
                do()

        return play

    def keep(self, *places: Any) -> None:
        self.before += [(place, place.clone()) for place in places if isinstance(place, torch.Tensor)]


class Launcher:
    """A kernel whose launches are recorded, too."""

    def __init__(self, recorder: Recorder, kernel: Any) -> None:
        self.recorder, self.kernel = recorder, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            with _disable_current_modes():
                self.recorder.keep(*arguments)
                self.kernel[grid](*arguments, **options)
            self.recorder.done.append(lambda: self.kernel[grid](*arguments, **options))

        return launch


def need_interpreter() -> None:
    """Skip where Triton cannot interpret and a GPU runs the kernels themselves.

    A machine with a GPU may have another Triton than ours, whose interpreter its numpy is too new for.
    """
    if torch.cuda.is_available() and (fault := _interpreter_fault()):
        pytest.skip(f"Triton cannot interpret here: {fault}")


@functools.cache
def _interpreter_fault() -> str:
    with patch.dict(os.environ, INTERPRET):
        try:
            gpu_step.deviation(Hyperparameters(num_entity_vectors=2, vector_dim=8), 2, torch.device("cpu"), Recorder())
        except Exception as error:  # whatever Triton raises
            return f"{type(error).__name__}: {error}"
    return ""
