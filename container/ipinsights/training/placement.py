"""Where a training runs, and the memory that it takes there.

On a GPU, if there is one that works and has memory enough, else on the CPU. Whatever makes training slower than it
could be is told with its reason, before anything is taken.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from ipinsights import native
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.machine import available_memory
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import gpu_step, sampling

_GPU_SLACK = 512 << 20
"""Bytes of a GPU's memory that torch and the driver take for themselves."""


def choose(
    device: str | None, hp: Hyperparameters, vocabulary: Vocabulary, events: int, memory: int
) -> tuple[torch.device, str]:
    """Where to train, unless a ``device`` is given; and why that is slower than it could be.

    ``memory`` is what training takes anywhere, in bytes.
    """
    on_gpu = memory + _gpu_memory(hp, vocabulary, events)
    place, because = (torch.device(device), "") if device else _best_device(on_gpu)
    if place.type == "cpu":
        return place, because or native.why_absent()
    with current(place):
        because = gpu_step.why_not(hp, vocabulary.depth, place)
    if because and not device and (fault := _gpu_fault()):  # what was tried may have been too much for it
        return torch.device("cpu"), fault
    return place, because


def current(place: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the one that kernels start on."""
    return torch.cuda.device(place) if place.type == "cuda" else nullcontext()


def require_memory(needed: int) -> None:
    """Raise UserError where the machine has less memory left than that, in bytes."""
    available = available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"the model and its training take {needed / 1e6:,.0f} MB of memory, and this machine has "
            f"{available / 1e6:,.0f} MB left: lower num_entity_vectors, vector_dim or mini_batch_size, or take a "
            "larger machine"
        )


def memory(hp: Hyperparameters, vocabulary: Vocabulary, events: int, entities: int) -> int:
    """Bytes that training takes: parameters with their means, copies of weights, a step, events, vocabulary."""
    size, random = _largest_batch(hp, events)
    rows = entities + 1 + vocabulary.num_rows + hp.num_ip_encoder_layers * (hp.vector_dim + 1)
    copies = 2 if hp.saved_epoch == "best" else 1  # the embeddings of entities at the end, and those of the best epoch
    step = (2 * size + random) * (hp.vector_dim + vocabulary.depth)
    numbers = (3 * rows + copies * entities) * hp.vector_dim + step + 5 * events + 2 * vocabulary.chains.size
    return 4 * numbers + 5 * hp.num_entity_vectors


def _gpu_fault() -> str:
    """Why a GPU that is there cannot be used; empty where it can, or where there is none."""
    if not torch.cuda.is_available():
        there = torch.cuda.device_count() > 0
        return f"the GPU's driver is too old for this torch, of CUDA {torch.version.cuda}" if there else ""
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return f"the GPU cannot be used ({str(error).strip().partition(chr(10))[0]})"
    return ""


def _best_device(needed: int) -> tuple[torch.device, str]:
    """A GPU that can be used and has so many bytes left, else the CPU; and if there is another GPU, why not that."""
    fault = _gpu_fault()
    if fault or not torch.cuda.is_available():
        return torch.device("cpu"), fault
    free, _ = torch.cuda.mem_get_info()
    if needed <= free:
        return torch.device("cuda"), ""
    return torch.device("cpu"), (
        f"the GPU has {free / 1e6:,.0f} MB free, and training there takes {needed / 1e6:,.0f} MB: lower vector_dim or "
        "mini_batch_size, or take a larger GPU"
    )


def _gpu_memory(hp: Hyperparameters, vocabulary: Vocabulary, events: int) -> int:
    """What it takes on a GPU besides: two steps' intermediate results, as one is recorded beside another."""
    step = gpu_step.memory(
        *_largest_batch(hp, events),
        hp.shuffled_negative_sampling_rate,
        vocabulary.depth,
        hp.num_ip_encoder_layers,
        hp.vector_dim,
    )
    return _GPU_SLACK + 2 * step


def _largest_batch(hp: Hyperparameters, events: int) -> tuple[int, int]:
    """Its positives and random addresses."""
    size = min(hp.mini_batch_size, events)
    return size, sampling.groups(size, hp.random_negative_sampling_rate) * hp.random_negative_sampling_rate
