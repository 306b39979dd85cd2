import torch
from hypothesis import given
from hypothesis import strategies as st

from ipinsights import sampling
from ipinsights.addresses import IPV4, IPV6


@given(st.integers(1, 300), st.integers(1, 10), st.integers(0, 99))
def test_shifts_move_everybody_and_differ(batch: int, rate: int, seed: int) -> None:
    drawn = sampling.shifts(batch, rate, torch.Generator().manual_seed(seed))
    assert len(drawn) == rate
    if batch > 1:
        assert all(1 <= k < batch for k in drawn)
    if batch > rate:
        assert len(set(drawn)) == rate


@given(st.integers(1, 10_000), st.integers(0, 500))
def test_groups_divide_the_batch(batch: int, rate: int) -> None:
    size = sampling.group_size(batch, rate)
    assert batch % size == 0
    assert 1 <= size <= max(1, min(sampling.GROUP, rate))


def test_random_addresses_draw_every_octet_uniformly() -> None:
    drawn = sampling.random_addresses(100_000, 5, IPV4, 0.0, torch.Generator().manual_seed(0))
    assert drawn.shape == (20_000, 5)
    for shift in (24, 16, 8, 0):
        counts = torch.bincount((drawn.view(-1) >> shift) & 255, minlength=256).double()
        chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert 165 < chi_square < 360  # 255 degrees of freedom: beyond either end once in a hundred thousand draws


def test_the_generator_decides() -> None:
    one, other = (sampling.random_addresses(10, 2, IPV4, 0.0, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)


def test_random_addresses_of_ipv6_are_unicast_with_as_much_ipv4_as_is_wanted() -> None:
    drawn = sampling.random_addresses(50_000, 1, IPV6, 0.25, torch.Generator().manual_seed(0)).view(-1)
    assert (drawn >> 61 == 1).all()
    mapped = drawn >> 48 == 0x2002
    assert abs(float(mapped.double().mean()) - 0.25) < 0.01
    assert float((drawn[mapped] & 0xFFFF == 0).double().mean()) > 0.99  # a real 6to4 address is drawn now and then
    assert len(torch.unique(drawn >> 53)) == 256
    assert len(torch.unique(drawn[mapped] >> 40)) == 256
