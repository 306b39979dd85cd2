"""A group of ranks on several hosts: torch.distributed moves the numbers, and the watch sees that all are alive.

The backend is gloo, which all CPUs have. It knows no unsigned types and must know all sizes before. So whatever moves
as it is, moves as bytes, in rounds of a bounded size; only sums know their type.
"""

import datetime
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not in the stubs

from ipinsights.distributed import interface, watch
from ipinsights.distributed.group import Array, Group, OtherHostFailed, Scalar
from ipinsights.distributed.watch import Watch
from ipinsights.errors import AlgorithmError

ROUND = 1 << 26
"""Bytes to one rank in one exchange, at most. This bounds the memory that an exchange takes."""
_PATIENCE = datetime.timedelta(days=30)
"""How long an exchange waits for another rank. It is the watch that tells a dead one from one that has much to do."""
_INTERFACE = "GLOO_SOCKET_IFNAME"
_UNREACHABLE = "the hosts reached the first one but not one another. Allow all TCP traffic between the hosts of the job"
_NAMING = 10.0
"""Seconds that the watch has to name the host with which an exchange failed."""


class Ranks(Group):
    """One rank of several. `connect` makes it."""

    def __init__(self, hosts: Sequence[str], rank: int, watched: Watch) -> None:
        self.hosts, self.rank, self.size = tuple(hosts), rank, len(hosts)
        self._watch = watched

    def sum(self, array: Array[Scalar]) -> Array[Scalar]:
        """Unsigned integers and flags must not be summed."""
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(-1))
        self._do(torch.distributed.all_reduce, tensor)
        summed: Array[Scalar] = tensor.numpy().reshape(array.shape)
        return summed

    def exchange(self, parts: Sequence[Array[Scalar]]) -> list[Array[Scalar]]:
        """In as many rounds as the largest part of any rank takes."""
        dtype, shape = parts[0].dtype, parts[0].shape[1:]
        ours = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]
        sizes = self._alltoall(torch.tensor([len(part) for part in ours]), [1] * self.size, [1] * self.size).tolist()
        most = torch.tensor([max(map(len, ours))])
        self._do(torch.distributed.all_reduce, most, op=torch.distributed.ReduceOp.MAX)
        theirs = [np.empty(size, dtype=np.uint8) for size in sizes]
        at_once = max(1, ROUND // self.size)
        for begin in range(0, int(most), at_once):
            pieces = [part[begin : begin + at_once] for part in ours]
            outgoing, incoming = [len(piece) for piece in pieces], [min(max(0, s - begin), at_once) for s in sizes]
            received = self._alltoall(torch.from_numpy(np.concatenate(pieces)), incoming, outgoing)
            for array, piece in zip(theirs, torch.split(received, incoming), strict=True):
                array[begin : begin + len(piece)] = piece.numpy()
        return [array.view(dtype).reshape(-1, *shape) for array in theirs]

    def agree(self, error: Exception | None) -> None:
        """Of several errors, other hosts hear of the one on the first host."""
        text = f"{type(error).__name__}:{error}".encode(errors="replace") if error else b""
        all_told = self.gather(np.frombuffer(text, dtype=np.uint8))
        if error:
            raise error
        for host, theirs in zip(self.hosts, all_told, strict=True):
            if len(theirs):
                kind, _, reason = theirs.tobytes().decode().partition(":")
                raise OtherHostFailed(host, kind, reason)

    def fail(self, reason: str) -> None:
        """Leave because of a failure. The others are told, and end too."""
        self._watch.fail(reason)

    def leave(self) -> None:
        """Leave without a word."""
        self._watch.leave()

    def close(self) -> None:
        """Leave when the work is done."""
        self._watch.leave()
        torch.distributed.destroy_process_group()

    def _alltoall(self, outgoing: torch.Tensor, incoming_sizes: list[int], outgoing_sizes: list[int]) -> torch.Tensor:
        incoming = torch.empty(sum(incoming_sizes), dtype=outgoing.dtype)
        self._do(torch.distributed.all_to_all_single, incoming, outgoing, incoming_sizes, outgoing_sizes)
        return incoming

    def _do(self, collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            collective(*arguments, **options)
        except RuntimeError as error:
            time.sleep(_NAMING)  # meanwhile the watch ends this process, and tells why
            raise AlgorithmError(f"the exchange with the other hosts failed: {error}") from error


def connect(
    hosts: Sequence[str],
    rank: int,
    lost: Callable[[str, bool], object],
    *,
    named_interface: str | None = None,
    port: int = watch.PORT,
    patience: float = watch.PATIENCE,
    rendezvous: float = watch.RENDEZVOUS,
    waiting: Callable[[Sequence[str]], object] = lambda _: None,
    check: Callable[[], object] = lambda: None,
) -> Ranks:
    """Bring the hosts together, of which each has one rank: its place among them. The first one leads.

    ``named_interface`` is the network interface that the platform names. The others are those of `Watch`.

    Raises AlgorithmError, which names a host, if one does not come in time.
    """
    watched = Watch(
        hosts, rank, lost, port=port, patience=patience, rendezvous=rendezvous, waiting=waiting, check=check
    )
    try:
        if rank == 0:
            store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)  # noqa: S104  # as the watch
            meeting = watched.ready(store.port)
        else:
            meeting = watched.ready()
        # Nothing else ends what waits for connections that a firewall swallows.
        timer = threading.Timer(rendezvous, lost, (_UNREACHABLE, False))
        timer.daemon = True
        timer.start()
        try:
            if rank:
                within = datetime.timedelta(seconds=2 * rendezvous)
                store = TCPStore(watched.address(0), meeting, is_master=False, wait_for_workers=False, timeout=within)
            leads_there = interface.choose(named_interface, watched.address(1 if rank == 0 else 0))
            if leads_there:
                os.environ[_INTERFACE] = leads_there
            torch.distributed.init_process_group(
                "gloo", store=store, rank=rank, world_size=len(hosts), timeout=_PATIENCE
            )
        finally:
            timer.cancel()
    except RuntimeError as error:  # torch's
        watched.fail(_UNREACHABLE)
        raise AlgorithmError(f"{_UNREACHABLE}: {error}") from error
    return Ranks(hosts, rank, watched)
