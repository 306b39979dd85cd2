"""Which attacks a day's list of twenty holds: the product's list, beside the same list ranked by counting.

    python -m benchmarks.attacks                       # simulated log-ins, and Tor relays: validation and far
    python -m benchmarks.attacks simulated             # or validation, far, test

Each day gets `ATTACKS` attacks of one kind, of accounts that training saw, each account as likely as any other. The
address is random, another account's, or of the same provider, and from a network (/24) that the account has not used.
The list is that of `ipinsights alerts --budget 20`. Counting (the likelihood ratio that counts entities, the strongest
of the baselines) ranks the same log-ins of known accounts, and lists as many of them: new accounts, of which counting
says nothing, keep their places.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm

from benchmarks import contenders, datasets
from benchmarks.contenders import Contender
from benchmarks.tables import markdown
from ipinsights.alerts.listing import BUDGET, Pair, find
from ipinsights.alerts.places import name, narrowest
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.evaluation import negatives, simulation
from ipinsights.evaluation.likelihood_ratio import IMPROVED
from ipinsights.hyperparameters import Hyperparameters, completed, rows_for
from ipinsights.model.model import Model
from ipinsights.training.fit import fit

SIMULATED = "simulated"
_ALL = "all"
ATTACKS = 10
"""A day, of one kind."""
_RESAMPLES = 2000

Recalls = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Period:
    """Log-ins to learn from, and those of some later days."""

    train: Records
    days: list[Records]


def simulated(users: int, seed: int, synthetic: bool = False) -> Period:
    """The AWS tutorial's simulation: the first seven days, and the last three."""
    rng = np.random.default_rng((seed, users))
    ranges = simulation.Ranges.synthetic(rng) if synthetic else simulation.Ranges.read(datasets.RANGES)
    traffic = simulation.simulate(users, ranges, rng)
    train, *days = (
        Records(pa.array(part.names(), pa.string()), part.address)
        for part in (
            traffic.where(traffic.day < simulation.TRAIN_DAYS),
            *(traffic.where(traffic.day.astype(int) == day) for day in range(simulation.TRAIN_DAYS, simulation.DAYS)),
        )
    )
    return Period(train, days)


def tor(split: datasets.Split) -> Period:
    """Tor relays, IPv4: all moves of a day, those of new relays too."""
    train, days = datasets.tor_days(split)
    return Period(_records(train), [_records(day) for day in days])


def _records(events: pd.DataFrame) -> Records:
    values, _ = addresses.parse(pa.array(events.ip.str.strip(), pa.string()), IPV4)
    return Records(pa.array(events.fingerprint, pa.string()), values)


@dataclass(frozen=True)
class Attacks:
    """Made-up log-ins of one kind, one of each account, in a random order: days take turns."""

    log_ins: Records

    @classmethod
    def of(cls, made_up: Records, used: set[Pair], rng: np.random.Generator) -> "Attacks":
        """Of each account one, drawn from those whose network it has not ``used``."""
        strange = np.array([pair not in used for pair in pairs_of(made_up)], dtype=np.bool_)
        entities, found = made_up.entities.filter(pa.array(strange)), made_up.addresses[strange]
        order = rng.permutation(len(found))
        _, first = np.unique(entities.dictionary_encode().indices.to_numpy()[order], return_index=True)
        chosen = rng.permutation(order[first])
        return cls(Records(entities.take(pa.array(chosen)), found[chosen]))

    def of_day(self, day: int) -> Records:
        """Those of a day."""
        chosen = np.arange(day * ATTACKS, (day + 1) * ATTACKS) % len(self.log_ins)
        return Records(self.log_ins.entities.take(pa.array(chosen)), self.log_ins.addresses[chosen])


def kinds(period: Period, seed: int, table: Networks | None) -> dict[str, Attacks]:
    """Attacks by their kind."""
    rng = np.random.default_rng((seed, len(period.train)))
    made_up = {
        negatives.RANDOM: negatives.of_random(period.train, IPV4, rng),
        negatives.OTHERS: negatives.of_others(period.train, rng),
    }
    if table is not None:
        made_up[negatives.NEAR] = negatives.of_same_network(period.train, table, rng)
    used = {pair for part in (period.train, *period.days) for pair in pairs_of(part)}
    return {kind: Attacks.of(some, used, rng) for kind, some in made_up.items()}


def pairs_of(log_ins: Records) -> list[Pair]:
    """The account and the network of each log-in."""
    firsts, place = np.unique(narrowest(log_ins.addresses, IPV4), return_inverse=True)
    names = [name(first, IPV4) for first in firsts.tolist()]
    return [(entity, names[i]) for entity, i in zip(log_ins.entities.to_pylist(), place.tolist(), strict=True)]


def recalls(
    period: Period, seed: int, attacks: dict[str, Attacks], table: Networks | None, counting: Contender
) -> Iterator[tuple[str, Recalls, Recalls]]:
    """For each kind of attacks, the share of each day's that is on the list: the product's and counting's, [days]."""
    index = EntityIndex(rows_for(len(period.train.entities.unique())))
    events = Events(index.claim(period.train.entities), period.train.addresses, index)
    hp = Hyperparameters.parse(completed({"num_entity_vectors": index.num_rows, "seed": seed}, {}))
    model = fit(events, hp, networks=table)
    score = counting(events, IPV4, seed)
    for kind, some in attacks.items():
        found = []
        for number, day in enumerate(period.days):
            injected = some.of_day(number)
            of_both = _lists(model, score, Records.concat([injected, day]))
            sought = set(pairs_of(injected))
            found.append([len(sought & listed) / len(sought) for listed in of_both])
        by_model, by_counting = np.array(found).T
        yield kind, by_model, by_counting


def _lists(model: Model, score: contenders.Scorer, log_ins: Records) -> tuple[set[Pair], set[Pair]]:
    """What the product lists of a day's log-ins, and what counting does."""
    alerts = find(model, [log_ins], budget=BUDGET)
    rows = model.index.find(log_ins.entities)
    known = np.flatnonzero(rows < model.index.num_rows)
    order = known[np.argsort(score(rows[known], log_ins.addresses[known]), kind="stable")]
    pairs = pairs_of(log_ins)
    lowest = dict.fromkeys(pairs[i] for i in order.tolist())  # each where it stands first
    by_counting = list(lowest)[: BUDGET - len(alerts.new)]
    return {(alert.entity, alert.network) for alert in alerts}, set(by_counting)


def interval(by_day: Recalls) -> tuple[float, float]:
    """In which 95 % of means are, if days are drawn with replacement."""
    drawn = np.random.default_rng(0).integers(len(by_day), size=(_RESAMPLES, len(by_day)))
    low, high = np.quantile(by_day[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "data",
        nargs="*",
        choices=(SIMULATED, *get_args(datasets.Split), _ALL),
        default=_ALL,
        help="simulated log-ins, or a split of the Tor relays (default: all, which are all but test)",
    )
    parser.add_argument("--users", type=int, default=100, metavar="N", help="simulated (default 100)")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="draw and train N times (default 1, simulated 10: they have 3 days)"
    )
    parser.add_argument("--synthetic", action="store_true", help="simulate on a table that needs no file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = None if options.synthetic else contenders.networks()
    lines: list[list[str]] = []
    chosen: Sequence[Any] = (SIMULATED, "validation", "far") if _ALL in options.data else options.data
    for data in chosen:
        seeds = range(options.seeds or (10 if data == SIMULATED else 1))
        periods = (simulated(options.users, s, options.synthetic) if data == SIMULATED else tor(data) for s in seeds)
        name = data if data == SIMULATED else f"Tor, {data}"
        lines += _rows(name, tqdm(periods, desc=name, total=len(seeds), unit="draw"), table)
    print(markdown(_HEADER, lines))


_HEADER = ("log-ins", "attacks", "days", "counting", "model", "difference", "95 %")


def _rows(name: str, periods: Iterable[Period], table: Networks | None) -> Iterator[list[str]]:
    """A row a kind of attacks: means over draws and days."""
    variants: list[tuple[str, Networks | None, Contender]] = [("", None, contenders.likelihood_ratio(IMPROVED))]
    if table is not None:
        variants.append((" †", table, contenders.likelihood_ratio_of_providers(table)))
    found: dict[tuple[str, str], list[tuple[Recalls, Recalls]]] = {}
    for seed, period in enumerate(periods):
        attacks = kinds(period, seed, table)
        for mark, networks, counting in variants:
            for kind, by_model, by_counting in recalls(period, seed, attacks, networks, counting):
                found.setdefault((mark, kind), []).append((by_model, by_counting))
    for (mark, kind), drawn in found.items():
        by_model, by_counting = (np.concatenate(days) for days in zip(*drawn, strict=True))
        low, high = interval(by_model - by_counting)
        yield [
            f"{name}{mark}",
            kind,
            f"{len(by_model):,}",
            f"{by_counting.mean():.3f}",
            f"{by_model.mean():.3f}",
            f"{(by_model - by_counting).mean():+.3f}",
            f"{low:+.3f} to {high:+.3f}",
        ]


if __name__ == "__main__":
    main()
