"""The further processes of a host that has several GPUs: one trains on each, and the first process starts the others.

They are started anew (*spawn*), as CUDA does not survive a fork, and are ranks as those of other hosts are. The first
process passes the request to stop on to them. It ends after them, since a container ends with its first process, and
what another has to say of its failure would be lost.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from typing import Any

from ipinsights.errors import AlgorithmError
from ipinsights.sagemaker import stopping

_FAREWELL = 10.0
"""Seconds that a process has to end by itself once the job is over."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Processes:
    """The further processes of this host. A host with one GPU, or none, has none."""

    def __init__(self) -> None:
        self._running: list[multiprocessing.process.BaseProcess] = []
        self._ending = threading.Lock()

    def start(self, number: int, work: Callable[..., None], options: Mapping[str, Any]) -> None:
        """Start so many. Each calls ``work``, a function of a module, with its number, from 1, and the ``options``."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # or it would lift the block below
        # A new process would die of a signal before it can take note of it. What it is blocked from waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for place in range(1, number + 1):
                arguments = (work, place, dict(options))
                self._running.append(context.Process(target=_run, args=arguments, daemon=True))
                self._running[-1].start()
                stopping.pass_on(*(process.pid for process in self._running if process.pid))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def check(self) -> None:
        """Raise AlgorithmError if one has ended."""
        for gpu, process in enumerate(self._running, start=1):
            if not process.is_alive():
                raise AlgorithmError(f"the process of GPU {gpu} has ended with exit code {process.exitcode}")

    def end(self) -> None:
        """Wait until all have ended, but not for ever. Any thread may call it."""
        with self._ending:
            stopping.pass_on()
            while self._running:
                process = self._running.pop()
                process.join(_FAREWELL)
                process.kill()
                process.join()


def check() -> None:
    """Raise AlgorithmError in a further process if the first process of its host is gone."""
    first = multiprocessing.parent_process()
    if first and not first.is_alive():
        raise AlgorithmError("the first process of this host is gone")


def _run(work: Callable[..., None], place: int, options: dict[str, Any]) -> None:
    """What a further process does."""
    stopping.watch()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        work(place, **options)
    except KeyboardInterrupt:  # which the first process reports
        os._exit(1)
    finally:
        stopping.ignore()
