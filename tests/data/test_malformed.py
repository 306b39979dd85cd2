"""What is wrong with a row is told by kind, in every reader alike."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data import addresses, instances, records
from ipinsights.data.addresses import FAMILIES, IPV4, IPV6, Family
from ipinsights.data.malformed import ABSENT, Fault, Kind, Malformed, MalformedRecords, of_address
from ipinsights.data.records import Removed

pytestmark = pytest.mark.usefixtures("either_way")

KINDS = {
    "": Kind.EMPTY,
    "-": Kind.PLACEHOLDER,
    "NULL": Kind.PLACEHOLDER,
    "<null>": Kind.PLACEHOLDER,
    "\\N": Kind.PLACEHOLDER,
    "LOCAL": Kind.PLACEHOLDER,
    "AWS Internal": Kind.PLACEHOLDER,
    "private": Kind.PLACEHOLDER,
    "Unknown": Kind.PLACEHOLDER,
    "ec2.amazonaws.com": Kind.SERVICE,
    "resource-explorer-2.amazonaws.com": Kind.SERVICE,
    "s3.cn-north-1.amazonaws.com.cn": Kind.SERVICE,
    "ec2-192-0-2-1.compute-1.amazonaws.com": Kind.HOST_NAME,
    "www.example.com": Kind.HOST_NAME,
    "www.example.com.": Kind.HOST_NAME,
    "www.example.com:443": Kind.HOST_NAME,
    "DESKTOP-7AB3": Kind.HOST_NAME,
    "1.2.3.example": Kind.HOST_NAME,
    "1.2.3.4:65536": Kind.PORT,
    "1.2.3.4:https": Kind.PORT,
    "1.2.3.4:": Kind.PORT,
    "[2001:db8::1]:65536": Kind.PORT,
    "1:2:3:4:5:6:7:8:443": Kind.PORT,
    "1.2.3.4, 5.6.7.8": Kind.SEVERAL,
    "1.2.3.4 5.6.7.8": Kind.SEVERAL,
    "unknown, 5.6.7.8": Kind.SEVERAL,
    "2001:db8::1;5.6.7.8": Kind.SEVERAL,
    "1.2.3.0/24": Kind.NETWORK,
    "1.2.3.0/255.255.255.0": Kind.NETWORK,
    "2001:db8::/32": Kind.NETWORK,
    "fe80::1%eth0": Kind.ZONE,
    "[fe80::1%eth0]:22": Kind.ZONE,
    "ip": Kind.HEADER,
    "ip_address": Kind.HEADER,
    "sourceIPAddress": Kind.HEADER,
    "Client IP": Kind.HEADER,
    "c-ip": Kind.HEADER,
    "destination_ip": Kind.HEADER,
    "nowhere": Kind.NO_ADDRESS,
    "1.2.3": Kind.NO_ADDRESS,
    "1.2.3.999": Kind.NO_ADDRESS,
    "1.2.3.4 5": Kind.NO_ADDRESS,
    "01.2.3.4": Kind.NO_ADDRESS,
    "01.2.3.4:80": Kind.NO_ADDRESS,
    "[1.2.3.4]:80": Kind.NO_ADDRESS,
    "1-2-3-4": Kind.NO_ADDRESS,
    "a..example": Kind.NO_ADDRESS,
    "1.2.3.4\N{NO-BREAK SPACE}": Kind.NO_ADDRESS,
    "::1\N{NO-BREAK SPACE}": Kind.NO_ADDRESS,
    "1.2.3.4" + " " * 200 + "x": Kind.NO_ADDRESS,
}
"""Texts that are no address of either family."""
LINES = {
    b"u": Kind.TOO_FEW,
    b"u,1.2.3.4,x": Kind.TOO_MANY,
    b"u,1.2.3.4, 5.6.7.8": Kind.SEVERAL,
    b",1.2.3.4": Kind.NO_ENTITY,
    b'"u,1.2.3.4': Kind.QUOTES,
    b'"u"x,1.2.3.4': Kind.QUOTES,
    b"Zo\xeb,1.2.3.4": Kind.ENCODING,
    b"user,ip": Kind.HEADER,
    b"u,-": Kind.PLACEHOLDER,
}
JSON_LINES = {
    '{"features": ["u", null]}': Kind.EMPTY,
    '{"features": ["u", ""]}': Kind.EMPTY,
    '{"features": ["u", "-"]}': Kind.PLACEHOLDER,
    '{"features": ["", "1.2.3.4"]}': Kind.NO_ENTITY,
    '{"features": [null, "1.2.3.4"]}': Kind.NO_ENTITY,
    '{"features": ["u", 7]}': Kind.SHAPE,
    '{"features": ["u"]}': Kind.SHAPE,
    "7": Kind.SHAPE,
    "{x": Kind.NOT_JSON,
}


@pytest.mark.parametrize(("text", "kind"), KINDS.items())
def test_a_text_that_is_no_address_has_a_kind_in_every_reader(text: str, kind: Kind) -> None:
    for family in (IPV4, IPV6):
        (fault,) = records.salvage_csv(f'u,"{text}"\n'.encode(), family).faults
        assert fault.kind is kind
        assert fault.reason.startswith(f"not an {family.noun}: ")
        line = json.dumps(["u", text])
        for found in (
            instances.salvage_lines(line.encode(), family),
            instances.salvage_document(f'{{"instances": [{line}]}}'.encode(), family),
        ):
            (fault,) = found.faults.values()
            assert fault.kind is kind


def test_an_ipv6_address_is_a_kind_where_ipv4_is_asked_for() -> None:
    for text in ("2001:db8::1", "[2001:db8::1]:443", "::1"):
        (fault,) = records.salvage_csv(f"u,{text}\n".encode()).faults
        assert fault.kind is Kind.IPV6
        assert not records.salvage_csv(f"u,{text}\n".encode(), IPV6).faults


@pytest.mark.parametrize(("line", "kind"), LINES.items())
def test_a_line_of_csv_has_a_kind(line: bytes, kind: Kind) -> None:
    (fault,) = records.salvage_csv(b"a,1.2.3.4\n" + line + b"\nb,1.2.3.4\n").faults
    assert (fault.kind, fault.position) == (kind, 2)


@pytest.mark.parametrize(("line", "kind"), JSON_LINES.items())
def test_a_line_of_json_has_a_kind(line: str, kind: Kind) -> None:
    text = f'["a", "1.2.3.4"]\n\n{line}\n["b", "1.2.3.4"]\n'.encode()
    for first, position in ((None, 1), (7, 9)):
        pairs, faults, _ = instances.salvage_lines(text, IPV4, first_line=first)
        assert len(pairs.digests) == 2
        assert [(row, fault.kind, fault.position) for row, fault in faults.items()] == [(1, kind, position)]


texts = st.sampled_from(list(KINDS)) | st.text(max_size=12) | st.text("1.:[]%/,; faAe-x", max_size=16)


@given(texts, st.sampled_from([IPV4, IPV6]))
def test_any_text_is_an_address_or_has_a_kind_and_a_reason(text: str, family: Family) -> None:
    if not addresses.read(pa.array([text], pa.string()), family).valid[0]:
        kind, reason = of_address(text, family, 0)
        assert reason.startswith(f"not an {family.noun}: ")
        assert kind is not Kind.IPV6 or family is IPV4


@pytest.mark.parametrize(
    ("text", "family", "expected", "removed"),
    [
        ("1.2.3.4:443", 4, "1.2.3.4", Removed(ports=1)),
        ("1.2.3.4:0", 4, "1.2.3.4", Removed(ports=1)),
        ("1.2.3.4:65535", 6, "2002:102:304::", Removed(ports=1)),
        ("[2001:db8::1]:443", 6, "2001:db8::", Removed(ports=1)),
        ("::ffff:1.2.3.4", 4, "1.2.3.4", Removed(mapped=1)),
        ("::FFFF:102:304", 4, "1.2.3.4", Removed(mapped=1)),
        ("[::ffff:1.2.3.4]:443", 4, "1.2.3.4", Removed(ports=1, mapped=1)),
        ("::ffff:1.2.3.4", 6, "2002:102:304::", Removed()),
        ("1.2.3.4", 4, "1.2.3.4", Removed()),
    ],
)
def test_ports_and_mapped_addresses_are_read_and_counted(
    text: str, family: int, expected: str, removed: Removed
) -> None:
    """Alone, and beside a malformed row, which brings in the exact reader; in lines of CSV and of JSON."""
    asked = FAMILIES[family]
    for more in ("", "x\n"):
        found = records.salvage_csv(f"u,{text}\n{more}".encode(), asked)
        assert addresses.render(found.records.addresses, asked) == [expected]
        assert found.removed == removed
        hashed = records.salvage_hashed(f"u,{text}\n{more}".encode(), asked)
        assert (hashed.pairs.addresses.tolist(), hashed.removed) == (found.records.addresses.tolist(), removed)
        listed = instances.salvage_lines(f'["u", "{text}"]\n{more}'.encode(), asked)
        assert (listed.pairs.addresses.tolist(), listed.removed) == (found.records.addresses.tolist(), removed)


def test_an_error_lists_the_first_of_each_kind_and_counts_them() -> None:
    error = MalformedRecords([Fault(n, "u,-", "r", Kind.PLACEHOLDER) for n in range(1, 6)], "line")
    assert str(error) == "; ".join(f"line {n}: r, in 'u,-'" for n in (1, 2, 3)) + "; and 2 more"
    mixed = [*error.faults, Fault(6, "u", "s", Kind.TOO_FEW), Fault(7, "u", "s", Kind.TOO_FEW)]
    assert str(MalformedRecords(mixed, "line", cut=True)) == (
        "line 1: r, in 'u,-'; line 6: s, in 'u'; and at least 5 more "
        "(at least 5 with a placeholder for an address, 2 with too few columns)"
    )


def test_a_remedy_is_told_once_and_where_it_helps() -> None:
    for count in (1, 5):
        with pytest.raises(MalformedRecords) as caught:
            records.parse_csv(b"u,2001:db8::1\n" * count)
        assert str(caught.value).endswith(". To read IPv6 addresses, train with the hyperparameter ip_version=6")
        assert str(caught.value).count("ip_version") == 1
    with pytest.raises(MalformedRecords) as caught:
        records.parse_csv(b"u,fe80::1%eth0\n")
    assert "zone id" in str(caught.value)
    assert "ip_version" not in str(caught.value)


def test_an_account_of_a_channel_counts_by_kind_and_can_leave_kinds_out() -> None:
    malformed = Malformed()
    malformed.add("a", [Fault(1, "u,-", "r", Kind.PLACEHOLDER), Fault(2, "u,-", "r", Kind.PLACEHOLDER)])
    assert (malformed.told, str(malformed)) == (
        "all with a placeholder for an address",
        "a, line 1: r, in 'u,-'; a, line 2: r, in 'u,-'",
    )
    malformed.add("b", [Fault(7, "u", "s", Kind.TOO_FEW)] * 3, "row")
    assert malformed.told == "3 with too few columns, 2 with a placeholder for an address"
    assert str(malformed) == "a, line 1: r, in 'u,-'; b, row 7: s, in 'u'; and 3 more"
    damage = malformed.without(ABSENT)
    assert (damage.count, damage.told, malformed.count) == (3, "all with too few columns", 5)
    assert malformed.described(room=30) == "a, line 1: r, in 'u,-'; and 4 more"
