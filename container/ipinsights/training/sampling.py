"""Negative samples: fabricated pairs, which the model learns to tell from the observed ones.

A random negative is an entity with a uniformly drawn address. From it the model learns which addresses anybody uses.
The model knows an address only by its leaf (`vocabulary`). So a leaf is drawn, with the share of the address space that
it covers: this is the same distribution, and takes two look-ups instead of a search.

A shuffled negative is an entity with the address of another positive, its partner. From it the model learns who uses
which address. The mini-batch is already in random order, so a partner of the same tile is drawn (`step.Batch`).
Frequency is no majority vote: if all events were equally likely partners, one service account with 99 % of them, or one
office's address, would be in nearly all shuffled negatives. So a pair of an entity and a leaf that was seen a hundred
times is only ten times as likely a partner as one seen once (`smoothing.POWER`). And what the entity itself is known to
use is no negative of it (`Pairs.known`).
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ipinsights.model.smoothing import POWER
from ipinsights.native import reader

GROUP = 4
"""Entities for each random address: GROUP * R entities share the same R addresses, so the encoder has 1 / GROUP random
addresses a positive. Each entity still has ``R`` independent uniform ones, so its gradient is unbiased. Up to 4, no
change of quality was measurable (`benchmarks/README.md`)."""
_LARGEST_GROUP = 20
_TILE_FLOATS = 1 << 14
"""Floats of a tile's encodings: they and their results fit a core's second-level cache."""
_TILE_ADDRESSES = (96, 1024)
"""The least and the most addresses of a tile, whatever the length of the embeddings."""

_GRAIN = np.float32(2.0**-32)
"""Weights are multiples of this, so that float64 sums of two million of them are exact, and so the same everywhere."""
_MARGIN = 2.0**-40
"""So much less of a tile has targets, so that rounding puts none before the first positive."""
_CHUNK = 1 << 20


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


class Pairs:
    """The distinct pairs of an entity and a leaf among the training events."""

    def __init__(self, entity: npt.NDArray[np.int32], leaf: npt.NDArray[np.int32], device: torch.device) -> None:
        """The entity and the leaf of each event, [n]."""
        ordered = _keys(entity, leaf)
        ordered.sort()
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
        keys, events = ordered[first], len(ordered)
        del ordered  # as there may be many
        share = np.diff(first, append=events).astype(np.float32) ** np.float32(POWER - 1)
        share = np.maximum(np.rint(share / _GRAIN), 1) * _GRAIN
        numbers, weight = np.arange(len(keys), dtype=np.int32), np.empty(events, dtype=np.float32)
        for begin in range(0, events, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            queries = _keys(entity[part], leaf[part])
            place = reader.find_intervals(keys, numbers, queries)
            weight[part] = share[np.searchsorted(keys, queries) if place is None else place]
        self.weight = torch.from_numpy(weight).to(device)
        """How likely a partner each event is: float32 [n]. The sum over a pair's events is its count to the `POWER`."""
        self._keys = torch.from_numpy(keys.view(np.int64)).to(device)
        self._numbers = numbers

    def known(self, entity: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        """Whether pairs are among those of the events: bool [n], for int32 [n] on the device."""
        queries: torch.Tensor = entity.long() << 32 | leaf
        place = self._find(queries)
        if place is None:
            place = torch.searchsorted(self._keys, queries).clamp_(max=len(self._keys) - 1)
        return self._keys.index_select(0, place) == queries

    def _find(self, queries: torch.Tensor) -> torch.Tensor | None:
        """The place of each query among the keys, [n], or of another key if it is none; None without the kernel."""
        if queries.device.type != "cpu":
            return None
        keys, wanted = (array.numpy().view(np.uint64) for array in (self._keys, queries))
        place = reader.find_intervals(keys, self._numbers, wanted)
        return None if place is None else torch.from_numpy(place)


def _keys(entity: npt.NDArray[np.int32], leaf: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """A number for each pair, [n]."""
    return entity.astype(np.uint64) << np.uint64(32) | leaf.astype(np.uint64)


class Discrete:
    """Draws outcomes with given probabilities: the first whose cumulative share is above a uniform number."""

    def __init__(self, shares: npt.NDArray[np.float64], device: torch.device) -> None:
        """Shares, [n], at least 0 and not all 0."""
        self._cumulative = torch.from_numpy(np.cumsum(shares)).to(device)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Independent outcomes: int32 [count]."""
        drawn = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        # Whatever is rounded, a target below the sum of all shares is below that of an outcome that can be drawn.
        most = self._cumulative[-1]
        target = torch.minimum(drawn * most, torch.nextafter(most, torch.zeros_like(most)))
        return torch.searchsorted(self._cumulative, target, right=True, out_int32=True)


def partners(weight: torch.Tensor, rate: int, size: int, tile: int, generator: torch.Generator) -> torch.Tensor:
    """Draw whose address each shuffled negative has: int32 [n, rate], a place among the n positives.

    The positives, with a ``weight`` each (float32 [n]), are mini-batches of ``size``, cut into tiles. Partners are of
    the same tile, where each positive is one with a probability proportional to its weight.

    The sampling is systematic: a tile's targets are at even distances, from a random start. So each is the partner of
    as many positives as its weight says, give or take one, not of none or several by chance. Who meets whom is random
    all the same, as the positives' order is. If all weights are equal, the tile is turned, and nobody is its own
    partner.
    """
    n, device = len(weight), weight.device
    cumulative = F.pad(weight.cumsum(0, dtype=torch.float64), (1, 0))

    # For each tile: who is in it, the sum of its weights, and where each round of targets starts.
    batches, tiles = -(-n // size), -(-size // tile)
    number = torch.arange(batches * tiles, device=device)
    begin = number // tiles * size
    first = (begin + number % tiles * tile).clamp_(max=n)
    end = torch.minimum(first + tile, begin + size).clamp_(max=n)
    members = end - first
    high = cumulative.index_select(0, end)
    scale = members / (high - cumulative.index_select(0, first)) * (1 - _MARGIN)
    start = torch.rand(rate, len(number), generator=generator, device=device, dtype=torch.float64)
    start = 1 + (start + torch.arange(rate, device=device)[:, None]) / max(1, rate) * (members - 1)
    whole = start.long()

    # For each positive: how many targets of its tile are beyond its own share, and who has the target that it meets.
    own = number.repeat_interleave(members, output_size=n)
    first, end, members, high, scale = (each.index_select(0, own) for each in (first, end, members, high, scale))
    place = torch.arange(n, device=device)
    beyond, in_tile = (high - cumulative[1:]) * scale, place - first
    drawn = torch.empty(rate, n, dtype=torch.int32, device=device)
    for k in range(rate):
        reached = end - (beyond + (start[k] - whole[k]).index_select(0, own)).long()
        owner = torch.repeat_interleave(reached.diff(prepend=reached.new_zeros(1)), output_size=n)
        drawn[k] = owner.index_select(0, first + (in_tile + whole[k].index_select(0, own)) % members)
    return drawn.T.contiguous()
