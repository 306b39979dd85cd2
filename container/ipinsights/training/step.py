"""One optimiser step: the loss, its gradients in closed form, and Adam on the rows of the batch.

The loss is the cross entropy, summed over the records of a mini-batch: each positive (label 1) with its R random and S
shuffled negatives (label 0). With sigma the logistic function, a record's gradient with respect to its score is
sigma(score) - label. The rest is the chain rule, written out below: it keeps only what is needed, and sums the
gradients of table rows. `tests/training/test_step.py` compares it with autograd. (The loss is the sum, not the mean:
the scale does not matter to Adam, and `EPSILON` then means the same for every size of mini-batch.)

A shuffled negative has the address of another positive, its partner. If both are of one entity it is no negative: its
weight is 0. The others are not certainly negative either: now and then an entity comes from a new place, as a traveller
does. So the labels of a positive's shuffled negatives sum to a number above 0, the entity's *novelty*. Without it,
training finally learns that everybody abroad is an attacker: by then it has memorised every event, and nothing keeps up
the score of places that others use. With it, the score of such a place tends to the logarithm of the novelty, not to
minus infinity.

Three classes compute a step. `TorchStep` is the specification: it runs on any device, and is used if no faster one
works. `native_step.NativeStep` computes the same on the CPU and `gpu_step.GpuStep` on a GPU, several times as fast. In
each, `gradients` reads rows of the tables and returns their gradients, summed over duplicates, and `apply` uses these.
Between the two, several machines would exchange rows. `run` does both at once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from ipinsights.model.model import RESERVED, Encoder

BETA1, BETA2 = 0.8, 0.999
"""Prefix rows have no momentum, as with a `BETA1` of 0. A row's mean gradient begins at 0, so momentum holds back its
first moves, and a rare prefix has few others. And all coordinates of a prefix row have one mean square: a row moves
where its gradient points. Each with its own, the first move of a row goes as far in every coordinate, whatever the
gradient, and rare prefixes have few others."""
MOST_SOURCES = 6
"""A prefix row's move and its decay are divided by the root of its number of sources in the mini-batch, of which so
many count. Adam alone moves a row as far for one address as for a thousand. What is right for rare prefixes is too far
for common ones, which nearly every step moves."""
EPSILON = 0.005
"""In units of a record's gradient, which is at most a weight of the other embedding. Rows whose records are already
right stop moving. Adam's usual tiny epsilon would move them by whole steps until training has memorised all events."""
SHRINKAGE = 0.1
"""Weight decay of table rows, added to the hyperparameter's. An entity's difference from the typical entity, and a
network's from others, stays only if event after event shows it."""
ENCODER_RATE = 0.03
"""The sum of the blocks' learning rates, relative to the tables': every step moves blocks, but only some rows."""
_TILE = 512
"""Rows updated at a time on the CPU, so that the data of an update stays in the cache."""


@dataclass(frozen=True)
class Batch:
    """b positive samples with their negatives, as rows of the tables."""

    entity: torch.Tensor
    """Entity row of each positive, int32 [b]."""
    novelty: torch.Tensor
    """The sum of the labels of each positive's shuffled negatives, float32 [b]."""
    positive: torch.Tensor
    """Prefix rows of each positive's address, int32 [b, L]."""
    random: torch.Tensor
    """Prefix rows of the random addresses, int32 [groups, R, L]."""
    partner: torch.Tensor
    """The positive whose address each shuffled negative has: its place in the mini-batch, within the same tile, int32
    [b, S]. The positive's own place means that there is no such negative."""
    group: int
    """Consecutive positives that share random addresses; the last group may have fewer."""
    tile: int
    """Consecutive positives among which partners are: a multiple of ``group``. The last tile may be smaller."""

    @property
    def shuffled_rate(self) -> int:
        """S."""
        return self.partner.shape[1]

    @property
    def addresses(self) -> int:
        """m, the addresses to encode: b + groups * R."""
        groups, random_rate, _ = self.random.shape
        return len(self.entity) + groups * random_rate


@dataclass(frozen=True)
class RowGradients:
    """Gradients of some rows of a table."""

    rows: torch.Tensor
    """Distinct rows, int64 [n]."""
    sources: torch.Tensor
    """How many gradients are in each sum, int64 [n]."""
    values: torch.Tensor
    """[n, D]"""


@dataclass(frozen=True)
class Gradients:
    """The gradients of one step."""

    entity: RowGradients
    typical: torch.Tensor
    """[D]"""
    prefix: RowGradients
    w: torch.Tensor
    """[B, D, D]"""
    b: torch.Tensor
    """[B, D]"""
    totals: torch.Tensor
    """Summed cross entropy, records classified rightly, records: [3]."""


class UnsummedGradients(NamedTuple):
    """`Gradients`, not yet summed over duplicate table rows."""

    entity: torch.Tensor
    """Gradient of each positive's entity, [b, D]."""
    rows: torch.Tensor
    """Prefix rows of the addresses, the positives' first, int32 [m, L]."""
    address: torch.Tensor
    """Gradient of each of these addresses, [m, D]."""
    typical: torch.Tensor
    w: torch.Tensor
    b: torch.Tensor
    totals: torch.Tensor


@dataclass(frozen=True)
class Parameters:
    """The trained parameters, each with the running means of its gradient and of the gradient's square (Adam's state).

    A prefix row has but one number of these, ``square``: the mean square of its gradient's coordinates.

    An entity's embedding is its row of the table plus ``typical``.
    """

    entity: torch.Tensor
    """[E + 1, 3, D]: a row's weights and means are neighbours, since a step needs them together."""
    typical: torch.Tensor
    """[3, D]"""
    prefix: torch.Tensor
    """[P, D]"""
    square: torch.Tensor
    """[P]"""
    w: torch.Tensor
    """[3, B, D, D]"""
    b: torch.Tensor
    """[3, B, D]"""

    @property
    def encoder(self) -> Encoder:
        """The weights of the IP encoder, as views."""
        return Encoder(prefix=self.prefix, w=self.w[0], b=self.b[0])

    @property
    def learnt(self) -> int:
        """How many coordinates a row's mean square is of.

        The few of countries are among them, though they have no gradient: with a table of networks, rows move up to 7 %
        further for it.
        """
        return self.prefix.shape[1] - RESERVED

    @property
    def entities(self) -> torch.Tensor:
        """The embedding of each entity row, [E + 1, D]."""
        return self.entity[:, 0] + self.typical[0]


class Rate(NamedTuple):
    """How far Adam moves a weight, and the share of the weight that the decay takes."""

    step: float
    decay: float


class Rates(NamedTuple):
    """The numbers of one update (Kingma and Ba, ICLR 2015; decoupled decay after Loshchilov and Hutter, ICLR 2019).

    The decay is decoupled: as part of the gradient, Adam would enlarge it for rare rows, and the tuning range up to 1
    would erase the model. Bias correction counts the steps of all rows together.
    """

    entity: Rate
    prefix: Rate
    typical: Rate
    block: Rate
    deviation: float
    """The factor that corrects the root of the mean square."""

    @classmethod
    def of(cls, steps: int, learning_rate: float, weight_decay: float, blocks: int) -> "Rates":
        """The numbers of step ``steps``, counted from 1."""

        def rate(learning_rate: float, decay: float, beta1: float = BETA1) -> Rate:
            return Rate(learning_rate / (1 - beta1**steps), min(1.0, learning_rate * decay))

        return cls(
            rate(learning_rate, weight_decay + SHRINKAGE),
            rate(learning_rate, weight_decay + SHRINKAGE, beta1=0),
            rate(learning_rate, weight_decay),
            rate(ENCODER_RATE / max(1, blocks) * learning_rate, weight_decay),
            1 / math.sqrt(1 - BETA2**steps),
        )


class Step(Protocol):
    """Takes optimiser steps on parameters, in place."""

    totals: torch.Tensor
    """`Gradients.totals` summed over all steps since the reader set it to 0: float64 [3], always at the same place in
    memory."""

    def run(self, batch: Batch, learning_rate: float) -> None:
        """Take one optimiser step on a batch, and add to `totals`."""

    def gradients(self, batch: Batch) -> Gradients:
        """The gradients of a batch, without taking a step."""

    def apply(self, gradients: Gradients, learning_rate: float) -> None:
        """Take one optimiser step with given gradients; `totals` stay as they are."""

    def count(self, touches: torch.Tensor) -> None:
        """From now on, add 1 to ``touches``, int32 [P], for each prefix row that a step touches."""

    def wait(self) -> None:
        """Wait until all work that was started is done."""

    def resume(self, steps: int) -> None:
        """The parameters were set from outside to what they were after so many steps."""

    def score(self, entity: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The scores of n pairs: entity rows int32 [n], prefix rows int32 [n, L] to [n]."""


class TorchStep:
    """Adam. In a table of any size it updates only the rows of the batch; others neither move nor decay."""

    def __init__(self, parameters: Parameters, weight_decay: float) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self.steps = 0
        self._touches: torch.Tensor | None = None
        self.totals = torch.zeros(3, dtype=torch.float64, device=parameters.typical.device)

    def run(self, batch: Batch, learning_rate: float) -> None:
        """Take one optimiser step on a batch, and add to `totals`."""
        gradients = self.gradients(batch)
        self.apply(gradients, learning_rate)
        self.totals += gradients.totals

    def gradients(self, batch: Batch) -> Gradients:
        """The gradients of the cross entropy, summed over the batch's records."""
        unsummed = self.unsummed_gradients(batch)
        return Gradients(
            entity=sum_rows(batch.entity[:, None], unsummed.entity),
            typical=unsummed.typical,
            prefix=sum_rows(unsummed.rows, unsummed.address),
            w=unsummed.w,
            b=unsummed.b,
            totals=unsummed.totals,
        )

    def unsummed_gradients(self, batch: Batch) -> UnsummedGradients:
        """The gradients, not yet summed over duplicate rows.

        No shape here depends on the numbers in the batch, and nothing waits for the device, so `gpu_step` can record
        this.
        """
        p, size = self._parameters, len(batch.entity)
        groups, random_rate, levels = batch.random.shape
        dim = p.prefix.shape[1]

        # Forward: all addresses at once. Keep the input of each block. Every third row of the entity table has weights.
        rows = torch.cat([batch.positive, batch.random.view(-1, levels)])
        x = F.embedding_bag(rows, p.prefix, mode="sum")
        seen = []
        for w, b in zip(p.w[0], p.b[0], strict=True):
            seen.append(x.relu())
            x = torch.addmm(b, seen[-1], w.T).add_(x)
        entity = p.entity.view(-1, dim).index_select(0, 3 * batch.entity.long()).add_(p.typical[0])
        phi, phi_random = x[:size], x[size:].view(groups, random_rate, dim)

        # Scores, the loss, its gradient with respect to each score, and with respect to both sides of the product.
        grouped = F.pad(entity, (0, 0, 0, groups * batch.group - size)).view(groups, batch.group, dim)
        score, scores = (entity * phi).sum(1), torch.bmm(grouped, phi_random.transpose(1, 2))
        score_random = scores.view(groups * batch.group, random_rate)[:size]
        loss = F.softplus(-score).sum() + F.softplus(score_random).sum()
        right = (score > 0).sum() + (score_random <= 0).sum()
        records = loss.new_full((), size + score_random.numel())
        d_score, d_random = torch.sigmoid(score) - 1, torch.sigmoid(scores)
        d_random.view(groups * batch.group, random_rate)[size:] = 0  # padding
        d_entity = d_score[:, None] * phi + torch.bmm(d_random, phi_random).flatten(0, 1)[:size]
        d_x = torch.cat([d_score[:, None] * entity, torch.bmm(d_random.transpose(1, 2), grouped).flatten(0, 1)])
        label = batch.novelty / max(1, batch.shuffled_rate)
        d_shuffled = x.new_empty(batch.shuffled_rate, size)
        for partner, d_score in zip(batch.partner.T, d_shuffled, strict=True):
            other = phi.index_select(0, partner)
            weight = (batch.entity.index_select(0, partner) != batch.entity).to(x.dtype)
            score = (entity * other).sum(1)
            loss += ((F.softplus(score) - label * score) * weight).sum()
            right = right + ((score <= 0) * weight).sum()
            records += weight.sum()
            torch.mul(torch.sigmoid(score) - label, weight, out=d_score)
            d_entity += d_score[:, None] * other
        if batch.shuffled_rate:
            d_x[:size] += _sum_by_partner(batch.partner, entity, d_shuffled)

        # Then back through the blocks, last first.
        d_w, d_b = torch.empty_like(p.w[0]), torch.empty_like(p.b[0])
        for i in reversed(range(len(seen))):
            torch.mm(d_x.T, seen[i], out=d_w[i])
            torch.sum(d_x, 0, out=d_b[i])
            d_x = torch.mm(d_x, p.w[0, i]).mul_(seen[i] > 0).add_(d_x)

        totals = torch.stack([loss, right.to(x.dtype), records])
        return UnsummedGradients(d_entity, rows, d_x, d_entity.sum(0), d_w, d_b, totals)

    def apply(self, gradients: Gradients, learning_rate: float) -> None:
        """Take one step."""
        p, rates = self._parameters, self.next_rates(learning_rate)
        for rows, _, values in _tiles(gradients.entity):
            state = p.entity.index_select(0, rows)
            _adam(state, 1, values, rates.entity, rates.deviation)
            p.entity.index_copy_(0, rows, state)
        for rows, sources, values in _tiles(gradients.prefix):
            shares = sources.clamp(max=MOST_SOURCES).to(values.dtype).rsqrt()
            square = torch.lerp(p.square[rows], values.square().sum(1) / p.learnt, 1 - BETA2)
            moves = shares * rates.prefix.step / (square.sqrt() * rates.deviation + EPSILON)
            kept = 1 - shares * rates.prefix.decay
            p.prefix.index_copy_(0, rows, kept[:, None] * p.prefix[rows] - moves[:, None] * values)
            p.square.index_copy_(0, rows, square)
        if self._touches is not None:
            self._touches[gradients.prefix.rows] += 1
        _adam(p.typical, 0, gradients.typical, rates.typical, rates.deviation)
        _adam(p.w, 0, gradients.w, rates.block, rates.deviation)
        _adam(p.b, 0, gradients.b, rates.block, rates.deviation)

    def count(self, touches: torch.Tensor) -> None:
        """Count the steps that touch each prefix row, from now on."""
        self._touches = touches

    def next_rates(self, learning_rate: float) -> Rates:
        """The numbers of the next step's update; the step counts as taken."""
        self.steps += 1
        return Rates.of(self.steps, learning_rate, self._weight_decay, self._parameters.w.shape[1])

    def wait(self) -> None:
        """Wait until the device is done."""
        if self.totals.is_cuda:
            torch.cuda.synchronize()

    def resume(self, steps: int) -> None:
        """Resume after so many steps."""
        self.steps = steps

    def score(self, entity: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The scores of n pairs, in chunks."""
        p, encoder = self._parameters, self._parameters.encoder
        parts = zip(torch.split(entity, _CHUNK), torch.split(rows, _CHUNK), strict=True)
        return torch.cat([((p.entity[e.long(), 0] + p.typical[0]) * encoder(r)).sum(1) for e, r in parts])


_CHUNK = 1 << 14
"""Pairs scored at a time."""


def _sum_by_partner(partner: torch.Tensor, entity: torch.Tensor, d_score: torch.Tensor) -> torch.Tensor:
    """The gradient of each positive's address as that of others' shuffled negatives: [b, D].

    partner: int32 [b, S]; entity: the positives' embeddings, [b, D]; d_score: [S, b]. As in `sum_rows`, sorting brings
    together what is summed, in an order that nothing but the partners decides.
    """
    size = len(partner)
    ordered, position = torch.sort(partner.T.reshape(-1), stable=True)
    starts = torch.searchsorted(ordered, torch.arange(size, dtype=ordered.dtype, device=ordered.device))
    weights = d_score.view(-1).index_select(0, position)
    return F.embedding_bag(position % size, entity, starts, mode="sum", per_sample_weights=weights)


def sum_rows(rows: torch.Tensor, gradient: torch.Tensor) -> RowGradients:
    """Sum the gradients of embedding bags for each table row in the bags.

    rows: int [n, L], the table rows of each bag; gradient: [n, D], that of each bag. Sorting the row numbers brings the
    bags of a row together, so the transpose of a sum over bags is a sum over bags again.
    """
    ordered, position = torch.sort(rows.reshape(-1))
    starts = begins(ordered).nonzero().view(-1)
    values = F.embedding_bag(position // rows.shape[1], gradient, starts, mode="sum")
    sources = starts.diff(append=starts.new_tensor([len(ordered)]))
    return RowGradients(ordered[starts].long(), sources, values)


def begins(ordered: torch.Tensor) -> torch.Tensor:
    """Where an ordered list, [n], changes to another number: bool [n]."""
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def _tiles(gradients: RowGradients) -> Iterator[tuple[torch.Tensor, ...]]:
    """Rows, sources and values, some at a time."""
    tile = _TILE if gradients.rows.device.type == "cpu" else max(1, len(gradients.rows))
    return zip(*(torch.split(each, tile) for each in vars(gradients).values()), strict=True)


def _adam(state: torch.Tensor, axis: int, gradient: torch.Tensor, rate: Rate, deviation: float) -> None:
    """Update weights, the mean of their gradient and that of its square, which lie along an axis, in place."""
    weight, mean, square = state.unbind(axis)
    square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    mean.lerp_(gradient, 1 - BETA1)
    weight.mul_(1 - rate.decay).addcdiv_(mean, square.sqrt().mul_(deviation).add_(EPSILON), value=-rate.step)
