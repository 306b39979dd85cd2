"""What every step promises, whoever computes it: the specification's results, in any shape that may be asked for.

The specification is `TorchStep` in float64, which `test_step` holds against autograd.
"""

import copy
import dataclasses
import os
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ipinsights.training.step import Batch, Gradients, Parameters, RowGradients, TorchStep
from training.gpu_kernels import INTERPRET
from training.steps import CANCELLED, DECAY, KINDS, Kind, close, make, ordered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    """Each step. Triton looks now and then whether it is to interpret."""
    with patch.dict(os.environ, INTERPRET):
        chosen: Kind = request.param
        chosen.make(make(4, 1, 1, 1, 1, 0)[0])  # skips where it cannot be had
        yield chosen


def specification(parameters: Parameters) -> TorchStep:
    """On a copy, in float64 where that does not take long."""
    kind = torch.float64 if parameters.entity.shape[2] <= 300 else torch.float32
    copies = {name: array.clone().to(kind) for name, array in vars(parameters).items()}
    return TorchStep(Parameters(**copies), DECAY)


def alike(ours: Gradients, specified: Gradients) -> None:
    for mine, theirs in ((ours.entity, specified.entity), (ours.prefix, specified.prefix)):
        assert torch.equal(ordered(mine)[0], ordered(theirs)[0])
        close(ordered(mine)[1], ordered(theirs)[1])
    for name in ("typical", "w", "b", "totals"):
        close(getattr(ours, name), getattr(specified, name))


def nearly_shut(specified: TorchStep, batch: Batch) -> bool:
    """Whether the input of a rectifier is 0 but for rounding: it may open in one step and not in the other.

    Nothing is wrong then, and no tolerance tells it from a fault. Among a thousand addresses one rectifier is little.
    """
    encoder = specified._parameters.encoder
    addresses = torch.cat([batch.positive, batch.random.flatten(0, 1)]).long()
    x = encoder.prefix[addresses].sum(1)
    closest = []
    for w, b in zip(encoder.w, encoder.b, strict=True):
        closest.append(float(x.abs().min()))
        x = x + x.relu() @ w.T + b
    return len(addresses) < 1000 and min(closest, default=1.0) < 3e-7


# Of a sum of many, rounding may be more than that. So all runs draw the same.
@settings(max_examples=25, derandomize=True)
@given(
    dim=st.integers(4, 140),
    blocks=st.integers(0, 3),
    batch=st.integers(1, 700),
    rates=st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(any),
    seed=st.integers(0, 10_000),
)
@example(dim=4096, blocks=1, batch=300, rates=(1, 1), seed=0)
@example(dim=1000, blocks=2, batch=500, rates=(5, 1), seed=1)
@example(dim=4, blocks=100, batch=50, rates=(1, 1), seed=3)  # seed 2: gradients of 1e5, too much for float32
@example(dim=128, blocks=1, batch=300, rates=(400, 100), seed=3)
@example(dim=16, blocks=1, batch=2000, rates=(0, 500), seed=4)
@example(dim=16, blocks=1, batch=5, rates=(500, 0), seed=5)
@example(dim=128, blocks=1, batch=20_000, rates=(5, 1), seed=7)
@example(dim=300, blocks=1, batch=10, rates=(1, 1), seed=0)
@example(dim=8, blocks=1, batch=30, rates=(0, 3), seed=1)
@example(dim=8, blocks=1, batch=30, rates=(5, 0), seed=2)
@example(dim=104, blocks=1, batch=211, rates=(12, 11), seed=353)  # a rectifier's input comes to nearly 0
def test_it_is_the_specified_one(
    kind: Kind, dim: int, blocks: int, batch: int, rates: tuple[int, int], seed: int
) -> None:
    """Gradients, scores, and a sequence of steps: three of one size, since a step may be recorded, and another."""
    dim, batch = min(dim, kind.widest), min(batch, kind.most)
    rates = min(rates[0], kind.negatives), min(rates[1], kind.negatives)
    parameters, first = make(dim, blocks, batch, *rates, seed)
    specified = specification(parameters)
    ours = kind.make(parameters)

    def like(size: int, seed: int) -> Batch:
        other = make(dim, blocks, size, *rates, seed)[1]
        other.entity.remainder_(len(parameters.entity))
        other.positive.remainder_(len(parameters.prefix))
        other.random.remainder_(len(parameters.prefix))
        return other

    def scores_are_alike() -> None:
        found, expected = (step.score(first.entity, first.positive) for step in (ours, specified))
        close(found, expected, CANCELLED)

    gradients = specified.gradients(first)
    alike(ours.gradients(first), gradients)
    scores_are_alike()
    drawn_batches = [first, like(batch, 1), like(1 + batch // 2, 2), like(batch, 3)]
    for number, drawn in enumerate(drawn_batches if dim <= 300 else [first]):  # roundings of wide rows add up
        assume(dim > 300 or not nearly_shut(specified, drawn))
        for step in (ours, specified):
            step.run(drawn, 0.01 / (1 + number))
        close(ours.totals, specified.totals)
        ours.wait()
        for name, array in vars(specified._parameters).items():
            close(getattr(parameters, name), array)
            array.copy_(getattr(parameters, name))  # or roundings add up, until a rectifier opens in one alone
    # What is applied from outside is what the next gradients are of.
    narrow = Gradients(
        entity=RowGradients(gradients.entity.rows, gradients.entity.sources, gradients.entity.values.float()),
        typical=gradients.typical.float(),
        prefix=RowGradients(gradients.prefix.rows, gradients.prefix.sources, gradients.prefix.values.float()),
        w=gradients.w.float(),
        b=gradients.b.float(),
        totals=gradients.totals,
    )
    before = ours.totals.clone()
    ours.apply(narrow, 0.01)
    specified.apply(gradients, 0.01)
    assert torch.equal(ours.totals, before)
    scores_are_alike()


@pytest.mark.parametrize("number", [0, -1])
def test_a_row_may_have_hundreds_of_sources(kind: Kind, number: int) -> None:
    parameters, batch = make(16, 1, 400, 1, 1, 0)
    batch.positive[:, 1].fill_(number % len(parameters.prefix))
    specified = specification(parameters)
    for step in (kind.make(parameters), specified):
        step.run(batch, 0.01)
    for name, array in vars(specified._parameters).items():
        close(getattr(parameters, name), array)


def test_the_same_layout_gives_the_same_bits(kind: Kind) -> None:
    after = []
    for _ in range(2):
        parameters, drawn = make(64, 2, min(3000, kind.most), 5, 2, 7)
        step = kind.make(parameters)
        for _ in range(5):
            step.run(drawn, 0.01)
        step.wait()
        after.append(parameters)
    for name, array in vars(after[0]).items():
        assert torch.equal(getattr(after[1], name), array)


def test_totals_add_up_in_one_place_until_they_are_set_to_0(kind: Kind) -> None:
    parameters, drawn = make(16, 1, 40, 2, 1, 3)
    step = kind.make(parameters)
    totals, records = step.totals, []
    for _ in range(3):
        step.run(drawn, 0.01)
        assert step.totals is totals
        records.append(float(totals[2]))
    assert records == pytest.approx([records[0], 2 * records[0], 3 * records[0]])
    assert totals.dtype == torch.float64
    step.totals.zero_()
    step.run(drawn, 0.01)
    assert float(totals[2]) == records[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's sums
def test_numbers_out_of_range_are_seen(kind: Kind) -> None:
    """A weight that is no number, or a score beyond all numbers, must show in the loss."""
    for value in (float("nan"), float("inf"), 3e38):
        parameters, drawn = make(16, 1, 40, 1, 1, 3)
        parameters.typical[0] = value
        step = kind.make(parameters)
        step.run(drawn, 0.01)
        assert not np.isfinite(float(step.totals[0]))


def test_it_resumes_with_parameters_set_from_outside(kind: Kind) -> None:
    """As a checkpoint does: the steps to come are those of a training that was never interrupted."""
    parameters, drawn = make(16, 2, 40, 2, 1, 3)
    step = kind.make(parameters)
    for _ in range(3):
        step.run(drawn, 0.01)
    step.wait()
    others = make(16, 2, 40, 2, 1, 3)[0]
    resumed = kind.make(others)
    for name, array in vars(parameters).items():
        getattr(others, name).copy_(array)
    resumed.resume(3)
    for either in (step, resumed):
        for _ in range(3):
            either.run(drawn, 0.01)
        either.wait()
    for name, array in vars(parameters).items():
        close(getattr(others, name), array)


@pytest.mark.parametrize("of", ["one entity", "themselves"])
def test_a_shuffled_negative_that_is_a_true_pair_carries_no_weight(kind: Kind, of: str) -> None:
    parameters, drawn = make(8, 1, 30, 1, 2, 5)
    if of == "one entity":
        drawn.entity.zero_()
    else:
        drawn.partner.copy_(torch.arange(30)[:, None])
    step = kind.make(copy.deepcopy(parameters))
    found = step.gradients(drawn)
    alone = dataclasses.replace(drawn, partner=drawn.partner[:, :0])
    alike(found, specification(parameters).gradients(alone))
    assert float(found.totals[2]) == 2 * len(drawn.entity)


def test_all_may_have_the_same_partner_and_some_none(kind: Kind) -> None:
    """The last of each tile; and every third positive itself, now as its first partner and now as its last."""
    parameters, drawn = make(24, 1, min(250, kind.most), 1, 3, 8)
    place = torch.arange(len(drawn.entity), dtype=torch.int32)
    last = (place - place % drawn.tile + drawn.tile - 1).clamp(max=len(place) - 1)
    drawn.partner.copy_(last[:, None])
    drawn.partner[::3, 0] = place[::3]
    drawn.partner[1::3, 2] = place[1::3]
    ours, specified = kind.make(parameters), specification(parameters)
    alike(ours.gradients(drawn), specified.gradients(drawn))
    for _ in range(3):
        for step in (ours, specified):
            step.run(drawn, 0.01)
    for name, array in vars(specified._parameters).items():
        close(getattr(parameters, name), array)
