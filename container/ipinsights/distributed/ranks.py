"""A group of ranks on several hosts: torch.distributed moves the numbers, and the watch sees that all are alive.

The backend is gloo, which all CPUs have. It knows no unsigned types and must know all sizes before. So whatever moves
as it is, moves as bytes, in rounds of a bounded size; only sums know their type.

What lies on a GPU goes by way of the host's memory, unless `connect` is given a backend for GPUs. That is the one place
where gloo and NCCL differ. NCCL takes nothing but what GPUs hold, so all else stays with gloo. And it cannot be told
when to give up as gloo can: a rank that it waits for must come within its own timeout, or the process ends.
"""

import datetime
import os
import socket
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
_GPU_PATIENCE = datetime.timedelta(minutes=10)
"""How long GPUs wait for one another. All ranks have met on gloo immediately before."""
_INTERFACE, _GPU_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_UNREACHABLE = "the hosts reached the first one but not one another. Allow all TCP traffic between the hosts of the job"
_NAMING = 10.0
"""Seconds that the watch has to name the host with which an exchange failed."""


class Ranks(Group):
    """One rank of several. `connect` makes it."""

    def __init__(self, watched: Watch) -> None:
        places = [(host, process) for host, number in enumerate(watched.processes) for process in range(number)]
        self.hosts, self.rank, self.size = [*map(watched.name, places)], places.index(watched.place), len(places)
        self.host, self.process = watched.place
        self.processes = watched.processes
        self.direct: dict[str, Any] = {}
        """torch's group for the tensors of a type of device, which takes them from there."""
        self._watch = watched

    def sum(self, array: Array[Scalar]) -> Array[Scalar]:
        """Unsigned integers and flags must not be summed."""
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(-1))
        self._do(torch.distributed.all_reduce, tensor)
        summed: Array[Scalar] = tensor.numpy().reshape(array.shape)
        return summed

    def add(self, tensor: torch.Tensor) -> None:
        """Directly from the device, if there is a backend for it."""
        direct = self.direct.get(tensor.device.type)
        held = tensor if direct else tensor.cpu()
        self._do(torch.distributed.all_reduce, held, group=direct)
        tensor.copy_(held)

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
    host: int,
    lost: Callable[[str, bool], object],
    *,
    process: int = 0,
    processes: int = 1,
    named_interface: str | None = None,
    port: int = watch.PORT,
    server: socket.socket | None = None,
    patience: float = watch.PATIENCE,
    rendezvous: float = watch.RENDEZVOUS,
    waiting: Callable[[Sequence[str]], object] = lambda _: None,
    check: Callable[[], object] = lambda: None,
    gpu_backend: str | None = None,
) -> Ranks:
    """Bring the ranks together: the processes of the first host come first, and the first of them leads.

    ``named_interface`` is the network interface that the platform names. GPUs exchange by a backend of torch's such as
    nccl, if a ``gpu_backend`` is given. The others are those of `Watch`.

    Raises AlgorithmError, which names a host, if one does not come in time.
    """
    watched = Watch(
        hosts,
        host,
        lost,
        process=process,
        processes=processes,
        port=port,
        server=server,
        patience=patience,
        rendezvous=rendezvous,
        waiting=waiting,
        check=check,
    )
    try:
        if watched.leads:
            store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)  # noqa: S104  # as the watch
            leads_there = interface.choose(named_interface, watched.address)
            watched.ready([store.port, leads_there])
        else:
            meeting, leads_there = watched.ready()
            if host:  # on the leader's own host it is the leader's
                leads_there = interface.choose(named_interface, watched.address)
        group = Ranks(watched)
        # Nothing else ends what waits for connections that a firewall swallows.
        timer = threading.Timer(rendezvous, lost, (_UNREACHABLE, False))
        timer.daemon = True
        timer.start()
        try:
            if not watched.leads:
                within = datetime.timedelta(seconds=2 * rendezvous)
                store = TCPStore(watched.address, meeting, is_master=False, wait_for_workers=False, timeout=within)
            if leads_there:
                os.environ[_INTERFACE] = leads_there
                if gpu_backend:
                    os.environ.setdefault(_GPU_INTERFACE, f"={leads_there}")
            torch.distributed.init_process_group(
                "gloo", store=store, rank=group.rank, world_size=group.size, timeout=_PATIENCE
            )
            if gpu_backend:
                group.direct["cuda"] = torch.distributed.new_group(backend=gpu_backend, timeout=_GPU_PATIENCE)
        finally:
            timer.cancel()
    except RuntimeError as error:  # torch's
        watched.fail(_UNREACHABLE)
        raise AlgorithmError(f"{_UNREACHABLE}: {error}") from error
    return group
