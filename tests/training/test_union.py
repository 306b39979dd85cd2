"""How ranks combine what their encoders have moved."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch

from distributed.threads import in_threads
from ipinsights import native
from ipinsights.distributed.group import Group
from ipinsights.training.step import Parameters
from ipinsights.training.union import Union, period
from training.gpu_kernels import INTERPRET
from training.steps import KINDS, Kind, make

RANKS, ROWS, STEPS = 3, 60, 8
TOUCHED = np.random.default_rng(0).integers(0, STEPS + 1, (RANKS, ROWS)).astype(np.int32)
TOUCHED[:, :5] = 0
TOUCHED[1:, 5:9] = 0
OWN = [8, 5, 0]
"""Steps in which each rank had a mini-batch."""


class Counted:
    """Stands in for a step, which counts what it touches."""

    def __init__(self) -> None:
        self.totals = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        self.resumed = 0

    def count(self, touches: torch.Tensor) -> None:
        self.touches = touches

    def resume(self, steps: int) -> None:
        self.resumed = steps


def parameters(seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Parameters(draw(4, 3, 10), draw(3, 10), draw(ROWS, 10), draw(ROWS), draw(3, 2, 10, 10), draw(3, 2, 10))


def weights(p: Parameters) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return [array.numpy().copy() for array in (p.prefix, p.typical[0], p.w[0], p.b[0])]


@pytest.mark.parametrize("library", [native.library, lambda: None])
def test_rows_move_by_how_often_each_rank_touched_them(library: Callable[[], ctypes.CDLL | None]) -> None:
    """As the module's docstring has it, computed row by row."""
    base = weights(parameters(0))

    def combined(group: Group) -> tuple[list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]], Parameters, int]:
        p, step = parameters(0), Counted()
        union = Union(group, p, step, STEPS, STEPS, library())  # type: ignore[arg-type]
        moved = weights(parameters(100 + group.rank))
        p.prefix[torch.from_numpy(TOUCHED[group.rank] > 0)] += torch.from_numpy(moved[0][TOUCHED[group.rank] > 0])
        if OWN[group.rank]:
            for own, by in zip((p.typical, p.w, p.b), moved[1:], strict=True):
                own[0] += torch.from_numpy(by)
        before = weights(p)
        step.touches += torch.from_numpy(TOUCHED[group.rank])
        done = [
            union.stepped(number < OWN[group.rank], number + 1, 40 + number, lambda: False) for number in range(STEPS)
        ]
        assert done == [False] * (STEPS - 1) + [True]
        assert step.resumed == 40 + STEPS - 1
        assert not step.touches.any()
        assert union.totals.tolist() == [RANKS, 2 * RANKS, 3 * RANKS]
        assert union.sent > 0
        return before, p, group.rank

    found = in_threads(RANKS, combined)
    moved = [[now - then for now, then in zip(before, base, strict=True)] for before, _, _ in found]
    expected = base[0].astype(np.float64)
    for row in range(ROWS):
        touched = TOUCHED[:, row].astype(np.float64)
        if touched.any():
            share = STEPS * (1 - np.prod(1 - touched / STEPS)) / touched.sum()
            expected[row] += share * sum(each[0][row] for each in moved)
    for _, p, _ in found:
        np.testing.assert_allclose(p.prefix, expected, rtol=1e-4, atol=1e-4)
        for place, own in enumerate((p.typical, p.w, p.b), start=1):
            mean = sum(each[place] * steps for each, steps in zip(moved, OWN, strict=True)) / sum(OWN)
            np.testing.assert_allclose(own[0], base[place] + mean, rtol=1e-4, atol=1e-4)
        assert [array.tobytes() for array in weights(p)] == [array.tobytes() for array in weights(found[0][1])]
        np.testing.assert_array_equal(p.square, parameters(0).square)  # the means stay


def test_a_row_of_one_rank_moves_as_there_and_a_row_of_all_by_the_mean() -> None:
    def combined(group: Group) -> Parameters:
        p, step = parameters(0), Counted()
        p.prefix[:] = 0
        union = Union(group, p, step, 4, 4)  # type: ignore[arg-type]
        p.prefix[0], step.touches[0] = 1 + group.rank, 4
        if group.rank == 1:
            p.prefix[1], step.touches[1] = 5, 1
        for number in range(4):
            union.stepped(True, number + 1, number + 1, lambda: False)
        return p

    for p in in_threads(2, combined):
        np.testing.assert_allclose(p.prefix[0], 1.5, rtol=1e-4)
        np.testing.assert_allclose(p.prefix[1], 5, rtol=1e-4)


def test_a_stop_of_one_rank_stops_all_at_one_step() -> None:
    def stopped(group: Group) -> int:
        union = Union(group, parameters(0), Counted(), 10**6, 10**6)  # type: ignore[arg-type]
        at = 0

        def stop() -> bool:
            return group.any(group.rank == 1 and at > 20)

        while not union.stepped(True, at + 1, at + 1, stop):
            at += 1
        assert union.stopped
        return at

    found = in_threads(2, stopped)
    assert found[0] == found[1] > 20


@pytest.mark.parametrize(
    ("steps", "batch", "ranks", "rows", "expected"),
    [(80, 1000, 2, 10, 10), (80, 1000, 2, 1000, 16), (80, 1000, 2, 10**6, 80), (1, 1000, 2, 10, 1), (3, 10, 1, 1, 1)],
)
def test_how_often(steps: int, batch: int, ranks: int, rows: int, expected: int) -> None:
    assert period(steps, batch, ranks, rows) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dim", [8, 140])
def test_steps_count_the_rows_that_they_touch(kind: Kind, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in INTERPRET.items():
        monkeypatch.setenv(name, value)
    table, batch = make(dim, 1, 30, 3, 2, 0)
    step = kind.make(table)
    step.run(batch, 0.01)  # not counted
    touches = torch.zeros(len(table.prefix), dtype=torch.int32)
    step.gradients(batch)
    step.count(touches)
    step.gradients(batch)
    assert not touches.any()
    for _ in range(3):  # the first of a recorded step is not, and the second is recorded
        step.run(batch, 0.01)
    rows = torch.cat([batch.positive.reshape(-1), batch.random.reshape(-1)])
    expected = torch.zeros_like(touches)
    expected[rows.long()] = 3  # once a step, however often it is in the mini-batch
    assert torch.equal(touches, expected)
