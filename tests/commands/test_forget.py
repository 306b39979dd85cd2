"""``ipinsights forget``: one entity goes from a saved model, and no other entity's score changes."""

import concurrent.futures
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from conftest import SMALL, Server, Traffic, Tree, to_csv, to_events
from ipinsights.commands import main
from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import FORGOTTEN, SHARING, EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, tensors
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit

Scores = npt.NDArray[np.float32]

STRANGER = "nobody has seen me"


@pytest.fixture
def folder(trained: tuple[Tree, object], tmp_path: Path) -> Path:
    """A copy of a trained model."""
    return shutil.copytree(trained[0].model, tmp_path / "model")


def forget(folder: Path, *names: str) -> None:
    main.main(["forget", "--model", str(folder), "--", *names])


def refusal(folder: Path, *names: str) -> str:
    """The sentence with which the command refuses, and changes nothing."""
    before = contents(folder)
    with pytest.raises(SystemExit) as ended:
        forget(folder, *names)
    assert contents(folder) == before
    return str(ended.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / artifact.MANIFEST).read_text()))


def of(pairs: Records, names: set[str]) -> npt.NDArray[np.bool_]:
    """Which of the pairs are of these entities."""
    return np.array([name in names for name in pairs.entities.to_pylist()])


def score(folder: Path, pairs: Records, name: str | None = None) -> Scores:
    """The score of each pair, or of its address with another entity."""
    entities = pairs.entities if name is None else pa.array([name] * len(pairs), pa.string())
    return Scorer.open(folder).score(Records(entities, pairs.addresses))


@pytest.mark.parametrize("names", [["user_1"], ["user_7", "user_1", "user_50", "user_7"]])
@pytest.mark.usefixtures("either_way")
def test_a_forgotten_entity_is_a_stranger_and_no_other_score_changes(
    folder: Path, traffic: Traffic, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    everything = [traffic.train, traffic.normal, traffic.attacks]
    before = [(score(folder, pairs), score(folder, pairs, STRANGER)) for pairs in everything]
    forget(folder, *names)
    for pairs, (known, unknown) in zip(everything, before, strict=True):
        gone = of(pairs, set(names))
        after = score(folder, pairs)
        assert (after[~gone] == known[~gone]).all()
        assert (after[gone] == unknown[gone]).all()
        assert (known[gone] != unknown[gone]).any()
        assert (score(folder, pairs, STRANGER) == unknown).all()
    model = artifact.load(folder)
    assert (model.entity[:-1][model.index.tags == FORGOTTEN] == model.entity[-1]).all()
    printed = capsys.readouterr().out
    count = len(set(names))
    assert printed.startswith("1 entity removed" if count == 1 else f"{count} entities removed")
    assert "No other entity's score has changed" in printed
    assert "Of 200 rows, 100 are free" in printed
    for stays in ("typical entity", "encoder", "prefixes", "checkpoints", "model.tar.gz", "learns it again"):
        assert stays in printed


def test_the_manifest_keeps_its_facts_and_counts_the_forgotten(folder: Path, traffic: Traffic) -> None:
    before = manifest(folder)
    assert before["forgotten"] == 0
    assert before["entities"] == {"owning_a_row": 100, "sharing_a_row": 0}
    forget(folder, "user_1", "user_2")
    forget(folder, "user_3")
    after = manifest(folder)
    kept = ~of(traffic.train, {"user_1", "user_2", "user_3"})
    names = np.array(traffic.train.entities.to_pylist())[kept].tolist()
    pairs = len(set(zip(names, traffic.train.addresses[kept].tolist(), strict=True)))
    counted = artifact.load(folder).counted
    assert counted is not None
    history = counted.history
    changed = {
        "forgotten": 3,
        "entities": {"owning_a_row": 97, "sharing_a_row": 0},
        "history": {"bits": 32, "pairs": pairs, "bytes": history.nbytes},
        "checksum": after["checksum"],  # of the text itself
    }
    assert len(history) == pairs
    assert after == {**before, **changed}
    assert list(after) == list(before)
    assert sorted(contents(folder)) == ["manifest.json", "model.safetensors"]
    assert all(path.stat().st_mode & 0o004 for path in folder.iterdir())


def test_a_model_of_an_earlier_release_has_forgotten_nobody(folder: Path) -> None:
    facts = {**manifest(folder), "format_version": 3}
    del facts["forgotten"]
    (folder / artifact.MANIFEST).write_text(json.dumps(facts))
    forget(folder, "user_1")
    assert manifest(folder)["forgotten"] == 1


def test_no_name_and_no_hash_of_it_is_left(trained: tuple[Tree, object], folder: Path) -> None:
    index = artifact.load(folder).index
    [row] = index.own_rows(pa.array(["user_1"], pa.string()))
    tag = index.tags[row]
    assert (index.tags == tag).sum() == 1
    forget(folder, "user_1")
    later = artifact.load(folder).index
    assert not (later.tags == tag).any()
    assert "user_1" not in (folder / artifact.MANIFEST).read_text()


def test_nothing_that_was_counted_of_it_is_left(folder: Path, traffic: Traffic) -> None:
    """Neither where it was nor what it had learnt; of all others, every bit."""
    before = artifact.load(folder)
    row = int(before.index.own_rows(pa.array(["user_1"], pa.string()))[0])
    forget(folder, "user_1")
    after = artifact.load(folder)
    assert before.counted is not None
    assert after.counted is not None
    kept = before.counted.rows != row
    assert (after.counted.rows == before.counted.rows[kept]).all()
    assert (after.counted.learnt == before.counted.learnt[np.append(kept, True)]).all()
    own, others = before.counted.history.place(row), before.counted.history.entities != row
    assert own.stop > own.start
    assert after.counted.history.place(row) == slice(0, 0)
    for name in ("entities", "addresses", "counts"):
        assert (getattr(after.counted.history, name) == getattr(before.counted.history, name)[others]).all()
    only_there = np.setdiff1d(before.counted.history.addresses[own], before.counted.history.addresses[others])
    assert len(only_there)
    assert not np.isin(after.counted.history.addresses, only_there).any()


def test_nothing_that_was_kept_apart_of_it_is_left(folder: Path, traffic: Traffic) -> None:
    model = fit(to_events(traffic.train, 200), Hyperparameters(num_entity_vectors=200, vector_dim=8, epochs=1))
    assert model.counted is not None
    shutil.rmtree(folder)
    artifact.save(model, folder, {})
    row = int(model.counted.apart.rows[0])
    name = next(name for name in traffic.train.entities.to_pylist() if model.index.find(pa.array([name]))[0] == row)
    forget(folder, name)
    after = artifact.load(folder).counted
    assert after is not None
    assert after.apart.rows.tolist() == model.counted.apart.rows.tolist()[1:]


def test_an_unknown_entity_is_refused_and_then_nothing_is_removed(folder: Path) -> None:
    assert refusal(folder, STRANGER) == (
        f"ipinsights: the model in {folder} does not know '{STRANGER}'. Nothing was removed"
    )
    assert "does not know 'a', 'b', 'c', 'd', 'e' and 2 more." in refusal(folder, "user_1", *"abcdefg")
    forget(folder, "user_1")
    assert "does not know 'user_1'" in refusal(folder, "user_2", "user_1")
    assert "is not UTF-8" in refusal(folder, os.fsdecode(b"\xff"))


@pytest.mark.parametrize("name", ["Smith, Bob", "-x", "Zoë", " user", 'a "b"', "NA"])
def test_a_name_is_taken_literally(name: str, tmp_path: Path) -> None:
    artifact.save(claimed(name, name + "!"), tmp_path, {})
    forget(tmp_path, name)
    assert "does not know" in refusal(tmp_path, name)
    forget(tmp_path, name + "!")


def claimed(*names: str) -> Model:
    """A blank model that knows these entities."""
    model = Model.blank(IPV4, 10, 4, 1)
    model.index.claim(pa.array(names, pa.string()))
    return model


def test_where_entities_share_rows_it_says_what_that_means(
    traffic: Traffic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hp = Hyperparameters(num_entity_vectors=70, vector_dim=16, epochs=1, mini_batch_size=500)
    model = fit(to_events(traffic.train, 70), hp)
    artifact.save(model, tmp_path, {})
    names = sorted(set(traffic.train.entities.to_pylist()))
    own = model.index.own_rows(pa.array(names, pa.string()))
    rows = dict(zip(names, model.index.find(pa.array(names, pa.string())).tolist(), strict=True))
    sharing = [name for name, row in zip(names, own.tolist(), strict=True) if row == SHARING]
    assert len(sharing) == 30
    complaint = refusal(tmp_path, names[0], *sharing[:1])
    assert f"'{sharing[0]}' cannot be removed alone" in complaint
    assert "Train again without their log-ins" in complaint
    assert "cannot be removed alone" in refusal(tmp_path, STRANGER)

    gone = next(name for name in names if name not in sharing and rows[name] in [rows[other] for other in sharing])
    before = score(tmp_path, traffic.normal)
    forget(tmp_path, gone)
    printed = capsys.readouterr().out
    assert "At least 30 entities in this model share the rows of others" in printed
    assert "No other score has changed" in printed
    after = score(tmp_path, traffic.normal)
    moved = of(traffic.normal, {name for name in names if rows[name] == rows[gone]})
    assert (after[~moved] == before[~moved]).all()
    typical = np.einsum("ij,j->i", model.encode(traffic.normal.addresses), model.entity[-1])
    np.testing.assert_allclose(after[moved], typical[moved], atol=1e-5)
    assert moved.sum() > of(traffic.normal, {gone}).sum()


@pytest.mark.parametrize("steps", [0, 1])
def test_at_every_moment_the_folder_holds_a_whole_model(
    folder: Path, traffic: Traffic, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it ends between the two files."""
    known = score(folder, traffic.normal)
    gone = of(traffic.normal, {"user_1"})
    publish, taken = tensors.publish, iter(range(2))

    def stop(temporary: Path, path: Path) -> None:
        if next(taken) == steps:
            raise OSError(28, "No space left on device")
        publish(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "publish", stop)
        with pytest.raises(SystemExit, match=f"cannot change the model in {folder}: No space left on device"):
            forget(folder, "user_1")
    assert sorted(contents(folder)) == ["manifest.json", "model.safetensors"]
    after = score(folder, traffic.normal)
    assert (after[~gone] == known[~gone]).all()
    assert (after[gone] == (score(folder, traffic.normal, STRANGER) if steps else known)[gone]).all()
    forget(folder, "user_2")
    assert manifest(folder)["forgotten"] == steps + 1  # as the tensors have it
    assert manifest(folder)["entities"]["owning_a_row"] == 99 - steps


def test_a_reader_never_finds_half_a_model(folder: Path) -> None:
    done = threading.Event()

    def read() -> int:
        count = 0
        while not done.is_set():
            Scorer.open(folder)
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for number in range(1, 31):
                forget(folder, f"user_{number}")
        finally:
            done.set()
        assert reading.result() > 0


def test_two_at_once_both_forget(folder: Path) -> None:
    names = [f"user_{number}" for number in range(1, 25)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: forget(folder, name), names))
    assert manifest(folder)["forgotten"] == 24
    index = artifact.load(folder).index
    assert set(index.find(pa.array(names, pa.string())).tolist()) == {200}


def test_what_a_change_raises_passes_through_and_nothing_is_changed(folder: Path) -> None:
    def change(model: Model) -> Model:
        raise UserError("no")

    before = contents(folder)
    with pytest.raises(UserError, match="^no$"):
        artifact.update(folder, change)
    assert contents(folder) == before


@pytest.mark.slow
def test_training_continues_and_the_server_serves(folder: Path, tree: Tree, traffic: Traffic) -> None:
    others = ~of(traffic.train, {"user_1"})
    kept = Records(traffic.train.entities.filter(pa.array(others)), traffic.train.addresses[others])
    forget(folder, "user_1")
    shutil.copytree(folder, tree.base / "input" / "data" / "model")
    tree.configure(SMALL)
    tree.channel("train", **{"part-0.csv": to_csv(kept), "new.csv": "a new one,192.0.2.1\n" * 20})
    job = tree.train()
    assert job.returncode == 0, job.stdout + job.stderr
    assert "it knows 99 entities, and 1 are new" in job.stdout + job.stderr
    assert manifest(tree.model)["forgotten"] == 1
    assert manifest(tree.model)["entities"] == {"owning_a_row": 100, "sharing_a_row": 0}
    model, earlier = artifact.load(tree.model), artifact.load(folder)
    names = pa.array(sorted(set(kept.entities.to_pylist())), pa.string())
    assert (model.index.find(names) == earlier.index.find(names)).all()
    assert (model.entity[:-1][model.index.tags == FORGOTTEN] == model.entity[-1]).all()
    lines = to_csv(traffic.normal).splitlines()[:50]
    with Server(tree) as server:
        gone, stranger, known = (
            server.post("".join(f"{name},{line.partition(',')[2]}\n" for line in lines)).json()
            for name in ("user_1", STRANGER, "user_2")
        )
    assert gone == stranger != known


def test_who_is_forgotten_and_comes_back_is_learnt_anew(folder: Path, traffic: Traffic) -> None:
    forget(folder, "user_1")
    earlier = artifact.load(folder)
    index = EntityIndex(200, earlier.index.tags.copy(), earlier.index.sharing)
    events = Events(index.claim(traffic.train.entities), traffic.train.addresses, index)
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=2, mini_batch_size=500, learning_rate=0.01)
    model = fit(events, hp, earlier=earlier)
    assert (model.index.owned, model.index.forgotten) == (100, 1)
    scorer = Scorer(model)
    normal, attacks = (scorer.score(pairs)[of(pairs, {"user_1"})] for pairs in (traffic.normal, traffic.attacks))
    assert np.median(normal) > np.median(attacks) + 1
