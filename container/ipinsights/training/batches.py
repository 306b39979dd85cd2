"""The mini-batches of a training: every event once an epoch, in random order, with its negatives.

Some of their prefixes are hidden (`dropout`).
"""

import ctypes
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ipinsights.data.addresses import Family, mapped_share
from ipinsights.data.events import Events
from ipinsights.distributed.group import ALONE, Group
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.model import Model
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import dropout, sampling
from ipinsights.training.native_step import rows_with_dropout
from ipinsights.training.progress import Position
from ipinsights.training.step import Batch

NOVELTY = 0.02
"""The mean novelty of the events' entities (see `step`), where `MOST_NOVELTY` bounds none of them."""
MOST_NOVELTY = 0.1
"""The most novelty of an entity, however rare new places are among all others. A novelty is a sum of labels, which are
probabilities: a label above 1 would have a cross entropy below 0. And where others come from stays unlikely."""
_NOVELTY_PRIOR = 10
"""So many events of an entity weigh as much as the mean of all entities."""
DRAWN = 1 << 15
"""Positives whose negatives and hidden prefixes are drawn together, unless a mini-batch is larger."""


@dataclass(frozen=True)
class Entities:
    """The entities that have a row to train, numbered from 0. A row without an entity takes no memory and no time."""

    met: npt.NDArray[np.intp]
    """Their rows of the model's table, ascending, [M]."""
    number: npt.NDArray[np.int32]
    """The number of each row of the model's table, [E + 1]. All other rows have M, the typical entity's number."""

    @classmethod
    def of(cls, train: Events, num_entity_vectors: int, earlier: Model | None = None) -> "Entities":
        """The entities of the events and those that an earlier model knows."""
        meets = np.zeros(num_entity_vectors + 1, dtype=np.bool_)
        meets[train.entity] = True
        if earlier:
            meets[:-1] |= earlier.index.tags != 0
        met = np.flatnonzero(meets)
        number = np.full(len(meets), len(met), dtype=np.int32)
        number[met] = np.arange(len(met), dtype=np.int32)
        return cls(met, number)


class Batches:
    """The events on the training device, in mini-batches."""

    def __init__(
        self,
        train: Events,
        hp: Hyperparameters,
        vocabulary: Vocabulary,
        entities: Entities,
        generator: torch.Generator,
        native: ctypes.CDLL | None,
        group: Group = ALONE,
    ) -> None:
        """In a ``group`` each rank has the events of its own entities, and all take as many steps an epoch.

        So each takes its part of a mini-batch, however many events it has. One without any has no mini-batches.
        """
        device = generator.device
        self.steps_per_epoch = -(-group.total(len(train)) // hp.mini_batch_size)
        self.size = hp.mini_batch_size if group.size == 1 else max(1, -(-len(train) // self.steps_per_epoch))
        """Positives of a mini-batch here."""
        self._hp = hp
        self._rank = group.rank
        self._generator = generator
        numbered = dataclasses.replace(train, entity=entities.number[train.entity])
        self._entity = torch.from_numpy(numbered.entity).to(device)
        leaf = vocabulary.leaves(train.address)
        self._leaf = torch.from_numpy(leaf).to(device)
        self._novelty = torch.from_numpy(novelty(numbered, vocabulary.family, len(entities.met), group)).to(device)
        self._pairs = sampling.Pairs(numbered.entity, leaf, device)
        self._random_leaf = sampling.Discrete(vocabulary.leaf_shares(mapped_share(train.address, group)), device)
        self.index = PrefixIndex(vocabulary, device, native)

    def start(self) -> Position:
        """The position before the first epoch, with the generator's present state."""
        return Position(0, 0, self._state(), self._state())

    def begin_anew(self, epoch: int, steps: int, all_steps: int) -> Position:
        """A position that nobody has drawn up to: what follows depends on the seed and on ``all_steps`` so far."""
        states = []
        for draw in range(2):
            self._generator.manual_seed(seed_of(self._hp.seed, self._rank, all_steps, draw))
            states.append(self._state())
        return Position(epoch, steps, *states)

    def next_epoch(self, position: Position) -> None:
        """Move on from the end of an epoch."""
        position.epoch += 1
        position.steps = 0
        position.epoch_began = self._state()

    def rest_of_epoch(self, position: Position) -> Iterator[Batch]:
        """The mini-batches of the epoch from the position on. The caller counts the position's steps.

        In a group of ranks, those with fewer events have none for the last steps, and those without events none at all.

        Many are drawn at a time, so drawing costs little even if they are small. (What a GPU draws depends on its
        model: an epoch that began on another one uses some events twice and others not at all.)
        """
        size, generator = self.size, self._generator
        self._set_state(position.epoch_began)
        order = torch.randperm(len(self._entity), generator=generator, dtype=torch.int32, device=generator.device)
        at_once = max(1, DRAWN // size)
        begun = taken = 0
        own = -(-len(order) // size)
        if not own:
            return  # splitting nothing gives one part, which would be an empty batch
        if done := min(position.steps, own):  # draw again the group that the last step's batch was in
            begun, last = divmod(done - 1, at_once)
            taken = last + 1
            self._set_state(position.drew)
        for chosen in torch.split(order, size * at_once)[begun:]:
            position.drew = self._state()
            yield from self._draw(chosen)[taken:]
            taken = 0

    def _state(self) -> npt.NDArray[np.uint8]:
        return self._generator.get_state().numpy()

    def _set_state(self, state: npt.NDArray[np.uint8]) -> None:
        self._generator.set_state(torch.from_numpy(state.copy()))

    def _draw(self, chosen: torch.Tensor) -> list[Batch]:
        """The mini-batches of the chosen events, int32 [n]."""
        hp = self._hp
        rates = hp.random_negative_sampling_rate, hp.shuffled_negative_sampling_rate
        tile = sampling.tile_size(*rates, hp.vector_dim)
        entity, leaf = (array.index_select(0, chosen) for array in (self._entity, self._leaf))
        novelty = self._novelty.index_select(0, entity)
        positive = self._rows_of(leaf)
        sizes = [len(part) for part in torch.split(chosen, self.size)]
        groups = [sampling.groups(size, rates[0]) for size in sizes]
        random = self._rows_of(self._random_leaf.draw(sum(groups) * rates[0], self._generator))
        random = random.view(sum(groups), rates[0], random.shape[1])
        partner = self._partners(chosen, entity, leaf, tile)
        parts = (torch.split(array, sizes) for array in (entity, novelty, positive, partner))
        return [
            Batch(e, n, p, r, other, group=sampling.group_size(rates[0]), tile=tile)
            for e, n, p, other, r in zip(*parts, torch.split(random, groups), strict=True)
        ]

    def _partners(self, chosen: torch.Tensor, entity: torch.Tensor, leaf: torch.Tensor, tile: int) -> torch.Tensor:
        """The partners of the chosen events, with their entities and leaves, as `Batch.partner` has them: int32 [n, S].

        Who drew an address that its entity is known to use has no negative.
        """
        size, rate = self.size, self._hp.shuffled_negative_sampling_rate
        weight = self._pairs.weight.index_select(0, chosen)
        partner = sampling.partners(weight, rate, size, tile, self._generator)
        own = torch.arange(len(chosen), dtype=torch.int32, device=chosen.device)
        for drawn in partner.T:
            known = self._pairs.known(entity, leaf.index_select(0, drawn))
            drawn.copy_(torch.where(known, own, drawn))
        return partner.remainder_(size)

    def _rows_of(self, leaves: torch.Tensor) -> torch.Tensor:
        return self.index.rows_with_dropout(leaves, self._generator)


def seed_of(*numbers: int) -> int:
    """A seed for the draws of one rank, or from one moment on."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def novelty(train: Events, family: Family, entities: int, group: Group = ALONE) -> npt.NDArray[np.float32]:
    """How often each entity comes from new places: float32 [entities], from 0 to `MOST_NOVELTY`, on average `NOVELTY`.

    In a ``group``, the mean is that of all ranks, each of which has all events of its entities.

    After Good and Turing, the chance of a new kind is the share of events whose kind was seen once. Here a kind is a
    prefix of the coarsest level, seen once for the entity. The estimate gives only the ratio between entities. It does
    not give the mean, because an event seen once does not prove that anybody uses the place.
    """
    bits = family.levels[0]
    number = np.uint32 if entities <= 1 << 32 - bits else np.uint64  # the narrow ones sort in half the time
    visits: npt.NDArray[np.unsignedinteger] = train.entity.astype(number)  # one an event, so all work is in place
    visits <<= number(bits)
    visits |= (train.address >> train.address.dtype.type(family.width - bits)).astype(number)
    visits.sort()
    changes = np.concatenate([[True], visits[1:] != visits[:-1], [True]])[: len(visits) + 1]
    once = visits[changes[:-1] & changes[1:]] >> number(bits)
    singles = np.bincount(once.astype(np.int64), minlength=entities)
    events = np.bincount(train.entity, minlength=entities)
    mean = max(group.total(len(once)), 1) / group.total(len(train))
    share = (singles + _NOVELTY_PRIOR * mean) / (events + _NOVELTY_PRIOR)
    return np.minimum(NOVELTY * share / mean, MOST_NOVELTY).astype(np.float32)


class PrefixIndex:
    """The vocabulary on the training device."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device, native: ctypes.CDLL | None = None) -> None:
        self._native = native
        self._chains = torch.from_numpy(vocabulary.chains).to(device)
        self._hidden = torch.from_numpy(dropout.hidden(vocabulary.chain_counts)).to(device)
        self._unknown = torch.arange(vocabulary.depth, dtype=torch.int32, device=device)

    def rows(self, leaves: torch.Tensor) -> torch.Tensor:
        """The prefix rows of each leaf: int32 [n, L]."""
        return self._chains.index_select(0, leaves)

    def rows_with_dropout(self, leaves: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """`rows` with prefix dropout (`dropout`)."""
        drawn = torch.rand(len(leaves), generator=generator, device=generator.device)
        if self._native:
            return rows_with_dropout(self._native, leaves, drawn, self._hidden, self._chains)
        hidden = drawn[:, None] < self._hidden.index_select(0, leaves)
        return torch.where(hidden, self._unknown, self.rows(leaves))
