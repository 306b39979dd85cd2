"""Simulated log-ins: the traffic of the AWS IP Insights tutorial.

Every user has a home and a work network, drawn from a table of address ranges: home uniformly, work within 50,000 rows
of it. With the user's travel probability, Beta(1, 30), a log-in comes from a uniformly drawn range. Otherwise it comes
from home, with probability Beta(3, 5), or from work, moved by a normal step of 10 rows, because people roam near their
places. The address is uniform in the range, and the time is uniform over ten days. A user logs in 50 (1 + Pareto(1))
times, at most 10,000. Parameters from the tutorial's generate_data.py, github aws/amazon-sagemaker-examples.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ipinsights.data import addresses
from ipinsights.errors import UserError, refusal

DAYS = 10
TRAIN_DAYS = 7
"""The tutorial trains on the first seven days and tests on the last three."""

FIRST_DAY = datetime(2018, 11, 11, tzinfo=UTC)
"""When the tutorial's log begins."""
_SECONDS = 86400
_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
_MISTYPED, _SEES_PICTURE = 0.05, 0.3
"""How often a log-in follows a failed one, and how often a picture is fetched after it."""
_BLOCK = 1 << 16
"""Log-ins whose lines are made at a time."""

_WORK_WINDOW = 50_000
_ROAMING_SIGMA = 10
_TRAVEL_BETA = (1.0, 30.0)
_HOME_BETA = (3.0, 5.0)
_EVENTS_SCALE, _EVENTS_MAX = 50, 10_000


@dataclass(frozen=True)
class Ranges:
    """A table of address ranges, ascending: row i holds the addresses first[i] to last[i], both included."""

    first: npt.NDArray[np.uint32]
    last: npt.NDArray[np.uint32]

    @classmethod
    def read(cls, path: Path) -> "Ranges":
        """Read a table in iptoasn's format: first TAB last TAB ..., as integers; gzip if named ``.gz``."""
        import pandas as pd  # slow to import, and no other command needs it

        opened = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rb") as file:
                bounds = pd.read_csv(file, sep="\t", header=None, usecols=[0, 1], dtype=np.uint32, quoting=3).to_numpy()
        except (PermissionError, IsADirectoryError) as error:
            raise refusal("read", path, error) from error
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path}: not a table of address ranges (first TAB last TAB ...): {error}") from error
        if len(bounds) == 0 or (bounds[:, 0] > bounds[:, 1]).any():
            raise UserError(
                f"{path}: not a table of address ranges (first TAB last TAB ...): "
                "it has no rows, or a range ends before it begins"
            )
        return cls(bounds[:, 0], bounds[:, 1])

    @classmethod
    def synthetic(cls, rng: np.random.Generator) -> "Ranges":
        """Make an allocation table of about the size of the real one, without a download.

        Unicast space is allocated in blocks of /11 to /18, as registries do. A provider cuts its block into networks
        that are 2 to 9 bits longer, /24 at most. Three in ten blocks stay unrouted.
        """
        lengths, cuts = rng.integers(11, 19, size=1 << 16), rng.integers(2, 10, size=1 << 16)
        routed = rng.random(1 << 16) < 0.7
        networks: list[npt.NDArray[np.int64]] = []
        sizes: list[npt.NDArray[np.int64]] = []
        block = 1 << 24
        for length, cut, is_routed in zip(lengths.tolist(), cuts.tolist(), routed.tolist(), strict=True):
            block = -(-block >> 32 - length) << 32 - length  # the next free block of that size
            end = block + (1 << 32 - length)
            if end > 224 << 24:
                break
            if is_routed:
                size = 1 << 32 - min(length + cut, 24)
                networks.append(np.arange(block, end, size))
                sizes.append(np.full(len(networks[-1]), size))
            block = end
        first = np.concatenate(networks)
        return cls(first.astype(np.uint32), (first + np.concatenate(sizes) - 1).astype(np.uint32))

    def __len__(self) -> int:
        return len(self.first)

    def draw(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.uint32]:
        """One uniform address from each given row."""
        first, last = self.first[rows].astype(np.int64), self.last[rows].astype(np.int64)
        return rng.integers(first, last + 1).astype(np.uint32)


@dataclass(frozen=True)
class Traffic:
    """n log-ins in order of time."""

    user: npt.NDArray[np.int32]
    """The user's number, [n]."""
    address: npt.NDArray[np.uint32]
    day: npt.NDArray[np.float32]
    """Time in days since the first day began, in [0, DAYS)."""

    def names(self) -> list[str]:
        """The users' names, [n]."""
        return [f"user_{user}" for user in self.user.tolist()]

    def where(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "Traffic":
        """Some of the log-ins."""
        return Traffic(self.user[chosen], self.address[chosen], self.day[chosen])


def simulate(num_users: int, ranges: Ranges, rng: np.random.Generator) -> Traffic:
    """Draw the log-ins of ``num_users`` users over ten days."""
    n = len(ranges)
    home = rng.integers(n, size=num_users)
    work = home + rng.integers(-_WORK_WINDOW, _WORK_WINDOW, size=num_users)
    work = np.where(work == home, work + 1, work) % n
    travel, at_home = rng.beta(*_TRAVEL_BETA, size=num_users), rng.beta(*_HOME_BETA, size=num_users)
    events = np.minimum(_EVENTS_SCALE * (1 + rng.pareto(1.0, size=num_users)), _EVENTS_MAX).astype(np.int64)

    user = np.repeat(np.arange(num_users), events)
    place = np.where(rng.random(len(user)) < at_home[user], home[user], work[user])
    place = (place + rng.normal(scale=_ROAMING_SIGMA, size=len(user)).astype(np.int64)) % n
    row = np.where(rng.random(len(user)) < travel[user], rng.integers(n, size=len(user)), place)
    address = ranges.draw(row, rng)
    day = rng.random(len(user)) * DAYS
    order = np.argsort(day, kind="stable")
    return Traffic(user[order].astype(np.int32), address[order], _below(day[order], DAYS))


def _below(values: npt.NDArray[np.float64], limit: int) -> npt.NDArray[np.float32]:
    """Numbers below a limit in half the bytes; rounding must not raise one to the limit."""
    return np.minimum(values.astype(np.float32), np.nextafter(np.float32(limit), np.float32(0)))


def access_log(traffic: Traffic, rng: np.random.Generator) -> Iterator[str]:
    """The lines of a web server's access log (the combined format) in which such log-ins are found.

    A log-in is ``GET /login_success`` with the status 200, as in the tutorial. Among them are failed ones, whose users
    are not verified, and pictures.
    """
    count = len(traffic.user)
    mistyped, sees = rng.random(count) < _MISTYPED, rng.random(count) < _SEES_PICTURE
    seconds = (traffic.day.astype(np.float64) * _SECONDS).astype(np.int64)  # of a float32 the product would be rounded
    for begin in range(0, count, _BLOCK):
        some = np.arange(begin, min(begin + _BLOCK, count))
        part = traffic.where(some)
        texts, chosen = addresses.render(part.address), (seconds[some], mistyped[some], sees[some])
        rows = zip(part.names(), texts, *(values.tolist() for values in chosen), strict=True)
        for user, address, second, failed_before, picture_after in rows:
            head = f"{address} - {user} [{FIRST_DAY + timedelta(seconds=second):%d/%b/%Y:%H:%M:%S} +0000]"
            if failed_before:
                yield f'{head} "GET /login_success HTTP/1.1" 401 381 "-" "{_AGENT}"\n'
            yield f'{head} "GET /login_success HTTP/1.1" 200 476 "-" "{_AGENT}"\n'
            if picture_after:
                yield f'{head} "GET /images/logo.png HTTP/1.1" 200 20323 "-" "{_AGENT}"\n'


@dataclass(frozen=True)
class TestCase:
    """The tutorial's test case, and log-ins to validate with."""

    normal: Traffic
    """Later log-ins of users that training saw."""
    attacks: Traffic
    """As many attacks: a user that training saw, with an address of a uniformly drawn range."""
    validation: Traffic
    """Other later log-ins of such users, at most as many."""


def split(traffic: Traffic, ranges: Ranges, test_size: int, rng: np.random.Generator) -> tuple[Traffic, TestCase]:
    """The first `TRAIN_DAYS` to train on, and a test case of the rest (see `make_test_case`)."""
    train, later = traffic.where(traffic.day < TRAIN_DAYS), traffic.where(traffic.day >= TRAIN_DAYS)
    return train, make_test_case(train, later, ranges, test_size, rng)


def make_test_case(train: Traffic, later: Traffic, ranges: Ranges, size: int, rng: np.random.Generator) -> TestCase:
    """Draw a test case of ``size`` log-ins and as many attacks, or of fewer to leave some for validation.

    Raises UserError if training saw none of the users.
    """
    known = later.where(np.isin(later.user, train.user))
    if len(known.user) < 2:
        raise UserError("no user of the test days was seen on the training days: simulate more users")
    size = min(size, len(known.user) // 2)
    order = rng.permutation(len(known.user))
    normal, validation = known.where(order[:size]), known.where(order[size : 2 * size])
    victims = rng.choice(np.unique(known.user), size=len(normal.user))
    foreign = ranges.draw(rng.integers(len(ranges), size=len(victims)), rng)
    return TestCase(normal, Traffic(victims, foreign, normal.day), validation)
