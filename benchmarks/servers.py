"""Servers as processes: started, asked for memory, stopped; and limits on how long a process takes."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_START_LIMIT = 300
_POLL = 0.01


def environment(**extra: str) -> dict[str, str]:
    """Our own environment, for processes that can import what we can; numpy and torch have one thread in each."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path), **threads, **extra}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def time_limit(process: subprocess.Popen[str] | subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Kill a process if what is done with it here fails, or takes longer.

    So whoever reads what it prints, or waits for its end, does not do so for ever.
    """
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()


def terminate(process: subprocess.Popen[str] | subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a process to end. Kills it and raises subprocess.TimeoutExpired if it has not after so many seconds."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


class Server:
    """A server from its start to its first good /ping, and until it is stopped; it has a session of its own."""

    def __init__(self, command: Sequence[str], port: int, log: Path, extra: Mapping[str, str]) -> None:
        self.port = port
        self._log = log
        started = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  # ours
                [sys.executable, "-m", *command],
                env=environment(**extra),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self._ping():
            if self._process.poll() is not None or time.perf_counter() - started > _START_LIMIT:
                self.stop()
                raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(_POLL)
        self.seconds_to_ping = time.perf_counter() - started

    @classmethod
    def one_worker(cls, folder: Path, **extra: str) -> Self:
        """Ours, with the model in ``folder/model``, which may be untrained, and a worker."""
        port = free_port()
        settings = {
            "SAGEMAKER_BASE_DIR": str(folder),
            "SAGEMAKER_BIND_TO_PORT": str(port),
            "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
            "IPINSIGHTS_UNTRAINED_MODEL": "accept",
            **extra,
        }
        return cls(["ipinsights.sagemaker", "serve"], port, folder / "log", settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        terminate(self._process, 60)

    def _ping(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return connection.recv(12).endswith(b" 200")
        except OSError:
            return False

    def memory(self) -> int:
        """Bytes of all its processes: pages that several processes map are shared out among them (PSS)."""
        return sum(_proportional_set_size(pid) for pid in self.processes())

    def settled_memory(self, processes: int) -> int:
        """`memory`, once there are so many processes and it stays the same: workers may load after the first /ping."""
        deadline = time.perf_counter() + _START_LIMIT
        readings: list[int] = []
        while time.perf_counter() < deadline:
            readings.append(self.memory())
            last = readings[-4:]
            if len(self.processes()) >= processes and len(last) == 4 and max(last) - min(last) <= 0.005 * last[-1]:
                return last[-1]
            time.sleep(0.2)
        raise RuntimeError(f"the server's memory does not settle; see {self._log}")

    def processor_seconds(self) -> float:
        """Processor time that its processes have taken so far."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, the 14th and the 15th of proc(5)
        return ticks / os.sysconf("SC_CLK_TCK")

    def threads(self) -> int:
        """The number of threads of all its processes."""
        return sum(len([*Path(f"/proc/{pid}/task").iterdir()]) for pid in self.processes())

    def processes(self) -> list[int]:
        """The process ids of all its processes."""
        found = []
        for name in os.listdir("/proc"):  # noqa: PTH208  # names will do
            try:
                if name.isdecimal() and os.getsid(int(name)) == self._process.pid:
                    found.append(int(name))
            except ProcessLookupError:
                pass
        return found


def _proportional_set_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
