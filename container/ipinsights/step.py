"""One optimiser step: the loss, its gradients in closed form, and Adam on the rows touched.

The loss is the cross entropy, summed over the records of a mini-batch: each positive (label 1) with its R random and S
shuffled negatives (label 0). With sigma the logistic function, a record's gradient with respect to its score is
sigma(score) - label; everything else is the chain rule, written out below, which keeps nothing that is not needed and
gives the gradients of table rows already summed. `tests/test_step.py` holds it against autograd. (The sum and not the
mean: Adam does not care about the scale, and `EPSILON` then means the same for every size of mini-batch.)

A shuffled negative whose entity is the address's own is no negative: it carries no weight. Nor are the others negative
for certain: now and then an entity comes from where it never came from, as a traveller does. So the shuffled negatives
of a positive together have a label above 0, the entity's *novelty*. Without it training learns in the end that whoever
is abroad is an attacker, wherever that is: every event is known by heart by then, and nothing holds up the score of
places that others use. With it the score of such a place tends to the logarithm of the novelty, not to minus infinity.

`gradients` takes rows of the tables and returns gradients of those rows, already summed over duplicates; `Optimiser`
applies them. Between the two is the seam where several machines would exchange rows.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ipinsights.model import Encoder

BETA1, BETA2 = 0.9, 0.999
EPSILON = 0.005
"""In units of a record's gradient, which is at most a weight of the other embedding: rows whose records are right
already come to rest, where Adam with its usual, vanishing epsilon would move them by whole steps until every event is
known by heart."""
SHRINKAGE = 0.1
"""Weight decay of table rows besides the hyperparameter's. What sets an entity apart from the typical one, and a
network from others, has to show in event after event to stay."""
ENCODER_RATE = 0.03
"""The sum of the blocks' learning rates, relative to the tables': every step moves them, a row only when it is met."""
_TILE = 512
"""Rows updated at a time on the CPU, so that what an update holds stays in its cache."""


@dataclass(frozen=True)
class Batch:
    """b positives with their negatives, as rows of the tables."""

    entity: torch.Tensor
    """Entity row of each positive, int [b]."""
    novelty: torch.Tensor
    """What its shuffled negatives' labels sum up to, float [b]."""
    positive: torch.Tensor
    """Prefix rows of each positive's address, int [b, L]."""
    random: torch.Tensor
    """Prefix rows of the random addresses, int [groups, R, L]; consecutive entities form a group of b / groups."""
    shifts: list[int]
    """Shuffled negative k pairs entity i with the address of positive i - shifts[k]."""


@dataclass(frozen=True)
class RowGradients:
    """Gradients of some rows of a table."""

    rows: torch.Tensor
    """Distinct rows, int64 [n], ascending."""
    values: torch.Tensor
    """[n, D]"""


@dataclass(frozen=True)
class Gradients:
    """What one step learns from a batch."""

    entity: RowGradients
    typical: torch.Tensor
    """[D]"""
    prefix: RowGradients
    blocks: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    """Of w1, b1, w2, b2."""
    totals: torch.Tensor
    """Summed cross entropy, records classified rightly, records: float32 [3], on the device."""


def gradients(entity_table: torch.Tensor, typical: torch.Tensor, encoder: Encoder, batch: Batch) -> Gradients:
    """The gradients of the cross entropy, summed over the batch's records.

    An entity's embedding is its row of the table plus ``typical``, [D].
    """
    b, (groups, random_rate, levels) = len(batch.entity), batch.random.shape
    dim = entity_table.shape[1]

    # Forward: all addresses at once, remembering what each block saw.
    rows = torch.cat([batch.positive, batch.random.view(-1, levels)])
    x = F.embedding_bag(rows, encoder.prefix, mode="sum")
    inputs, hiddens = [], []
    for w1, b1, w2, b2 in zip(encoder.w1, encoder.b1, encoder.w2, encoder.b2, strict=True):
        hidden = torch.addmm(b1, x, w1.T).relu_()
        inputs.append(x)
        hiddens.append(hidden)
        x = torch.addmm(b2, hidden, w2.T).add_(x)
    entity = entity_table.index_select(0, batch.entity).add_(typical)
    phi, phi_random = x[:b], x[b:].view(groups, random_rate, dim)

    # Scores, the loss, and its gradient with respect to each score; at once back to both sides of the product.
    grouped = entity.view(groups, -1, dim)
    score, score_random = (entity * phi).sum(1), torch.bmm(grouped, phi_random.transpose(1, 2))
    loss = F.softplus(-score).sum() + F.softplus(score_random).sum()
    right = (score > 0).sum() + (score_random <= 0).sum()
    records = loss.new_tensor(b + score_random.numel())
    d_score, d_random = torch.sigmoid(score) - 1, torch.sigmoid(score_random)
    d_entity = d_score[:, None] * phi + torch.bmm(d_random, phi_random).view(b, dim)
    d_x = torch.cat([d_score[:, None] * entity, torch.bmm(d_random.transpose(1, 2), grouped).view(-1, dim)])
    label = batch.novelty / max(1, len(batch.shifts))
    for k in batch.shifts:
        other, weight = phi.roll(k, 0), (batch.entity.roll(k) != batch.entity).to(x.dtype)
        score = (entity * other).sum(1)
        loss += ((F.softplus(score) - label * score) * weight).sum()
        right = right + ((score <= 0) * weight).sum()
        records += weight.sum()
        d_score = (torch.sigmoid(score) - label) * weight
        d_entity += d_score[:, None] * other
        d_x[:b] += (d_score[:, None] * entity).roll(-k, 0)

    # ... and through the blocks, last first.
    d_blocks = tuple(torch.empty_like(p) for p in (encoder.w1, encoder.b1, encoder.w2, encoder.b2))
    d_w1, d_b1, d_w2, d_b2 = d_blocks
    for i in reversed(range(len(inputs))):
        torch.mm(d_x.T, hiddens[i], out=d_w2[i])
        torch.sum(d_x, 0, out=d_b2[i])
        d_hidden = torch.mm(d_x, encoder.w2[i]).mul_(hiddens[i] > 0)
        torch.mm(d_hidden.T, inputs[i], out=d_w1[i])
        torch.sum(d_hidden, 0, out=d_b1[i])
        d_x = d_x.addmm_(d_hidden, encoder.w1[i])

    return Gradients(
        entity=sum_rows(batch.entity[:, None], d_entity),
        typical=d_entity.sum(0),
        prefix=sum_rows(rows, d_x),
        blocks=(d_w1, d_b1, d_w2, d_b2),
        totals=torch.stack([loss, right.to(x.dtype), records]),
    )


def sum_rows(rows: torch.Tensor, gradient: torch.Tensor) -> RowGradients:
    """Sum the gradients of embedding bags over the table rows they were summed from.

    rows: int [n, L], the table rows of each bag; gradient: [n, D], that of each bag. Sorting the row numbers brings the
    bags of a row together, so the transpose of a sum over bags is again one.
    """
    ordered, position = torch.sort(rows.reshape(-1))
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    values = F.embedding_bag(position // rows.shape[1], gradient, counts.cumsum(0) - counts, mode="sum")
    return RowGradients(distinct.long(), values)


class _State(NamedTuple):
    """A parameter with the running means of its gradient and of its square."""

    weight: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor

    @classmethod
    def of(cls, parameter: torch.Tensor) -> "_State":
        return cls(parameter, torch.zeros_like(parameter), torch.zeros_like(parameter))


class Optimiser:
    """Adam with weight decay; on a table, of the rows that a step touches alone, whatever the table's size.

    Bias correction counts the steps of all rows together. An untouched row neither moves nor decays. The decay is
    decoupled: inside the gradient Adam would blow it up for rare rows, and the tuning range to 1 would wipe the model.
    """

    def __init__(
        self, entity_table: torch.Tensor, typical: torch.Tensor, encoder: Encoder, weight_decay: float
    ) -> None:
        self._weight_decay = weight_decay
        self._typical = _State.of(typical)
        self._tables = [_State.of(entity_table), _State.of(encoder.prefix)]
        self._blocks = [_State.of(p) for p in (encoder.w1, encoder.b1, encoder.w2, encoder.b2)]
        self._steps = 0

    def apply(self, gradients: Gradients, learning_rate: float) -> None:
        """Take one step."""
        self._steps += 1
        for table, gradient in zip(self._tables, (gradients.entity, gradients.prefix), strict=True):
            for rows, values in zip(
                torch.split(gradient.rows, _TILE), torch.split(gradient.values, _TILE), strict=True
            ):
                tile = _State(*(array.index_select(0, rows) for array in table))
                self._update(tile, values, learning_rate, self._weight_decay + SHRINKAGE)
                for array, updated in zip(table, tile, strict=True):
                    array.index_copy_(0, rows, updated)
        self._update(self._typical, gradients.typical, learning_rate, self._weight_decay)
        for block, d_block in zip(self._blocks, gradients.blocks, strict=True):
            rate = ENCODER_RATE / max(1, len(block.weight)) * learning_rate
            self._update(block, d_block, rate, self._weight_decay)

    def _update(self, state: _State, gradient: torch.Tensor, rate: float, decay: float) -> None:
        """Adam (Kingma and Ba, ICLR 2015) with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), in place."""
        weight, mean, square = state
        weight.mul_(max(0.0, 1 - rate * decay))
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        deviation = square.sqrt().div_(math.sqrt(1 - BETA2**self._steps)).add_(EPSILON)
        weight.addcdiv_(mean, deviation, value=-rate / (1 - BETA1**self._steps))
