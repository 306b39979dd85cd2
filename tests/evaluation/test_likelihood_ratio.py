"""Counting against its formulas, one pair at a time."""

import collections
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.test_baselines import LEVELS, WIDTHS, Pair, cases, columns
from ipinsights.evaluation.baselines import LongestPrefix
from ipinsights.evaluation.likelihood_ratio import PUBLISHED, LikelihoodRatio, Smoothing

SMOOTHINGS = [
    Smoothing("entities", concentration=0.3, discount=0.6, prior=2.0, random_share=0.2),
    Smoothing("events", concentration=0.3, discount=0.6, prior=2.0, random_share=0.2),
    Smoothing(),
    PUBLISHED,
]


class Naive:
    """The formulas of the module's docstring, one pair at a time. A place is the tuple of a prefix and all above it."""

    def __init__(self, training: list[Pair], groups: list[int] | None, width: int, levels: Sequence[int]) -> None:
        self.levels, self.width = levels, width
        self.group_count = len(set(groups)) if groups else 0
        self.seen = collections.Counter[tuple[int | None, tuple[int, ...]]]()  # entity, or None for all; place
        self.children = collections.defaultdict[tuple[int, ...], set[tuple[int, int]]](
            set
        )  # entity and child, by place
        for row, (entity, address) in enumerate(training):
            path = self.path(address, groups[row] if groups else None)
            for depth in range(len(path) + 1):
                self.seen[None, path[:depth]] += 1
                self.seen[entity, path[:depth]] += 1
            for depth, child in enumerate(path):
                self.children[path[:depth]].add((entity, child))

    def path(self, address: int, group: int | None) -> tuple[int, ...]:
        return (() if group is None else (group,)) + tuple(address >> (self.width - level) for level in self.levels)

    def score(self, entity: int, address: int, group: int | None, s: Smoothing) -> float:
        sizes = ([] if group is None else [1 / self.group_count]) + [2.0**-level for level in self.levels]
        path = self.path(address, group)
        by_entity = by_everybody = uniform = above = 1.0
        for depth, size in enumerate(sizes):
            parent, place = path[:depth], path[: depth + 1]
            met = self.children[parent]
            share = min(1.0, size / above)
            everybody = (self.seen[None, place] + s.prior * share) / (self.seen[None, parent] + s.prior)
            by_entities = (sum(child == path[depth] for _, child in met) + s.prior * share) / (len(met) + s.prior)
            base = {"entities": by_entities, "events": everybody}[s.back_off]
            branches = sum(other == entity for other, _ in met)
            kept = max(self.seen[entity, place] - s.discount, 0)
            by_entity *= (kept + (s.concentration + s.discount * branches) * base) / (
                self.seen[entity, parent] + s.concentration
            )
            by_everybody *= everybody
            uniform *= share
            above = size
        return math.log(by_entity / (s.random_share * uniform + (1 - s.random_share) * by_everybody))


@given(cases(), st.booleans(), st.sampled_from(SMOOTHINGS), st.data())
def test_likelihood_ratio_is_that_of_its_formulas(
    case: tuple[int, list[Pair], list[Pair]], grouped: bool, smoothing: Smoothing, data: st.DataObject
) -> None:
    width, training, queries = case
    group = st.integers(-1, 3)
    groups, query_groups = (
        data.draw(st.lists(group, min_size=len(some), max_size=len(some))) if grouped else None
        for some in (training, queries)
    )
    naive = Naive(training, groups, width, LEVELS[width])
    fitted = LikelihoodRatio.fit(
        *columns(training, width),
        groups=None if groups is None else np.array(groups),
        width=width,
        levels=LEVELS[width],
        smoothing=smoothing,
    )
    scores = fitted.score(*columns(queries, width), None if query_groups is None else np.array(query_groups, np.int64))
    expected = [
        naive.score(*query, None if query_groups is None else query_groups[row], smoothing)
        for row, query in enumerate(queries)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)


def test_likelihood_ratio_by_hand() -> None:
    """One level, 0.0.0.0/1 and 128.0.0.0/1: entity 1 twice and entity 2 once in the lower half, 2 once in the upper."""
    entity, address = np.array([1, 1, 2, 2]), np.array([5, 6, 7, 0xF0000000], np.uint32)
    settings = {"concentration": 1.0, "discount": 0.5, "prior": 2.0, "random_share": 0.25}
    # The lower half: 3 of 4 events, 2 of 3 pairs of entity and child; uniformly, 1/2.
    by_events, by_entities = (3 + 1) / (4 + 2), (2 + 1) / (3 + 2)
    made_up = 0.25 / 2 + 0.75 * by_events
    bases: dict[Literal["entities", "events"], float] = {"entities": by_entities, "events": by_events}
    for back_off, base in bases.items():
        fitted = LikelihoodRatio.fit(entity, address, levels=(1,), smoothing=Smoothing(back_off, **settings))
        own = (2 - 0.5 + (1 + 0.5 * 1) * base) / (2 + 1)
        never_seen = base
        scores = fitted.score(np.array([1, 9]), np.array([5, 5], np.uint32))
        np.testing.assert_allclose(scores, np.log([own / made_up, never_seen / made_up]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("back_off", ["entities", "events"])
def test_the_densities_are_those_of_probabilities(width: int, back_off: Literal["entities", "events"]) -> None:
    """With random addresses alone as the made-up ones, the mean likelihood ratio over all addresses is 1."""
    rng = np.random.default_rng(0)
    training = rng.integers(8, size=50, dtype=WIDTHS[width]) << WIDTHS[width](width - 3)
    fitted = LikelihoodRatio.fit(
        rng.integers(3, size=50),
        training,
        width=width,
        levels=(1, 3, 5),
        smoothing=Smoothing(back_off, random_share=1),
    )
    everywhere = np.arange(32, dtype=WIDTHS[width]) << WIDTHS[width](width - 5)
    for entity in (0, 1, 2, 9):
        np.testing.assert_allclose(np.exp(fitted.score(np.full(32, entity), everywhere)).mean(), 1)


def test_the_defaults_prefer_the_own_network_to_a_foreign_and_an_empty_one() -> None:
    entity, address = np.array([1, 1, 2, 2, 3]), np.array([0x0A000001, 0x0A000002, 0x14000001, 0x14000002, 0x14000003])
    for width in WIDTHS:
        placed = address.astype(WIDTHS[width]) << WIDTHS[width](width - 32)
        queries = np.array([0x0A000009, 0x14000009, 0xC8000009], WIDTHS[width]) << WIDTHS[width](width - 32)
        for fitted in (
            LongestPrefix.fit(entity, placed, width=width),
            LikelihoodRatio.fit(entity, placed, width=width),
            LikelihoodRatio.fit(entity, placed, width=width, smoothing=PUBLISHED),
        ):
            scores = fitted.score(np.ones(3, np.int64), queries)
            assert scores.dtype == np.float64
            assert scores[0] > max(scores[1:])


@pytest.mark.parametrize("baseline", [LongestPrefix, LikelihoodRatio])
def test_without_training_pairs_there_is_nothing_to_fit(baseline: type[LongestPrefix] | type[LikelihoodRatio]) -> None:
    with pytest.raises(ValueError, match="no training pairs"):
        baseline.fit(np.zeros(0, np.int64), np.zeros(0, np.uint32))


def test_groups_must_be_given_twice_or_never() -> None:
    entity, address = np.array([1, 2]), np.array([1, 2], np.uint32)
    with pytest.raises(ValueError, match="groups"):
        LikelihoodRatio.fit(entity, address).score(entity, address, entity)
    with pytest.raises(ValueError, match="groups"):
        LikelihoodRatio.fit(entity, address, groups=entity).score(entity, address)
