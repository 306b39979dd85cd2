"""A training that is cut off and goes on ends with the very bits of one that was not."""

import dataclasses
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from conftest import Traffic, lose_after, to_events, two_countries
from ipinsights.data.events import Events
from ipinsights.distributed.group import ALONE
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, tensors
from ipinsights.model.model import Model
from ipinsights.training import batches, checkpoint, resharding
from ipinsights.training.checkpoint import KEPT, Checkpoint, Checkpoints
from ipinsights.training.fit import fit
from ipinsights.training.progress import Ending, EpochSummary, Listener

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
    held_out_share=0,
)


class Killed(BaseException):
    """Nothing in the program may hold this up."""


class Watcher(Listener):
    """Counts steps, and kills after some."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.steps = 0
        self.kill_after = kill_after
        self.epochs: list[EpochSummary] = []
        self.resumptions: list[tuple[int, int, list[str]]] = []
        self.failures: list[Exception] = []
        self.ending: Ending | None = None

    def after(self, steps: int) -> Callable[[], bool]:
        """Whether so many steps are done."""
        return lambda: self.steps >= steps

    def step_done(self, epoch: int, positives: int) -> None:
        if self.steps == self.kill_after:
            raise Killed
        self.steps += 1

    def epoch_done(self, summary: EpochSummary) -> None:
        self.epochs.append(summary)

    def resumed(self, epoch: int, steps: int, damaged: list[str]) -> None:
        self.resumptions.append((epoch, steps, damaged))

    def checkpoint_failed(self, error: Exception) -> None:
        self.failures.append(error)

    def training_ended(self, ending: Ending) -> None:
        self.ending = ending


@pytest.fixture(scope="module", autouse=True)
def _draw_few_at_a_time() -> object:
    """So that an epoch is drawn in several goes, of several mini-batches each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "DRAWN", 3000)
        yield


@pytest.fixture(scope="module")
def train(traffic: Traffic) -> Events:
    return to_events(traffic.train, HP.num_entity_vectors)


@pytest.fixture(scope="module")
def validation(traffic: Traffic, train: Events) -> Events:
    return Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)


def same(one: Model, other: Model) -> bool:
    pairs = [(one.entity, other.entity), *zip(vars(one.encoder).values(), vars(other.encoder).values(), strict=True)]
    return all(np.array_equal(a, b) for a, b in pairs)


def steps_per_epoch(train: Events) -> int:
    return -(-len(train) // HP.mini_batch_size)


@pytest.mark.parametrize("where", [1, 2, 3, 4, 7, -1, 0, 1.0, 2.5])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(
    where: float, either_way: None, train: Events, validation: Events, tmp_path: Path
) -> None:
    """After so many steps; whole numbers below 1 count from an epoch's end, and floats are epochs."""
    whole = fit(train, HP, validation)
    per_epoch = steps_per_epoch(train)
    after = round(where * per_epoch) if isinstance(where, float) else where if where > 0 else per_epoch + where
    first = Watcher()
    fit(train, HP, validation, first, checkpoints=Checkpoints(tmp_path), stop=lambda: first.steps >= after)
    assert first.ending is not None
    assert first.steps == after
    second = Watcher()
    resumed = fit(train, HP, validation, second, checkpoints=Checkpoints(tmp_path))
    assert second.resumptions == [(after // per_epoch, after % per_epoch, [])]
    assert first.steps + second.steps == HP.epochs * per_epoch
    assert same(resumed, whole)
    unbroken = Watcher()
    fit(train, HP, validation, unbroken)
    told = [dataclasses.replace(e, seconds=0) for e in (*first.epochs, *second.epochs)]
    assert told == [dataclasses.replace(e, seconds=0) for e in unbroken.epochs]


def test_the_best_epoch_outlives_an_interruption(train: Events, validation: Events, tmp_path: Path) -> None:
    soon_worse = dataclasses.replace(
        HP, epochs=4, learning_rate=0.03, random_negative_sampling_rate=0, shuffled_negative_sampling_rate=1
    )
    first, second = Watcher(), Watcher()
    after = 3 * steps_per_epoch(train) + 5
    fit(train, soon_worse, validation, first, checkpoints=Checkpoints(tmp_path), stop=lambda: first.steps >= after)
    resumed = fit(train, soon_worse, validation, second, checkpoints=Checkpoints(tmp_path))
    assert second.ending is not None
    assert second.ending.saved is not None
    assert second.ending.saved.epoch < 3
    assert same(resumed, fit(train, soon_worse, validation))


def test_killed_again_and_again_it_ends_with_the_same_bits(train: Events, validation: Events, tmp_path: Path) -> None:
    often = dataclasses.replace(HP, checkpoint_interval_minutes=1e-9)
    total = HP.epochs * steps_per_epoch(train)
    for after in (2, 5, 9, 3):
        with pytest.raises(Killed):
            fit(train, often, validation, Watcher(after), checkpoints=Checkpoints(tmp_path))
    last = Watcher()
    resumed = fit(train, often, validation, last, checkpoints=Checkpoints(tmp_path))
    assert last.steps == total - (2 + 5 + 9 + 3)
    assert same(resumed, fit(train, HP, validation))


def test_what_ended_ends_again_without_a_step(train: Events, validation: Events, tmp_path: Path) -> None:
    whole = fit(train, HP, validation, checkpoints=Checkpoints(tmp_path))
    again = Watcher()
    assert same(fit(train, HP, validation, again, checkpoints=Checkpoints(tmp_path)), whole)
    assert again.steps == 0
    assert again.ending is not None
    assert again.ending.saved is not None
    assert again.ending.ended == "all_epochs"


def test_few_are_kept_and_nothing_else_is_touched(train: Events, tmp_path: Path) -> None:
    for name in ("checkpoint.txt", "checkpoint-llama.safetensors"):
        (tmp_path / name).write_text("somebody's")
    (tmp_path / ".checkpoint-000000000001.safetensors.tmp").write_text("half of one")
    often = dataclasses.replace(HP, saved_epoch="last", checkpoint_interval_minutes=1e-9)
    fit(train, often, checkpoints=Checkpoints(tmp_path))
    total, per_epoch = HP.epochs * steps_per_epoch(train), steps_per_epoch(train)
    assert KEPT == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{total - 1:012d}.safetensors",
        f"checkpoint-{total:012d}.safetensors",
        "checkpoint-llama.safetensors",
        "checkpoint.txt",
    ]
    (tmp_path / "seldom").mkdir()
    seldom = dataclasses.replace(often, checkpoint_interval_minutes=0.0)
    fit(train, seldom, checkpoints=Checkpoints(tmp_path / "seldom"))
    assert sorted(path.name for path in (tmp_path / "seldom").iterdir()) == [
        f"checkpoint-{n * per_epoch:012d}.safetensors" for n in (2, 3)
    ]


def test_what_another_job_writes_meanwhile_is_left_alone(train: Events, validation: Events, tmp_path: Path) -> None:
    ours, theirs = Checkpoints(tmp_path), Checkpoints(tmp_path)
    other = dataclasses.replace(HP, seed=1, mini_batch_size=700)
    fit(train, other, validation, checkpoints=theirs)
    written = {path.name for path in tmp_path.iterdir()}
    ours_folder_was_empty = ours  # when it was looked at
    watcher = Watcher()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "newest", lambda *_: (None, []))
        fit(train, HP, validation, watcher, checkpoints=ours_folder_was_empty)
    assert written < {path.name for path in tmp_path.iterdir()}


def test_one_that_cannot_be_read_for_now_is_not_given_up(
    train: Events, validation: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(train, HP, validation, checkpoints=Checkpoints(tmp_path))
    before = sorted(tmp_path.iterdir())

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(np, "memmap", no_memory)
    with pytest.raises(UserError, match=f"cannot read the checkpoint {before[-1]}: Cannot allocate memory"):
        fit(train, HP, validation, checkpoints=Checkpoints(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_a_lost_loss_is_not_written_down(
    train: Events, validation: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = dataclasses.replace(HP, checkpoint_interval_minutes=1e-9)
    lose_after(5, monkeypatch)
    with pytest.raises(UserError, match="use an empty checkpoint folder"):
        fit(train, often, validation, checkpoints=Checkpoints(tmp_path))
    assert [path.name[-18:-12] for path in sorted(tmp_path.iterdir())] == ["000004", "000005"]


def test_the_next_is_due_so_long_after_the_last_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(*_: object) -> None:
        now[0] += 90

    monkeypatch.setattr(checkpoint, "_write", slow)
    kept = Checkpoints(tmp_path)
    now[0] = 61
    assert kept.due(1)
    assert not kept.due(0)
    kept.write(type("Frozen", (), {"steps": 1})())
    assert not kept.due(1)
    now[0] += 61
    assert kept.due(1)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * 10_000)


@pytest.mark.parametrize("damage", [truncate, shorten, empty, flip, garble])
def test_a_damaged_one_is_passed_over(
    damage: Callable[[Path], None], train: Events, validation: Events, tmp_path: Path
) -> None:
    whole = fit(train, HP, validation)
    per_epoch = steps_per_epoch(train)
    watcher = Watcher()
    fit(train, HP, validation, watcher, checkpoints=Checkpoints(tmp_path), stop=lambda: watcher.steps > 2 * per_epoch)
    _, newest = sorted(tmp_path.iterdir())
    damage(newest)
    second = Watcher()
    resumed = fit(train, HP, validation, second, checkpoints=Checkpoints(tmp_path))
    [(epoch, steps, [reason])] = second.resumptions
    assert (epoch, steps) == (2, 0)
    assert reason.startswith(f"{newest}: ")
    assert same(resumed, whole)
    assert not newest.exists()  # or it would be the newest again

    for path in tmp_path.iterdir():
        damage(path)
    third = Watcher()
    assert same(fit(train, HP, validation, third, checkpoints=Checkpoints(tmp_path)), whole)
    [(epoch, steps, reasons)] = third.resumptions
    assert (epoch, steps, len(reasons)) == (0, 0, 2)


def test_one_in_which_countries_have_other_coordinates_is_refused(train: Events, tmp_path: Path) -> None:
    """Such as of a release that chose others: what was learnt there would be taken for what countries say."""
    networks = two_countries()
    hp = dataclasses.replace(HP, saved_epoch="last")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ipinsights.training.fit.COORDINATES_A_COUNTRY", HP.vector_dim + 1)
        fit(train, hp, networks=networks, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(UserError, match="belong to another training: the choice of countries has changed"):
        fit(train, hp, networks=networks, checkpoints=Checkpoints(tmp_path))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": 4}, "epochs was 3 and is 4"),
        ({"learning_rate": 0.02}, "learning_rate was 0.01 and is 0.02"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"saved_epoch": "last"}, "saved_epoch was best and is last"),
    ],
)
def test_one_of_other_hyperparameters_is_refused(
    changes: dict[str, Any], complaint: str, train: Events, validation: Events, tmp_path: Path
) -> None:
    fit(train, HP, validation, checkpoints=Checkpoints(tmp_path))
    other = dataclasses.replace(HP, **changes)
    with pytest.raises(UserError, match=f"the checkpoints in {tmp_path} belong to another training: {complaint}"):
        fit(train, other, validation, checkpoints=Checkpoints(tmp_path))
    free = dataclasses.replace(HP, batch_metrics_publish_interval=7, checkpoint_interval_minutes=1.0)
    fit(train, free, validation, checkpoints=Checkpoints(tmp_path))


def test_one_of_other_data_is_refused(train: Events, validation: Events, tmp_path: Path) -> None:
    fit(train, HP, validation, checkpoints=Checkpoints(tmp_path))
    address = train.address.copy()
    address[-1] ^= 1
    others = {
        "the training data has changed": (Events(train.entity, address, train.index), validation),
        "the validation data has changed": (train, Events(validation.entity[1:], validation.address[1:], train.index)),
    }
    for complaint, (one, other) in others.items():
        with pytest.raises(UserError, match=complaint):
            fit(one, HP, other, checkpoints=Checkpoints(tmp_path))


def test_one_of_another_release_is_refused(
    train: Events, validation: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    fit(train, HP, validation, checkpoints=Checkpoints(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(batches, "DRAWN", 3000)
    with pytest.raises(UserError, match="has checkpoint format 99, not 4: resume with the release that wrote it"):
        fit(train, HP, validation, checkpoints=Checkpoints(tmp_path))


def test_a_full_disk_is_told_and_does_not_end_training(
    train: Events, validation: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints before stay."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    first = Watcher()
    fit(train, HP, validation, first, checkpoints=Checkpoints(tmp_path), stop=first.after(3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before
    monkeypatch.setattr(tensors, "publish", full)
    watcher = Watcher()
    assert same(fit(train, HP, validation, watcher, checkpoints=Checkpoints(tmp_path)), fit(train, HP, validation))
    assert [str(error) for error in watcher.failures] == ["[Errno 28] No space left on device"] * HP.epochs
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_large_one_is_not_written_when_there_is_no_time(
    train: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipinsights.training.fit.LAST_CHECKPOINT_BYTES", 10)
    hp = dataclasses.replace(HP, saved_epoch="last")
    for steps in (3, steps_per_epoch(train)):
        watcher = Watcher()
        fit(train, hp, None, watcher, checkpoints=Checkpoints(tmp_path), stop=watcher.after(steps))
        assert not list(tmp_path.iterdir())


def test_none_is_written_twice(train: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = list[int](), Checkpoints.write

    def watched(self: Checkpoints, frozen: Checkpoint) -> object:
        written.append(frozen.steps)
        return write(self, frozen)

    monkeypatch.setattr(Checkpoints, "write", watched)
    hp, per_epoch = dataclasses.replace(HP, saved_epoch="last"), steps_per_epoch(train)
    watcher = Watcher()
    fit(train, hp, None, watcher, checkpoints=Checkpoints(tmp_path), stop=lambda: watcher.steps == per_epoch)
    fit(train, hp, None, checkpoints=Checkpoints(tmp_path), stop=lambda: True)
    assert written == [per_epoch]


def test_where_an_epoch_ends_none_is_written_before_its_validation(
    train: Events, validation: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one after it has the same name, so a kill between two hosts' parts would leave half of each."""
    written, write = list[int](), Checkpoints.write

    def watched(self: Checkpoints, frozen: Checkpoint) -> object:
        written.append(frozen.steps)
        return write(self, frozen)

    monkeypatch.setattr(Checkpoints, "write", watched)
    hp = dataclasses.replace(HP, checkpoint_interval_minutes=1e-9)
    fit(train, hp, validation, checkpoints=Checkpoints(tmp_path))
    assert written == [*range(1, hp.epochs * steps_per_epoch(train) + 1)]


def test_its_model_is_known_without_the_data(train: Events, validation: Events, tmp_path: Path) -> None:
    """A job that is stopped while it reads has nothing else. Without data nothing is counted."""
    for saved_epoch in ("last", "best"):
        folder = tmp_path / saved_epoch
        folder.mkdir()
        hp, watcher = dataclasses.replace(HP, saved_epoch=saved_epoch), Watcher()
        model = fit(train, hp, validation, watcher, checkpoints=Checkpoints(folder), stop=watcher.after(10))
        found, _ = Checkpoints(folder).newest()
        assert found is not None
        part = resharding.model(found, ALONE, hp)
        assert part is not None
        artifact.save(part, tmp_path / "model", {})
        known = artifact.load(tmp_path / "model")
        assert same(known, model.learnt_alone())
        assert not same(known, model)
        assert (known.index.tags == train.index.tags).all()
        assert found.made_with(hp)
        assert not found.made_with(dataclasses.replace(hp, vector_dim=16))
        json.dumps(found.facts["subject"])


def nested(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)


def number(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1) + b"5")


def without_checksums(path: Path) -> None:
    save_file({"met": np.zeros(1)}, path, {"checkpoint": json.dumps({"format_version": checkpoint.FORMAT_VERSION})})


def nested_text(path: Path) -> None:
    tensors.write(path, {}, {"checkpoint": "[" * 100_000})


def folder_of_its_name(path: Path) -> None:
    path.unlink()
    path.mkdir()


def narrower(path: Path) -> None:
    """All is as it was written, but what was written does not fit together."""
    arrays, texts = tensors.read(path)
    tensors.write(path, {**arrays, "state.entity": arrays["state.entity"][:, :, :-1]}, texts)


def no_number(path: Path) -> None:
    arrays, texts = tensors.read(path)
    tensors.write(path, {**arrays, "state.b": arrays["state.b"] * np.float32("nan")}, texts)


def of_other_rows(path: Path) -> None:
    arrays, texts = tensors.read(path)
    tensors.write(path, {**arrays, "met": arrays["met"] + HP.num_entity_vectors}, texts)


def of_no_steps(path: Path) -> None:
    arrays, texts = tensors.read(path)
    tensors.write(path, arrays, {"checkpoint": json.dumps({**json.loads(texts["checkpoint"]), "steps": -1})})


@pytest.mark.parametrize(
    "damage",
    [
        nested,
        number,
        without_checksums,
        nested_text,
        folder_of_its_name,
        narrower,
        no_number,
        of_other_rows,
        of_no_steps,
    ],
)
def test_whatever_a_damaged_one_is_the_one_before_is_taken(
    damage: Callable[[Path], None], train: Events, tmp_path: Path
) -> None:
    hp = dataclasses.replace(HP, saved_epoch="last")
    watcher = Watcher()
    per_epoch = steps_per_epoch(train)
    fit(train, hp, None, watcher, checkpoints=Checkpoints(tmp_path), stop=lambda: watcher.steps > 2 * per_epoch)
    older, newest = sorted(tmp_path.iterdir())
    damage(newest)
    found, [reason] = Checkpoints(tmp_path).newest()
    assert reason.startswith(f"{newest}: ")
    assert found is not None
    assert older.name == f"checkpoint-{found.steps:012d}.safetensors"


def test_one_of_0_1_0_is_refused_not_damaged(tmp_path: Path) -> None:
    """It had no checksums of this kind."""
    path = tmp_path / "checkpoint-000000000001.safetensors"
    save_file({"met": np.zeros(1)}, path, {"checkpoint": json.dumps({"format_version": 1}), "digest": "0"})
    with pytest.raises(UserError, match="has checkpoint format 1, not 4"):
        Checkpoints(tmp_path).newest()


def test_any_flipped_bit_is_noticed(train: Events, tmp_path: Path) -> None:
    watcher = Watcher()
    hp = dataclasses.replace(HP, saved_epoch="last")
    fit(train, hp, None, watcher, checkpoints=Checkpoints(tmp_path), stop=watcher.after(3))
    [path] = tmp_path.iterdir()
    data, rng = path.read_bytes(), np.random.default_rng(0)
    (size,) = struct.unpack("<Q", data[:8])
    for end in (8 + size, len(data)):
        for _ in range(50):
            flipped = bytearray(data)
            flipped[rng.integers(end)] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            found, damaged = Checkpoints(tmp_path).newest()
            assert found is None
            assert len(damaged) == 1
