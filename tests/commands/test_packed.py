"""Every command that opens a model opens model.tar.gz, too, as a training job leaves it."""

import io
import tarfile
from pathlib import Path

import pytest

from conftest import Traffic, to_csv
from ipinsights.commands.main import main
from ipinsights.model import artifact

pytestmark = pytest.mark.slow

OPENING = {
    "score": ["score", "LATER"],
    "alerts": ["alerts", "LATER"],
    "explain": ["explain", "user_1", "10.1.2.3", "--json"],
    "evaluate": ["evaluate", "LATER", "--resamples", "0", "--json"],
    "report": ["report", "LATER", "--out", "report.html"],
    "embed": ["embed", "--entities", "LATER", "--nearest", "user_1"],
}
TRAIN = ["--epochs", "1", "--vector-dim", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, traffic: Traffic) -> Path:
    """A model, the same one packed, and log-ins."""
    path = tmp_path_factory.mktemp("packed")
    (path / "train.csv").write_text(to_csv(traffic.train))
    (path / "later.csv").write_text(to_csv(traffic.normal))
    main(["train", str(path / "train.csv"), "--model", str(path / "model"), *TRAIN])
    with tarfile.open(path / "model.tar.gz", "w:gz") as archive:
        for name in (artifact.MANIFEST, artifact.TENSORS):
            archive.add(path / "model" / name, name)
    return path


def out(folder: Path, command: str, model: Path | str, capfdbinary: pytest.CaptureFixture[bytes]) -> bytes:
    """What a command prints of a model."""
    arguments = [str(folder / "later.csv") if part == "LATER" else part for part in OPENING[command]]
    capfdbinary.readouterr()
    main([*arguments, "--model", str(model)])
    return capfdbinary.readouterr().out


@pytest.mark.parametrize("command", OPENING)
def test_a_packed_model_is_as_good_as_a_folder(
    command: str,
    folder: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    expected = out(folder, command, folder / "model", capfdbinary)
    assert expected
    assert out(folder, command, folder / "model.tar.gz", capfdbinary) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] * (command == "report")


def test_training_continues_from_a_packed_model(folder: Path, tmp_path: Path) -> None:
    main(
        [
            *("train", str(folder / "later.csv"), "--from", str(folder / "model.tar.gz")),
            *("--model", str(tmp_path / "model"), "--epochs", "1"),
        ]
    )
    before, after = (artifact.load(path) for path in (folder / "model.tar.gz", tmp_path / "model"))
    assert after.vocabulary.events > before.vocabulary.events


def test_forgetting_needs_a_folder(folder: Path) -> None:
    packed = (folder / "model.tar.gz").read_bytes()
    with pytest.raises(SystemExit, match=r"model\.tar\.gz is packed: unpack it into a folder of its own \(tar -xf\)"):
        main(["forget", "user_1", "--model", str(folder / "model.tar.gz")])
    assert (folder / "model.tar.gz").read_bytes() == packed


def pack(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("command", OPENING)
def test_what_is_no_model_is_told(command: str, folder: Path, tmp_path: Path) -> None:
    manifest, tensors = ((folder / "model" / name).read_bytes() for name in (artifact.MANIFEST, artifact.TENSORS))
    pack(tmp_path / "other.tar.gz", {"weights.h5": b"x"})
    pack(tmp_path / "damaged.tar.gz", {artifact.MANIFEST: manifest, artifact.TENSORS: tensors[:-1]})
    (tmp_path / "text.tar.gz").write_text("user_1,10.0.0.1\n" * 100)
    for name, complaint in {
        "missing.tar.gz": "cannot unpack {}: No such file or directory",
        "missing": "there is no model in {}: manifest.json cannot be read (No such file or directory)",
        "other.tar.gz": "there is no model in {}: it has no manifest.json",
        "damaged.tar.gz": "{}/model.safetensors is damaged or incomplete",
        "text.tar.gz": "cannot unpack {}: it is no tar archive, plain or gzip, or it is damaged",
    }.items():
        arguments = [str(folder / "later.csv") if part == "LATER" else part for part in OPENING[command]]
        with pytest.raises(SystemExit) as told:
            main([*arguments, "--model", str(tmp_path / name)])
        assert str(told.value).startswith(f"ipinsights: {complaint.format(tmp_path / name)}")
