"""Whether as few ordinary log-ins are below a threshold as calibration promises: python -m benchmarks.calibration.

Of known entities: later log-ins of the AWS tutorial's simulation, log-ins of two situations that training did not get,
and real moves of Tor relays, which are no ordinary log-ins. Of new entities: a fifth of all, which training did not
get; each counts the same, however many log-ins it has.
"""

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks import datasets, ordinary, situations, tutorial
from benchmarks.ranking import Task
from benchmarks.tables import markdown
from ipinsights.data.addresses import FAMILIES, IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.calibration import Calibration
from ipinsights.model.model import Model
from ipinsights.training.fit import fit

RATES = (0.1, 0.01, 0.001)
SITUATIONS = ("dhcp", "travellers")

Shares = list[float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--users", type=int, default=1000, metavar="N", help="of the tutorial (default 1000)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train N times (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        [name, f"{log_ins:,}", *(f"{share:.2%}" for share in np.mean(shares, axis=0))]
        for name, log_ins, shares in tqdm(_measured(options.users, options.seeds), unit="row")
    ]
    print(markdown(["share with a percentile of at most", "calibrated by", *(f"{rate:g}" for rate in RATES)], rows))


def _measured(users: int, seeds: int) -> Iterator[tuple[str, int, list[Shares]]]:
    case = tutorial.Case.simulated(users)
    hp = Hyperparameters(num_entity_vectors=2 * users, **datasets.TUTORIAL_HYPERPARAMETERS)
    entity, address = case.pairs["log-ins"]
    later = dataclasses.replace(case.train, entity=entity.astype(np.int32), address=address)
    yield _row("tutorial: later log-ins", [_known(case.train, later, hp, seed) for seed in range(seeds)])
    yield _row("tutorial: new users", [_new(case.train, hp, seed) for seed in range(seeds)])
    for name in SITUATIONS:
        found = []
        for seed in range(seeds):
            situation = ordinary.SITUATIONS[name]
            pairs = situation.drawn(seed).train
            index = EntityIndex(2 * len({entity for entity, _ in pairs}))
            events = situations.events_of(pairs, index.claim, index, situation.family)
            kept = np.random.default_rng(seed).random(len(events)) < 0.5
            learnt, later_ = (_some(events, chosen) for chosen in (kept, ~kept))
            hp = Hyperparameters(num_entity_vectors=index.num_rows, vector_dim=64, held_out_share=0.2)
            found.append(_known(learnt, later_, hp, seed))
        yield _row(f"{name}: other log-ins", found)
    for family in FAMILIES.values():
        if not datasets.TOR_FILES[family.version].exists():
            continue
        task = Task.tor("test", family)
        hp = Hyperparameters(
            num_entity_vectors=task.train.index.num_rows, ip_version=family.version, **datasets.TOR_HYPERPARAMETERS
        )
        moves = dataclasses.replace(task.train, entity=task.entity.astype(np.int32), address=task.address)
        name = "IPv4" if family is IPV4 else "IPv6"
        yield _row(f"Tor {name}: moves", [_known(task.train, moves, hp, seed) for seed in range(seeds)])
        yield _row(f"Tor {name}: new relays", [_new(task.train, hp, seed) for seed in range(seeds)])


def _row(name: str, found: list[tuple[int, Shares]]) -> tuple[str, int, list[Shares]]:
    return name, found[0][0], [shares for _, shares in found]


def _known(train: Events, later: Events, hp: Hyperparameters, seed: int) -> tuple[int, Shares]:
    """Log-ins of known entities: what calibrated, and the shares at each rate."""
    model, calibration = _trained(train, hp, seed)
    percentile = calibration.percentile(
        model.score_rows(later.entity, later.address), later.entity < model.index.num_rows
    )
    return len(calibration.known), [float((percentile <= rate).mean()) for rate in RATES]


def _new(train: Events, hp: Hyperparameters, seed: int) -> tuple[int, Shares]:
    """A fifth of the entities, which training does not get: the mean over entities."""
    rows = np.unique(train.entity)
    apart = np.isin(train.entity, np.random.default_rng(seed).choice(rows, len(rows) // 5, replace=False))
    model, calibration = _trained(_some(train, ~apart), hp, seed)
    strange = _some(train, apart)
    unknown = np.full(len(strange), model.index.num_rows, dtype=np.int32)
    percentile = calibration.percentile(model.score_rows(unknown, strange.address), np.zeros(len(strange), np.bool_))
    _, entity, log_ins = np.unique(strange.entity, return_inverse=True, return_counts=True)
    shares = [float((np.bincount(entity, percentile <= rate) / log_ins).mean()) for rate in RATES]
    return len(calibration.new), shares


def _trained(train: Events, hp: Hyperparameters, seed: int) -> tuple[Model, Calibration]:
    model = fit(train, dataclasses.replace(hp, seed=seed))
    if model.calibration is None:
        raise ValueError(f"{len(train)} log-ins are too few to calibrate by")
    return model, model.calibration


def _some(events: Events, chosen: npt.NDArray[np.bool_]) -> Events:
    return dataclasses.replace(events, entity=events.entity[chosen], address=events.address[chosen])


if __name__ == "__main__":
    main()
