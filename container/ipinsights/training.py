"""Training: events in, a model out.

`fit` draws mini-batches of shuffled events, gives each its negatives, and takes one optimiser step a mini-batch, while
the learning rate falls linearly to 0. It knows neither files nor log lines: a `Listener` hears what happens.

Prefix dropout. A table row met once in training would learn that one event by heart, and the unknown rows, met by
random addresses alone, would learn that the unknown is never real. So a prefix with count c is hidden with probability
1 / (1 + c), the chance that the next event is of a new kind after c of the known one (a Dirichlet process with
concentration 1), and the level's unknown row takes its place, for positives and negatives alike. One uniform number
decides for all levels of an address; counts never grow with depth, so what stays visible is a chain from the coarsest
level down, as it is when scoring.
"""

import ctypes
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ipinsights import kernel, metrics, sampling
from ipinsights.addresses import FAMILIES, Family, mapped_share, random_addresses
from ipinsights.errors import UserError
from ipinsights.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.kernel.step import NativeStep, rows_with_dropout
from ipinsights.model import Encoder, Model
from ipinsights.networks import Networks
from ipinsights.progress import BatchProgress, EpochSummary, Listener, Plan
from ipinsights.step import Batch, Parameters, Step, TorchStep
from ipinsights.vocabulary import Vocabulary

INITIAL_SCALE = 0.01
"""Standard deviation of the tables at the start: small, so that scores start near 0."""
NOVELTY = 0.02
"""The mean novelty of the events' entities (see `step`)."""
_NOVELTY_PRIOR = 10
"""How many events of an entity weigh as much as what holds for all."""
_DRAWN = 1 << 15
"""Positives that negatives and hidden prefixes are drawn for at a time, unless a mini-batch is larger."""
_GPU_SHARE = 3
"""What a GPU needs, in terms of `_memory`: there torch keeps every intermediate result of a step for a moment."""
_LINE = 16
"""Floats in a cache line."""
_VALIDATION_CHUNK = 1 << 17


def fit(
    train: Events,
    hyperparameters: Hyperparameters,
    validation: Events | None = None,
    listener: Listener | None = None,
    device: str | None = None,
    networks: Networks | None = None,
) -> Model:
    """Train a model on observed pairs.

    Entities of both event sets are rows of one index, which ``num_entity_vectors`` must be the size of. Hyperparameters
    left at their defaults are adapted to the number of events (`Hyperparameters.adapted`). With a table of networks the
    encoder knows providers and countries. The device defaults to the first GPU, and to the CPU where there is none with
    memory enough; there it takes as many threads as torch is set to. Raises UserError where the events cannot be learnt
    from.
    """
    if len(train) == 0:
        raise UserError("there are no training events: the train channel holds no rows")
    if validation is not None and len(validation) == 0:
        raise UserError("there are no validation events: the validation channel holds no rows")
    listener = listener or Listener()
    hyperparameters = hyperparameters.adapted(len(train))
    vocabulary = Vocabulary.build(train.address, FAMILIES[hyperparameters.ip_version], networks)
    entities = _Entities.of(train, hyperparameters.num_entity_vectors)
    memory = _memory(hyperparameters, vocabulary, len(train), len(entities.met))
    place, because = (torch.device(device), "") if device else _best_device(memory)
    native = kernel.library() if place.type == "cpu" else None
    if place.type == "cpu":
        because = because or kernel.why_absent()
    threads = torch.get_num_threads()
    listener.training_planned(Plan(hyperparameters, vocabulary, str(place), threads, because, memory))
    if native:  # the kernel has threads of its own, and what torch still does is too short to share
        torch.set_num_threads(1)
    try:
        trainer = _Trainer(train, hyperparameters, vocabulary, entities, place, native, threads)
        validator = _Validator(validation, trainer, hyperparameters.seed) if validation is not None else None
        for epoch in range(hyperparameters.epochs):
            accuracy, cross_entropy, seconds = trainer.run(epoch, listener)
            discriminator_auc, shuffled_auc = validator.aucs() if validator else (None, None)
            listener.epoch_done(
                EpochSummary(
                    epoch=epoch,
                    records=len(train) * hyperparameters.records_per_positive,
                    batches=trainer.steps_per_epoch * hyperparameters.records_per_positive,
                    seconds=seconds,
                    accuracy=accuracy,
                    cross_entropy=cross_entropy,
                    discriminator_auc=discriminator_auc,
                    shuffled_auc=shuffled_auc,
                )
            )
        return trainer.model()
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Entities:
    """The entities that training meets, numbered from 0: a table row nobody meets takes no memory, and no time."""

    met: npt.NDArray[np.intp]
    """Their rows of the model's table, ascending, [M]."""
    number: npt.NDArray[np.int32]
    """The number of each row of the model's table, [E + 1]; M, that of the typical entity, for one that is not met."""

    @classmethod
    def of(cls, train: Events, num_entity_vectors: int) -> "_Entities":
        meets = np.zeros(num_entity_vectors + 1, dtype=np.bool_)
        meets[train.entity] = True
        met = np.flatnonzero(meets)
        number = np.full(len(meets), len(met), dtype=np.int32)
        number[met] = np.arange(len(met), dtype=np.int32)
        return cls(met, number)


class _Trainer:
    """The state of a training: events, parameters and optimiser, all on one device."""

    def __init__(
        self,
        train: Events,
        hp: Hyperparameters,
        vocabulary: Vocabulary,
        entities: _Entities,
        device: torch.device,
        native: ctypes.CDLL | None,
        threads: int,
    ) -> None:
        self._hp = hp
        self.vocabulary = vocabulary
        self._generator = torch.Generator(device).manual_seed(hp.seed)
        self.index = _PrefixIndex(vocabulary, device, native)
        self._rows = train.index
        self.entities = entities
        self._entity = torch.from_numpy(entities.number[train.entity]).to(device)
        self._leaf = torch.from_numpy(vocabulary.leaves(train.address)).to(device)
        novelty = _novelty(train, vocabulary.family, hp.num_entity_vectors)
        self._novelty = torch.from_numpy(novelty[entities.met]).to(device)
        self._random_leaf = sampling.Discrete(vocabulary.leaf_shares(mapped_share(train.address)), device)
        self.parameters = self._initial_parameters()
        self.step: Step = (
            NativeStep(native, self.parameters, vocabulary.depth, hp.weight_decay, threads)
            if native
            else TorchStep(self.parameters, hp.weight_decay)
        )
        self.steps_per_epoch = -(-len(train) // hp.mini_batch_size)

    def _initial_parameters(self) -> Parameters:
        """Entities and prefixes begin a little apart from one another, and blocks as no change."""
        hp, device = self._hp, self._generator.device
        dim, blocks = hp.vector_dim, hp.num_ip_encoder_layers
        prefix = _zeros(device, self.vocabulary.num_rows, 3, dim)
        entity = _zeros(device, len(self.entities.met) + 1, 3, dim)
        for rows in (*torch.split(prefix, _DRAWN), *torch.split(entity[:-1], _DRAWN)):  # the last is the typical entity
            noise = torch.randn(len(rows), dim, generator=self._generator, device=device)
            rows[:, 0] = noise.mul_(INITIAL_SCALE)
        return Parameters(
            entity=entity,
            typical=_zeros(device, 3, dim),
            prefix=prefix,
            w=_zeros(device, 3, blocks, dim, dim),
            b=_zeros(device, 3, blocks, dim),
        )

    def run(self, epoch: int, listener: Listener) -> tuple[float, float, float]:
        """Train for one epoch. Returns its mean accuracy, mean cross entropy, and seconds."""
        hp, started = self._hp, time.perf_counter()
        steps = hp.epochs * self.steps_per_epoch
        totals = torch.zeros(3, dtype=torch.float64, device=self._generator.device)
        batches, next_print = 0, 0
        records, before = 0, (started, 0)
        for number, batch in enumerate(self._batches(), start=epoch * self.steps_per_epoch):
            totals += self.step.run(batch, hp.learning_rate * (1 - number / steps))
            listener.step_done(epoch, len(batch.entity))
            batches += hp.records_per_positive
            records += hp.records_per_positive * len(batch.entity)
            if next_print < batches:
                cross_entropy, accuracy = _means(totals)
                now = (time.perf_counter(), records)
                speed = (now[1] - before[1]) / (now[0] - before[0])
                before = now
            while next_print < batches:  # a step may hold several of them
                listener.batches_done(BatchProgress(epoch, next_print, accuracy, cross_entropy, speed))
                next_print += hp.batch_metrics_publish_interval
        cross_entropy, accuracy = _means(totals)
        return accuracy, cross_entropy, time.perf_counter() - started

    def _batches(self) -> Iterator[Batch]:
        """The epoch's mini-batches: every event once, in random order.

        They are drawn many at a time, so that drawing costs little however small they are.
        """
        hp = self._hp
        group = sampling.group_size(hp.random_negative_sampling_rate)
        rates = hp.random_negative_sampling_rate, hp.shuffled_negative_sampling_rate
        tile = sampling.tile_size(*rates, hp.vector_dim)
        device = self._generator.device
        order = torch.randperm(len(self._entity), generator=self._generator, dtype=torch.int32, device=device)
        for chosen in torch.split(order, hp.mini_batch_size * max(1, _DRAWN // hp.mini_batch_size)):
            entity = self._entity.index_select(0, chosen)
            novelty = self._novelty.index_select(0, entity)
            positive = self._rows_of(self._leaf.index_select(0, chosen))
            sizes = [len(part) for part in torch.split(chosen, hp.mini_batch_size)]
            groups = [-(-size // group) for size in sizes]
            random = self._rows_of(self._random_leaf.draw(sum(groups) * rates[0], self._generator))
            random = random.view(sum(groups), rates[0], self.vocabulary.depth)
            parts = [torch.split(array, sizes) for array in (entity, novelty, positive)]
            for *own, drawn in zip(*parts, torch.split(random, groups), strict=True):
                yield Batch(own[0], own[1], own[2], drawn, group=group, shuffled_rate=rates[1], tile=tile)

    def _rows_of(self, leaves: torch.Tensor) -> torch.Tensor:
        return self.index.rows_with_dropout(leaves, self._generator)

    def model(self) -> Model:
        """The model as trained so far."""
        encoder = Encoder(**{name: array.numpy(force=True) for name, array in vars(self.parameters.encoder).items()})
        trained = self.parameters.entities.numpy(force=True)
        entity = np.empty((len(self.entities.number), trained.shape[1]), dtype=np.float32)
        entity[:] = trained[-1]
        entity[self.entities.met] = trained[:-1]
        return Model(self.vocabulary, self._rows, entity, encoder)


def _zeros(device: torch.device, *shape: int) -> torch.Tensor:
    """Zeros; on the CPU from the beginning of a cache line on, and with memory that is taken when it is first used."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device)
    size = math.prod(shape)
    memory = np.zeros(size + _LINE, dtype=np.float32)
    first = -memory.ctypes.data % (4 * _LINE) // 4
    return torch.from_numpy(memory[first : first + size].reshape(shape))


def _best_device(memory: int) -> tuple[torch.device, str]:
    """Where to train, and if that is not on a GPU that is there, why."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), ""
    free, _ = torch.cuda.mem_get_info()
    needed = _GPU_SHARE * memory
    if needed <= free:
        return torch.device("cuda"), ""
    return torch.device("cpu"), (
        f"the GPU has {free / 1e6:,.0f} MB free, and training there takes {needed / 1e6:,.0f} MB: lower vector_dim or "
        "mini_batch_size, or take a larger GPU"
    )


def _memory(hp: Hyperparameters, vocabulary: Vocabulary, events: int, entities: int) -> int:
    """Bytes that parameters with their means, what a step computes, events and vocabulary will take."""
    size = min(hp.mini_batch_size, events)
    group = sampling.group_size(hp.random_negative_sampling_rate)
    random = -(-size // group) * hp.random_negative_sampling_rate
    rows = entities + 1 + vocabulary.num_rows + hp.num_ip_encoder_layers * (hp.vector_dim + 1)
    step = (2 * size + random) * (hp.vector_dim + vocabulary.depth)
    return 4 * (3 * rows * hp.vector_dim + step + 3 * events + 2 * vocabulary.chains.size)


def _novelty(train: Events, family: Family, num_entity_vectors: int) -> npt.NDArray[np.float32]:
    """How much each entity comes from where it has not been: float32 [num_entity_vectors], on average `NOVELTY`.

    After Good and Turing, the chance of a new kind is the share of events whose kind was met once: here, a prefix of
    the coarsest level that the entity was in once. Only how entities compare is taken from it; how much novelty there
    is in all is not, since an event once met is no proof that the place is anybody's.
    """
    bits = family.levels[0]
    number = np.uint32 if num_entity_vectors <= 1 << 32 - bits else np.uint64  # the narrow ones sort in half the time
    visits: npt.NDArray[np.unsignedinteger] = train.entity.astype(number)  # as many as events are, so all is in place
    visits <<= number(bits)
    visits |= (train.address >> train.address.dtype.type(family.width - bits)).astype(number)
    visits.sort()
    changes = np.concatenate([[True], visits[1:] != visits[:-1], [True]])
    once = visits[changes[:-1] & changes[1:]] >> number(bits)
    singles = np.bincount(once.astype(np.int64), minlength=num_entity_vectors)
    events = np.bincount(train.entity, minlength=num_entity_vectors)
    mean = max(len(once), 1) / len(train)
    share = (singles + _NOVELTY_PRIOR * mean) / (events + _NOVELTY_PRIOR)
    return (NOVELTY * share / mean).astype(np.float32)


class _PrefixIndex:
    """The vocabulary on the training device."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device, native: ctypes.CDLL | None = None) -> None:
        self._native = native
        self._chains = torch.from_numpy(vocabulary.chains).to(device)
        self._hidden = torch.from_numpy((1 / (1 + vocabulary.chain_counts)).astype(np.float32)).to(device)
        self._unknown = torch.arange(vocabulary.depth, dtype=torch.int32, device=device)

    def rows(self, leaves: torch.Tensor) -> torch.Tensor:
        """The prefix rows of each leaf: int32 [n, L]."""
        return self._chains.index_select(0, leaves)

    def rows_with_dropout(self, leaves: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The same with prefixes hidden at random, as the module's docstring says."""
        drawn = torch.rand(len(leaves), generator=generator, device=generator.device)
        if self._native:
            return rows_with_dropout(self._native, leaves, drawn, self._hidden, self._chains)
        hidden = drawn[:, None] < self._hidden.index_select(0, leaves)
        return torch.where(hidden, self._unknown, self.rows(leaves))


class _Validator:
    """The validation events with one fixed negative of either kind each, so that epochs compare."""

    def __init__(self, events: Events, trainer: _Trainer, seed: int) -> None:
        self._trainer = trainer
        rng = np.random.default_rng(seed)
        vocabulary, device = trainer.vocabulary, trainer.parameters.typical.device
        random = random_addresses(len(events), vocabulary.family, mapped_share(events.address), rng)
        shuffle = rng.permutation(len(events))
        self._true_pair = events.entity[shuffle] == events.entity
        self._entity = torch.from_numpy(trainer.entities.number[events.entity]).to(device)
        self._leaves = {
            name: torch.from_numpy(vocabulary.leaves(address)).to(device)
            for name, address in (("own", events.address), ("random", random), ("others'", events.address[shuffle]))
        }

    def aucs(self) -> tuple[float, float]:
        """The areas under the ROC curve of observed against random addresses, and against addresses of other events.

        Of the latter count those of another entity; the area is nan where there are none.
        """
        own, random, others = (self._score(kind) for kind in ("own", "random", "others'"))
        return metrics.auc(own, random), metrics.auc(own, others[~self._true_pair])

    def _score(self, kind: str) -> npt.NDArray[np.float32]:
        parts = zip(
            torch.split(self._entity, _VALIDATION_CHUNK),
            torch.split(self._leaves[kind], _VALIDATION_CHUNK),
            strict=True,
        )
        step, index = self._trainer.step, self._trainer.index
        return torch.cat([step.score(entity, index.rows(leaf)) for entity, leaf in parts]).numpy(force=True)


def _means(totals: torch.Tensor) -> tuple[float, float]:
    """Mean cross entropy and accuracy. Raises UserError where training has diverged."""
    cross_entropy, right, records = totals.tolist()
    if not np.isfinite(cross_entropy):
        raise UserError("the training loss is no longer a number: lower learning_rate")
    return cross_entropy / records, right / records
