"""Negative samples: fabricated pairs, which the model learns to tell from the observed ones.

A random negative is an entity with a uniformly drawn address. From it the model learns which addresses anybody uses.
The model knows an address only by its leaf (`vocabulary`). So a leaf is drawn, with the share of the address space that
it covers: this is the same distribution, and takes two look-ups instead of a search.

A shuffled negative is an entity with the address of another event of its mini-batch. From it the model learns who uses
which address. The batch is already in random order, so neighbours from the same tile are used (`step.Batch`).
"""

import numpy as np
import numpy.typing as npt
import torch

GROUP = 4
"""Entities for each random address: GROUP * R entities share the same R addresses, so the encoder has 1 / GROUP random
addresses a positive. Each entity still has ``R`` independent uniform ones, so its gradient is unbiased. Up to 4, no
change of quality was measurable (`benchmarks/README.md`)."""
_LARGEST_GROUP = 20
_TILE_FLOATS = 1 << 14
"""Floats of a tile's encodings: they and their results fit a core's second-level cache."""
_TILE_ADDRESSES = (96, 1024)
"""The least and the most addresses of a tile, whatever the length of the embeddings."""


def group_size(random_rate: int) -> int:
    """How many entities of a mini-batch share random addresses."""
    return max(1, min(GROUP * random_rate, _LARGEST_GROUP))


def groups(size: int, random_rate: int) -> int:
    """The number of such groups in a mini-batch of ``size`` positives."""
    return -(-size // group_size(random_rate))


def tile_size(random_rate: int, shuffled_rate: int, dim: int) -> int:
    """Positives of a tile: a multiple of `group_size`, with enough partners for every shuffled negative."""
    group = group_size(random_rate)
    low, high = _TILE_ADDRESSES
    addresses = min(max(_TILE_FLOATS // dim, low), high)
    return group * max(1, addresses // (group + random_rate), -(-(shuffled_rate + 1) // group))


class Discrete:
    """Draws outcomes with given probabilities: the first whose cumulative share is above a uniform number."""

    def __init__(self, shares: npt.NDArray[np.float64], device: torch.device) -> None:
        """Shares, [n], at least 0 and not all 0."""
        self._cumulative = torch.from_numpy(np.cumsum(shares)).to(device)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Independent outcomes: int32 [count]."""
        drawn = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        total = self._cumulative[-1]
        below = torch.nextafter(total, torch.zeros_like(total))  # where a product is rounded up to the total
        return torch.searchsorted(self._cumulative, torch.minimum(drawn * total, below), right=True, out_int32=True)
