"""What several ranks gain, and whether they learn the same, as Markdown tables.

    python -m benchmarks.scaling                                 # speed: 1, 2 and 4 ranks on simulated log-ins
    python -m benchmarks.scaling --users 10_000 --batch 10_000
    python -m benchmarks.scaling --quality --ranks 1 2           # Tor relays, as `benchmarks.quality` measures them
    python -m benchmarks.scaling --quality --tutorial            # the AWS tutorial's simulation instead: minutes
    python -m benchmarks.scaling --gpus                          # 1, 2 and 4 GPUs of this machine; --exchange nccl

Each rank is a process of this machine with one thread, and they are connected over the loopback interface. Speeds are
by processor time of the slowest rank, exchanges included: what ranks on machines of their own reach, but for the wire.
So other work on the machine hardly matters. The numbers of ranks take turns.

With --gpus each rank has a GPU, and speeds are by the clock. GPUs exchange by way of the host's memory, or directly by
what --exchange names.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import contenders, datasets, ranking, tutorial
from benchmarks.servers import free_port
from benchmarks.tables import markdown
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.events import Events
from ipinsights.distributed.group import ALONE, Group
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.model.shard import Shard
from ipinsights.training.fit import fit
from ipinsights.training.progress import EpochSummary, Listener
from ipinsights.training.together import fit_together

_LIMIT = 3600
"""Seconds that a run may take."""


class _Clock(Listener):
    """The processor time of this rank, or another, at the start of training and after each epoch."""

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.times: list[float] = []
        self._now = now

    def step_done(self, epoch: int, positives: int) -> None:  # noqa: ARG002
        """The first step is not counted: torch imports late."""
        if not self.times:
            self.times.append(self._now())

    def epoch_done(self, summary: EpochSummary) -> None:  # noqa: ARG002
        """An epoch is over."""
        self.times.append(self._now())


def _train(train: Events, hp: Hyperparameters, group: Group, listener: Listener | None = None) -> Model | Shard:
    if group.size == 1:
        return fit(train, hp, listener=listener)
    mine = slice(group.rank, None, group.size)
    part = Events(train.entity[mine], train.address[mine], train.index)
    return fit_together(part, hp, None, group, listener)


def _speed(options: argparse.Namespace, group: Group) -> dict[str, Any]:
    """The seconds of processor time of each epoch, and the positives in it."""
    case = tutorial.Case.simulated(options.users, options.rows, synthetic=not datasets.RANGES.exists())
    chosen = {**datasets.TUTORIAL_HYPERPARAMETERS, "mini_batch_size": options.batch, "epochs": options.epochs}
    hp = Hyperparameters(
        num_entity_vectors=case.train.index.num_rows,
        training_hosts="all",
        held_out_share=0.0,
        device="gpu" if options.gpus else "cpu",
        **chosen,
    )
    clock = _Clock(time.perf_counter) if options.gpus else _Clock()
    _train(case.train, hp, group, clock)
    seconds = np.diff(clock.times)
    slowest = np.max(group.gather(seconds[None]), axis=0)[0] if group.size > 1 else seconds
    return {"positives": len(case.train), "seconds": slowest.tolist()}


def _quality(options: argparse.Namespace, group: Group) -> dict[str, Any]:
    """What `ranking.KINDS` or `tutorial.COLUMNS` name, of one split of the Tor relays or of the tutorial."""
    measure: Callable[[contenders.Scorer], npt.NDArray[np.float64]]
    if options.tutorial:
        case = tutorial.Case.simulated(10_000)
        train, chosen, measure = case.train, datasets.TUTORIAL_HYPERPARAMETERS, case.measure
    else:
        task = ranking.Task.tor(options.split, FAMILIES[options.ip_version])
        train, chosen = task.train, {**datasets.TOR_HYPERPARAMETERS, "ip_version": options.ip_version}
        measure = functools.partial(task.aucs, seed=options.seed)
    hp = Hyperparameters(
        num_entity_vectors=train.index.num_rows,
        seed=options.seed,
        training_hosts="all",
        device="gpu" if options.gpus else "cpu",
        **chosen,
    )
    learnt = _train(train, hp, group)
    with TemporaryDirectory() as folder:
        artifact.save(learnt, Path(folder), {}, group)
        return {"found": measure(contenders.scorer(artifact.load(folder))).tolist()} if group.leads else {}


_MEASURES: dict[str, Callable[[argparse.Namespace, Group], dict[str, Any]]] = {"speed": _speed, "quality": _quality}


def _rank(options: argparse.Namespace) -> None:
    """One rank: what the leader finds goes to standard output."""
    torch.set_num_threads(1)
    group = ALONE
    if options.of > 1:
        from ipinsights.distributed import ranks

        def lost(reason: str, _: bool) -> None:
            print(reason, file=sys.stderr)
            os._exit(1)

        hosts = ["127.0.0.1", *(f"algo-{rank}" for rank in range(1, options.of))]
        if options.gpus:
            gpus = {"process": options.rank, "processes": options.of, "gpu_backend": options.exchange}
            group = ranks.connect(hosts[:1], 0, lost, port=options.port, **gpus)
        else:
            group = ranks.connect(hosts, options.rank, lost, port=options.port)
    found = _MEASURES[options.measure](options, group)
    if group.leads:
        print(json.dumps(found))
    group.close()


def _run(arguments: list[str], measure: str, ranks: int) -> dict[str, Any]:
    """What so many ranks find."""
    common = [sys.executable, "-m", "benchmarks.scaling", *arguments, "--measure", measure, "--of", str(ranks)]
    common += ["--port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(  # noqa: S603  # this very module
            [*common, "--rank", str(rank)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=_LIMIT)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a rank of {ranks} failed")
    found: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return found


def _speeds(options: argparse.Namespace, arguments: list[str]) -> str:
    found: dict[int, list[float]] = {ranks: [] for ranks in options.ranks}
    for _ in range(options.rounds):
        for ranks in options.ranks:
            run = _run(arguments, "speed", ranks)
            found[ranks].append(run["positives"] / float(np.median(run["seconds"][1:])))
            print(f"{ranks} ranks: {found[ranks][-1]:,.0f} positives a second", file=sys.stderr)
    first = np.array(found[options.ranks[0]])
    lines = []
    for ranks, speeds in found.items():
        ratio = np.array(speeds) / first
        spread = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        lines.append([str(ranks), f"{np.median(speeds):,.0f}", spread])
    time_of = "" if options.gpus else " of the slowest rank's processor time"
    return markdown(["ranks", f"positives a second{time_of}", "ratio"], lines)


def _qualities(options: argparse.Namespace, arguments: list[str]) -> str:
    lines = []
    for split in ["tutorial"] if options.tutorial else options.splits:
        for ranks in options.ranks:
            found = []
            for seed in range(options.seeds):
                run = _run([*arguments, "--split", split, "--seed", str(seed)], "quality", ranks)
                found.append(run["found"])
                print(f"{split}, {ranks} ranks: {np.round(found[-1], 4).tolist()}", file=sys.stderr)
            mean = np.mean(found, axis=0)
            whole = [] if options.tutorial else [mean.mean()]
            lines.append([split, str(ranks), *(f"{value:.4f}" for value in [*whole, *mean])])
    return markdown(["split", "ranks", *(tutorial.COLUMNS if options.tutorial else ["mean", *ranking.KINDS])], lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quality", action="store_true", help="what is learnt, not how fast")
    parser.add_argument("--tutorial", action="store_true", help="with --quality: of the AWS tutorial's simulation")
    parser.add_argument("--gpus", action="store_true", help="a GPU for each rank")
    parser.add_argument("--exchange", help="by what GPUs exchange: nccl (default: by way of the host's memory)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--splits", nargs="+", default=["test", "far"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ip-version", type=int, default=4, choices=(4, 6))
    hidden = {"measure": str, "rank": int, "of": int, "port": int, "split": str, "seed": int}
    for name, kind in hidden.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gpus and not options.measure and (found := torch.cuda.device_count()) < max(options.ranks):
        parser.error(f"--ranks {max(options.ranks)} needs as many GPUs, and torch finds {found}")
    if options.measure:
        _rank(options)
    else:
        print((_qualities if options.quality else _speeds)(options, sys.argv[1:]))


if __name__ == "__main__":
    main()
