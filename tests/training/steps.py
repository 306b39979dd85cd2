"""The steps that there are, made alike, and batches for them."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from ipinsights import native
from ipinsights.training import sampling
from ipinsights.training.gpu_step import GpuStep
from ipinsights.training.native_step import NativeStep
from ipinsights.training.step import Batch, Parameters, RowGradients, Step, TorchStep

if importlib.util.find_spec("triton"):
    from training import recorder as recorder  # now: torch.optim, which a test uses, imports Triton uninterpreted

LEVELS = 5
DECAY = 0.01


@dataclass(frozen=True)
class Kind:
    """One of the steps."""

    name: str
    make: Callable[[Parameters], Step]
    most: int = 20_000
    """Positives of a mini-batch that it takes in good time."""
    widest: int = 4096
    """Columns, likewise."""
    negatives: int = 500
    """R and S, likewise."""


def _native(threads: int) -> Callable[[Parameters], Step]:
    def make(parameters: Parameters) -> Step:
        library = native.library()
        if library is None:
            pytest.skip(f"no native kernel: {native.why_absent()}")
        return NativeStep(library, parameters, LEVELS, DECAY, threads)

    return make


def _graph(parameters: Parameters) -> Step:
    """Recorded and played back on the CPU, with its kernels interpreted."""
    pytest.importorskip("triton", reason="there is no Triton")
    recorder.need_interpreter()
    return GpuStep(parameters, DECAY, recorder.Recorder())


KINDS = [
    Kind("torch", lambda parameters: TorchStep(parameters, DECAY), most=2000, widest=300),
    Kind("native", _native(1)),
    Kind("native on three threads", _native(3)),
    Kind("graph", _graph, most=30, widest=160, negatives=5),
]


def make(
    dim: int, blocks: int, batch: int, random_rate: int, shuffled_rate: int, seed: int
) -> tuple[Parameters, Batch]:
    """Parameters in the middle of a training, and a batch, of float32."""
    g = torch.Generator().manual_seed(seed)
    entities, prefixes = 1 + seed % 50, LEVELS + seed % 200

    def state(axis: int, *shape: int) -> torch.Tensor:
        weight, mean, square = torch.randn((3, *shape), generator=g) / dim**0.5
        return torch.stack([weight, mean, square**2], axis)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=g, dtype=torch.int32)

    parameters = Parameters(
        state(1, entities, dim),
        state(0, dim),
        torch.randn((prefixes, dim), generator=g) / dim**0.5,
        torch.rand(prefixes, generator=g) / dim,
        state(0, blocks, dim, dim),
        state(0, blocks, dim),
    )
    group, tile = sampling.group_size(random_rate), sampling.tile_size(random_rate, shuffled_rate, dim)
    return parameters, Batch(
        entity=integers(entities, batch),
        novelty=torch.rand(batch, generator=g) / 10,
        positive=integers(prefixes, batch, LEVELS),
        random=integers(prefixes, -(-batch // group), random_rate, LEVELS),
        partner=any_partners(batch, shuffled_rate, tile, g),
        group=group,
        tile=tile,
    )


def any_partners(size: int, rate: int, tile: int, generator: torch.Generator) -> torch.Tensor:
    """Anybody of the same tile, many several times, and now and then the positive itself: int32 [size, rate]."""
    place = torch.arange(size, dtype=torch.int32)[:, None]
    first = place - place % tile
    drawn = torch.randint(1 << 30, (size, rate), generator=generator, dtype=torch.int32)
    return first + drawn % (size - first).clamp(max=tile)


def close(ours: torch.Tensor, specified: torch.Tensor, rounding: float = 1e-6) -> None:
    """Equal to float tolerance, as a whole: one wrong entry in a million shows, and so does a wrong sum.

    Not entry by entry: where a block's input is 0 but for rounding, its rectifier may open in one and not the other.
    """
    assert ours.shape == specified.shape
    difference, size = (ours.double() - specified.double()).norm(), specified.double().norm()
    assert difference <= 1e-5 * size + rounding * ours.numel() ** 0.5  # a sigmoid near 1 leaves 1e-7 of a gradient


CANCELLED = 1e-5
"""How far a score may be off: it is a sum of up to 4,096 products, which may come to nearly nothing."""


def ordered(gradient: RowGradients) -> tuple[torch.Tensor, torch.Tensor]:
    order = gradient.rows.argsort()
    return gradient.rows[order], gradient.values[order]
