"""The platform's request to stop, as a question that a running job can ask.

A stopped job, an expired one and a reclaimed Spot instance all get SIGTERM, and SIGKILL 120 seconds later. The signal
only sets a flag: whoever works asks for it where it can stop without harm. It is watched from before anything large is
imported, since a process 1 that handles no SIGTERM does not even die of it. Ctrl-C is the same request; a second one
interrupts at once. The platform asks the first process only, so that one passes the request on to any others.
"""

import contextlib
import os
import signal
from types import FrameType


class Stopped(Exception):  # no error: it was asked for
    """Raised where work was left because of the request."""


_received = 0
_others: list[int] = []
"""Processes of ours that are to hear of the request, too."""


def watch() -> None:
    """Begin to take note of the request."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def exit_at_once() -> None:
    """The request ends the process, with exit code 0: for one that has nothing to lose yet."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))


def ignore() -> None:
    """There is nothing left to stop. Python, as it ends, would go back to dying of the signal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def pass_on(*processes: int) -> None:
    """From now on, pass the request on to these processes, and to no others; at once if it has come already."""
    _others[:] = processes
    if _received:
        _tell()


def requested() -> bool:
    """Whether the job was asked to stop."""
    return _received > 0


def check() -> None:
    """Raise `Stopped` if the job was asked to stop."""
    if _received:
        raise Stopped


def _note(number: int, frame: FrameType | None) -> None:
    del frame
    global _received  # signals are the process's, and so is this
    _received += 1
    _tell()
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _tell() -> None:
    for process in _others:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(process, signal.SIGTERM)
