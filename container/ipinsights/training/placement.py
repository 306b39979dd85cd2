"""Where a training runs, which step it uses, and how much memory it needs there.

Training runs on a GPU if one works and has enough memory, else on the CPU. If training will be slower than possible,
the placement gives the reason before any memory is allocated.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ipinsights import native
from ipinsights.distributed.group import ALONE, Group
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.machine import has_gpu
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import gpu_step, sampling
from ipinsights.training.batches import DRAWN

_GPU_SLACK = 512 << 20
"""Bytes of a GPU's memory that torch and the driver need."""
_ABSENT = "this machine has no GPU"


StepName = Literal["native", "graph", "torch"]
"""`NativeStep` on the CPU, `GpuStep` as a recorded CUDA graph, or `TorchStep`, which runs anywhere."""


@dataclass(frozen=True)
class Placement:
    """Where to train, and how."""

    device: torch.device
    step: StepName
    slower_because: str = ""
    """Why training is slower than possible, to follow "because"; empty without a known reason."""

    @property
    def current(self) -> AbstractContextManager[object]:
        """Makes the GPU the current one, on which kernels start."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def choose(
    device: str | None, hp: Hyperparameters, vocabulary: Vocabulary, events: int, memory: int, group: Group = ALONE
) -> Placement:
    """The best placement of a training that `Hyperparameters.device` allows; on torch's ``device``, if one is given.

    ``memory`` is what training needs on any device, in bytes. Raises UserError if it must be a GPU, and none will do.
    All ranks of a ``group`` train alike: on GPUs if each has one that will do, and by recorded steps if each can.
    """
    if device is None and hp.device == "cpu":
        device = "cpu"
    on_gpu = memory + _gpu_memory(hp, vocabulary, events)
    place, fault = (torch.device(device), "") if device else _best_device(on_gpu, group)
    if group.any(on_cpu := place.type == "cpu"):
        if group.any(not on_cpu) and on_cpu:
            fault = fault or _ABSENT
        fault = group.reason(fault)
        if device is None and hp.device == "gpu":
            raise _no_gpu(fault)
        return _on_cpu(fault)
    plain = Placement(place, "torch")
    with plain.current:
        obstacle = group.reason(gpu_step.why_not(hp, vocabulary.depth, place))
    if not obstacle:
        return replace(plain, step="graph")
    if not device and (fault := group.reason(gpu_fault(group))):  # the trial may have broken the GPU
        if hp.device == "gpu":
            raise _no_gpu(fault)
        return _on_cpu(fault)
    return replace(plain, slower_because=obstacle)


def _on_cpu(fault: str) -> Placement:
    """The placement on the CPU, perhaps because of a fault of the GPU."""
    step: StepName = "native" if native.library() else "torch"
    return Placement(torch.device("cpu"), step, fault or native.why_absent())


def memory(hp: Hyperparameters, vocabulary: Vocabulary, events: int, entities: int, ranks: int = 1) -> int:
    """Bytes that training needs: parameters with their means, copies of weights, a step, events, vocabulary.

    One of several ranks needs more to combine the encoders: what they were and how they move, and counts (`union`).
    """
    size, random = _largest_batch(hp, events)
    encoder = vocabulary.num_rows + hp.num_ip_encoder_layers * (hp.vector_dim + 1)
    rows = entities + 1 + encoder
    copies = 2 if hp.saved_epoch == "best" else 1  # the embeddings of entities at the end, and those of the best epoch
    step = (2 * size + random) * (hp.vector_dim + vocabulary.depth)
    partners = 2 * hp.shuffled_negative_sampling_rate * min(max(size, DRAWN), events)
    # Prefix rows have one number of Adam's each, and a copy to score with.
    state = 3 * rows - vocabulary.num_rows + copies * entities
    numbers = state * hp.vector_dim + vocabulary.num_rows + step + partners + 9 * events + 2 * vocabulary.chains.size
    if ranks > 1:
        numbers += 2 * encoder * hp.vector_dim + 6 * vocabulary.num_rows
    return 4 * numbers + 5 * hp.num_entity_vectors


def gpus() -> int:
    """How many GPUs this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def require_gpu(group: Group = ALONE) -> None:
    """Raise UserError if the GPU of this rank cannot be used, whatever its memory."""
    if (fault := gpu_fault(group)) or not torch.cuda.is_available():
        raise _no_gpu(fault)


def _no_gpu(fault: str) -> UserError:
    return UserError(f"device=gpu, but {fault or _ABSENT}. With device=cpu it trains on the CPU")


def _gpu(group: Group) -> torch.device:
    """The GPU of this rank, which is the one of its number where its host has several."""
    return torch.device("cuda", group.process) if group.beside > 1 else torch.device("cuda")


def gpu_fault(group: Group = ALONE) -> str:
    """Why the GPU of this rank cannot be used; empty if it can, or if there is none."""
    if not torch.cuda.is_available():
        if torch.cuda.device_count() > 0:
            return f"the GPU's driver is too old for this torch, of CUDA {torch.version.cuda}"
        if not has_gpu():
            return ""
        if torch.version.cuda is None:
            return "this machine has a GPU, and this torch is a build for CPUs: use the image for GPUs"
        return "this machine has a GPU that this process cannot see: start the container with --gpus all"
    try:
        torch.zeros(1, device=_gpu(group)).add_(1).item()
    except RuntimeError as error:
        return f"the GPU cannot be used ({str(error).strip().partition(chr(10))[0]})"
    return ""


def _best_device(needed: int, group: Group = ALONE) -> tuple[torch.device, str]:
    """The GPU of this rank, if it works and has so many bytes free; else the CPU and the reason against the GPU."""
    fault = gpu_fault(group)
    if fault or not torch.cuda.is_available():
        return torch.device("cpu"), fault
    free, _ = torch.cuda.mem_get_info(_gpu(group))
    if needed <= free:
        return _gpu(group), ""
    return torch.device("cpu"), (
        f"the GPU has {free / 1e6:,.0f} MB free, and training there needs {needed / 1e6:,.0f} MB: lower vector_dim or "
        "mini_batch_size, or use a larger GPU"
    )


def _gpu_memory(hp: Hyperparameters, vocabulary: Vocabulary, events: int) -> int:
    """Bytes needed in addition on a GPU: intermediate results of two steps, as one is recorded beside another."""
    step = gpu_step.memory(
        *_largest_batch(hp, events),
        hp.shuffled_negative_sampling_rate,
        vocabulary.depth,
        hp.num_ip_encoder_layers,
        hp.vector_dim,
    )
    return _GPU_SLACK + 2 * step


def _largest_batch(hp: Hyperparameters, events: int) -> tuple[int, int]:
    """The numbers of its positives and of its random addresses."""
    size = min(hp.mini_batch_size, events)
    return size, sampling.groups(size, hp.random_negative_sampling_rate) * hp.random_negative_sampling_rate
