"""``ipinsights simulate``: simulate log-ins like those of the AWS tutorial."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ipinsights.commands.options import Commands, seed
from ipinsights.data import addresses
from ipinsights.errors import UserError, refusals
from ipinsights.evaluation import simulation


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "simulate",
        help="simulate log-ins like those of the AWS tutorial",
        description="Simulate ten days of log-ins like those of the AWS tutorial. Each user has a home network and a "
        "work network, and travels now and then. The command writes OUT/train/log-ins.csv (the first seven days), "
        "OUT/test/normal.csv (later log-ins of known users), OUT/test/attacks.csv (as many log-ins, from random "
        "networks) and OUT/validation/log-ins.csv (other later log-ins).",
    )
    command.add_argument("--out", type=Path, required=True, help="the folder to write to")
    command.add_argument(
        "--users", type=int, default=10_000, help="number of users. The default, 10000, makes 3 million log-ins"
    )
    command.add_argument(
        "--ranges",
        type=Path,
        help="a table of address ranges in iptoasn's format (first TAB last TAB ..., as integers; may be gzip). "
        "Without it the command simulates an allocation of the address space",
    )
    command.add_argument(
        "--test-size", type=int, default=100_000, help="number of test log-ins, and of attacks (default 100000)"
    )
    command.add_argument(
        "--log",
        action="store_true",
        help="also write OUT/access.log: all log-ins of the ten days as a web server logs them, with failed ones and "
        "other requests. `ipinsights prepare` reads it",
    )
    command.add_argument("--seed", type=seed, default=0, help="the seed of all random draws (default 0)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the files."""
    if options.users < 1 or options.test_size < 1:
        raise UserError("--users and --test-size must be at least 1")
    rng = np.random.default_rng(options.seed)
    ranges = simulation.Ranges.read(options.ranges) if options.ranges else simulation.Ranges.synthetic(rng)
    traffic = simulation.simulate(options.users, ranges, rng)
    train, case = simulation.split(traffic, ranges, options.test_size, rng)
    parts = {
        "train/log-ins": train,
        "validation/log-ins": case.validation,
        "test/normal": case.normal,
        "test/attacks": case.attacks,
    }
    for name, part in parts.items():
        path = options.out / f"{name}.csv"
        lines = zip(part.names(), addresses.render(part.address), strict=True)
        _write(path, (f"{user},{address}\n" for user, address in lines))
        print(f"{path}: {len(part.user):,} log-ins")
    if options.log:
        _write(options.out / "access.log", simulation.access_log(traffic, rng))
        print(f"{options.out / 'access.log'}: {len(traffic.user):,} log-ins, among other requests")


def _write(path: Path, lines: Iterable[str]) -> None:
    with refusals("write to", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.writelines(lines)
