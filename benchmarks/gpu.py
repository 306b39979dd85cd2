"""How fast training is on a GPU, and how far that is from what the card can do, as a Markdown table.

    python -m benchmarks.gpu                # the AWS tutorial's size, mini-batches of 1,000 and 10,000: a minute
    python -m benchmarks.gpu --device cpu   # the same code without a kernel or a recording, to see that it works

Whole steps, drawing of batches included, take turns: recorded as a CUDA graph (`ipinsights.training.gpu_step`) and
started one by one. The limit is a roofline: no step is faster than its bytes at the rate at which the card copies, or
its products at the rate at which it multiplies matrices as large, both measured in the same run. Bytes are those of
table rows: each is read once for an address or entity, and those that the step changes are read and written once more,
with their means.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from benchmarks import datasets, machine
from benchmarks.tables import markdown, spread
from benchmarks.training import spread_events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import gpu_step
from ipinsights.training.batches import Entities
from ipinsights.training.placement import Placement, StepName
from ipinsights.training.step import Batch
from ipinsights.training.trainer import Trainer

BATCHES = (1000, 10_000)
ROUNDS = 7
_COPIED = 1 << 27
"""Floats that are copied to measure how fast that is."""
_STEPS: dict[str, StepName] = {"one by one": "torch", "recorded": "graph"}

_CAPTION = """\
{events:,} simulated log-ins, {rows:,} rows x {dim}, R = {random}, S = {shuffled}; median of {rounds} rounds of
{piece:,} positives (lowest to highest). {card} copies {copy:,.0f} GB/s. *Rows* and *products* are the limits that each
sets alone. `python -m benchmarks.gpu`, {machine}."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--users", type=int, default=10_000, help="whose log-ins are simulated (default 10000)")
    parser.add_argument("--piece", type=int, default=2_000_000, help="positives of a round (default 2000000)")
    parser.add_argument("--synthetic", action="store_true", help="simulate on made-up networks: needs no file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU")
    print(table(device, options.users, options.piece, options.synthetic))


def table(device: torch.device, users: int, piece: int, synthetic: bool) -> str:
    """The table, with its caption."""
    events = spread_events(2 * users, users, synthetic)
    vocabulary = Vocabulary.build(events.address)
    entities = Entities.of(events, 2 * users)
    copy = copy_rate(device)
    lines = []
    for size in BATCHES:
        chosen = {**datasets.TUTORIAL_HYPERPARAMETERS, "mini_batch_size": size, "epochs": 1_000_000}
        hp = Hyperparameters(num_entity_vectors=2 * users, **chosen)
        why_not = gpu_step.why_not(hp, vocabulary.depth, device)
        trainers = {
            name: Trainer(events, hp, vocabulary, entities, Placement(device, step), 1)
            for name, step in _STEPS.items()
            if not (step == "graph" and why_not)
        }
        speeds = take_turns({name: steps(trainer) for name, trainer in trainers.items()}, device, piece)
        trainer = trainers["one by one"]
        batch = next(trainer.batches.rest_of_epoch(trainer.batches.start()))
        limits = (copy / row_bytes(batch, hp), multiply_rate(batch, hp, device) / product_flops(batch, hp))
        for name, found in speeds.items():
            lines.append(
                [
                    f"{size:,}",
                    name,
                    spread(found, ",.0f"),
                    *(f"{limit:,.0f}" for limit in limits),
                    f"{np.median(found) / min(limits):.0%}",
                ]
            )
        if why_not:
            lines.append([f"{size:,}", f"not recorded, because {why_not}", "", "", "", ""])
    header = ["mini-batch", "steps", "positives/s", "rows", "products", "of the limit"]
    caption = _CAPTION.format(
        events=len(events),
        rows=2 * users,
        dim=hp.vector_dim,
        random=hp.random_negative_sampling_rate,
        shuffled=hp.shuffled_negative_sampling_rate,
        rounds=ROUNDS,
        piece=piece,
        card=torch.cuda.get_device_name(device) if device.type == "cuda" else "The processor",
        copy=copy / 1e9,
        machine=machine.description(),
    )
    return f"{markdown(header, lines)}\n\n{caption}"


def steps(trainer: Trainer) -> Iterator[int]:
    """Train without end; gives the positives of each step."""
    while True:
        for batch in trainer.batches.rest_of_epoch(trainer.position):
            trainer.step.run(batch, 0.01)
            trainer.position.steps += 1
            yield len(batch.entity)
        trainer.batches.next_epoch(trainer.position)


def take_turns(running: dict[str, Iterator[int]], device: torch.device, piece: int) -> dict[str, list[float]]:
    """Positives a second of each, round by round, after one that does not count."""
    speeds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(1 + ROUNDS):
        for name, taken in running.items():

            def train(taken: Iterator[int] = taken) -> int:
                positives = 0
                while positives < piece:
                    positives += next(taken)
                return positives

            positives, seconds = timed(train, device)
            speeds[name].append(positives / seconds)
    return {name: found[1:] for name, found in speeds.items()}


def timed(work: Callable[[], int], device: torch.device) -> tuple[int, float]:
    """What some work gives, and the seconds until the device has done it."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - started


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of copies that no cache holds."""
    source = torch.zeros(_COPIED, device=device)
    target = torch.empty_like(source)

    def copy() -> int:
        for _ in range(10):
            target.copy_(source)
        return 10 * 2 * 4 * _COPIED

    timed(copy, device)
    copied, seconds = timed(copy, device)
    return copied / seconds


def multiply_rate(batch: Batch, hp: Hyperparameters, device: torch.device) -> float:
    """Floating-point operations a second, in products of the step's shape."""
    left = torch.rand(batch.addresses, hp.vector_dim, device=device)
    right = torch.rand(hp.vector_dim, hp.vector_dim, device=device)
    out = torch.empty_like(left)

    def multiply() -> int:
        for _ in range(100):
            torch.mm(left, right, out=out)
        return 100 * 2 * left.numel() * hp.vector_dim

    timed(multiply, device)
    done, seconds = timed(multiply, device)
    return done / seconds


def row_bytes(batch: Batch, hp: Hyperparameters) -> float:
    """Bytes of table rows that a step reads and writes, a positive."""
    cells = torch.cat([batch.positive.flatten(), batch.random.flatten()])
    state = len(torch.unique(cells)) + 3 * len(torch.unique(batch.entity))  # rows, those of entities with their means
    return 4 * hp.vector_dim * (len(cells) + len(batch.entity) + 2 * state) / len(batch.entity)


def product_flops(batch: Batch, hp: Hyperparameters) -> float:
    """Floating-point operations of a step's products, a positive: of blocks, and of scores, forward and twice back."""
    blocks = hp.num_ip_encoder_layers * batch.addresses * hp.vector_dim**2
    scores = hp.records_per_positive * len(batch.entity) * hp.vector_dim
    return 3 * 2 * (blocks + scores) / len(batch.entity)


if __name__ == "__main__":
    main()
