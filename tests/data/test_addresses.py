import ipaddress

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6, Addresses, Family

pytestmark = pytest.mark.usefixtures("either_way")

octets = st.lists(
    st.integers(0, 300).map(str) | st.sampled_from(["", "00", "01", "-1", " 1", "1e1", "١", "0x1"]),
    min_size=3,
    max_size=5,
)
texts = st.lists(octets.map(".".join) | st.ip_addresses(v=4).map(str) | st.text(), max_size=20)

parts = st.lists(
    st.integers(0, 0xFFFF).map("{:x}".format) | st.sampled_from(["", "", "0", "0000", "ABCD", "10000", "00001", "g"]),
    min_size=2,
    max_size=9,
).map(":".join)
mapped = st.ip_addresses(v=4).map(lambda address: f"::ffff:{address}")
around = st.sampled_from(["%eth0", "%", "/64", " ", "\n", "\x00", "]", ":80", "::", "é"])
ipv6_texts = st.ip_addresses(v=6).map(str) | mapped | parts | st.tuples(parts, octets.map(".".join)).map(":".join)
either = st.lists(
    ipv6_texts | st.tuples(ipv6_texts, around).map("".join) | st.ip_addresses(v=4).map(str) | st.text(), max_size=20
)


def is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


@given(texts)
@example(["1.2.3.4", "1.2.3", "255.255.255.255", "256.0.0.0", "01.2.3.4", "0.0.0.0", ""])
@example(["1.2.3.4\n", "1.2.3.1234", "....", "1..2.3"])
def test_parse_accepts_exactly_what_the_standard_library_accepts(batch: list[str]) -> None:
    values, valid = addresses.parse(pa.array(batch, pa.string()))
    assert valid.tolist() == [is_ipv4(text) for text in batch]
    assert values.tolist() == [int(ipaddress.IPv4Address(text)) if is_ipv4(text) else 0 for text in batch]


def test_parse_reads_a_slice_of_a_column() -> None:
    column = pa.array(["bad", "1.2.3.4", "5.6.7.8", "bad"])[1:3]
    values, valid = addresses.parse(column)
    assert addresses.render(values) == ["1.2.3.4", "5.6.7.8"]
    assert valid.all()


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_render_and_parse_are_inverse(numbers: list[int]) -> None:
    original = np.array(numbers, dtype=np.uint32)
    values, valid = addresses.parse(pa.array(addresses.render(original), pa.string()))
    assert valid.all()
    assert (values == original).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [("300.1.1.1", "Octet 300"), ("1.2.3", "Expected 4 octets"), ("::1", "IPv6"), ("010.1.1.1", "Leading zeros")],
)
def test_explain_names_what_is_wrong(text: str, reason: str) -> None:
    assert reason in addresses.explain(text)


def read(*texts: str, family: Family = IPV6) -> tuple[Addresses, npt.NDArray[np.bool_]]:
    return addresses.parse(pa.array(texts, pa.string()), family)


def network(text: str) -> int | None:
    """What an address is to a model of IPv6, by the standard library; None for what is not one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return 0x2002 << 48 | int(address) << 16
    if address.scope_id is not None:
        return None
    return network(str(address.ipv4_mapped)) if address.ipv4_mapped else int(address) >> 64


@given(either)
@example(["1::ffff:1.2.3.4", "::1:ffff:1.2.3.4", "0:0:0:1:0:ffff:1.2.3.4"])
@example(["::", "2001:DB8::1", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "64:ff9b::1.2.3.4", "::1.2.3.4", "::ffff:0:1"])
@example(["1::2::3", "1:2:3:4::5:6:7:8", "12345::", "1:2:3", ":1::", "::ffff:1.2.3", "::ffff:01.2.3.4", "", "::1", ""])
@example(["fe80::1%eth0", "[::1]", " ::1", "::1 ", "2001:db8::/32", "::1\x00", "1.2.3", "01.2.3.4", "1.2.3.4:80"])
def test_ipv6_accepts_exactly_what_the_standard_library_accepts_but_zones(batch: list[str]) -> None:
    values, valid = read(*batch)
    expected = [network(text) for text in batch]
    assert values.dtype == np.uint64
    assert valid.tolist() == [number is not None for number in expected]
    assert values.tolist() == [number or 0 for number in expected]


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_to_ipv6_its_6to4_network_however_it_is_written(address: ipaddress.IPv4Address) -> None:
    a, b, c, d = address.packed
    values, valid = read(str(address), f"::ffff:{address}", f"::FFFF:{a:02x}{b:02x}:{c:02x}{d:02x}")
    assert valid.all()
    assert len(set(values.tolist())) == 1
    network_of_its_own = ipaddress.IPv6Network(f"{addresses.render(values, IPV6)[0]}/48")
    assert network_of_its_own == ipaddress.IPv6Network(f"2002:{a:02x}{b:02x}:{c:02x}{d:02x}::/48")
    assert next(iter(network_of_its_own)).sixtofour == address


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 2**16)))
def test_ipv6_render_and_parse_are_inverse(numbers: list[int]) -> None:
    original = np.array(numbers, dtype=np.uint64)
    values, valid = read(*addresses.render(original, IPV6))
    assert valid.all()
    assert (values == original).all()


def test_ipv6_keeps_the_network_and_writes_it_briefly() -> None:
    values, _ = read("2001:0DB8:0:0:9:8:7:6", "2001:db8::1", "::1")
    assert addresses.render(values, IPV6) == ["2001:db8::", "2001:db8::", "::"]


def test_ipv6_reads_a_slice_of_a_column_with_repeats() -> None:
    column = pa.array(["bad", "1:1::", "1.2.3.4", "1:1::5", "bad", "1:1::", "2::"])[1:6]
    values, valid = addresses.parse(column, IPV6)
    assert addresses.render(values, IPV6) == ["1:1::", "2002:102:304::", "1:1::", "::", "1:1::"]
    assert valid.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1::2::3", "At most one '::'"),
        ("fe80::1%eth0", "zone id"),
        ("[::1]", "Only hex digits"),
        ("2001:db8::/32", "Unexpected '/'"),
        ("1.2.3.4:80", "Only decimal digits"),
        ("1.2.3", "Expected 4 octets"),
        ("300.1.1.1", "Octet 300"),
        ("", "cannot be empty"),
    ],
)
def test_explain_names_what_is_wrong_with_ipv6(text: str, reason: str) -> None:
    assert addresses.explain(text, IPV6).startswith("not an IP address: ")
    assert reason in addresses.explain(text, IPV6)


@given(either)
def test_what_is_no_address_is_explained_and_what_is_one_is_not(batch: list[str]) -> None:
    for family in (IPV4, IPV6):
        for text, valid in zip(batch, read(*batch, family=family)[1], strict=True):
            if valid:
                with pytest.raises(ValueError, match="is an IP"):
                    addresses.explain(text, family)
            else:
                assert addresses.explain(text, family)


def test_ipv6_where_only_ipv4_is_read_is_named() -> None:
    values, valid = read("2001:db8::1", "::ffff:1.2.3.4", "1.2.3.4", family=IPV4)
    assert values.dtype == np.uint32
    assert valid.tolist() == [False, False, True]
    for text in ("2001:db8::1", "::ffff:1.2.3.4"):
        assert addresses.explain(text) == f"not an IPv4 address: {text!r} is an IPv6 address"


def test_random_addresses_are_of_their_family() -> None:
    rng = np.random.default_rng(0)
    drawn = addresses.random_addresses(1000, IPV4, 0.0, rng)
    assert drawn.dtype == np.uint32
    assert drawn.min() < 1 << 26
    assert drawn.max() > (1 << 32) - (1 << 26)
    drawn = addresses.random_addresses(10_000, IPV6, 0.3, rng)
    assert drawn.dtype == np.uint64
    assert (drawn >> np.uint64(61) == 1).all()  # 2000::/3
    assert addresses.mapped_share(drawn) == pytest.approx(0.3, abs=0.02)
    native = drawn[drawn >> np.uint64(48) != 0x2002]
    assert native.min() < (1 << 61) + (1 << 54)
    assert native.max() > (1 << 62) - (1 << 54)
