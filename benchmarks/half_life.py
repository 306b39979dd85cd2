"""Whether older log-ins should weigh less, on Tor relays.

Of events of age t a share of 2 ** (-t / half-life) is kept, drawn at random, so counts and positive samples weigh with
age as a half-life says. Each relay keeps its newest event, so no relay is forgotten. All rows meet the same pairs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks import contenders, datasets
from benchmarks.ranking import Task
from benchmarks.tables import markdown
from ipinsights.data.addresses import IPV4
from ipinsights.data.events import Events

HALF_LIVES = (None, 730, 365, 180, 90, 30)
"""In days; None: all events weigh the same."""
CONTENDERS = {
    "model": contenders.model(datasets.TOR_HYPERPARAMETERS),
    "counting": contenders.BASELINES["likelihood ratio, counting entities"],
}


def table(seeds: Sequence[int]) -> str:
    """The mean area under the ROC curve for each half-life, on the splits by which things are chosen."""
    splits: tuple[datasets.Split, ...] = ("validation", "far")
    tasks = {split: Task.tor(split, IPV4) for split in splits}
    ages = {split: _ages(split) for split in splits}
    rows = []
    for half_life in tqdm(HALF_LIVES, "half-lives"):
        row = ["none" if half_life is None else f"{half_life} days"]
        for split, task in tasks.items():
            parts = [thinned(task, ages[split], half_life, seed) for seed in seeds]
            row.append(f"{np.mean([len(part) / len(task.train) for part in parts]):.0%}")
            for contender in CONTENDERS.values():
                aucs = [task.aucs(contender(part, IPV4, seed), seed) for part, seed in zip(parts, seeds, strict=True)]
                row.append(f"{np.mean(aucs):.4f}")
        rows.append(row)
    names = [f"{split}: {what}" for split in splits for what in ("events kept", *CONTENDERS)]
    return markdown(["half-life", *names], rows)


def thinned(task: Task, age: npt.NDArray[np.float64], half_life: float | None, seed: int) -> Events:
    """The training events that are left; ``age`` [n] is in days."""
    if half_life is None:
        return task.train
    kept = np.random.default_rng(seed).random(len(age)) < 0.5 ** (age / half_life)
    newest_first = np.argsort(age, kind="stable")
    _, newest = np.unique(task.train.entity[newest_first], return_index=True)
    kept[newest_first[newest]] = True
    return dataclasses.replace(task.train, entity=task.train.entity[kept], address=task.train.address[kept])


def _ages(split: datasets.Split) -> npt.NDArray[np.float64]:
    times = datasets.tor(split, IPV4).train.timestamp.to_numpy()
    ages: npt.NDArray[np.float64] = (times.max() - times) / 86400
    return ages
