"""Trainings that run piece by piece, so that several of them take turns in one process on one machine.

A shared machine is fast now and slow a minute later. So nobody trains alone: each contender is a training without end
that does some steps when it is told to and rests while the others do theirs. (Ours rests in a thread; that costs it 1
or 2 %, which the machine's noise hides.)
"""

import itertools
import queue
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks import literal
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training.fit import fit
from ipinsights.training.progress import BatchProgress, Listener


@dataclass(frozen=True)
class Piece:
    """Some steps of a training."""

    positives: int
    seconds: float
    cross_entropy: float
    """Mean over the records since the epoch began."""


class Contender(Protocol):
    """A training that rests between pieces."""

    def run(self, steps: int) -> Piece:
        """Train for some steps."""

    def close(self) -> None:
        """Stop, and give the memory back."""


class Literal:
    """A `literal.Trainer`."""

    def __init__(self, train: Events, hyperparameters: Hyperparameters, sparse: bool) -> None:
        self._steps = literal.Trainer(train, hyperparameters, sparse).steps()

    def run(self, steps: int) -> Piece:
        """Train for some steps."""
        positives, cross_entropy, started = 0, 0.0, time.perf_counter()
        for count, cross_entropy in itertools.islice(self._steps, steps):  # noqa: B007  # the last one stays
            positives += count
        return Piece(positives, time.perf_counter() - started, cross_entropy)

    def close(self) -> None:
        """Stop, and give the memory back."""
        del self._steps


class _Stopped(Exception):
    """Raised in a training to end it."""


class Ours(Listener):
    """`fit` as it stands, in a thread of its own that its listener holds up between pieces.

    ``batch_metrics_publish_interval`` must be 1 + R + S, so that every step ends in one `batches_done`.
    """

    def __init__(self, train: Events, hyperparameters: Hyperparameters) -> None:
        self._train, self._hyperparameters = train, hyperparameters
        self._threads = torch.get_num_threads()
        self._asked: queue.Queue[int | None] = queue.Queue()
        self._answers: queue.Queue[Piece | Exception] = queue.Queue()
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def run(self, steps: int) -> Piece:
        """Train for some steps."""
        self._asked.put(steps)
        answer = self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Stop, and give the memory back."""
        self._asked.put(None)
        self._thread.join()

    def step_done(self, epoch: int, positives: int) -> None:
        """Count."""
        del epoch
        self._steps_left -= 1
        self._positives += positives

    def batches_done(self, progress: BatchProgress) -> None:
        """Rest, if the piece is over, until there is another."""
        if self._steps_left == 0:
            self._answers.put(Piece(self._positives, time.perf_counter() - self._started, progress.cross_entropy))
            self._wait()

    def _wait(self) -> None:
        asked = self._asked.get()
        if asked is None:
            raise _Stopped
        self._steps_left, self._positives, self._started = asked, 0, time.perf_counter()

    def _fit(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP's number is each thread's own
        try:
            self._wait()
            fit(self._train, self._hyperparameters, listener=self, device="cpu")
            self._answers.put(ValueError("the training ended in a piece: it has too few epochs"))
        except _Stopped:
            pass
        except Exception as error:
            self._answers.put(error)
