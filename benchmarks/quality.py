"""How good the scores are: the model and the baselines side by side, as a Markdown table.

    python -m benchmarks.quality                       # Tor relays, IPv4 and IPv6, test split
    python -m benchmarks.quality --split validation    # or far: what to choose by, and to check a choice by
    python -m benchmarks.quality --tutorial            # the AWS tutorial's simulation
    python -m benchmarks.quality --ablate              # the product's choices, one by one
    python -m benchmarks.quality --half-lives          # whether older log-ins should weigh less

Progress goes to stderr. All draws follow from the seeds, and every row meets the same made-up pairs.
"""

import argparse
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import ablation, contenders, datasets, half_life, ranking, tutorial
from benchmarks.contenders import Contender
from benchmarks.tables import markdown
from ipinsights.data.addresses import IPV4, IPV6, Family

_OUTSIDE = "†"
"""Marks a row that knows more than the events tell."""
_WHAT_OUTSIDE = (
    f"{_OUTSIDE} With outside data: the provider of each address (the model: its country too), from a table of 2015 "
    "and so older than the events."
)

_AHEAD = (
    "*Ahead* of the best baseline that has no other data; in parentheses where 95 % of such differences are, relays "
    "being drawn with replacement."
)
_ALL_EVENTS = "`held_out_share` 0"
"""Marks a row of a model that learns from all events, as the baselines do."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the options ask for."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # a second one brings little, and on a busy machine it costs much
    if options.tutorial:
        print(tutorial.table(options.users, range(options.seeds or 1)))
    elif options.ablate:
        print(ablation.table(range(options.seeds or 3)))
    elif options.half_lives:
        print(half_life.table(range(options.seeds or 3)))
    else:
        print("\n\n".join(tor_table(options.split, family, range(options.seeds or 3)) for family in (IPV4, IPV6)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=get_args(datasets.Split), default="test", help="of the Tor relays' events")
    what.add_argument("--tutorial", action="store_true", help="the AWS tutorial's simulation instead: minutes")
    what.add_argument(
        "--ablate",
        action="store_true",
        help="instead, the product with one change a row, on validation and far: a quarter of an hour",
    )
    what.add_argument(
        "--half-lives", action="store_true", help="instead, with older events weighing less: a quarter of an hour"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="train N times (default 3, of the tutorial 1)")
    parser.add_argument("--users", type=int, default=10_000, metavar="N", help="of the tutorial (default 10000)")
    return parser


def tor_table(split: datasets.Split, family: Family, seeds: Sequence[int]) -> str:
    """The rows of one IP version, or a sentence that says why there are none."""
    file = datasets.TOR_FILES[family.version]
    if not file.exists():
        return f"IPv{family.version} is left out: there is no {file} (see IPINSIGHTS_DATA)."
    task, rows = ranking.Task.tor(split, family), tor_rows(family)
    scored: dict[str, list[ranking.Scored]] = {name: [] for name in rows}
    with tqdm(total=len(rows) * len(seeds), desc=f"IPv{family.version}, {split}", unit="fit") as bar:
        for name, contender in rows.items():
            for seed in seeds:
                scored[name].append(task.scored(contender(task.train, family, seed), seed))
                bar.update()
    areas = {name: np.array([one.aucs() for one in some]) for name, some in scored.items()}
    lines = []
    for name, aucs in areas.items():
        means = aucs.mean(axis=1)
        spread = f" ± {means.std(ddof=1):.4f}" if len(seeds) > 1 else ""
        line = [name, f"{means.mean():.4f}{spread}", *(f"{kind:.4f}" for kind in aucs.mean(axis=0)), ""]
        if "model" in name:
            others = [other for other in rows if "model" not in other and (_OUTSIDE in name or _OUTSIDE not in other)]
            best = max(others, key=lambda other: float(areas[other].mean()))
            ahead, low, high = ranking.lead(scored[name], scored[best])
            line[-1] = f"{ahead:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(line)
    caption = [
        f"**Tor relays, IPv{family.version}, {split} split.** {len(task.train):,} events to learn from; "
        f"{len(task.entity):,} later moves of {len(np.unique(task.entity)):,} relays to addresses they had never used, "
        f"each against {ranking.NEGATIVES} made-up pairs a kind. Areas under the ROC curve, mean over {len(seeds)} "
        f"seed{'s ± their standard deviation (of a baseline: over the made-up pairs alone)' * (len(seeds) > 1)}.",
        _AHEAD,
    ]
    caption += [_WHAT_OUTSIDE] if any(_OUTSIDE in name for name in rows) else []
    caption += [] if family is IPV6 or datasets.RANGES.exists() else [f"No rows with networks: no {datasets.RANGES}."]
    return f"{markdown(['', 'mean', *ranking.KINDS, 'ahead'], lines)}\n\n{' '.join(caption)}"


def tor_rows(family: Family) -> dict[str, Contender]:
    """What is compared on Tor relays."""
    chosen = datasets.TOR_HYPERPARAMETERS
    all_events = {**chosen, "held_out_share": 0.0}
    rows = contenders.BASELINES | {
        "model, documented defaults": contenders.model({"vector_dim": chosen["vector_dim"]}),
        f"model, {_ALL_EVENTS}": contenders.model(all_events),
        "**model**": contenders.model(chosen),
    }
    if family is IPV4 and datasets.RANGES.exists():  # the table has no IPv6
        networks = contenders.networks()
        rows |= {
            f"likelihood ratio, counting entities, with providers {_OUTSIDE}": (
                contenders.likelihood_ratio_of_providers(networks)
            ),
            f"model with `networks`, {_ALL_EVENTS} {_OUTSIDE}": contenders.model(all_events, networks),
            f"**model with `networks`** {_OUTSIDE}": contenders.model(chosen, networks),
        }
    return rows


if __name__ == "__main__":
    main()
