"""A process that trains one setting after another on the same events.

Trainings side by side need processes: a training sets the number of threads of its whole process. The events are sent
to a process once. After each epoch it asks whether to go on.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.errors import AlgorithmError, UserError, refusals
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.training.progress import EpochSummary, Plan, Record


@dataclass(frozen=True)
class Work:
    """What all trainings have in common."""

    train: Events
    validation: Events
    networks: Networks | None


@dataclass(frozen=True)
class Need:
    """What a training would need."""

    memory: int
    """Bytes, those of its process included."""
    device: str
    hyperparameters: Hyperparameters
    """As they are adapted to the data."""


@dataclass(frozen=True)
class Trained:
    """A training that went to its end; its model is in the folder."""

    metrics: dict[str, Any]
    """Of the epoch whose weights the model has."""
    epochs: int
    seconds: float


@dataclass(frozen=True)
class GivenUp:
    """A training that was told not to go on."""


@dataclass(frozen=True)
class Failed:
    """A training that its settings, the data or the machine made impossible."""

    reason: str


@dataclass(frozen=True)
class Broken:
    """A fault of ours."""

    trace: str


Answer = EpochSummary | Need | Trained | GivenUp | Failed | Broken


class Worker:
    """The process, seen from the one that started it."""

    def __init__(self, work: Work, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads that do not run
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
        self._process.start()
        theirs.close()

    def need(self, hyperparameters: Hyperparameters) -> Need:
        """What a training needs. Raises UserError if it is impossible."""
        self._send((hyperparameters, None))
        answer = self.hear()
        if isinstance(answer, Failed):
            raise UserError(answer.reason)
        if not isinstance(answer, Need):
            raise AlgorithmError(f"planning a training: {getattr(answer, 'trace', answer)}")
        return answer

    def train(self, hyperparameters: Hyperparameters, folder: Path) -> None:
        """Begin a training whose model is to be in a folder. `hear` tells of it until it ends."""
        self._send((hyperparameters, folder))

    def go_on(self, on: bool) -> None:
        """Answer the report of an epoch."""
        self._send(on)

    def hear(self) -> Answer:
        """Wait for what the process reports next. A process that ended has failed."""
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            ended = f"was ended by signal {-code}" if code and code < 0 else f"ended with code {code}"
            return Failed(f"its process {ended}, perhaps for want of memory")
        return answer

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # of a process that has ended, which `hear` tells
            self.connection.send(message)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid or 0

    @property
    def alive(self) -> bool:
        """Whether it can train."""
        return self._process.is_alive()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.terminate()
        self._process.join()
        self.connection.close()


class _GivenUpError(Exception):
    """Ends a training from within."""


class _PlannedError(Exception):
    """Ends a training before it begins."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan


class _Planning(Record):
    def training_planned(self, plan: Plan) -> None:
        """What it would need is known."""
        raise _PlannedError(plan)


class _Asking(Record):
    def __init__(self, hyperparameters: Hyperparameters, connection: Connection) -> None:
        super().__init__(hyperparameters)
        self._connection = connection

    def epoch_done(self, summary: EpochSummary) -> None:
        """Report it, and ask whether to go on, unless it was the last."""
        self._connection.send(summary)
        if not self._connection.recv():
            raise _GivenUpError


def _serve(connection: Connection, work: Work, threads: int) -> None:
    """What the process does: answer until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first of them decides
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported
    try:
        while True:
            hyperparameters, folder = connection.recv()
            connection.send(_answer(connection, work, hyperparameters, folder))
    except (EOFError, ConnectionError):
        return  # nobody listens any more


def _answer(connection: Connection, work: Work, hyperparameters: Hyperparameters, folder: Path | None) -> Answer:
    from ipinsights.training.fit import fit  # loads torch

    listener = _Asking(hyperparameters, connection) if folder else _Planning(hyperparameters)
    began = time.monotonic()
    try:
        model = fit(work.train, hyperparameters, work.validation, listener, networks=work.networks)
        seconds = time.monotonic() - began
        facts = listener.facts(len(work.train), seconds)
        if folder:
            with refusals("write the model to", folder):
                folder.mkdir(parents=True)
                artifact.save(model, folder, facts)
        return Trained(facts["metrics"], facts["training"]["epochs"], seconds)
    except _PlannedError as planned:
        hp = planned.plan.hyperparameters
        table = 4 * (hp.num_entity_vectors + 1) * hp.vector_dim
        return Need(table + planned.plan.memory + _peak(), planned.plan.device, hp)
    except _GivenUpError:
        return GivenUp()
    except (EOFError, ConnectionError):
        raise
    except MemoryError as error:
        return Failed(f"there is not enough memory: {error}")
    except UserError as error:
        return Failed(str(error))
    except Exception:
        return Broken(traceback.format_exc())


def _peak() -> int:
    """The most bytes that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
