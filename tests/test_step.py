"""The closed-form step against autograd through the model as it is written down."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from ipinsights import sampling
from ipinsights.model import Encoder
from ipinsights.step import ENCODER_RATE, EPSILON, SHRINKAGE, Batch, Optimiser, RowGradients, gradients, sum_rows

ENTITIES, PREFIXES, LEVELS = 11, 23, 3


def make(
    dim: int, blocks: int, batch: int, random_rate: int, shuffled_rate: int
) -> tuple[torch.Tensor, torch.Tensor, Encoder, Batch]:
    g = torch.Generator().manual_seed(dim + 10 * blocks + 100 * batch)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) / math.sqrt(dim)

    encoder = Encoder(
        normal(PREFIXES, dim),
        normal(blocks, dim, dim),
        normal(blocks, dim),
        normal(blocks, dim, dim),
        normal(blocks, dim),
    )
    groups = batch // sampling.group_size(batch, random_rate)
    return (
        normal(ENTITIES, dim),
        normal(dim),
        encoder,
        Batch(
            entity=torch.randint(ENTITIES, (batch,), generator=g),
            novelty=torch.rand(batch, generator=g, dtype=torch.float64) / 10,
            positive=torch.randint(PREFIXES, (batch, LEVELS), generator=g),
            random=torch.randint(PREFIXES, (groups, random_rate, LEVELS), generator=g),
            shifts=sampling.shifts(batch, shuffled_rate, g),
        ),
    )


def cross_entropy(
    table: torch.Tensor, typical: torch.Tensor, encoder: Encoder, batch: Batch
) -> tuple[torch.Tensor, float, int]:
    """One record at a time, as the documentation puts it. Returns the loss, the records right, and the records."""
    size = len(batch.entity)
    group = size // batch.random.shape[0]
    records: list[tuple[int, torch.Tensor, float]] = []
    for i in range(size):
        records.append((i, batch.positive[i], 1.0))
        records += [(i, address, 0.0) for address in batch.random[i // group]]
        for k in batch.shifts:
            j = (i - k) % size
            if batch.entity[j] != batch.entity[i]:
                records.append((i, batch.positive[j], float(batch.novelty[i]) / len(batch.shifts)))
    rows = torch.stack([address for _, address, _ in records])
    scores = ((table[batch.entity[[i for i, _, _ in records]]] + typical) * encoder(rows)).sum(1)
    labels = torch.tensor([label for _, _, label in records], dtype=scores.dtype)
    right = float(((scores > 0) == (labels > 0.5)).sum())
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum"), right, len(records)


def dense(gradient: RowGradients, rows: int) -> torch.Tensor:
    return torch.zeros(rows, gradient.values.shape[1], dtype=gradient.values.dtype).index_copy(
        0, gradient.rows, gradient.values
    )


@pytest.mark.parametrize("dim", [4, 37])
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize(
    ("batch", "random_rate", "shuffled_rate"), [(12, 1, 1), (10, 5, 2), (7, 5, 0), (9, 0, 3), (1, 2, 1)]
)
def test_gradients_are_those_of_the_loss(
    dim: int, blocks: int, batch: int, random_rate: int, shuffled_rate: int
) -> None:
    table, typical, encoder, drawn = make(dim, blocks, batch, random_rate, shuffled_rate)
    learnt = gradients(table, typical, encoder, drawn)

    parameters = {name: array.clone().requires_grad_() for name, array in vars(encoder).items()}
    table.requires_grad_()
    typical.requires_grad_()
    loss, right, records = cross_entropy(table, typical, Encoder(**parameters), drawn)
    loss.backward()

    assert learnt.totals.tolist() == pytest.approx([loss.item(), right, records])
    torch.testing.assert_close(dense(learnt.entity, ENTITIES), table.grad)
    torch.testing.assert_close(learnt.typical, typical.grad)
    torch.testing.assert_close(dense(learnt.prefix, PREFIXES), parameters["prefix"].grad)
    for name, gradient in zip(("w1", "b1", "w2", "b2"), learnt.blocks, strict=True):
        if blocks:
            torch.testing.assert_close(gradient, parameters[name].grad)


def test_a_shuffled_negative_that_is_a_true_pair_carries_no_weight() -> None:
    table, typical, encoder, drawn = make(8, 1, 6, 1, 2)
    one_entity = dataclasses.replace(drawn, entity=torch.zeros(6, dtype=torch.int64))
    with_shuffles = gradients(table, typical, encoder, one_entity)
    without = gradients(table, typical, encoder, dataclasses.replace(one_entity, shifts=[]))
    assert torch.equal(with_shuffles.totals, without.totals)
    torch.testing.assert_close(with_shuffles.prefix.values, without.prefix.values)


def test_rows_are_summed_over_duplicates() -> None:
    summed = sum_rows(torch.tensor([[5, 1], [1, 1]]), torch.tensor([[1.0, 2.0], [10.0, 20.0]]))
    assert summed.rows.tolist() == [1, 5]
    assert summed.values.tolist() == [[21.0, 42.0], [1.0, 2.0]]


def test_adam_is_torchs_adamw_on_rows_met_every_step_and_leaves_others_alone() -> None:
    """With every row touched each step, row-lazy Adam is AdamW."""
    table, typical, encoder, drawn = make(8, 2, 40, 3, 1)
    encoder = Encoder(*(array.clone() for array in vars(encoder).values()))
    reference = {name: array.clone().requires_grad_() for name, array in vars(encoder).items()}
    spare = torch.ones(2, 8, dtype=torch.float64)  # rows of the entity table that no batch meets
    table = torch.cat([table, spare])
    table_reference = table.clone().requires_grad_()
    typical_reference = typical.clone().requires_grad_()
    decay, rate = 0.01, 0.05
    torch_adamw = torch.optim.AdamW(
        [
            {"params": [table_reference, reference["prefix"]], "weight_decay": decay + SHRINKAGE},
            {"params": [typical_reference]},
            {"params": [reference[name] for name in ("w1", "b1", "w2", "b2")], "lr": rate * ENCODER_RATE / 2},
        ],
        lr=rate,
        weight_decay=decay,
        eps=EPSILON,
    )
    ours = Optimiser(table, typical, encoder, decay)
    met = dataclasses.replace(
        drawn, entity=torch.arange(40) % ENTITIES, positive=(torch.arange(40 * LEVELS) % PREFIXES).view(40, LEVELS)
    )
    for _ in range(5):
        ours.apply(gradients(table, typical, encoder, met), rate)
        torch_adamw.zero_grad()
        cross_entropy(table_reference, typical_reference, Encoder(**reference), met)[0].backward()
        torch_adamw.step()
    torch.testing.assert_close(table[:ENTITIES], table_reference[:ENTITIES])
    torch.testing.assert_close(typical, typical_reference)
    assert torch.equal(table[ENTITIES:], spare)
    for name, array in vars(encoder).items():
        torch.testing.assert_close(array, reference[name])


def test_a_score_of_zero_says_made_up() -> None:
    table, typical, encoder, drawn = make(8, 1, 6, 2, 0)
    totals = gradients(torch.zeros_like(table), torch.zeros_like(typical), encoder, drawn).totals
    assert totals.tolist() == pytest.approx([18 * math.log(2), 12, 18])  # positives wrong, negatives right
