"""Ordinary situations that log-in data bring: the product gives what a person would expect, at documented defaults."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import ordinary, situations
from benchmarks.contenders import Scores
from benchmarks.ordinary import SITUATIONS, Situation, alarms, auc
from benchmarks.situations import SETTINGS, Learnt, product

every = pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the figures are made: another number of threads gives another model, and `main` sets it for good."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(situation: Situation) -> Situation:
    """The situation, with fewer events where there are many."""
    if situation is ordinary.service_account:
        return dataclasses.replace(situation, draw=partial(situation.draw, events=25_000))
    return situation


def require(situation: Situation, setting: str = "defaults") -> None:
    """Fail with the checks that the product does not keep."""
    values = situations.measure(situation, product(SETTINGS[setting]), seed=0)["product"]
    faults = [
        f"{check.name}: {value:{check.form}}, expected {check}"
        for check, value in zip(situation.checks, values, strict=True)
        if not check.holds(value)
    ]
    assert not faults, "; ".join(faults)


@every
def test_the_product_gives_what_is_expected(situation: Situation) -> None:
    require(small(situation))


def test_at_its_site_nobody_is_an_alarm_however_little_was_learnt() -> None:
    """The tutorial's hyperparameters are a few steps here."""
    require(ordinary.schools, "tutorial")


@pytest.mark.slow
def test_the_product_gives_what_is_expected_beside_a_very_busy_account() -> None:
    require(ordinary.service_account)


@every
def test_a_seed_decides_a_draw(situation: Situation) -> None:
    situation = small(situation)
    drawn = situation.drawn(1)
    assert situation.drawn(1) == drawn
    assert situation.drawn(2) != drawn


def unseeing(scores: Callable[[int], Scores]) -> Learnt:
    """A contender whose scores depend on nothing but how many are asked for."""
    return Learnt(lambda entity, _: scores(len(entity)))


@every
def test_no_situation_is_met_by_knowing_nothing(situation: Situation) -> None:
    """Not by scores that are all 0, all above it, all below it, or random."""
    rng = np.random.default_rng(0)
    scores: list[Callable[[int], Scores]] = [np.zeros, np.ones, lambda size: -np.ones(size), rng.standard_normal]
    blind = {str(number): unseeing(score) for number, score in enumerate(scores)}
    for values in situations.measure(small(situation), lambda *_: blind, seed=0).values():
        assert not all(check.holds(value) for check, value in zip(situation.checks, values, strict=True))


def test_a_value_that_is_no_number_keeps_no_bound() -> None:
    for check in (auc("own", "others'"), alarms("own")):
        assert not check.holds(check.worst([check.bound, float("nan")]))
        assert check.holds(check.worst([check.bound]))
    assert auc("own", "others'", at_least=0.9).worst([0.8, 0.95]) == 0.8
    assert alarms("own").worst([0.1, 0.0]) == 0.1


def test_the_table_has_a_row_a_check_and_a_column_a_contender(capsys: pytest.CaptureFixture[str]) -> None:
    situations.main(["--only", "three_users", "cold_start", "--settings", "defaults"])
    table, caption, expectations = capsys.readouterr().out.strip().split("\n\n")
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert header[2:] == ["product, defaults", "embeddings alone, defaults", "counting"]
    assert len(rows) == 1 + 2
    assert rows[0][2:] == ["1.000"] * 3
    assert "of 3, " in caption
    assert expectations.count("\n") == 1


def test_what_does_not_hold_is_bold_and_not_counted() -> None:
    checks = (auc("own homes", "others' homes"), auc("own homes", "others' homes", at_least=1.1))
    asked = dataclasses.replace(ordinary.three_users, checks=checks)
    table = situations.table([asked], ["defaults"], range(2))
    assert table.count("**1.000**") == 3
    for contender in ("product, defaults", "embeddings alone, defaults", "counting"):
        assert f"{contender} 1 and 0" in table
    assert "worst of 2 seeds" in table
