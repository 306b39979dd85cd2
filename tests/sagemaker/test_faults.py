"""What docs/operations.md says of faults around the program."""

import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from ipinsights.data import events
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.errors import UserError, refusals
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.sagemaker import channels
from ipinsights.training.checkpoint import Checkpoints


def model(value: float, rows: int = 100) -> Model:
    blank = Model.blank(IPV4, rows, 8, 1)
    blank.entity[:] = value
    return blank


@contextmanager
def limited(kind: int, number: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextmanager
def full(folder: Path, how: str) -> Iterator[None]:
    """No room for more than 100 KB in a folder."""
    if how == "limit":
        with limited(resource.RLIMIT_FSIZE, 100_000):
            yield
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("how", "told"), [("limit", "File too large"), ("disk", "No space left on device")])
def test_a_model_is_saved_whole_or_not_at_all(how: str, told: str, tmp_path: Path) -> None:
    if how == "disk" and os.geteuid():
        pytest.skip("only root can mount a small disk")
    with full(tmp_path, how):
        artifact.save(model(1), tmp_path, {})
        with pytest.raises(UserError, match=f"cannot write .*: {told}"), refusals("write", tmp_path):
            artifact.save(model(2, 20_000), tmp_path, {})
        with pytest.raises(UserError, match="there is no model"):
            artifact.load(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [artifact.TENSORS]
        artifact.save(model(3), tmp_path, {})
        assert artifact.load(tmp_path).entity[0, 0] == 3


def test_two_jobs_on_one_folder_leave_a_whole_model_or_one_that_is_refused(tmp_path: Path) -> None:
    models = [model(1), model(2, 200)]
    for _ in range(15):
        jobs = [threading.Thread(target=_save, args=(one, tmp_path)) for one in models]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        try:
            found = artifact.load(tmp_path)
        except UserError:
            continue
        assert any(np.array_equal(found.entity, one.entity) for one in models)


def _save(one: Model, folder: Path) -> None:
    with suppress(FileNotFoundError):  # the other has renamed the file
        artifact.save(one, folder, {})


def read(*files: Path, **options: object) -> events.Events:
    return events.read(files, EntityIndex(100), **options)  # type: ignore[arg-type]


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,1.2.3.4\n")
    (tmp_path / "b.csv").write_text("a,1.2.3.4\n")
    files = events.find_files(tmp_path)
    files[1].unlink()
    with pytest.raises(UserError, match=f"cannot read {files[1]}: No such file"):
        read(*files)


def test_a_file_that_grows_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,1.2.3.4\n" * 1_000_000)
    grown = iter([True])

    def grow(_: int) -> None:
        if next(grown, False):
            with path.open("a") as file:
                file.write("b,1.2.3.4\n")

    assert len(read(path, progress=grow)) == 1_000_001


def test_many_files_are_not_all_open(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number:05d}.csv").write_text(f"user_{number % 50},1.2.3.{number % 256}\n")
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with limited(resource.RLIMIT_NOFILE, opened + 30):
        found = read(*events.find_files(tmp_path))
    assert found.address[:3].tolist() == [0x01020300, 0x01020301, 0x01020302]
    assert len(found) == 1000


def test_a_clock_that_jumps_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, path = Checkpoints(tmp_path), tmp_path / "a.csv"
    path.write_text("a,1.2.3.4\nb,1.2.3.5\n")
    now = time.time()
    for jump in (1e9, -1e9):
        monkeypatch.setattr(time, "time", lambda: now + jump)  # noqa: B023
        assert not checkpoints.due(10)
        hp = Hyperparameters(num_entity_vectors=10, vector_dim=4)
        assert len(channels.read("train", [path], EntityIndex(10), hp)) == 2
