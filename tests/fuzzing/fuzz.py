"""Fuzzes every parser for some time: make fuzz MINUTES=60

The native readers run in C++ under the address and undefined-behaviour sanitizers, guided by coverage: by libFuzzer
where clang++ has it, else by `guided.cpp`. The parsers in Python run guided by atheris where it is installed (`pip
install atheris`), else on hypothesis's changes of good inputs. What they find is printed as a line for
`found/TARGET.txt`, which tests run from then on.
"""

import argparse
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzzing import corpus, readers

_READERS = "readers"
_SHARES = 4
"""How many times the time of another target the native readers get."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long it takes in all (default 60)")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="of all targets, these")
    parser.add_argument("--target", help=argparse.SUPPRESS)  # what each process is told
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target:
        _fuzz_here(options.target, options.seconds)
        return
    sys.exit(_fuzz_all(options.minutes, options.only))


def _fuzz_all(minutes: float, only: list[str] | None) -> int:
    """Fuzz all targets, one on each core. Returns how many failed."""
    from fuzzing.targets import TARGETS

    cores = len(os.sched_getaffinity(0))
    names = only or [_READERS, *TARGETS]
    shares = sum(_SHARES if name == _READERS else 1 for name in names)
    share = minutes * 60 * min(cores, len(names)) / shares
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(cores) as pool:
        jobs = [pool.submit(_fuzz, name, share, Path(scratch, name)) for name in names]
        return sum(job.result() for job in jobs)


def _fuzz(name: str, share: float, folder: Path) -> bool:
    """Fuzz one target in a process of its own. Returns whether it failed, and prints what was found."""
    folder.mkdir()
    seconds = share * _SHARES if name == _READERS else share
    if name == _READERS:
        program = readers.build(folder)
        if program is None:
            print(f"{name}: not run, since there is no C++ compiler with sanitizers", flush=True)
            return False
        corpus.write([*readers.SEEDS, *corpus.found(name)], folder / "corpus")
        command = [str(program), f"-max_total_time={seconds:.0f}", "-max_len=512", "corpus"]
    else:
        command = [sys.executable, "-m", "fuzzing.fuzz", "--target", name, "--seconds", str(seconds)]
    path = os.pathsep.join(os.path.abspath(entry or ".") for entry in sys.path)  # noqa: PTH100  # also what is not there
    environment = {**os.environ, **readers.ENVIRONMENT, "PYTHONPATH": path}
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    last = [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Done ")][-1:]
    print(f"{name}: {'failed' if run.returncode else last[0].removeprefix('Done ') if last else 'done'}", flush=True)
    if run.returncode:
        print((run.stdout + run.stderr)[-6000:])
        for file in [file for file in folder.iterdir() if file.name.startswith(("crash-", "timeout-", "oom-"))]:
            print(f"for {corpus.FOUND / name}.txt: {file.read_bytes()!r}", flush=True)
    return run.returncode != 0


def _fuzz_here(name: str, seconds: float) -> None:
    """Fuzz a parser in this process."""
    logging.disable()
    if importlib.util.find_spec("atheris"):
        import atheris

        with atheris.instrument_imports(include=["ipinsights"]):
            from fuzzing.targets import TARGETS
        target = TARGETS[name]
        corpus.write([*target.seeds, *corpus.found(name)], Path("corpus"))
        limits = [f"-max_total_time={seconds:.0f}", "-timeout=60", "-rss_limit_mb=4096", "-max_len=16384"]
        atheris.Setup([sys.argv[0], *limits, "corpus"], target.run)
        atheris.Fuzz()
        return
    from hypothesis import HealthCheck, given, settings

    from fuzzing.changes import changed
    from fuzzing.targets import TARGETS

    target, runs = TARGETS[name], 0

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changed([*target.seeds, *corpus.found(name)]))
    def run(data: bytes) -> None:
        nonlocal runs
        runs += 1
        target.run(data)

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run()
    print(f"Done {runs} runs")


if __name__ == "__main__":
    main()
