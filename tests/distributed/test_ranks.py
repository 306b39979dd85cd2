"""Ranks in real processes: what they exchange, and what becomes of them if one dies, freezes, fails or never comes."""

import contextlib
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed.together import FAILED, HOSTS, LOST, Together, together
from ipinsights.distributed import ranks as distributed
from ipinsights.distributed.group import ALONE, Group, OtherHostFailed
from ipinsights.errors import UserError

pytestmark = pytest.mark.slow

TYPES = (np.uint8, np.bool_, np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64)


def exchanged(group: Group, folder: Path) -> dict[str, Any]:
    """Rank r sends to rank q the numbers r, r + 1, ... of which there are r * q."""
    distributed.ROUND = 64  # so that it takes several rounds
    found: dict[str, Any] = {}
    for dtype in TYPES:
        parts = [np.arange(group.rank, group.rank + group.rank * to).astype(dtype) for to in range(group.size)]
        found[np.dtype(dtype).name] = group.exchange(parts)
    found["rows"] = group.exchange([np.full((group.rank, 3), to, dtype=np.float32) for to in range(group.size)])
    found["nothing"] = group.exchange([np.zeros(0, dtype=np.uint32)] * group.size)
    found["sum"] = group.sum(np.full((2, 2), 1 + group.rank))
    found["floats"] = group.sum(np.full(1000, 0.1 + group.rank, dtype=np.float32))
    added = torch.full((3,), 1.5 + group.rank)
    group.add(added)
    assert isinstance(group, distributed.Ranks)
    group.direct["cpu"] = group.direct["cuda"]  # as if the tensor lay on a GPU
    group.add(added)
    found["added"] = added.tolist()
    found["broadcast"] = group.broadcast(np.array([7.5]) if group.leads else np.zeros(0))
    found["collected"] = group.collect(np.array([group.rank]))
    found["any"] = group.any(group.rank == 1), group.any(False)
    group.agree(None)
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_exchange_numbers_of_every_type_and_length(tmp_path: Path, ranks: int) -> None:
    results = together(tmp_path, ranks, exchanged)
    for rank, found in enumerate(results):
        for dtype in TYPES:
            theirs = found[np.dtype(dtype).name]
            for other, array in enumerate(theirs):
                assert array.dtype == dtype
                np.testing.assert_array_equal(array, np.arange(other, other + other * rank).astype(dtype))
        assert [array.shape for array in found["rows"]] == [(other, 3) for other in range(ranks)]
        assert all((array == rank).all() for array in found["rows"])
        assert [len(array) for array in found["nothing"]] == [0] * ranks
        assert (found["sum"] == ranks * (ranks + 1) // 2).all()
        assert found["floats"].tobytes() == results[0]["floats"].tobytes()
        assert found["added"] == [ranks * (1.5 * ranks + ranks * (ranks - 1) / 2)] * 3
        assert found["broadcast"].tolist() == [7.5]
        assert [array.tolist() for array in found["collected"]] == [[r] if rank == 0 else [] for r in range(ranks)]
        assert found["any"] == (True, False)


def test_one_rank_alone_gets_what_it_gives() -> None:
    array = np.arange(3)
    assert ALONE.leads
    assert ALONE.sum(array) is array
    assert [part is array for part in ALONE.exchange([array])] == [True]
    assert ALONE.broadcast(array) is array
    assert ALONE.total(2.5) == 2.5
    ALONE.agree(None)
    ALONE.require_same("the model", "digest")
    with pytest.raises(UserError, match="line 3"):
        ALONE.agree(UserError("line 3"))


def disagreeing(group: Group, folder: Path) -> str:
    try:
        group.agree(UserError("a.csv, line 3: 'x' is no address") if group.rank == 1 else None)
    except (UserError, OtherHostFailed) as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def test_all_hosts_hear_of_the_fault_of_one(tmp_path: Path) -> None:
    fault = "a.csv, line 3: 'x' is no address"
    heard = f"OtherHostFailed: host {HOSTS[1]} failed: {fault}"
    assert together(tmp_path, 3, disagreeing) == [heard, f"UserError: {fault}", heard]


def different(group: Group, folder: Path) -> str:
    try:
        group.require_same("channel 'model'", "one" if group.rank < 2 else "other")
    except UserError as error:
        return str(error)
    return "the same"


def test_all_hosts_hear_of_what_is_not_the_same(tmp_path: Path) -> None:
    told = f"channel 'model' is not the same on all hosts: {HOSTS[2]} has another one than {HOSTS[0]}"
    assert together(tmp_path, 3, different) == [told] * 3


def endless(group: Group, folder: Path) -> None:
    """Sum for ever."""
    (folder / f"began{group.rank}").touch()
    while True:
        group.sum(np.ones(100_000))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_or_freezes_ends_all_others_by_its_name(tmp_path: Path, victim: int, number: int) -> None:
    running = Together(tmp_path, 3, endless)
    running.wait_for("began")
    running.processes[victim].send_signal(number)
    try:
        for code, output in running.end(but=[victim]).values():
            assert code == LOST, output
            assert f"LOST told=False: host {HOSTS[victim]} " in output
    finally:
        running.processes[victim].kill()
        running.processes[victim].communicate()


def failing(group: Group, folder: Path) -> None:
    """Rank 1 fails in the midst of the others' sums."""
    for number in range(10**9):
        group.sum(np.ones(1000))
        if number == 5 and group.rank == 1:
            raise ValueError("the disk is full")


def test_a_host_that_fails_tells_all_others_why(tmp_path: Path) -> None:
    ended = Together(tmp_path, 3, failing).end()
    assert ended.pop(1)[0] == FAILED
    for code, output in ended.values():
        assert code == LOST, output
        assert f"LOST told=True: host {HOSTS[1]} failed: the disk is full" in output


@pytest.mark.parametrize("absent", [0, 2])
def test_a_host_that_never_comes_is_named(tmp_path: Path, absent: int) -> None:
    ended = Together(tmp_path, 3, endless, *({0, 1, 2} - {absent}), rendezvous=45).end()
    for code, output in ended.values():
        assert code != 0
        assert f"host {HOSTS[absent]}" in output
        assert "within 45 seconds" in output


def test_strangers_are_not_let_in(tmp_path: Path) -> None:
    """They say nothing, or something else, or that they are a rank of another job."""
    early = Together(tmp_path, 2, exchanged, 0)
    for greeting in (
        b"",
        b"GET / HTTP/1.1\r\nHost: algo-1\r\n\r\n",
        b"ipinsights ranks" + bytes([1, 2, 3, 4, *(1, 0, 0, 0), *(0, 0, 0, 0), *(1, 0, 0, 0)]),
    ):
        while True:
            try:
                stranger = socket.create_connection((HOSTS[0], early.port), timeout=60)
                break
            except ConnectionRefusedError:  # the leader is not there yet
                assert early.processes[0].poll() is None
        with stranger:
            stranger.sendall(greeting)
            if greeting:
                with contextlib.suppress(ConnectionResetError):  # as not all was read
                    assert stranger.recv(1) == b""
    early.start(1)
    assert len(early.results()) == 2


def test_the_others_wait_for_a_host_that_comes_late(tmp_path: Path) -> None:
    early = Together(tmp_path, 2, exchanged, 1)
    with pytest.raises(subprocess.TimeoutExpired):  # it would have ended long ago if it did not wait
        early.processes[1].wait(4)
    early.start(0)
    assert len(early.results()) == 2
