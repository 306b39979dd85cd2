import ipaddress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipinsights import addresses

octets = st.lists(
    st.integers(0, 300).map(str) | st.sampled_from(["", "00", "01", "-1", " 1", "1e1", "١", "0x1"]),
    min_size=3,
    max_size=5,
)
texts = st.lists(octets.map(".".join) | st.ip_addresses(v=4).map(str) | st.text(), max_size=20)


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
