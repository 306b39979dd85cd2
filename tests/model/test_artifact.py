import dataclasses
import json
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from safetensors.numpy import load_file

from conftest import PEAK, Traffic, to_events
from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.data.records import Records
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, tensors
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training.fit import fit


@pytest.fixture(scope="module")
def model(traffic: Traffic) -> Model:
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=1, mini_batch_size=500)
    return fit(to_events(traffic.train, 200), hp)


def test_a_loaded_model_scores_as_the_saved_one(model: Model, traffic: Traffic, tmp_path: Path) -> None:
    artifact.save(model, tmp_path / "model", {"metrics": {"auc": 0.9}})
    loaded, manifest = artifact.read(tmp_path / "model")
    assert manifest["metrics"] == {"auc": 0.9}
    assert (Scorer(loaded).score(traffic.normal) == Scorer(model).score(traffic.normal)).all()


@pytest.mark.parametrize("family", [IPV4, IPV6], ids=lambda family: f"IPv{family.version}")
def test_networks_and_entities_travel_with_the_model(family: Family, traffic: Traffic, tmp_path: Path) -> None:
    """Serving needs nothing else: no table, and a stranger is still told from an entity that training saw."""
    texts = pa.array(addresses.render(traffic.train.addresses), pa.string())
    address, _ = addresses.parse(texts, family)
    first = np.unique(address)[::2]
    labels = np.stack([np.arange(len(first)) % 50 + 1, np.arange(len(first)) % 3 + 1]).astype(np.uint32)
    index = EntityIndex(150)
    events = Events(index.claim(traffic.train.entities), address, index)
    hp = Hyperparameters(num_entity_vectors=150, vector_dim=8, epochs=1, ip_version=family.version)
    model = fit(events, hp, networks=Networks(first, first, labels))
    artifact.save(model, tmp_path, {})
    loaded, manifest = artifact.read(tmp_path)
    assert manifest["entities"] == {"owning_a_row": 100, "sharing_a_row": 0}
    assert loaded.family == family
    assert loaded.vocabulary.depth == len(family.levels) + 2
    assert loaded.vocabulary.countries == model.vocabulary.countries
    assert len(model.vocabulary.countries) == 1
    learnt, before = loaded.learnt_alone(), model.learnt_alone()
    assert (learnt.encode(address) == before.encode(address)).all()
    assert not learnt.encoder.prefix[:, -4:].any()
    assert (loaded.encode(address) == model.encode(address)).all()
    assert (loaded.encode(address) != dataclasses.replace(model, vocabulary=_unlabelled(model)).encode(address)).any()
    pairs = Records(pa.concat_arrays([traffic.train.entities[:5], pa.array(["stranger"])]), address[:6])
    assert (Scorer(loaded).score(pairs) == Scorer(model).score(pairs)).all()
    assert Scorer(loaded).embed(pairs).entity[5].tolist() == model.entity[-1].tolist()


def _unlabelled(model: Model) -> Vocabulary:
    """The same rows, but nobody is in any network."""
    networks = model.vocabulary.networks
    assert networks is not None
    return dataclasses.replace(model.vocabulary, networks=networks.restrict([np.zeros(0, np.uint32)] * 2))


def test_the_folder_holds_two_files_at_its_root_and_others_may_read_them(model: Model, tmp_path: Path) -> None:
    artifact.save(model, tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.safetensors"]
    assert all(path.stat().st_mode & 0o004 for path in tmp_path.iterdir())
    assert json.loads((tmp_path / "manifest.json").read_text())["format_version"] == 4
    # The tensors are plain safetensors, which the library reads too, and nothing is a pickle.
    assert set(load_file(tmp_path / "model.safetensors")) >= {"entity", "encoder.prefix", "vocabulary.prefixes"}
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"opcode|pickle|unknown|exhausted"):
            list(pickletools.genops(path.read_bytes()))


@pytest.mark.parametrize("bits", [0, 20, 32])
def test_the_history_and_what_was_learnt_travel_with_the_model(
    model: Model, traffic: Traffic, tmp_path: Path, bits: int
) -> None:
    kept = model.keeping(bits)
    artifact.save(kept, tmp_path, {})
    loaded, manifest = artifact.read(tmp_path)
    assert kept.counted is not None
    assert loaded.counted is not None
    history = loaded.counted.history
    assert manifest["history"] == {"bits": bits or 32, "pairs": len(history), "bytes": history.nbytes}
    assert history.length == kept.counted.history.length == (bits or 32)
    assert (len(history) > 0) == (bits > 0)
    for one, other, names in (
        (loaded.counted, kept.counted, ("rows", "learnt", "entities")),
        (history, kept.counted.history, ("rows", "starts", "addresses", "counts")),
        (loaded.counted.apart, kept.counted.apart, ("rows", "starts", "addresses", "counts")),
    ):
        for name in names:
            mine, theirs = getattr(one, name), getattr(other, name)
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
    alone = [some.learnt_alone() for some in (loaded, model)]
    scores, expected = (Scorer(some).score(traffic.normal) for some in alone)
    assert (scores == expected).all()
    artifact.save(alone[1], tmp_path, {})  # as of a training that had no time to count
    uncounted, manifest = artifact.read(tmp_path)
    assert uncounted.counted is None
    assert "history" not in manifest
    assert (Scorer(uncounted).score(traffic.normal) == expected).all()


@pytest.fixture
def of_format_3(model: Model, tmp_path: Path) -> Model:
    """A model as the release before wrote it into a folder, where nothing was reserved and nothing counted."""
    rng = np.random.default_rng(0)
    entity, prefix = (rng.normal(size=table.shape).astype(np.float32) for table in (model.entity, model.encoder.prefix))
    old = Model(model.vocabulary, model.index, entity, dataclasses.replace(model.encoder, prefix=prefix))
    artifact.save(old, tmp_path, {"metrics": {"auc": 0.9}})
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 3}))
    return old


def test_a_model_of_format_3_scores_as_it_did(of_format_3: Model, traffic: Traffic, tmp_path: Path) -> None:
    loaded, manifest = artifact.read(tmp_path)
    assert manifest["format_version"] == 3
    assert loaded.counted is None
    assert (Scorer(loaded).score(traffic.normal) == Scorer(of_format_3).score(traffic.normal)).all()
    assert (loaded.learnt_alone().entity == of_format_3.entity).all()
    assert loaded.keeping(0).counted is None


def test_entities_of_format_3_can_be_forgotten(of_format_3: Model, traffic: Traffic, tmp_path: Path) -> None:
    name = traffic.normal.entities[:1]
    artifact.update(tmp_path, lambda old: old.without(old.index.own_rows(name)))
    later, manifest = artifact.read(tmp_path)
    assert manifest["format_version"] == 4
    assert manifest["metrics"] == {"auc": 0.9}
    assert later.counted is None
    others = pa.compute.not_equal(traffic.normal.entities, name[0]).to_numpy(zero_copy_only=False)
    after, before = (Scorer(some).score(traffic.normal) for some in (later, of_format_3))
    assert (after[others] == before[others]).all()
    assert (after[~others] != before[~others]).any()


def test_no_training_goes_on_from_format_3(of_format_3: Model, traffic: Traffic, tmp_path: Path) -> None:
    index = EntityIndex(200, of_format_3.index.tags.copy())
    events = Events(index.claim(traffic.train.entities), traffic.train.addresses, index)
    hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, epochs=1, mini_batch_size=500)
    with pytest.raises(
        UserError, match="it can be served, but training cannot continue from it. Train once without it"
    ):
        fit(events, hp, earlier=artifact.load(tmp_path))


@pytest.mark.parametrize("version", [1, 2, 5])
def test_other_formats_are_refused_with_those_that_can_be_read(model: Model, tmp_path: Path, version: int) -> None:
    artifact.save(model, tmp_path, {})
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    with pytest.raises(UserError, match=f"format version {version}; this release reads versions 3 and 4"):
        artifact.load(tmp_path)


def test_tensors_are_mapped_not_read(tmp_path: Path, model: Model) -> None:
    big = Model(model.vocabulary, EntityIndex(999_999), np.zeros((1_000_000, 16), np.float32), model.encoder)
    artifact.save(big, tmp_path, {})
    code = (
        "import pathlib; from ipinsights.model import artifact\n"
        f"before = {PEAK}\n"
        f"model = artifact.load(pathlib.Path({str(tmp_path)!r})); model.entity[5]\n"
        f"print({PEAK} - before)"
    )
    command = [sys.executable, "-c", code]
    grown = int(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert grown < 16_000  # KB; the table is 64,000
    loaded = artifact.load(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        loaded.entity[0] = 1


def test_an_interrupted_save_leaves_no_model_rather_than_halves_of_two(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact.save(model, tmp_path, {})
    monkeypatch.setattr(tensors, "publish", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        artifact.save(model, tmp_path, {})
    with pytest.raises(UserError, match=r"no model in .*manifest\.json cannot be read"):
        artifact.load(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [("{", "is not JSON"), ("[]", "format version None"), ('{"format_version": 99}', "format version 99")],
)
def test_a_manifest_that_cannot_be_read_is_told(model: Model, tmp_path: Path, manifest: str, complaint: str) -> None:
    artifact.save(model, tmp_path, {})
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=complaint):
        artifact.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_a_truncated_tensor_file_is_told(model: Model, tmp_path: Path, keep: int) -> None:
    artifact.save(model, tmp_path, {})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged or incomplete"):
        artifact.load(tmp_path)


@pytest.mark.parametrize("header", [b"[]", b"7", b"{}", b'{"entity":{}}'])
def test_a_header_that_describes_no_tensors_is_told(model: Model, tmp_path: Path, header: bytes) -> None:
    artifact.save(model, tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="damaged or incomplete"):
        artifact.load(tmp_path)
