"""How fast training is, against the same written literally (`literal`), as a Markdown table.

    python -m benchmarks.training                                       # the AWS tutorial's size: half a minute
    python -m benchmarks.training --threads 2
    python -m benchmarks.training --rows 1_000_000 --batch 10_000
    python -m benchmarks.training --rows 10_000_000 --batch 10_000      # 16 GB of memory
    python -m benchmarks.training --quality                             # whole epochs: what is learnt: 3 minutes

All train on the same log-ins with the same hyperparameters and take turns, a second or so each (`pieces`); a ratio is
one of two pieces of the same round. Progress goes to stderr.
"""

import argparse
import functools
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import contenders, datasets, literal, machine, tutorial
from benchmarks.contenders import Scorer
from benchmarks.pieces import Contender, Literal, Ours, Piece
from benchmarks.tables import markdown, spread
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training.fit import fit
from ipinsights.training.progress import EpochSummary, Listener

BUILT_IN = 133_783
"""Records a second of the built-in on a V100, from the log in the AWS tutorial's stored output."""

_DENSE, _SPARSE, _OURS = "literal, dense Adam", "literal, SparseAdam", "**ours**"
_WITHOUT_END = 1_000_000
"""Epochs, so that our learning rate stays what it is, as the literal trainer's does."""

_CAPTION = """\
**Training speed**: {events:,} simulated log-ins of {met:,} entities, in a table of {rows:,} rows x {dim};
R = {random}, S = {shuffled}, mini_batch_size {batch:,}, learning_rate {rate}, weight_decay 0. Median of {rounds} rounds
of {piece:,} positives (lowest to highest), after one that does not count. {turns}
Records are positives and negatives; the built-in's published {built_in:,} a second were measured on a V100. *Set-up* is
all that comes before the second step; the first row's holds what torch imports late. *Cross entropy* is the mean since
the epoch began, after {trained:,} positives; as the encoders differ, it says that each learns, not which is better:
that is for `--quality`."""

_QUALITY_CAPTION = """\
**What is learnt** in {epochs} epoch{s} of {events:,} log-ins, {rows:,} rows x {dim}, R = {random}, S = {shuffled},
mini_batch_size {batch:,}, learning_rate {rate} (ours falls to 0), weight_decay 0; mean over {seeds}. Later
log-ins against attacks, as `benchmarks/tutorial.py` measures. *Cross entropy* is the last epoch's mean over its
records, of which we alone leave out shuffled negatives that are none. *Seconds* are of the whole training, set-up
included; the trainings ran one after the other."""

_MACHINE = "\n\nMeasured by `{command}` on {date}, {threads} thread{s}: {machine}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the options ask for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    table = quality(options) if options.quality else speed(options)
    print(
        table
        + _MACHINE.format(
            command=shlex.join(["python", "-m", "benchmarks.training", *arguments]),
            date=datetime.now(UTC).date(),
            threads=options.threads,
            s="s" * (options.threads > 1),
            machine=machine.description(),
        )
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    add = functools.partial(parser.add_argument, type=int, metavar="N")
    add("--threads", default=1, help="of every contender (default 1)")
    add("--users", default=10_000, help="whose log-ins are simulated (default 10000)")
    add(
        "--rows", help="of the entity table: for speed, log-ins are spread over half as many entities (default 2 USERS)"
    )
    add("--batch", default=1000, help="mini_batch_size (default 1000)")
    add("--piece", default=50_000, help="positives that a contender trains on in a round (default 50000)")
    add("--rounds", default=9, help="that count (default 9)")
    add("--dense-limit", type=float, default=0.25, metavar="GIB", help="tables up to that size meet dense Adam")
    add("--memory", type=float, default=10, metavar="GIB", help="up to that, contenders are there side by side")
    add("--epochs", default=1, help="for --quality (default 1)")
    add("--seeds", default=1, help="for --quality: train N times (default 1)")
    parser.add_argument("--quality", action="store_true", help="measure what is learnt instead")
    parser.add_argument("--synthetic", action="store_true", help="simulate on made-up networks: needs no file")
    options = parser.parse_args(arguments)
    options.rows = options.rows or 2 * options.users
    if options.rows < 2 * options.users:
        parser.error("--rows must be twice --users or more")
    if not options.synthetic and not datasets.RANGES.exists():
        parser.error(f"there is no {datasets.RANGES} (see IPINSIGHTS_DATA); --synthetic needs none")
    return options


def _hyperparameters(options: argparse.Namespace, epochs: int, seed: int = 0) -> Hyperparameters:
    chosen = {**datasets.TUTORIAL_HYPERPARAMETERS, "mini_batch_size": options.batch, "epochs": epochs}
    return Hyperparameters(num_entity_vectors=options.rows, weight_decay=0.0, seed=seed, **chosen)


def spread_events(rows: int, users: int, synthetic: bool) -> Events:
    """The tutorial's training log-ins, each given to one of several namesakes of its user: rows / 2 entities in all.

    They lie anywhere in the table, as hashed ones do.
    """
    traffic, rng = datasets.tutorial(users, synthetic).train, np.random.default_rng(0)
    namesake = rng.integers(rows // 2 // users, size=len(traffic.user))
    entity = rng.permutation(rows).astype(np.int32)[namesake * users + traffic.user]
    return Events(entity, traffic.address, EntityIndex(rows))


def speed(options: argparse.Namespace) -> str:
    """The table of speeds."""
    train = spread_events(options.rows, options.users, options.synthetic)
    hyperparameters = _hyperparameters(options, _WITHOUT_END)
    records = hyperparameters.records_per_positive
    every_step = Hyperparameters(**{**vars(hyperparameters), "batch_metrics_publish_interval": records})
    makers: dict[str, Callable[[], Contender]] = {
        _DENSE: lambda: Literal(train, hyperparameters, sparse=False),
        _SPARSE: lambda: Literal(train, hyperparameters, sparse=True),
        _OURS: lambda: Ours(train, every_step),
    }
    table_gib = 4 * options.rows * hyperparameters.vector_dim / 2**30
    if table_gib > options.dense_limit:
        del makers[_DENSE]
    side_by_side = 3 * table_gib * len(makers) <= options.memory  # a table has two more arrays of its size for Adam
    steps = max(1, options.piece // options.batch)
    with tqdm(total=len(makers) * (1 + options.rounds) * steps * options.batch, unit="pair", unit_scale=True) as bar:
        if side_by_side:
            measured = _take_turns(makers, steps, options.rounds, bar)
        else:
            measured = {}
            for name, make in makers.items():
                measured |= _take_turns({name: make}, steps, options.rounds, bar)

    speeds = {name: np.array([piece.positives / piece.seconds for piece in m[2:]]) for name, m in measured.items()}
    lines = []
    if _DENSE not in measured:
        lines.append([_DENSE, f"left out: a table of {table_gib:.2g} GiB, and every step writes all of it", *[""] * 6])
    for name, pieces in measured.items():
        ratios = [spread(speeds[name] / speeds[o], ".2f") if o in speeds else "" for o in (_SPARSE, _DENSE)]
        rate = float(np.median(speeds[name])) * records
        lines.append(
            [
                name,
                spread(speeds[name], ",.0f"),
                *ratios,
                f"{rate:,.0f}",
                f"{rate / BUILT_IN:.2f}",
                f"{pieces[0].seconds:.1f}",
                f"{pieces[-1].cross_entropy:.4f}",
            ]
        )
    header = [
        "",
        "positives/s",
        "x SparseAdam",
        "x dense Adam",
        "records/s",
        "x built-in's",
        "set-up, s",
        "cross entropy",
    ]
    caption = _CAPTION.format(
        events=len(train),
        met=len(np.unique(train.entity)),
        rows=options.rows,
        dim=hyperparameters.vector_dim,
        random=hyperparameters.random_negative_sampling_rate,
        shuffled=hyperparameters.shuffled_negative_sampling_rate,
        batch=options.batch,
        rate=hyperparameters.learning_rate,
        rounds=options.rounds,
        piece=steps * options.batch,
        turns="Contenders took turns, and a ratio is of two pieces of one round."
        if side_by_side
        else "The contenders' memory is too large for all: each ran all its rounds before the next began.",
        built_in=BUILT_IN,
        trained=sum(piece.positives for piece in measured[_OURS]),
    )
    return f"{markdown(header, lines)}\n\n{caption}"


def _take_turns(
    makers: dict[str, Callable[[], Contender]], steps: int, rounds: int, bar: "tqdm[None]"
) -> dict[str, list[Piece]]:
    """The pieces of each contender: set-up with the first step, a warm-up, and the rounds."""
    running: dict[str, Contender] = {}
    pieces: dict[str, list[Piece]] = {}
    for name, make in makers.items():
        bar.set_description(f"{name.strip('*')}, set-up")
        started = time.perf_counter()
        running[name] = make()
        first = running[name].run(1)
        pieces[name] = [Piece(first.positives, time.perf_counter() - started, first.cross_entropy)]
    for number in range(1 + rounds):
        names = list(running) if number % 2 else list(reversed(running))  # so that nobody always follows the same one
        for name in names:
            bar.set_description(f"{name.strip('*')}, round {number}")
            pieces[name].append(running[name].run(steps))
            bar.update(pieces[name][-1].positives)
    for contender in running.values():
        contender.close()
    return pieces


class _Heard(Listener):
    """Progress on stderr, and the last epoch's cross entropy."""

    def __init__(self, bar: "tqdm[None]") -> None:
        self._bar = bar
        self.cross_entropy = float("nan")

    def step_done(self, epoch: int, positives: int) -> None:
        del epoch
        self._bar.update(positives)

    def epoch_done(self, summary: EpochSummary) -> None:
        self.cross_entropy = summary.cross_entropy


def quality(options: argparse.Namespace) -> str:
    """The table of what is learnt."""
    case = tutorial.Case.simulated(options.users, options.rows, options.synthetic)
    train = case.train

    def ours(seed: int) -> tuple[Scorer, float]:
        heard = _Heard(bar)
        model = fit(train, _hyperparameters(options, options.epochs, seed), listener=heard, device="cpu")
        return contenders.scorer(model), heard.cross_entropy

    def literally(seed: int, sparse: bool) -> tuple[Scorer, float]:
        trainer = literal.Trainer(train, _hyperparameters(options, options.epochs, seed), sparse)
        steps, cross_entropy = options.epochs * -(-len(train) // options.batch), float("nan")
        for positives, cross_entropy in itertools.islice(trainer.steps(), steps):  # noqa: B007  # the last one stays
            bar.update(positives)
        return trainer.score, cross_entropy

    learners: dict[str, Callable[[int], tuple[Scorer, float]]] = {
        _DENSE: functools.partial(literally, sparse=False),
        _SPARSE: functools.partial(literally, sparse=True),
        _OURS: ours,
    }
    lines = []
    with tqdm(total=len(learners) * options.seeds * options.epochs * len(train), unit="pair", unit_scale=True) as bar:
        for name, learn in learners.items():
            measures = []
            for seed in range(options.seeds):
                bar.set_description(f"{name.strip('*')}, seed {seed}")
                started = time.perf_counter()
                scorer, cross_entropy = learn(seed)
                seconds = time.perf_counter() - started
                measures.append([*case.measure(scorer), cross_entropy, seconds])
            *means, seconds = np.mean(measures, axis=0)
            lines.append([name, *(f"{mean:.4f}" for mean in means), f"{seconds:.0f}"])
    hyperparameters = _hyperparameters(options, options.epochs)
    caption = _QUALITY_CAPTION.format(
        epochs=options.epochs,
        s="s" * (options.epochs > 1),
        events=len(train),
        rows=options.rows,
        dim=hyperparameters.vector_dim,
        random=hyperparameters.random_negative_sampling_rate,
        shuffled=hyperparameters.shuffled_negative_sampling_rate,
        batch=options.batch,
        rate=hyperparameters.learning_rate,
        seeds=f"{options.seeds} seed{'s' * (options.seeds > 1)}",
    )
    return f"{markdown(['', *tutorial.COLUMNS, 'cross entropy', 'seconds'], lines)}\n\n{caption}"


if __name__ == "__main__":
    main()
