"""Training that goes on with another number of ranks: whatever was learnt is there, and it ends about as well."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Traffic, to_events
from distributed.threads import in_threads
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.homes import Home, Homes, buckets
from ipinsights.distributed.group import ALONE, Group, OtherHostFailed
from ipinsights.errors import AlgorithmError, UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, tensors
from ipinsights.model.model import Model
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import checkpoint, resharding, union
from ipinsights.training.checkpoint import Checkpoint, Checkpoints, Weights
from ipinsights.training.fit import fit
from ipinsights.training.progress import EpochSummary, Listener, Position
from ipinsights.training.together import fit_together

pytestmark = pytest.mark.slow

HP = Hyperparameters(
    num_entity_vectors=200,
    vector_dim=8,
    epochs=3,
    mini_batch_size=1000,
    learning_rate=0.01,
    random_negative_sampling_rate=2,
    shuffled_negative_sampling_rate=1,
    saved_epoch="best",
    training_hosts="all",
    device="cpu",  # ranks are threads, and a GPU records for one at a time
)


@pytest.fixture(scope="module")
def train(traffic: Traffic) -> Events:
    return to_events(traffic.train, HP.num_entity_vectors)


@pytest.fixture(scope="module")
def validation(traffic: Traffic, train: Events) -> Events:
    entity = train.index.find(traffic.normal.entities)
    entity[:20] = HP.num_entity_vectors  # of entities that training never saw
    return Events(entity, traffic.normal.addresses, train.index)


class Heard(Listener):
    """What training reports."""

    def __init__(self) -> None:
        self.steps = 0
        self.positions: list[tuple[int, int]] = []
        self.told: list[str] = []
        self.wrote: list[int] = []
        self.epochs: list[EpochSummary] = []

    def step_done(self, epoch: int, positives: int) -> None:
        self.steps += 1

    def resumed(self, epoch: int, steps: int, damaged: list[str]) -> None:
        self.positions.append((epoch, steps))
        self.told += damaged

    def resharded(self, ranks: int) -> None:
        self.wrote.append(ranks)

    def epoch_done(self, summary: EpochSummary) -> None:
        self.epochs.append(summary)


class Job:
    """The same training by any number of ranks, whose checkpoints lie in one folder."""

    def __init__(self, folder: Path, train: Events, validation: Events | None = None, **changes: Any) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(exist_ok=True)
        self.train, self.validation = train, validation
        self.hp = dataclasses.replace(HP, **changes)
        self.runs = 0

    def run(self, ranks: int, stop_after: int | None = None, earlier: Model | None = None) -> tuple[Model, Heard]:
        """Train from the newest checkpoint. Returns the model that was saved, and what the leader reports."""
        heard = [Heard() for _ in range(ranks)]
        self.runs += 1
        saved = self.folder / f"model-{self.runs}"

        def part(events: Events, group: Group) -> Events:
            mine = slice(group.rank, None, group.size)
            return dataclasses.replace(events, entity=events.entity[mine], address=events.address[mine])

        def run(group: Group) -> None:
            here = heard[group.rank]
            options: dict[str, Any] = {
                "checkpoints": Checkpoints(self.checkpoints, "", group),
                "stop": lambda: stop_after is not None and here.steps >= stop_after,
                "earlier": earlier,
            }
            if group.size == 1:
                artifact.save(fit(self.train, self.hp, self.validation, here, **options), saved, {})
                return
            validation = part(self.validation, group) if self.validation else None
            learnt = fit_together(part(self.train, group), self.hp, validation, group, here, **options)
            artifact.save(learnt, saved, {}, group)

        if ranks == 1:
            run(ALONE)
        else:
            in_threads(ranks, run)
        return artifact.load(saved), heard[0]

    def files(self) -> set[str]:
        return {path.name for path in self.checkpoints.iterdir()}


def same_weights(one: Model, other: Model) -> None:
    """What was learnt, without what counting adds."""
    one, other = one.learnt_alone(), other.learnt_alone()
    np.testing.assert_array_equal(one.index.tags, other.index.tags)
    np.testing.assert_array_equal(one.entity, other.entity)
    for ours, theirs in zip(vars(one.encoder).values(), vars(other.encoder).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("before", "after", "saved"), [(1, 2, "best"), (2, 1, "last"), (3, 2, "best"), (2, 3, "last"), (2, 1, "best")]
)
def test_it_goes_on_with_another_number_of_ranks(
    before: int,
    after: int,
    saved: str,
    train: Events,
    validation: Events,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resharding, "WINDOW", 3000)
    monkeypatch.setattr(union, "_LISTEN", 0.0)  # ranks speak after every step
    job = Job(tmp_path, train, validation, saved_epoch=saved)
    steps = -(-len(train) // HP.mini_batch_size)
    stopped, _ = job.run(before, stop_after=steps + steps // 2)
    written = job.files()
    at_once, heard = job.run(after, stop_after=0)
    assert heard.wrote == [before]
    assert heard.told == []
    [(epoch, step)] = heard.positions
    assert epoch == 1
    assert step > 0
    same_weights(at_once, stopped)
    assert job.files() == written

    _, heard = job.run(after)
    assert heard.steps == HP.epochs * steps - (epoch * steps + step)
    last = heard.epochs[-1]
    (tmp_path / "other").mkdir()
    _, one = Job(tmp_path / "other", train, validation, saved_epoch=saved).run(after)
    for name in ("discriminator_auc", "shuffled_auc"):  # so little data is learnt a little worse by more ranks
        assert getattr(last, name) > getattr(one.epochs[-1], name) - 0.01, name
    assert last.records == one.epochs[-1].records
    assert {name[23:] for name in job.files()} == {
        f"-{rank:05d}-of-{after:05d}.safetensors" if after > 1 else ".safetensors" for rank in range(after)
    }


def test_if_as_many_train_all_goes_on_as_it_would_have(
    train: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little data trains on one of several hosts, however many there are."""
    monkeypatch.setattr(union, "_LISTEN", 0.0)
    little = dataclasses.replace(train, entity=train.entity[::4], address=train.address[::4])
    job = Job(tmp_path, little, training_hosts="auto", saved_epoch="last", mini_batch_size=500)
    stopped, _ = job.run(2, stop_after=30)
    at_once, heard = job.run(3, stop_after=0)
    assert heard.wrote == []
    assert heard.positions == [(1, 12)]
    same_weights(at_once, stopped)
    _, heard = job.run(3)
    assert heard.positions == [(1, 12)]
    assert heard.epochs[-1].epoch == HP.epochs - 1


def test_what_is_not_of_this_training_is_refused_on_any_number_of_ranks(train: Events, tmp_path: Path) -> None:
    job = Job(tmp_path, train, saved_epoch="last")
    job.run(2, stop_after=0)
    job.run(2, stop_after=1)
    address = train.address.copy()
    address[-1] ^= 1
    job.train = dataclasses.replace(train, address=address)
    with pytest.raises(UserError, match="belong to another training: the training data has changed"):
        job.run(1)
    job.train = train
    job.hp = dataclasses.replace(job.hp, seed=5)
    with pytest.raises(UserError, match="seed was 0 and is 5"):
        job.run(1)
    # As they were before training could go on with another number of hosts.
    job.hp = dataclasses.replace(job.hp, seed=0)
    for path in job.checkpoints.iterdir():
        arrays, texts = tensors.read(path)
        text = json.loads(texts["checkpoint"])
        del text["subject"]["whole"], text["trainers"]
        arrays = {name: np.array(array) for name, array in arrays.items() if name != "rows"}
        tensors.write(path, arrays, {"checkpoint": json.dumps(text)})
    with pytest.raises(UserError, match="for as many hosts as wrote them: resume with that number"):
        job.run(1)
    _, heard = job.run(2, stop_after=0)
    assert heard.wrote == []
    assert heard.positions


def test_stopped_before_the_first_step_it_knows_who_it_knew(train: Events, tmp_path: Path) -> None:
    """The earlier model's entities; without one, nobody."""
    blank, _ = Job(tmp_path, train, saved_epoch="last").run(2, stop_after=0)
    assert blank.untrained
    assert blank.index.owned == 0
    index = EntityIndex(HP.num_entity_vectors, np.where(np.arange(HP.num_entity_vectors) % 2, train.index.tags, 0))
    some = np.flatnonzero(index.tags)
    known = np.isin(train.entity, some)
    few = Events(train.entity[known], train.address[known], index)
    (tmp_path / "earlier").mkdir()
    earlier, _ = Job(tmp_path / "earlier", few, epochs=1, saved_epoch="last").run(1)
    (tmp_path / "later").mkdir()
    again, _ = Job(tmp_path / "later", train, saved_epoch="last").run(2, stop_after=0, earlier=earlier)
    np.testing.assert_array_equal(again.index.tags, earlier.index.tags)
    np.testing.assert_array_equal(again.entity, earlier.entity)


ROWS, DIM = 300, 4
VOCABULARY = Vocabulary.build(np.arange(50, dtype=np.uint32) << np.uint32(20))
OWNED = np.random.default_rng(0).choice(ROWS, 90, replace=False)
TAGS = np.zeros(ROWS, dtype=np.uint32)
TAGS[OWNED] = 1 + OWNED
SUBJECT = {
    "hyperparameters": dataclasses.asdict(dataclasses.replace(HP, num_entity_vectors=ROWS)),
    "device": "cpu",
    "number_of_events": 90,
    "whole": {"training_data": "0123"},
    "training_data": "4567",
}


def homes(ranks: int, trainers: int) -> Homes:
    return Homes.of(np.bincount(buckets(OWNED), minlength=4096), min(trainers, ranks))


def home(group: Group, trainers: int) -> Home | None:
    """The rows of a rank, in a training on so many."""
    if group.size == 1:
        return None
    every = homes(group.size, trainers)
    rows = np.sort(OWNED[every.rank_of(OWNED) == group.rank]).astype(np.int32)
    return Home(every, rows, EntityIndex(ROWS, TAGS))


def table(kind: int) -> npt.NDArray[np.float32]:
    """What all ranks together have of entities: of each row another number."""
    return (np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM) + 1) * (kind + 1)


def encoder(rank: int) -> dict[str, npt.NDArray[np.float32]]:
    """The encoder of a rank: the weights are those of all. Of some prefixes only one rank has means."""
    shapes = {"typical": (3, DIM), "w": (3, 1, DIM, DIM), "b": (3, 1, DIM)}
    found = {name: np.full(shape, rank + 1, dtype=np.float32) for name, shape in shapes.items()}
    for state in found.values():
        state[0] = 7
    found["prefix"] = np.full((VOCABULARY.num_rows, DIM), 7, dtype=np.float32)
    found["square"] = np.full(VOCABULARY.num_rows, rank + 1, dtype=np.float32)
    found["square"][rank :: rank + 2] = 0
    return found


def written(group: Group, folder: Path, trainers: int, steps: int = 9, best: bool = True, **changes: Any) -> None:
    """A rank's part of a checkpoint."""
    at_home = home(group, trainers)
    rows = np.sort(OWNED).astype(np.int32) if at_home is None else at_home.rows
    index = EntityIndex(ROWS, TAGS)
    if at_home:
        index = EntityIndex(max(1, len(rows)), TAGS[rows] if len(rows) else np.zeros(1, dtype=np.uint32))
    entity = np.zeros((len(rows) + 1, 3, DIM), dtype=np.float32)
    entity[:-1] = np.stack([table(kind)[rows] for kind in range(3)], axis=1)
    state = np.zeros(8, dtype=np.uint8)
    ours = encoder(group.rank)
    weights = Weights(
        np.append(table(3)[rows], [[5.0] * DIM], axis=0).astype(np.float32),
        ours["prefix"],
        ours["w"][0],
        ours["b"][0],
    )
    part = Checkpoint(
        subject=SUBJECT,
        vocabulary=VOCABULARY,
        index=index,
        met=rows.astype(np.int64) if at_home is None else np.arange(len(rows)),
        parameters={"entity": entity, **ours},
        position=Position(1, 2, state, state),
        totals=np.array([1.0, 2.0, 3.0]),
        seconds=1.0,
        last=None,
        best=None,
        best_weights=weights if best else None,
        steps=steps,
        rows=None if at_home is None else rows,
        trainers=at_home.homes.ranks if at_home else 1,
    )
    Checkpoints(folder, "", group).write(dataclasses.replace(part, **changes))


def together(ranks: int, function: Callable[[Group], Any]) -> list[Any]:
    return [function(ALONE)] if ranks == 1 else in_threads(ranks, function)


@settings(max_examples=12)
@given(
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    trainers=st.integers(1, 4),
    best=st.booleans(),
    apart=st.booleans(),
)
def test_whatever_ranks_have_comes_to_its_new_home(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: int, trainers: int, best: bool, apart: bool
) -> None:
    """Whether all files lie in one folder, or each host has what it wrote."""
    folders = [tmp_path_factory.mktemp("checkpoints") for _ in range(max(before, after))]
    apart = apart and after >= before
    together(before, lambda group: written(group, folders[group.rank if apart else 0], trainers, best=best))

    def brought(group: Group) -> tuple[npt.NDArray[np.int32], dict[str, npt.NDArray[np.float32]], Weights | None]:
        whole, damaged = Checkpoints(folders[group.rank if apart else 0], "", group).newest()
        assert whole
        assert not damaged
        assert (whole.steps, whole.trainers, whole.ranks) == (9, min(before, trainers), before)
        at_home = home(group, trainers)
        rows = np.sort(OWNED).astype(np.int32) if at_home is None else at_home.rows
        state = {name: np.full_like(array, np.nan) for name, array in encoder(0).items()}
        state["entity"] = np.full((len(rows) + 1, 3, DIM), np.nan, dtype=np.float32)
        return rows, state, resharding.bring(whole, group, at_home, rows, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resharding, "WINDOW", 1000)
        results = together(after, brought)
    assert sorted(row for rows, _, _ in results for row in rows.tolist()) == sorted(OWNED.tolist())
    every = [encoder(rank) for rank in range(before)]
    having = np.sum([(each["square"] > 0) for each in every], axis=0)
    means = np.sum([each["square"] for each in every], axis=0) / np.maximum(having, 1)
    for rows, state, weights in results:
        for kind in range(3):
            np.testing.assert_array_equal(state["entity"][:-1, kind], table(kind)[rows])
        assert (state["entity"][-1] == 0).all()
        np.testing.assert_allclose(state["square"], means, rtol=1e-6)
        assert (state["prefix"] == 7).all()
        assert (state["b"][0] == 7).all()
        np.testing.assert_allclose(state["typical"][1:], (before + 1) / 2, rtol=1e-6)
        assert (weights is not None) == best
        if weights:
            np.testing.assert_array_equal(weights.entity[:-1], table(3)[rows])
            assert (weights.entity[-1] == 5).all()
            assert (weights.prefix == 7).all()


def newest(folder: Path, ranks: int) -> tuple[int, list[str]]:
    """The steps of the newest checkpoint that is whole, or -1, and what is told of others."""

    def found(group: Group) -> tuple[int, list[str]]:
        whole, told = Checkpoints(folder, "", group).newest()
        return whole.steps if whole else -1, told

    first, *others = together(ranks, found)
    assert all(other == first for other in others)
    return int(first[0]), list(first[1])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_checkpoint_that_is_not_whole_is_passed_over(ranks: int, tmp_path: Path) -> None:
    folders = [tmp_path / str(steps) for steps in (3, 6, 9)]
    for folder, steps in zip(folders, (3, 6, 9), strict=True):
        folder.mkdir()
        together(2, lambda group, folder=folder, steps=steps: written(group, folder, 2, steps))  # type: ignore[misc]
        shutil.copytree(folder, tmp_path / "all", dirs_exist_ok=True)
    every = tmp_path / "all"
    assert newest(every, ranks) == (9, [])
    (every / "checkpoint-000000000009-00001-of-00002.safetensors").unlink()
    steps, told = newest(every, ranks)
    assert steps == 6
    assert told == ["of the checkpoint after 9 steps, which 2 hosts wrote, no host has the part of host 2"]
    (every / "checkpoint-000000000006-00000-of-00002.safetensors").write_text("half")
    steps, told = newest(every, ranks)
    assert steps == 3
    assert "00000-of-00002.safetensors: " in told[1]
    # A part of another moment, as a kill between two parts leaves it.
    other = encoder(1)
    other["typical"][0] += 1
    part = "checkpoint-000000000003-00001-of-00002.safetensors"
    (tmp_path / "moved").mkdir()

    def otherwise(group: Group) -> None:
        entity = np.zeros((len(home(group, 2).rows) + 1, 3, DIM), dtype=np.float32)  # type: ignore[union-attr]
        written(group, tmp_path / "moved", 2, 3, parameters={"entity": entity, **other})

    together(2, otherwise)
    shutil.copy(tmp_path / "moved" / part, every / part)
    steps, told = newest(every, ranks)
    assert steps == -1
    assert told[-1] == "the 2 parts of the checkpoint after 3 steps are not of the same moment"


def test_the_end_of_an_epoch_and_the_beginning_of_the_next_are_two_moments(tmp_path: Path) -> None:
    """The weights and the number of steps are the same. Only the later one may have the best epoch."""
    state = np.zeros(8, dtype=np.uint8)
    moments = {"end": (Position(0, 9, state, state), False), "beginning": (Position(1, 0, state, state), True)}
    for name, (position, best) in moments.items():
        (tmp_path / name).mkdir()
        folder = tmp_path / name
        together(2, lambda group: written(group, folder, 2, 9, best, position=position))  # noqa: B023  # runs at once
        assert newest(folder, 2) == (9, [])
    part = "checkpoint-000000000009-00000-of-00002.safetensors"
    shutil.copy(tmp_path / "beginning" / part, tmp_path / "end" / part)
    for ranks in (1, 2, 3):
        told = ["the 2 parts of the checkpoint after 9 steps are not of the same moment"]
        assert newest(tmp_path / "end", ranks) == (-1, told)


def test_those_no_longer_needed_are_removed_whoever_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When two newer ones are whole. As long as one host cannot write, none is removed."""
    before = tmp_path / "before"
    before.mkdir()
    together(2, lambda group: written(group, before, 2, 3))
    kept: dict[int, Checkpoints] = {}
    for rank in range(3):
        shutil.copytree(before, tmp_path / str(rank))
    (tmp_path / "1" / ".checkpoint-000000000004-00001-of-00003.safetensors.tmp").write_text("half")
    monkeypatch.setattr(sys.modules[__name__], "Checkpoints", lambda _, __, group: kept[group.rank])

    def write(group: Group, steps: int) -> str:
        try:
            written(group, tmp_path, 3, steps)
        except (OSError, OtherHostFailed) as error:
            return type(error).__name__
        return "written"

    def files() -> list[list[int]]:
        return [sorted({int(p.name[11:23]) for p in (tmp_path / str(rank)).iterdir()}) for rank in range(3)]

    def begin(group: Group) -> None:
        kept[group.rank] = checkpoint.Checkpoints(tmp_path / str(group.rank), "", group)
        assert kept[group.rank].newest()[0]

    together(3, begin)
    (tmp_path / "2").rename(tmp_path / "away")
    assert together(3, lambda group: write(group, 5)) == ["OtherHostFailed", "OtherHostFailed", "FileNotFoundError"]
    (tmp_path / "away").rename(tmp_path / "2")
    together(3, lambda group: write(group, 7))
    assert files() == [[3, 7]] * 3
    together(3, lambda group: write(group, 9))
    assert files() == [[7, 9]] * 3


def test_one_that_does_not_have_all_rows_is_not_taken(tmp_path: Path) -> None:
    together(2, lambda group: written(group, tmp_path, 2))
    whole, _ = Checkpoints(tmp_path).newest()
    assert whole
    rows = np.append(np.sort(OWNED), ROWS)
    state = {**encoder(0), "entity": np.zeros((len(rows) + 1, 3, DIM), dtype=np.float32)}
    with pytest.raises(AlgorithmError, match="does not have the rows of just those entities"):
        resharding.bring(whole, ALONE, None, rows, state)
