"""The networks by which people tell where an address is."""

import ipaddress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ipinsights.alerts.places import finest, name, narrowest, places
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6, Family


def value(text: str, family: Family) -> int:
    values, valid = addresses.parse(pa.array([text]), family)
    assert valid.all()
    return int(values[0])


@pytest.mark.parametrize("family", [IPV4, IPV6])
@given(st.ip_addresses(v=4))
def test_of_ipv4_in_either_family(family: Family, address: ipaddress.IPv4Address) -> None:
    here = value(str(address), family)
    found = places(here, family)
    assert [place.name for place in found] == [str(ipaddress.ip_network(f"{address}/{n}", False)) for n in (24, 16, 8)]
    for place, length in zip(found, (24, 16, 8), strict=True):
        network = ipaddress.ip_network(place.name)
        assert place.bits == family.width - (32 if family is IPV4 else 48) + length
        assert value(str(network[0]), family) == place.first
        last = value(str(network[-1]), family) | ((1 << 16) - 1 if family is IPV6 else 0)
        assert place.last == last
        assert place.first <= here <= place.last
    first = narrowest(np.array([here], dtype=family.dtype), family)
    assert first.tolist() == [found[0].first]
    assert name(int(first[0]), family) == found[0].name


@given(st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address))
def test_of_ipv6(address: ipaddress.IPv6Address) -> None:
    assume(address.sixtofour is None and address.ipv4_mapped is None)
    here = value(str(address), IPV6)
    found = places(here, IPV6)
    assert [place.name for place in found] == [str(ipaddress.ip_network(f"{address}/{n}", False)) for n in (64, 48, 32)]
    assert [(place.first, place.last) for place in found] == [
        tuple(int(ipaddress.ip_network(place.name)[end]) >> 64 for end in (0, -1)) for place in found
    ]
    assert narrowest(np.array([here], dtype=np.uint64), IPV6).tolist() == [here]
    assert [place.bits for place in found] == [finest(IPV6), 48, 32]
