"""The closed-form step against autograd through the model as it is written down."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ipinsights.model.model import RESERVED, Encoder
from ipinsights.training import sampling, step
from ipinsights.training.step import (
    BETA1,
    BETA2,
    ENCODER_RATE,
    EPSILON,
    SHRINKAGE,
    Batch,
    Gradients,
    Parameters,
    RowGradients,
    TorchStep,
    sum_rows,
)
from training.steps import any_partners

ENTITIES, PREFIXES, LEVELS = 11, 23, 3


def make(
    dim: int, blocks: int, batch: int, random_rate: int, shuffled_rate: int, tile: int | None = None
) -> tuple[Parameters, Batch]:
    """Random parameters whose means are 0, and a random batch."""
    g = torch.Generator().manual_seed(dim + 10 * blocks + 100 * batch)

    def weights(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) / math.sqrt(dim)

    def state(axis: int, *shape: int) -> torch.Tensor:
        weight = weights(*shape)
        return torch.stack([weight, torch.zeros_like(weight), torch.zeros_like(weight)], axis)

    parameters = Parameters(
        entity=state(1, ENTITIES, dim),
        typical=state(0, dim),
        prefix=weights(PREFIXES, dim),
        square=torch.zeros(PREFIXES, dtype=torch.float64),
        w=state(0, blocks, dim, dim),
        b=state(0, blocks, dim),
    )
    group = sampling.group_size(random_rate)
    tile = group * (tile or sampling.tile_size(random_rate, shuffled_rate, dim))
    return parameters, Batch(
        entity=torch.randint(ENTITIES, (batch,), generator=g, dtype=torch.int32),
        novelty=torch.rand(batch, generator=g, dtype=torch.float64) / 10,
        positive=torch.randint(PREFIXES, (batch, LEVELS), generator=g, dtype=torch.int32),
        random=torch.randint(PREFIXES, (-(-batch // group), random_rate, LEVELS), generator=g, dtype=torch.int32),
        partner=any_partners(batch, shuffled_rate, tile, g),
        group=group,
        tile=tile,
    )


def cross_entropy(
    table: torch.Tensor, typical: torch.Tensor, encoder: Encoder, batch: Batch
) -> tuple[torch.Tensor, float, int]:
    """One record at a time, as the documentation puts it. Returns the loss, the records right, and the records."""
    size = len(batch.entity)
    records: list[tuple[int, torch.Tensor, float]] = []
    for i in range(size):
        records.append((i, batch.positive[i], 1.0))
        records += [(i, address, 0.0) for address in batch.random[i // batch.group]]
        for j in batch.partner[i].tolist():
            if batch.entity[j] != batch.entity[i]:
                records.append((i, batch.positive[j], float(batch.novelty[i]) / batch.shuffled_rate))
    rows = torch.stack([address for _, address, _ in records])
    scores = ((table[batch.entity[[i for i, _, _ in records]].long()] + typical) * encoder(rows)).sum(1)
    labels = torch.tensor([label for _, _, label in records], dtype=scores.dtype)
    right = float(((scores > 0) == (labels > 0.5)).sum())
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum"), right, len(records)


def leaves(parameters: Parameters) -> tuple[torch.Tensor, torch.Tensor, Encoder]:
    """Copies of the weights that autograd follows: table, typical, encoder."""
    encoder = {name: array.clone().requires_grad_() for name, array in vars(parameters.encoder).items()}
    table, typical = (a.clone().requires_grad_() for a in (parameters.entity[:, 0], parameters.typical[0]))
    return table, typical, Encoder(**encoder)


def dense(gradient: RowGradients, rows: int) -> torch.Tensor:
    return torch.zeros(rows, gradient.values.shape[1], dtype=gradient.values.dtype).index_copy(
        0, gradient.rows, gradient.values
    )


@pytest.mark.parametrize("dim", [4, 37])
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize(
    ("batch", "random_rate", "shuffled_rate", "tile"),
    [(12, 1, 1, None), (10, 5, 2, 1), (13, 5, 2, 2), (7, 5, 0, None), (9, 0, 3, 4), (1, 2, 1, None)],
)
def test_gradients_are_those_of_the_loss(
    dim: int, blocks: int, batch: int, random_rate: int, shuffled_rate: int, tile: int | None
) -> None:
    parameters, drawn = make(dim, blocks, batch, random_rate, shuffled_rate, tile)
    learnt = TorchStep(parameters, 0.0).gradients(drawn)

    table, typical, encoder = leaves(parameters)
    loss, right, records = cross_entropy(table, typical, encoder, drawn)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's, which has no types

    assert learnt.totals.tolist() == pytest.approx([loss.item(), right, records])
    torch.testing.assert_close(dense(learnt.entity, ENTITIES), table.grad)
    torch.testing.assert_close(learnt.typical, typical.grad)
    torch.testing.assert_close(dense(learnt.prefix, PREFIXES), encoder.prefix.grad)
    if blocks:
        torch.testing.assert_close(learnt.w, encoder.w.grad)
        torch.testing.assert_close(learnt.b, encoder.b.grad)


@pytest.mark.parametrize("themselves", [False, True])
def test_a_shuffled_negative_that_is_a_true_pair_carries_no_weight(themselves: bool) -> None:
    parameters, drawn = make(8, 1, 6, 1, 2)
    if themselves:
        drawn.partner.copy_(torch.arange(6)[:, None])
    else:
        drawn.entity.zero_()
    step = TorchStep(parameters, 0.0)
    with_shuffles = step.gradients(drawn)
    without = step.gradients(dataclasses.replace(drawn, partner=drawn.partner[:, :0]))
    assert torch.equal(with_shuffles.totals, without.totals)
    torch.testing.assert_close(with_shuffles.prefix.values, without.prefix.values)


def test_rows_are_summed_over_duplicates() -> None:
    rows, gradient = torch.tensor([[5, 1], [1, 1]]), torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    summed = sum_rows(rows, gradient)
    assert summed.rows.tolist() == [1, 5]
    assert summed.values.tolist() == [[21.0, 42.0], [1.0, 2.0]]


def test_adam_is_torchs_adamw_on_rows_met_every_step_and_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every row touched each step, row-lazy Adam is AdamW, but rows of prefixes have one mean square."""
    monkeypatch.setattr(step, "MOST_SOURCES", 1)
    parameters, drawn = make(8, 2, 40, 3, 1)
    spare = torch.ones(2, 3, 8, dtype=torch.float64)  # rows of the entity table that no batch meets
    parameters = dataclasses.replace(parameters, entity=torch.cat([parameters.entity, spare]))
    table, typical, encoder = leaves(parameters)
    decay, rate = 0.01, 0.05
    groups: list[dict[str, Any]] = [
        {"params": [table], "weight_decay": decay + SHRINKAGE},
        {"params": [typical]},
        {"params": [encoder.w, encoder.b], "lr": rate * ENCODER_RATE / 2},
    ]
    torch_adamw = torch.optim.AdamW(
        groups,
        lr=rate,
        weight_decay=decay,
        betas=(BETA1, BETA2),
        eps=EPSILON,
    )
    ours = TorchStep(parameters, decay)
    met = dataclasses.replace(
        drawn,
        entity=torch.arange(40, dtype=torch.int32) % ENTITIES,
        positive=(torch.arange(40 * LEVELS, dtype=torch.int32) % PREFIXES).view(40, LEVELS),
    )
    square = 0.0
    for number in range(1, 6):
        ours.run(met, rate)
        torch_adamw.zero_grad()
        encoder.prefix.grad = None
        cross_entropy(table, typical, encoder, met)[0].backward()  # type: ignore[no-untyped-call]  # torch's, which has no types
        torch_adamw.step()
        with torch.no_grad():
            moved = encoder.prefix.grad
            assert moved is not None
            square = BETA2 * square + (1 - BETA2) * moved.square().sum(1, keepdim=True) / (8 - RESERVED)
            encoder.prefix.mul_(1 - rate * (decay + SHRINKAGE))
            encoder.prefix.sub_(rate * moved / ((square / (1 - BETA2**number)).sqrt() + EPSILON))
    torch.testing.assert_close(parameters.entity[:ENTITIES, 0], table[:ENTITIES])
    torch.testing.assert_close(parameters.typical[0], typical)
    assert torch.equal(parameters.entity[ENTITIES:], spare)
    for name, array in vars(parameters.encoder).items():
        torch.testing.assert_close(array, getattr(encoder, name))


@pytest.mark.parametrize(("decay", "gradient"), [(-SHRINKAGE, 1e9), (3.0, 0.0)], ids=["move", "decay"])
@pytest.mark.parametrize(("sources", "share"), [(1, 1.0), (4, 0.5), (6, 6**-0.5), (400, 6**-0.5)])
def test_a_prefix_row_moves_and_decays_less_the_more_sources_it_has(
    sources: int, share: float, decay: float, gradient: float
) -> None:
    """By the root of their number, of which six count. (Beside so large a gradient no epsilon counts.)"""
    changes = []
    for count in (1, sources):
        parameters, _ = make(8, 0, 1, 1, 1)
        before = parameters.prefix.clone()
        values = torch.full((1, 8), gradient, dtype=torch.float64)
        rows, none = torch.tensor([3]), torch.zeros(0, dtype=torch.int64)
        nothing = RowGradients(none, none, torch.zeros(0, 8, dtype=torch.float64))
        gradients = Gradients(
            nothing,
            torch.zeros(8, dtype=torch.float64),
            RowGradients(rows, torch.tensor([count]), values),
            torch.zeros_like(parameters.w[0]),
            torch.zeros_like(parameters.b[0]),
            torch.zeros(3),
        )
        TorchStep(parameters, decay).apply(gradients, 0.01)
        changes.append(parameters.prefix[3] - before[3])
    assert (changes[0] != 0).all()
    torch.testing.assert_close(changes[1], share * changes[0])


def test_a_score_of_zero_says_made_up() -> None:
    parameters, drawn = make(8, 1, 6, 2, 0)
    parameters.entity.zero_()
    parameters.typical.zero_()
    totals = TorchStep(parameters, 0.0).gradients(drawn).totals
    assert totals.tolist() == pytest.approx([18 * math.log(2), 12, 18])  # positives wrong, negatives right


def test_scores_are_those_of_the_model() -> None:
    parameters, drawn = make(8, 2, 20_000, 1, 1)
    expected = (parameters.entities[drawn.entity.long()] * parameters.encoder(drawn.positive)).sum(1)
    torch.testing.assert_close(TorchStep(parameters, 0.0).score(drawn.entity, drawn.positive), expected)
