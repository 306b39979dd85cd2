"""How well scores find the attacks of the AWS tutorial's simulation: log-ins of known users from random networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from benchmarks import contenders, datasets
from benchmarks.contenders import Scorer
from benchmarks.tables import markdown
from ipinsights import metrics
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.evaluation.simulation import Traffic
from ipinsights.training.progress import Listener

PUBLISHED_RATE = 0.0504
"""The false positive rate of the built-in at threshold 0, in the tutorial notebook's stored output."""
_PUBLISHED = ["the built-in as published, on its own draw", "0.9845", "0.0504", "", "0.9845", "0.9899 to 0.9909"]

COLUMNS = ["recall at 0", "FPR at 0", "AUC", f"recall at FPR {PUBLISHED_RATE}", "discriminator_auc"]
"""What `Case.measure` measures."""
_NO_THRESHOLD = "longest shared prefix"
"""A length is no log odds: 0 is no threshold for it."""


@dataclass(frozen=True)
class Case:
    """Log-ins to learn from, and later ones to tell from attacks."""

    train: Events
    pairs: Mapping[str, contenders.Pairs]
    """``log-ins``, as many ``attacks``, and other log-ins, ``validation``."""

    @classmethod
    def simulated(cls, users: int, rows: int | None = None, synthetic: bool = False) -> "Case":
        """The tutorial's (`datasets.tutorial`), in a table of twice as many rows as users unless told."""
        split, index = datasets.tutorial(users, synthetic), EntityIndex(rows or 2 * users)
        train = Events(index.claim(_names(split.train)), split.train.address, index)
        kinds = {"log-ins": split.case.normal, "attacks": split.case.attacks, "validation": split.case.validation}
        return cls(train, {kind: (index.find(_names(traffic)), traffic.address) for kind, traffic in kinds.items()})

    def measure(self, score: Scorer) -> npt.NDArray[np.float64]:
        """What `COLUMNS` name: [5]."""
        log_ins, attacks, validation = (score(*self.pairs[kind]) for kind in ("log-ins", "attacks", "validation"))
        at_zero = metrics.Detection.at(0.0, log_ins, attacks)
        random = addresses.random_addresses(len(validation), IPV4, 0.0, np.random.default_rng(0))
        return np.array(
            [
                at_zero.recall,
                at_zero.false_positive_rate,
                metrics.auc(log_ins, attacks),
                (attacks < np.quantile(log_ins, PUBLISHED_RATE)).mean(),
                metrics.auc(validation, score(self.pairs["validation"][0], random)),
            ]
        )


def _names(traffic: Traffic) -> pa.StringArray:
    return pa.array(traffic.names(), pa.string())


def table(users: int, seeds: Sequence[int]) -> str:
    """The rows, or a sentence that says why there are none. The simulation is one; the seeds are of the training."""
    if not datasets.RANGES.exists():
        return f"The tutorial is left out: there is no {datasets.RANGES} (see IPINSIGHTS_DATA)."
    case = Case.simulated(users)
    train = case.train

    lines = []
    progress = _Progress(len(train) * datasets.TUTORIAL_HYPERPARAMETERS["epochs"] * len(seeds))
    rows = [(name, contender, seeds[:1]) for name, contender in contenders.BASELINES.items()]  # nothing random in them
    rows.append(("**model**", contenders.model(datasets.TUTORIAL_HYPERPARAMETERS, listener=progress), seeds))
    for name, contender, own_seeds in rows:
        measures = np.mean([case.measure(contender(train, IPV4, seed)) for seed in own_seeds], axis=0)
        cells = [f"{value:.4f}" for value in measures]
        lines.append([name, *(["", ""] if name == _NO_THRESHOLD else cells[:2]), *cells[2:]])
    progress.bar.close()
    caption = (
        f"**The AWS tutorial's simulation**, {users:,} users, {len(train):,} log-ins to learn from; "
        f"{len(case.pairs['log-ins'][0]):,} later log-ins and as many attacks. Flagged is what scores below 0, or "
        f"below all but {PUBLISHED_RATE:.2%} of the log-ins, the built-in's share. discriminator_auc is that of other "
        f"log-ins against uniformly random addresses. The model: mean over {len(seeds)} seed{'s' * (len(seeds) > 1)}."
    )
    return f"{markdown(['', *COLUMNS], [_PUBLISHED, *lines])}\n\n{caption}"


class _Progress(Listener):
    """Training, on stderr."""

    def __init__(self, positives: int) -> None:
        self.bar = tqdm(total=positives, desc="training", unit="pair", unit_scale=True)

    def step_done(self, epoch: int, positives: int) -> None:
        del epoch
        self.bar.update(positives)
