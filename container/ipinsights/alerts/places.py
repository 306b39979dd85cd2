"""The networks by which people tell where an address is: /24, /16 and /8 of IPv4; /64, /48 and /32 of IPv6.

A /24 is what an access line or an office has; addresses within it come and go. Of IPv6, it is the /64. In a model of
both versions, IPv4 addresses are in the IPv6 family as 6to4 networks (`data.addresses`), and are told as IPv4.
"""

import ipaddress
from typing import NamedTuple

import numpy as np

from ipinsights.data.addresses import MAPPED_BITS, MAPPED_FIRST, MAPPED_SHIFT, Addresses, Family, is_mapped
from ipinsights.model.history import cut

_IPV4, _IPV6 = (24, 16, 8), (64, 48, 32)
_BEFORE_MAPPED = 64 - MAPPED_SHIFT - MAPPED_BITS
"""The bits that stand before a mapped IPv4 address."""


class Place(NamedTuple):
    """A network around an address."""

    name: str
    """Such as "192.0.2.0/24"."""
    first: int
    """Its first and last address, of the model's family."""
    last: int
    bits: int
    """Leading bits that its addresses share in the family."""


def places(address: int, family: Family) -> tuple[Place, ...]:
    """The networks around an address of a family, the longest first."""
    lengths, before = _lengths(address, family)
    found = []
    for length in lengths:
        rest = family.width - before - length
        first = address >> rest << rest
        found.append(Place(_text(first, length, before, family), first, first + (1 << rest) - 1, before + length))
    return tuple(found)


def finest(family: Family) -> int:
    """The bits that must be kept of an address to tell the longest of its places."""
    return _IPV4[0] if family.version == 4 else _IPV6[0]


def narrowest(addresses: Addresses, family: Family) -> Addresses:
    """The first address of the longest of the `places` of each address, [n]."""
    if family.version == 4:
        return cut(addresses, family, _IPV4[0])
    return np.where(is_mapped(addresses), cut(addresses, family, _BEFORE_MAPPED + _IPV4[0]), addresses)


def name(first: int, family: Family) -> str:
    """The name of the longest place that begins with an address."""
    lengths, before = _lengths(first, family)
    return _text(first, lengths[0], before, family)


def told(address: int, family: Family) -> str:
    """An address as people know it; of IPv6 its first 64 bits."""
    _, before = _lengths(address, family)
    return _text(address, family.width, before, family).partition("/")[0]


def _lengths(address: int, family: Family) -> tuple[tuple[int, ...], int]:
    """The lengths of the places around an address, and the bits that stand before them in the family."""
    if family.version == 4:
        return _IPV4, 0
    return (_IPV4, _BEFORE_MAPPED) if is_mapped(np.array(address, dtype=family.dtype)) else (_IPV6, 0)


def _text(first: int, length: int, before: int, family: Family) -> str:
    if family.version == 4:
        return f"{ipaddress.IPv4Address(first)}/{length}"
    if before:
        return f"{ipaddress.IPv4Address(first - MAPPED_FIRST >> MAPPED_SHIFT)}/{length}"
    return f"{ipaddress.IPv6Address(first << 64)}/{length}"
