from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logs.reading import log_ins, outcomes, reasons, write

DEFAULT = (
    "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status"
)


def flow(source: str, target: str, interface: str = "eni-1", action: str = "ACCEPT", start: str = "1767323045") -> str:
    return f"2 111122223333 {interface} {source} {target} 49152 443 6 20 4249 {start} 1767323105 {action} OK\n"


def test_flows_into_the_interface_are_kept(tmp_path: Path) -> None:
    text = flow("8.8.4.4", "10.0.0.5") + flow("10.0.0.5", "8.8.4.4") + flow("9.9.9.9", "10.0.0.5", action="REJECT")
    text += "2 111122223333 eni-1 - - - - - - - 1767323045 1767323105 - NODATA\n"
    for header in ("", f"{DEFAULT}\n"):
        path = write(tmp_path, header + text)
        assert log_ins(path, "flow") == [("eni-1", "8.8.4.4", "2026-01-02T03:04:05")]
        expected = ["LogIn", "flows out of the interface", "rejected flows", "Other"]
        assert reasons(outcomes(path, "flow")) == ["Other"] * bool(header) + expected


def test_between_private_addresses_the_one_that_stays_is_its_own(tmp_path: Path) -> None:
    text = flow("10.0.0.7", "10.0.0.5") + flow("10.0.0.8", "10.0.0.5") + flow("10.0.0.5", "10.0.0.7")
    text += flow("10.0.0.7", "10.0.0.5") + flow("10.0.0.5", "10.0.0.7", "eni-2")
    undecided = "flows of which the log does not tell the direction yet"
    found = outcomes(write(tmp_path, text), "flow")
    assert reasons(found) == [undecided, "LogIn", "flows out of the interface", "LogIn", undecided]


def test_the_log_may_tell_the_direction_and_the_origin(tmp_path: Path) -> None:
    text = "interface-id srcaddr dstaddr pkt-srcaddr start action flow-direction\n"
    text += "eni-1 10.0.0.7 10.0.0.5 8.8.4.4 1767323045 ACCEPT ingress\n"
    text += "eni-1 10.0.0.5 10.0.0.7 - 1767323045 ACCEPT egress\neni-1 10.0.0.7 10.0.0.5 1767323045 ACCEPT\n"
    path = write(tmp_path, text)
    assert log_ins(path, "flow") == [("eni-1", "8.8.4.4", "2026-01-02T03:04:05")]
    assert reasons(outcomes(path, "flow"))[3] == "another number of fields: 5 where 7 are expected"


@given(
    source=st.ip_addresses(v=4, network="8.0.0.0/8").map(str),
    own=st.ip_addresses(v=4, network="10.0.0.0/8").map(str),
    start=st.integers(10**9, 4 * 10**9),
    number=st.integers(0, 16**8),
)
def test_any_flow_from_the_internet_comes_back(
    tmp_path_factory: pytest.TempPathFactory, source: str, own: str, start: int, number: int
) -> None:
    path = write(tmp_path_factory.mktemp("log"), flow(source, own, f"eni-{number:08x}", start=str(start)))
    assert outcomes(path, "flow") == [(f"eni-{number:08x}", source, start)]
