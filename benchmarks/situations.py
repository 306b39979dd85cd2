"""What contenders give in ordinary situations (`ordinary`), beside what a person would expect.

    python -m benchmarks.situations                        # all, at both settings
    python -m benchmarks.situations --seeds 3              # the worst of three draws and trainings
    python -m benchmarks.situations --only one_off vpn     # some
    python -m benchmarks.situations --settings tutorial    # at one setting

Progress goes to stderr.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from benchmarks import contenders, datasets
from benchmarks.contenders import Scorer, Scores
from benchmarks.ordinary import SITUATIONS, Check, Drawn, Outcome, Pair, Situation
from benchmarks.tables import markdown
from ipinsights import metrics
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.evaluation.likelihood_ratio import IMPROVED, LikelihoodRatio
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training import fit as training
from ipinsights.training.progress import EpochSummary, Listener

SETTINGS: dict[str, dict[str, Any]] = {"defaults": {"vector_dim": 64}, "tutorial": datasets.TUTORIAL_HYPERPARAMETERS}
"""What training is told beside ``num_entity_vectors``, which is twice the number of entities."""

COUNTED = {IPV4.width: range(4, 33, 4), IPV6.width: range(8, 65, 8)}
"""Prefix lengths at which plain counting counts, down to the whole address, by the width of an address."""


@dataclass(frozen=True)
class Learnt:
    """What a contender made of training pairs."""

    score: Scorer
    discriminator_auc: float | None = None
    """Of the last epoch, where one was printed."""


Learner = Callable[[Events, Events | None, Family, int], Mapping[str, Learnt]]
"""Learns from observed pairs, with a validation channel or None, their family and a seed: contenders by name."""


def product(hyperparameters: Mapping[str, Any]) -> Learner:
    """The product, and its embeddings without the counts that training adds to the tables, if it adds any."""

    def learn(train: Events, validation: Events | None, family: Family, seed: int) -> dict[str, Learnt]:
        chosen = Hyperparameters(
            num_entity_vectors=train.index.num_rows, ip_version=family.version, seed=seed, **hyperparameters
        )
        last = _LastEpoch()
        model = training.fit(train, chosen, validation, last)
        learnt = {"product": Learnt(contenders.scorer(model), last.discriminator_auc)}
        if hasattr(model, "learnt_alone"):
            learnt["embeddings alone"] = Learnt(contenders.scorer(model.learnt_alone()))
        return learnt

    return learn


class _LastEpoch(Listener):
    """Remembers what the last epoch printed."""

    discriminator_auc: float | None = None

    def epoch_done(self, summary: EpochSummary) -> None:
        self.discriminator_auc = summary.discriminator_auc


def counting(train: Events, validation: Events | None, family: Family, seed: int) -> dict[str, Learnt]:
    """`LikelihoodRatio` down to whole addresses; nothing in it is random."""
    del validation, seed
    fitted = LikelihoodRatio.fit(
        train.entity, train.address, width=family.width, levels=COUNTED[family.width], smoothing=IMPROVED
    )
    return {"counting": Learnt(fitted.score)}


def measure(situation: Situation, learner: Learner, seed: int) -> dict[str, list[float]]:
    """The value of each check, by contender."""
    drawn = situation.drawn(seed)
    controls = _learnt(situation.family, drawn, drawn.control, learner, seed) if drawn.control else {}
    outcomes = {
        name: Outcome(scores, controls[name][0] if controls else {}, discriminator_auc)
        for name, (scores, discriminator_auc) in _learnt(situation.family, drawn, drawn.train, learner, seed).items()
    }
    return {name: [check.measure(outcome) for check in situation.checks] for name, outcome in outcomes.items()}


def _learnt(
    family: Family, drawn: Drawn, train: Sequence[Pair], learner: Learner, seed: int
) -> dict[str, tuple[dict[str, Scores], float]]:
    """The scores of each group, and the discriminator_auc, by contender."""
    index = EntityIndex(2 * len({entity for entity, _ in train}))
    events = events_of(train, index.claim, index, family)
    read = partial(events_of, find=index.find, index=index, family=family)
    validation = read(drawn.validation) if drawn.validation else None
    asked = {name: read(pairs) for name, pairs in drawn.asked.items()}
    return {
        name: (
            {group: learnt.score(pairs.entity, pairs.address) for group, pairs in asked.items()},
            _discriminator_auc(learnt, validation, family, seed),
        )
        for name, learnt in learner(events, validation, family, seed).items()
    }


def events_of(
    pairs: Sequence[Pair], find: Callable[[pa.StringArray], Any], index: EntityIndex, family: Family
) -> Events:
    """The pairs as events; ``find`` gives the row of each entity."""
    entities, texts = (pa.array(column, pa.string()) for column in zip(*pairs, strict=True))
    values, valid = addresses.parse(texts, family)
    if not valid.all():
        raise ValueError(f"{texts[int(np.argmin(valid))]} is no address")
    return Events(find(entities), values, index)


def _discriminator_auc(learnt: Learnt, validation: Events | None, family: Family, seed: int) -> float:
    """What was printed; where nothing was, the same area of the finished contender; nan without validation."""
    if validation is None:
        return float("nan")
    if learnt.discriminator_auc is not None:
        return learnt.discriminator_auc
    random = addresses.random_addresses(len(validation), family, 0.0, np.random.default_rng(seed))
    return metrics.auc(learnt.score(validation.entity, validation.address), learnt.score(validation.entity, random))


# The table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the options ask for."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # as in the other benchmarks of quality
    print(table([SITUATIONS[name] for name in options.only], options.settings, range(options.seeds)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.situations", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="draw and train N times (default 1)")
    parser.add_argument("--only", nargs="+", choices=SITUATIONS, default=list(SITUATIONS), metavar="NAME", help="these")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: both")
    return parser


def table(situations: Sequence[Situation], settings: Sequence[str], seeds: Sequence[int]) -> str:
    """A row a check, the worst of the seeds in a column a contender; under it what is expected, in words."""
    learners: dict[str, Learner] = {f", {name}": product(SETTINGS[name]) for name in settings} | {"": counting}
    columns: list[str] = []
    rows: list[tuple[str, Check, dict[str, float]]] = []
    with tqdm(total=len(situations) * len(learners) * len(seeds), unit="training") as bar:
        for situation in situations:
            bar.set_postfix_str(situation.name)
            measured: dict[str, list[list[float]]] = {}
            for setting, learner in learners.items():
                for seed in seeds:
                    for name, values in measure(situation, learner, seed).items():
                        measured.setdefault(name + setting, []).append(values)
                    bar.update()
            columns = list(measured)
            for place, check in enumerate(situation.checks):
                worst = {
                    column: check.worst(values[place] for values in by_seed) for column, by_seed in measured.items()
                }
                rows.append((situation.name, check, worst))

    lines, held, broken = [], Counter[str](), {column: set[str]() for column in columns}
    for name, check, worst in rows:
        cells = []
        for column in columns:
            holds, text = check.holds(worst[column]), f"{worst[column]:{check.form}}"
            held[column] += holds
            if not holds:
                broken[column].add(name)
            cells.append(text if holds else f"**{text}**")
        lines.append([f"{name}: {check.name}", str(check), *cells])
    counts = "; ".join(f"{column} {held[column]} and {len(situations) - len(broken[column])}" for column in columns)
    caption = (
        f"**Situations.** Checks that hold, of {len(rows)}, and situations of which all checks hold, of "
        f"{len(situations)}: {counts}. {'One seed' if len(seeds) == 1 else f'The worst of {len(seeds)} seeds'}; "
        "bold: does not hold."
    )
    expectations = "\n".join(f"- *{situation.name}*: {situation.expectation}" for situation in situations)
    return f"{markdown(['', 'expected', *columns], lines)}\n\n{caption}\n\n{expectations}"


if __name__ == "__main__":
    main()
