"""IP addresses as text and as integers.

A dotted quad is read strictly: four decimal octets, none above 255, no leading zero, nothing around them. Different
programs read the lenient forms of ``inet_aton`` ("10.1", "0x7f.1", "010.0.0.1") as different hosts, so these forms are
errors. Whole Arrow columns are read: about 25 nanoseconds an address, or 200 without the native kernel.

IPv6 is read in the form of RFC 4291, also strictly: no zone id, no prefix length, no brackets. The first 64 bits are
kept. Accounts use both versions, so the IPv6 family reads IPv4 too: a.b.c.d, also written ::ffff:a.b.c.d (RFC 4291,
2.5.5.2), stands for its 6to4 network 2002:AABB:CCDD::/48 (RFC 3056). Each distinct text is read once, in about 0.7
microseconds.

Two forms leave nothing to guess, so `read` accepts them besides: an address with a port, ``a.b.c.d:443`` or
``[2001:db8::1]:443``, of which the port is dropped, and ``::ffff:a.b.c.d`` where IPv4 is asked for.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ipinsights.distributed.group import ALONE, Group
from ipinsights.native import reader


@dataclass(frozen=True)
class Family:
    """Addresses of one IP version, as unsigned integers."""

    version: int
    width: int
    """The number of leading bits that are kept of an address."""
    levels: tuple[int, ...]
    """Prefix lengths of the model's levels, ascending."""
    finest: tuple[int, ...]
    """Longer ones, for data whose addresses recur (`vocabulary.levels_for`)."""
    first: int
    """The first possible address of a random negative."""
    random_bits: int
    """A random negative is uniform among 2 ** random_bits addresses."""

    @property
    def noun(self) -> str:
        """The name of an address in error messages, after "an"."""
        return "IPv4 address" if self.version == 4 else "IP address"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array type that holds an address."""
        return np.dtype(np.uint32 if self.width == 32 else np.uint64)


IPV4 = Family(4, 32, (8, 10, 12, 14, 16, 18, 20, 22, 24), (28, 32), 0, 32)
IPV6 = Family(6, 64, (12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64), (), 1 << 61, 61)
"""The network half of an address. The other half identifies an interface, and many change it every day. Random
negatives come from 2000::/3, today's unicast space. A random address shares fewer than 20 bits with every seen
one, so the levels must start coarse."""
FAMILIES = {family.version: family for family in (IPV4, IPV6)}

MAPPED_FIRST, MAPPED_BITS, MAPPED_SHIFT = 0x2002 << 48, 32, 16
"""The IPv4 address a is MAPPED_FIRST + (a << MAPPED_SHIFT) in the IPv6 family."""

Addresses = npt.NDArray[np.unsignedinteger]
"""uint32 for IPv4, uint64 for IPv6."""

SITE, PROVIDER = 6, 3
"""How many eighths of an address are in the prefix that one place has as a rule (a /24, and a /48 of IPv6), and in
those of large providers (a /12, and a /24)."""

_DOT, _ZERO = ord("."), ord("0")
_PORT = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})")
_LAST_PORT = 65535
_MAPPED = bytes(10) + b"\xff\xff"
"""The first bytes of ::ffff:a.b.c.d."""


class Parsed(NamedTuple):
    """n texts, read as addresses of a family."""

    values: Addresses
    """[n]. A text that is no address becomes 0."""
    valid: npt.NDArray[np.bool_]
    """[n]"""
    ports: int = 0
    """Addresses that had a port, which was dropped."""
    mapped: int = 0
    """IPv4 addresses that were written ::ffff:a.b.c.d where IPv4 is asked for."""


def read(texts: pa.StringArray, family: Family = IPV4) -> Parsed:
    """Read a column of n addresses, which may have ports, and may be written ::ffff:a.b.c.d."""
    values, valid = parse(texts, family)
    if valid.all():
        return Parsed(values, valid)
    colon = pc.match_substring(texts, ":").to_numpy(zero_copy_only=False)  # both forms have one
    rest = np.flatnonzero(~valid & colon)
    if not len(rest):
        return Parsed(values, valid)
    encoded = texts.take(pa.array(rest)).dictionary_encode()
    forms = [_plain(text, family) for text in encoded.dictionary.to_pylist()]
    indices = encoded.indices.to_numpy()
    found, readable = parse(pa.array([text for text, _, _ in forms], pa.string()), family)
    values[rest], valid[rest] = found[indices], readable[indices]
    ports, mapped = (int((readable & np.array(is_))[indices].sum()) for is_ in list(zip(*forms, strict=True))[1:])
    return Parsed(values, valid, ports, mapped)


def without_port(text: str) -> str | None:
    """The text of the address before a port; None if there is no port from 0 to 65535 in one of the two forms."""
    found = _PORT.fullmatch(text)
    if not found or int(found[3]) > _LAST_PORT or (found[2] and ":" not in found[2]):
        return None
    return found[1] or found[2]


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address, without anything around it."""
    try:
        return ipaddress.ip_address(text).version == 4 or "%" not in text
    except ValueError:
        return False


def _plain(text: str, family: Family) -> tuple[str, bool, bool]:
    """An address as `parse` reads it, if it is one; and whether a port was dropped, and whether it was mapped."""
    bare = without_port(text)
    address = text if bare is None else bare
    packed = _packed(address) if family.version == 4 and ":" in address else b""
    mapped = packed.startswith(_MAPPED)
    if mapped:
        address = ".".join(map(str, packed[len(_MAPPED) :]))
    return address, bare is not None, mapped


def parse(texts: pa.StringArray, family: Family = IPV4) -> tuple[Addresses, npt.NDArray[np.bool_]]:
    """Read a column of n addresses.

    Returns the addresses (of the family's type, [n]) and which are valid (bool [n]). An invalid address becomes 0.
    """
    if family.version == 4:
        return _parse_quads(texts)
    encoded = texts.dictionary_encode()  # log-ins repeat their addresses
    values, valid = _parse_both(encoded.dictionary)
    indices = encoded.indices.to_numpy()
    return values[indices], valid[indices]


def _parse_both(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """The first 64 bits of IPv6 addresses and of the 6to4 networks of IPv4 addresses, and which texts are valid."""
    quads, valid = _parse_quads(texts)
    values = np.where(valid, _6to4(quads), 0)
    rest = np.flatnonzero(~valid)
    packed = [_packed(text) for text in texts.take(pa.array(rest)).to_numpy(zero_copy_only=False)]
    valid[rest] = [bool(address) for address in packed]
    halves = np.frombuffer(b"".join(address or bytes(16) for address in packed), dtype=">u8").astype(np.uint64)
    first, last = halves[0::2], halves[1::2]
    mapped = (first == 0) & (last >> np.uint64(32) == 0xFFFF)
    values[rest] = np.where(mapped, _6to4(last & np.uint64(0xFFFFFFFF)), first)
    return values, valid


def _6to4(quads: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint64]:
    """The first 64 bits of the 6to4 network of each IPv4 address."""
    return np.uint64(MAPPED_FIRST) | quads.astype(np.uint64) << np.uint64(MAPPED_SHIFT)


def _packed(text: str) -> bytes:
    """The 16 bytes of an IPv6 address; no bytes for any other text."""
    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):  # ValueError: the text contains NUL
        return b""


def _parse_quads(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """The addresses of a column of dotted quads, and which texts are valid."""
    parsed = reader.parse_quads(texts)
    if parsed is not None:
        return parsed
    offsets, data = reader.text_buffers(texts)
    starts, ends = offsets[:-1].astype(np.int64), offsets[1:].astype(np.int64)
    dots = np.flatnonzero(data == _DOT)
    first_dot, last_dot = np.searchsorted(dots, starts), np.searchsorted(dots, ends)
    valid = last_dot - first_dot == 3
    values = np.zeros(len(texts), dtype=np.uint32)
    rows = np.flatnonzero(valid)
    if not len(rows):
        return values, valid
    # Three dots cut each text into four octets, each [left, right) in `data`; all four would not fit the cache at once.
    left, value, good = starts[rows], np.zeros(len(rows), dtype=np.uint32), np.ones(len(rows), dtype=np.bool_)
    for octet in range(4):
        right = dots[first_dot[rows] + octet] if octet < 3 else ends[rows]
        number, readable = _octets(data, left, right)
        value = value << np.uint32(8) | number
        good &= readable
        left = right + 1
    valid[rows] = good
    values[rows] = np.where(good, value, 0)
    return values, valid


def _octets(
    data: npt.NDArray[np.uint8], left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """The number at [left, right) of the data, and whether it is an octet: 0 to 255, no leading zero."""
    length = right - left
    number = np.zeros(len(left), dtype=np.uint32)
    readable = (length >= 1) & (length <= 3)
    for place, scale in enumerate((1, 10, 100)):
        inside = length > place
        digit = data[np.maximum(right - 1 - place, 0)] - np.uint8(_ZERO)  # below "0" it wraps to a number above 9
        readable &= ~inside | (digit <= 9)
        number += np.where(inside, digit, 0).astype(np.uint32) * np.uint32(scale)
    leading_zero = (length > 1) & (data[np.minimum(left, len(data) - 1)] == _ZERO)
    return number, readable & (number <= 255) & ~leading_zero


def explain(text: str, family: Family = IPV4) -> str:
    """Explain in one sentence why ``text`` is not an address of the family. Raises ValueError if it is one."""
    if family.version == 6:
        return _explain_both(text)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        try:
            ipaddress.IPv4Address(text)
        except ValueError as error:
            return f"not an IPv4 address: {error}"
        raise
    if address.version == 6:
        return f"not an IPv4 address: {text!r} is an IPv6 address"
    raise ValueError(f"{text!r} is an IPv4 address")


def _explain_both(text: str) -> str:
    # One colon suggests a port, no colon a broken quad: a message about hexadecimal parts would mislead there.
    reader = ipaddress.IPv6Address if text.count(":") > 1 else ipaddress.IPv4Address
    try:
        reader(text)
    except ValueError as error:
        return f"not an IP address: {error}"
    if "%" in text:
        return f"not an IP address: {text!r} has a zone id, which means nothing to another host"
    raise ValueError(f"{text!r} is an IP address")


def render(addresses: Addresses, family: Family = IPV4) -> list[str]:
    """Write addresses as dotted quads, or as IPv6 text: the first 64 bits, then zeros."""
    if family.version == 6:
        return [str(ipaddress.IPv6Address(first << 64)) for first in addresses.tolist()]
    octets = (addresses[:, None] >> np.array([24, 16, 8, 0], dtype=np.uint32)) & 255
    return [f"{a}.{b}.{c}.{d}" for a, b, c, d in octets.tolist()]


def mapped_share(addresses: Addresses, group: Group = ALONE) -> float:
    """The share of IPv4 addresses in the IPv6 family, of all ranks' addresses; 0 for the IPv4 family."""
    if addresses.dtype != np.uint64:
        return 0.0
    return group.total(int(np.count_nonzero(is_mapped(addresses)))) / max(1, group.total(len(addresses)))


def is_mapped(addresses: Addresses) -> npt.NDArray[np.bool_]:
    """Which addresses of the IPv6 family, uint64 of any shape, stand for one of IPv4."""
    above = np.uint64(MAPPED_SHIFT + MAPPED_BITS)
    mapped: npt.NDArray[np.bool_] = addresses >> above == np.uint64(MAPPED_FIRST) >> above
    return mapped


def leading_bits(addresses: Addresses, family: Family, eighths: int) -> npt.NDArray[np.int64]:
    """How many bits so many eighths of each address are, of an IPv4 address among those of IPv6 too: [n]."""
    bits = np.full(len(addresses), family.width * eighths // 8)
    if family.version == IPV6.version:
        bits[is_mapped(addresses)] = family.width - MAPPED_SHIFT - MAPPED_BITS + MAPPED_BITS * eighths // 8
    return bits


def leading(addresses: Addresses, family: Family, eighths: int) -> Addresses:
    """The first so many eighths of each address (`leading_bits`); all other bits are 0."""
    others = (family.width - leading_bits(addresses, family, eighths)).astype(family.dtype)
    kept: Addresses = addresses >> others << others
    return kept


def random_addresses(size: int, family: Family, mapped_share: float, rng: np.random.Generator) -> Addresses:
    """Uniform addresses of a family, [size]. In IPv6, the share ``mapped_share`` of them are IPv4 addresses."""
    drawn = np.uint64(family.first) + rng.integers(1 << family.random_bits, size=size, dtype=np.uint64)
    if mapped_share:
        chosen = rng.random(size) < mapped_share
        drawn[chosen] = _6to4(rng.integers(1 << MAPPED_BITS, size=int(chosen.sum()), dtype=np.uint64))
    return drawn.astype(family.dtype)
