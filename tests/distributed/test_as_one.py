"""What ranks find together is what one finds alone, whoever has which events."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.threads import in_threads
from ipinsights import metrics
from ipinsights.data import events as reading
from ipinsights.data.addresses import FAMILIES, IPV4, IPV6, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events, read
from ipinsights.data.homes import Homes, loads
from ipinsights.data.networks import Networks
from ipinsights.data.records import line_blocks
from ipinsights.data.shares import Share
from ipinsights.data.sources import Pipe
from ipinsights.distributed.group import ALONE, Group, OtherHostFailed
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, shard
from ipinsights.model.calibration import Calibration
from ipinsights.model.counting import Counts
from ipinsights.model.history import History
from ipinsights.model.model import Counted, Encoder, Model
from ipinsights.model.profile import Profile
from ipinsights.model.shard import Shard
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training.batches import novelty
from ipinsights.training.holdout import hold_out
from ipinsights.training.together import ranks_that_train
from ipinsights.training.validation import auc_of_all

ROWS = 500


def events(size: int, family: Family = IPV4, seed: int = 0, entities: int = 60) -> Events:
    """Of entities of which some have many, in networks of which some are shared."""
    rng = np.random.default_rng(seed)
    entity = (entities * rng.random(size) ** 2).astype(np.int32) * 7
    place = entity // 14 * 1000 + rng.integers(0, 40, size) ** 2 // 8
    address = (place.astype(np.uint64) << np.uint64(family.width - 26)) + np.uint64(1 << family.width - 3)
    index = EntityIndex(ROWS)
    index.tags[np.unique(entity)] = 1 + np.unique(entity)
    return Events(entity, address.astype(family.dtype), index)


def networks_of(some: Events) -> Networks:
    """Each address is of one of fifty providers and four countries, if it is of any."""
    first = np.unique(some.address)
    labels = np.stack([np.arange(len(first)) % 50, np.arange(len(first)) % 4]).astype(np.uint32)
    return Networks(first, first, labels)


def of_rank(all_events: Events, group: Group, seed: int = 0) -> Events:
    """What a rank has read: some have little or nothing."""
    reader = np.random.default_rng(seed).integers(0, max(1, group.size - 1), len(all_events))
    mine = reader == group.rank
    return dataclasses.replace(all_events, entity=all_events.entity[mine], address=all_events.address[mine])


def at_home(all_events: Events, group: Group, trainers: int | None = None) -> Events:
    mine = of_rank(all_events, group)
    return Homes.of(loads(mine, group), trainers or group.size).bring(mine, group)


def pairs(some: Events) -> list[tuple[int, int]]:
    return sorted(zip(some.entity.tolist(), some.address.tolist(), strict=True))


@settings(max_examples=15)
@given(size=st.integers(0, 3000), ranks=st.integers(1, 4), trainers=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_event_goes_once_to_the_home_of_its_entity(size: int, ranks: int, trainers: int, seed: int) -> None:
    every = events(size, seed=seed)
    every.entity[: size // 9] = ROWS  # unknown entities are at home somewhere
    parts = in_threads(ranks, lambda group: at_home(every, group, min(trainers, group.size)))
    otherwise = dataclasses.replace(every, entity=every.entity[::-1], address=every.address[::-1])
    for part, other in zip(
        parts, in_threads(ranks, lambda group: at_home(otherwise, group, min(trainers, group.size))), strict=True
    ):
        same(part, other, "entity", "address")
    assert sorted(pair for part in parts for pair in pairs(part)) == pairs(every)
    known = [set(part.entity[part.entity < ROWS].tolist()) for part in parts]
    assert sum(map(len, known)) == len(set().union(*known))
    assert not any(len(part) for part in parts[min(trainers, ranks) :])


def same(one: Any, other: Any, *names: str) -> None:
    for name in names:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@settings(max_examples=20)
@given(
    size=st.integers(1, 4000),
    ranks=st.integers(2, 4),
    version=st.sampled_from([4, 6]),
    max_rows=st.sampled_from([1, 7, 50, 400, None]),
    seed=st.integers(0, 99),
)
def test_the_vocabulary_is_that_of_one(size: int, ranks: int, version: int, max_rows: int | None, seed: int) -> None:
    family = FAMILIES[version]
    every, before = events(size, family, seed), events(300, family, seed + 1)
    networks = networks_of(every)
    earlier = Vocabulary.build(before.address, family, networks, countries=1)
    for known in (None, earlier):
        one = Vocabulary.build(every.address, family, networks, max_rows=max_rows, earlier=known, countries=2)
        for found in in_threads(
            ranks,
            lambda group, known=known: Vocabulary.build(  # type: ignore[misc]
                of_rank(every, group).address,
                family,
                networks,
                max_rows=max_rows,
                earlier=known,
                group=group,
                countries=2,
            ),
        ):
            same(found, one, "prefixes", "counts", "sizes", "levels", "events", "countries")


@settings(max_examples=15)
@given(size=st.integers(1, 3000), ranks=st.integers(2, 4), version=st.sampled_from([4, 6]), seed=st.integers(0, 99))
def test_profile_counts_and_novelty_are_those_of_one(size: int, ranks: int, version: int, seed: int) -> None:
    family = FAMILIES[version]
    every = events(size, family, seed)
    vocabulary = Vocabulary.build(every.address, family, networks_of(every), countries=2)
    profile, counts = Profile.of(every, vocabulary), Counts(vocabulary, History.of(every, family))
    expected = novelty(every, family, ROWS)

    def found(group: Group) -> tuple[Profile, Counts, Events, npt.NDArray[np.float32]]:
        mine = at_home(every, group)
        history = History.of(mine, family)
        return (
            Profile.of(mine, vocabulary, group),
            Counts(vocabulary, history, group),
            mine,
            novelty(mine, family, ROWS, group),
        )

    for theirs, counted, mine, novel in in_threads(ranks, found):
        assert theirs == profile
        same(counted, counts, "entities", "fabricated", "leaf_pairs", "leaf_events", "popularity", "prior")
        rows = np.unique(mine.entity)
        np.testing.assert_array_equal(novel[rows], expected[rows])
        for habits in counted.habits():
            [own] = counts.habits(counts.history.of_entities(habits.rows))
            same(habits, own, "rows", "constant", "countries", "starts", "network", "gain", "home", "spread")


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_same_log_ins_are_held_out(ranks: int) -> None:
    every = events(3000)
    rest, history, kept = hold_out(every, History.of(every, IPV4), 0.1)

    def held(group: Group) -> tuple[Events, History, Events]:
        mine = at_home(every, group)
        return hold_out(mine, History.of(mine, IPV4), 0.1, group)

    parts = in_threads(ranks, held)
    assert len(kept) > 100
    assert sorted(pair for _, _, apart in parts for pair in pairs(apart)) == pairs(kept)
    assert sorted(pair for left, _, _ in parts for pair in pairs(left)) == pairs(rest)
    assert sum(part.events for _, part, _ in parts) == history.events


@settings(max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=1, max_size=4),
    distinct=st.sampled_from([1, 3, 50, 10**6]),
    seed=st.integers(0, 99),
)
def test_the_area_under_the_curve_is_that_of_one(sizes: list[tuple[int, int]], distinct: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = [
        [(rng.integers(-distinct, distinct, n) / distinct * 9).astype(np.float32) for n in each] for each in sizes
    ]
    positive, negative = (np.concatenate(each) for each in zip(*scores, strict=True))
    if len(positive) and len(negative):
        found = in_threads(len(sizes), lambda group: auc_of_all(scores[group.rank][0], scores[group.rank][1], group))
        assert found == pytest.approx([metrics.auc(positive, negative)] * len(sizes), abs=1e-12)


@settings(max_examples=15)
@given(
    rows=st.sampled_from([8, 40, 400]),
    files=st.integers(1, 4),
    processes=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda numbers: sum(numbers) > 1),
    sharded=st.booleans(),
    size=st.sampled_from([64, 300, 1 << 20]),
)
def test_entities_get_the_rows_that_they_get_on_one(
    tmp_path_factory: pytest.TempPathFactory, rows: int, files: int, processes: list[int], sharded: bool, size: int
) -> None:
    """However the channel is divided among hosts and their processes, and also where entities must share rows."""
    folder = tmp_path_factory.mktemp("channel")
    paths = []
    for number in range(files):
        paths.append(folder / f"{number}.csv")
        names = np.random.default_rng(number).integers(0, 60, 50)
        paths[-1].write_text("".join(f"user_{name},10.0.0.{name}\n" for name in names.tolist()))
    one = EntityIndex(rows)

    def found(group: Group) -> tuple[EntityIndex, Events]:
        index = EntityIndex(rows)
        share = np.array_split(np.arange(files), len(processes))[group.host] if sharded else np.arange(files)
        return index, read([paths[at] for at in share], index, group=group, divided=not sharded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "line_blocks", partial(line_blocks, size=size))  # files of one block and of several
        every = read(paths, one)
        parts = in_threads(sum(processes), found, processes)
    for index, _ in parts:
        np.testing.assert_array_equal(index.tags, one.tags)
        assert index.sharing == one.sharing
    assert sorted(pair for _, part in parts for pair in pairs(part)) == pairs(every)


@pytest.mark.parametrize("divided", [True, False])
def test_a_pipe_is_read_by_one_process_of_each_host(divided: bool) -> None:
    """All hosts have the same, of which each takes its blocks; or each has its own, of which it takes all."""
    pipe = [Pipe(Path("train_0"))]

    def blocks(group: Group) -> list[int | None]:
        share = Share.of_channel(group, pipe, divided)
        return [share.block() for _ in range(6)] if share.has(0) else []

    every, first, second = [0, 1, 2, 3, 4, 5], [0, None, 2, None, 4, None], [None, 1, None, 3, None, 5]
    expected = [first, second] if divided else [every, every]
    assert in_threads(5, blocks, [2, 3]) == [expected[0], [], expected[1], [], []]
    assert in_threads(2, blocks, [2]) == [every, []]


def test_a_share_of_malformed_rows_is_judged_of_all_ranks(tmp_path: Path) -> None:
    """One file is all wrong, and the other right."""
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    paths[0].write_text("user,1.2.3.4\n" * 90)
    paths[1].write_text("user,nowhere\n" * 10)

    def found(group: Group, limit: float) -> str:
        try:
            return str(len(read(paths, EntityIndex(9), tolerated=limit, group=group)))
        except (UserError, OtherHostFailed) as error:
            return f"{type(error).__name__}: {error}"

    assert in_threads(2, lambda group: found(group, 0.1)) == ["90", "0"]
    told = in_threads(2, lambda group: found(group, 0.09))
    assert told[0].startswith("OtherHostFailed: host algo-2 failed: 10 of 10 rows of channel 'train' are malformed")
    assert told[1].startswith("UserError: 10 of 10 rows")


@settings(max_examples=10)
@given(ranks=st.integers(1, 3), window=st.sampled_from([64, 1000, 1 << 20]), counted=st.booleans(), apart=st.booleans())
def test_a_model_in_parts_becomes_the_file_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, ranks: int, window: int, counted: bool, apart: bool
) -> None:
    every = events(900)
    vocabulary = Vocabulary.build(every.address)
    _, history, kept = hold_out(every, History.of(every, IPV4), 0.1 * apart)
    told = History.of(kept, IPV4)
    rng = np.random.default_rng(0)
    dim = 5
    table = np.zeros((ROWS + 1, dim), dtype=np.float32)
    table[history.rows] = rng.random((len(history.rows), dim))
    table[ROWS] = 7
    table[np.flatnonzero(every.index.tags == 0)] = 7
    learnt = rng.random((len(history.rows) + 1, dim)).astype(np.float32)
    weights = 1 - rng.random(len(history.rows)).astype(np.float32)
    known = rng.integers(1, 9, len(vocabulary.prefixes))
    encoder = Encoder(
        *(rng.random(s).astype(np.float32) for s in ((vocabulary.num_rows, dim), (1, dim, dim), (1, dim)))
    )
    whole = Model(
        vocabulary,
        every.index,
        table,
        encoder,
        Counted(history.rows, learnt, weights, known, history, told) if counted else None,
    )
    folder = tmp_path_factory.mktemp("model")
    artifact.save(whole, folder / "whole", {})

    def part(group: Group) -> None:
        rows = history.rows[history.rows % group.size == group.rank]
        here = np.isin(history.rows, rows)
        own, also = (
            dataclasses.replace(listed, rows=np.searchsorted(rows, listed.rows).astype(np.int32))
            for listed in (history.of_entities(rows), told.of_entities(rows))
        )
        model = dataclasses.replace(
            whole,
            index=EntityIndex(max(1, len(rows)), every.index.tags[rows]),
            entity=table[np.append(rows, ROWS)],
            counted=Counted(own.rows, learnt[np.append(here, True)], weights[here], known, own, also)
            if counted
            else None,
        )
        artifact.save(Shard(model, rows, every.index), folder / "parts", {}, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard, "WINDOW", window)
        in_threads(ranks, part)
    one, other = (artifact.read(folder / name) for name in ("whole", "parts"))
    assert (folder / "whole" / "manifest.json").read_text() == (folder / "parts" / "manifest.json").read_text()
    same(one[0], other[0], "entity")
    if counted:
        assert one[0].counted
        assert other[0].counted
        same(one[0].counted, other[0].counted, "rows", "learnt", "entities")
        same(one[0].counted.history, other[0].counted.history, "rows", "starts", "addresses", "counts")
        same(one[0].counted.apart, other[0].counted.apart, "rows", "starts", "addresses", "counts")
        assert (len(other[0].counted.apart) > 0) == apart


def test_calibration_is_by_the_log_ins_of_all() -> None:
    every = events(3000)
    vocabulary = Vocabulary.build(every.address)

    def score(rows: npt.NDArray[np.int32], addresses: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.float32]:
        return (rows % 5 - addresses % 7).astype(np.float32)

    def found(group: Group) -> Calibration:
        mine = at_home(every, group)
        counts = Counts(vocabulary, History.of(mine, IPV4), group)
        return Calibration.of(score, counts, mine.entity, mine.address, 0, group)

    one = found(ALONE)
    for calibration in in_threads(3, found):
        same(calibration.known, one.known, "counts")
        assert len(calibration.new) == len(one.new)
        assert len(calibration.fabricated) == len(one.fabricated)


@pytest.mark.parametrize(
    ("events_of_buckets", "batch", "setting", "expected"),
    [
        ([100] * 4096, 10_000, "auto", 8),
        ([100] * 4096, 1000, "auto", 4),  # mini-batches of 250
        ([20] * 4096, 10_000, "auto", 4),  # 20,000 events each
        ([1] * 4096, 10_000, "auto", 1),
        ([100] * 4095 + [45_000], 10_000, "auto", 2),  # an entity may have a quarter of a rank's events
        ([100] * 4095 + [409_500], 10_000, "auto", 1),
        ([1] * 4096, 10_000, "all", 8),
    ],
)
def test_how_many_ranks_train_follows_from_the_data(
    events_of_buckets: list[int], batch: int, setting: str, expected: int
) -> None:
    hp = Hyperparameters(num_entity_vectors=9, vector_dim=4, mini_batch_size=batch, training_hosts=setting)
    assert ranks_that_train(np.array(events_of_buckets), hp, 8) == expected


def test_ipv6_addresses_go_home_whole() -> None:
    every = events(100, IPV6)
    parts = in_threads(2, lambda group: at_home(every, group))
    assert sorted(pair for part in parts for pair in pairs(part)) == pairs(every)
