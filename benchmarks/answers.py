"""What it costs to ask for more than scores: percentiles, explanations, embeddings.

    python -m benchmarks.answers            # 2,000 users of the tutorial's simulation: some 3 minutes
    python -m benchmarks.answers --small    # to see that all works

A server answers the same rows of CSV in JSON, in one turn with scores alone and in the next with more. A ratio is one
of two such turns. It is told by the clock, where the client reads longer answers too, and by the server's processor
time.
"""

import argparse
import dataclasses
import functools
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import datasets, machine
from benchmarks.served import CSV, Payload, payload
from benchmarks.servers import Server
from benchmarks.serving import Clients, Task
from benchmarks.tables import markdown, spread
from benchmarks.tutorial import Case
from ipinsights.data.addresses import render
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.training.fit import fit

WISHES = {
    "percentiles": ";calibrated=True",
    "explanations": ";explain=True",
    "percentiles and explanations": ";calibrated=True;explain=True",
    "embeddings": ";verbose=True",
}
"""What may be asked for, and how."""
_LARGE, _FEW = 100_000, 2_000
"""Rows of a request; those whose answers are long come few at a time."""

_CAPTION = """\
**Answers with more than scores**: a model of the tutorial's simulation ({users:,} users, `vector_dim` {dim}), one
worker; {rows:,} rows of CSV in a request, and {few:,} where all have explanations or embeddings. Median of {rounds}
rounds (lowest to highest), after one that does not count.

Measured by `{command}` on {date}: {machine}."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__.splitlines()[0])
    add = functools.partial(parser.add_argument, metavar="N")
    add("--users", type=int, default=2000, help="of the simulation (default 2000)")
    add("--rounds", type=int, default=9, help="that count (default 9)")
    add("--seconds", type=float, default=1.0, help="that a turn takes (default 1)")
    parser.add_argument("--small", action="store_true", help="100 users, 1,000 rows, one round of turns of .1 s")
    options = parser.parse_args(arguments)
    rows, few = _LARGE, _FEW
    if options.small:
        vars(options).update(users=100, rounds=1, seconds=0.1)
        rows, few = 1000, 100
    told: dict[str, Any] = {"vector_dim": 16, "epochs": 1} if options.small else datasets.TUTORIAL_HYPERPARAMETERS
    hyperparameters = Hyperparameters(num_entity_vectors=2 * options.users, **told)
    with tempfile.TemporaryDirectory() as folder:
        lines = _trained(Path(folder), options.users, hyperparameters, synthetic=options.small)
        speeds = _measure(Path(folder), lines, rows, few, options.rounds, options.seconds)
    table = [
        [name, *(spread(values, form) for values, form in zip(found, (",.0f", ",.0f", ".2f", ".2f"), strict=True))]
        for name, found in speeds.items()
    ]
    caption = _CAPTION.format(
        users=options.users,
        dim=hyperparameters.vector_dim,
        rows=rows,
        few=few,
        rounds=options.rounds,
        command=shlex.join(["python", "-m", "benchmarks.answers", *arguments]),
        date=datetime.now(UTC).date(),
        machine=machine.description(),
    )
    head = ["asked for", "scores alone, rows/s", "with it, rows/s", "ratio", "ratio by processor time"]
    print(markdown(head, table), caption, sep="\n\n")


def _trained(folder: Path, users: int, hyperparameters: Hyperparameters, synthetic: bool) -> list[str]:
    """Write a model, and return log-ins and attacks to score as lines."""
    split = datasets.tutorial(users, synthetic)
    artifact.save(fit(Case.simulated(users, synthetic=synthetic).train, hyperparameters), folder / "model", facts={})
    kinds = split.case.normal, split.case.attacks
    return [
        f"{entity},{address}"
        for pairs in zip(*(zip(kind.names(), render(kind.address), strict=True) for kind in kinds), strict=True)
        for entity, address in pairs
    ]


def _measure(
    folder: Path, lines: list[str], rows: int, few: int, rounds: int, seconds: float
) -> dict[str, tuple[list[float], ...]]:
    """For each wish, rows a second of both turns and their ratios, in each round."""
    found: dict[str, tuple[list[float], ...]] = {name: ([], [], [], []) for name in WISHES}
    with Server.one_worker(folder) as server, Clients() as clients:

        def speeds(asked: Payload) -> tuple[float, float]:
            """Rows a second, and rows a second of processor time."""
            before = server.processor_seconds()
            turn = clients.run(asked.accept, server.port, Task(f"{asked.rows} rows", [asked]), seconds)
            processor = server.processor_seconds() - before
            if set(turn["statuses"]) != {"200"} or turn["predictions"] != asked.rows:
                raise RuntimeError(f"{asked.accept}: {turn}")
            answered = turn["answers"] * asked.rows
            return answered / turn["seconds"], answered / max(processor, 0.01)

        for number, (name, wish) in tqdm([(n, w) for n in range(rounds + 1) for w in WISHES.items()]):
            plain = payload(CSV, lines[: rows if name == "percentiles" else few])
            (usual, usual_processor), (more, more_processor) = (
                speeds(asked) for asked in (plain, dataclasses.replace(plain, wish=wish))
            )
            if number:
                measured = usual, more, more / usual, more_processor / usual_processor
                for values, value in zip(found[name], measured, strict=True):
                    values.append(value)
    return found


if __name__ == "__main__":
    main()
