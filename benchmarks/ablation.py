"""The product's choices, each changed alone, on Tor relays."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks import contenders, datasets
from benchmarks.ranking import Task
from benchmarks.tables import markdown
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.events import Events
from ipinsights.distributed.group import ALONE, Group
from ipinsights.model import counting, refit, smoothing, vocabulary
from ipinsights.training import batches, fit, sampling, step

_CAPTION = """\
**Ablation.** Mean area under the ROC curve of the product on Tor relays (three kinds of made-up pairs), and what each
change alone makes of it: difference over {seeds} seeds ± its standard error, with the same seeds and made-up pairs. The
sampling of the positives is not in it: differences below .001 decide little. {constants}

Chosen on the validation split: prefix levels, prefix dropout, blocks, sampling rates, batch and learning rate. Chosen
on the validation and far splits together: the typical entity, momentum, sources, novelty, epsilon and shrinkage, the
last five by the tutorial's simulation too, where an entity has 200 events and not 3. Kept as AWS documents them:
num_ip_encoder_layers, weight_decay and epochs. The test split chose nothing but that the levels of IPv6 start
coarse."""


@contextlib.contextmanager
def replaced(owner: object, **attributes: object) -> Iterator[None]:
    """Set attributes of a module or class for a while. Each must be there already, or it would change nothing."""
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@dataclass(frozen=True)
class Change:
    """One row: hyperparameters, or attributes of a module or class, that differ from the product's."""

    name: str
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    owner: object = None
    attributes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    only: Family | None = None
    """The one family that it makes sense for."""

    def measure(self, task: Task, seed: int) -> float:
        """The mean area under the ROC curve with the change."""
        with replaced(self.owner, **self.attributes):
            model = contenders.model({**datasets.TOR_HYPERPARAMETERS, **self.hyperparameters})
            return float(task.measure(model, seed).mean())


def _levels(name: str, family: Family, levels: Sequence[int]) -> Change:
    changed = dataclasses.replace(family, levels=tuple(levels))
    return Change(name, owner=fit, attributes={"FAMILIES": {family.version: changed}}, only=family)


def _rows_without_dropout(index: batches.PrefixIndex, leaves: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    del generator
    return index.rows(leaves)


def _nothing_known(pairs: sampling.Pairs, entity: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    del pairs, entity
    return torch.zeros_like(leaf, dtype=torch.bool)


def _equal_novelty(train: Events, family: Family, entities: int, group: Group = ALONE) -> npt.NDArray[np.float32]:
    del train, family, group
    return np.full(entities, batches.NOVELTY, dtype=np.float32)


_rates = step.Rates.of


def _rates_without_typical(steps: int, learning_rate: float, weight_decay: float, blocks: int) -> step.Rates:
    return _rates(steps, learning_rate, weight_decay, blocks)._replace(typical=step.Rate(0.0, 1.0))


PRODUCT = Change("the product")
CHANGES = [
    _levels("5 levels: /8, /12, .. /24", IPV4, range(8, 25, 4)),
    _levels("without /22 and /24", IPV4, range(8, 21, 2)),
    _levels("with /28 and /32", IPV4, (*IPV4.levels, 28, 32)),
    _levels("without /12 and /16", IPV6, IPV6.levels[2:]),
    Change("at most 5,000 prefixes", owner=vocabulary, attributes={"MAX_ROWS": 5000}),
    Change("no prefix dropout", owner=batches.PrefixIndex, attributes={"rows_with_dropout": _rows_without_dropout}),
    *(Change(f"num_ip_encoder_layers {n}", {"num_ip_encoder_layers": n}) for n in (0, 2, 4)),
    *(Change(f"vector_dim {n}", {"vector_dim": n}) for n in (32, 128)),
    Change("shuffled_negative_sampling_rate 1", {"shuffled_negative_sampling_rate": 1}),
    *(Change(f"weight_decay {decay}", {"weight_decay": decay}) for decay in (0.0, 0.1, 1.0)),
    *(Change(f"novelty {n}", owner=batches, attributes={"NOVELTY": n}) for n in (0.0, 0.005, 0.05)),
    Change("novelty equal for all entities", owner=batches, attributes={"novelty": _equal_novelty}),
    *(Change(f"partners by count to the {n}", owner=sampling, attributes={"POWER": n}) for n in (0.0, 0.75, 1.0)),
    *(Change(f"counted pairs by count to the {n}", owner=smoothing, attributes={"POWER": n}) for n in (0.0, 1.0)),
    *(Change(f"discount {n}", owner=smoothing, attributes={"DISCOUNT": n}) for n in (0.25, 0.75)),
    *(Change(f"prior {n}", owner=smoothing, attributes={"PRIOR": n}) for n in (1.0, 10.0)),
    Change("no homes", owner=counting, attributes={"HOME_EVENTS": np.inf}),
    Change("no sites", owner=counting, attributes={"SITE": 9}),
    *(Change(f"{n} own networks at most", owner=counting, attributes={"MOVES": n}) for n in (4, 32)),
    *(Change(f"background {n}", owner=refit, attributes={"BACKGROUND": n}) for n in (10.0, 1000.0)),
    *(
        Change(f"affinity of {n} events weighs .7", owner=refit, attributes={"AFFINITY_EVENTS": n})
        for n in (50.0, 5000.0)
    ),
    Change("affinity weighs 1", owner=refit, attributes={"AFFINITY_EVENTS": np.inf}),
    Change("known pairs are shuffled negatives too", owner=sampling.Pairs, attributes={"known": _nothing_known}),
    *(Change(f"{n} R entities share R random addresses", owner=sampling, attributes={"GROUP": n}) for n in (1, 2, 8)),
    Change("no typical entity", owner=step.Rates, attributes={"of": staticmethod(_rates_without_typical)}),
    *(Change(f"epsilon {e}", owner=step, attributes={"EPSILON": e}) for e in (0.001, 0.01, 0.03, 0.1)),
    *(Change(f"shrinkage {s}", owner=step, attributes={"SHRINKAGE": s}) for s in (0.0, 0.3, 1.0)),
    Change("blocks learn at the tables' rate", owner=step, attributes={"ENCODER_RATE": 1.0}),
    *(Change(f"momentum {n}", owner=step, attributes={"BETA1": n}) for n in (0.5, 0.9)),
    *(Change(f"{n} sources count", owner=step, attributes={"MOST_SOURCES": n}) for n in (1, 4, 64)),
    *(Change(f"epochs {n}", {"epochs": n}) for n in (5, 20)),
    Change("mini_batch_size 10000, learning_rate 0.03", {"mini_batch_size": 10_000, "learning_rate": 0.03}),
]


def table(seeds: Sequence[int]) -> str:
    """The rows, or a sentence that says why there are none."""
    families = [family for family in (IPV4, IPV6) if datasets.TOR_FILES[family.version].exists()]
    if not families:
        return f"The ablation is left out: there is no {datasets.TOR} (see IPINSIGHTS_DATA)."
    splits: tuple[datasets.Split, ...] = ("validation", "far")
    tasks = {f"IPv{family.version}, {split}": Task.tor(split, family) for family in families for split in splits}

    lines = []
    product: dict[str, npt.NDArray[np.float64]] = {}
    for change in tqdm([PRODUCT, *CHANGES], unit="row"):
        cells = [change.name]
        for column, task in tasks.items():
            if change.only not in (None, task.family):
                cells.append("")
                continue
            means = np.array([change.measure(task, seed) for seed in seeds])
            if change is PRODUCT:
                product[column] = means
                cells.append(f"{means.mean():.4f}")
            else:
                cells.append(_difference(means - product[column]))
        lines.append(cells)
    constants = (
        f"The product: MAX_ROWS {vocabulary.MAX_ROWS:,}, NOVELTY {batches.NOVELTY}, POWER {smoothing.POWER}, "
        f"EPSILON {step.EPSILON}, SHRINKAGE {step.SHRINKAGE}, ENCODER_RATE {step.ENCODER_RATE}, "
        f"{', '.join(f'{name} {value}' for name, value in datasets.TOR_HYPERPARAMETERS.items())}, and defaults."
    )
    return f"{markdown(['', *tasks], lines)}\n\n{_CAPTION.format(seeds=len(seeds), constants=constants)}"


def _difference(differences: npt.NDArray[np.float64]) -> str:
    error = f" ± {differences.std(ddof=1) / len(differences) ** 0.5:.4f}" if len(differences) > 1 else ""
    return f"{differences.mean():+.4f}{error}"
