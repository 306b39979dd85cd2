"""Negative samples: pairs nobody observed, which the model learns to tell from the observed ones.

A random negative is an entity with a uniformly drawn address: it teaches which addresses anybody uses.
A shuffled negative is an entity with the address of another event of its mini-batch: it teaches who uses which.
All functions are pure: what they draw is decided by the generator alone.
"""

import torch

from ipinsights.addresses import MAPPED_BITS, MAPPED_FIRST, MAPPED_SHIFT, Family

GROUP = 5
"""Entities that share their random addresses, at most. Each entity still meets ``R`` independent uniform addresses, so
its gradient is unbiased; only 1 / GROUP as many addresses need encoding."""


def group_size(batch: int, random_rate: int) -> int:
    """How many entities of a mini-batch share random addresses; a divisor of ``batch``."""
    return next((size for size in range(min(GROUP, random_rate), 1, -1) if batch % size == 0), 1)


def random_addresses(
    batch: int, random_rate: int, family: Family, mapped_share: float, generator: torch.Generator
) -> torch.Tensor:
    """Uniform addresses for a mini-batch: int64 [batch / group_size, random_rate].

    ``mapped_share`` of them are IPv4 addresses as IPv6 has them; it must be 0 for IPv4 itself.
    """
    shape = (batch // group_size(batch, random_rate), random_rate)
    device = generator.device
    drawn = family.first + torch.randint(1 << family.random_bits, shape, generator=generator, device=device)
    if mapped_share:
        mapped = torch.randint(1 << MAPPED_BITS, shape, generator=generator, device=device)
        chosen = torch.rand(shape, generator=generator, device=device) < mapped_share
        drawn = torch.where(chosen, MAPPED_FIRST + (mapped << MAPPED_SHIFT), drawn)
    return drawn


def shifts(batch: int, shuffled_rate: int, generator: torch.Generator) -> list[int]:
    """Cyclic shifts that pair each entity of a shuffled mini-batch with others' addresses, one a shuffled negative.

    They differ from one another where the batch is large enough. A batch of one has nothing to shuffle: its shift is 0,
    which pairs the entity with its own address and so carries no weight. The generator is one of the CPU's: reading a
    number back from a GPU would make every step wait for it.
    """
    if batch == 1:
        return [0] * shuffled_rate
    start = int(torch.randint(batch - 1, (1,), generator=generator))
    return [1 + (start + i) % (batch - 1) for i in range(shuffled_rate)]
