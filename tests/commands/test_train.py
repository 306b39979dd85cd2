"""``ipinsights train``, as a person at a shell calls it."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Traffic, to_csv
from ipinsights.hyperparameters import declarations
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-c", "from ipinsights.commands.main import main; main()", "train"]
QUICK = ("--epochs", "2", "--vector-dim", "8")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def log_ins(tmp_path_factory: pytest.TempPathFactory, traffic: Traffic) -> Path:
    folder = tmp_path_factory.mktemp("log-ins")
    (folder / "train").mkdir()
    lines = to_csv(traffic.train).splitlines(keepends=True)
    half = len(lines) // 2
    (folder / "train" / "a.csv").write_text("".join(lines[:half]))
    timed = (f"{line.rstrip()},2026-01-02T03:04:05Z\n" for line in lines[half:])
    (folder / "train" / "b.csv").write_text("".join(timed))
    (folder / "validation.csv").write_text(to_csv(traffic.normal))
    return folder


def test_what_is_not_set_follows_from_the_data(log_ins: Path, tmp_path: Path, traffic: Traffic) -> None:
    trained = run(log_ins / "train", "--validation", log_ins / "validation.csv", "--model", tmp_path / "m")
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""  # no bar where nobody looks
    model, manifest = artifact.read(tmp_path / "m")
    assert manifest["hyperparameters"]["num_entity_vectors"] == 2 * len(traffic.train.entities.unique())
    assert (model.vector_dim, model.family.version) == (64, 4)
    assert manifest["training"]["events"] == len(traffic.train)
    last = [line for line in trained.stdout.splitlines() if line.startswith("Epoch")][-1]
    told = re.fullmatch(r"Epoch 10 of 10: AUC (\S+) against random addresses, (\S+) against addresses of others", last)
    assert told
    for text, name in zip(told.groups(), ("discriminator_auc", "shuffled_auc"), strict=True):
        assert float(text) == pytest.approx(manifest["metrics"][name], abs=1e-4)
    assert Scorer(model).score(traffic.normal).mean() > Scorer(model).score(traffic.attacks).mean() + 1


def test_a_model_is_not_replaced_by_mistake(log_ins: Path, tmp_path: Path) -> None:
    arguments = (log_ins / "train", "--model", tmp_path, *QUICK)
    assert run(*arguments).returncode == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    refused = run(*arguments, "--seed", "1")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"ipinsights: there is a model in {tmp_path}: name another folder, or replace it with --force\n"
    )
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert run(*arguments, "--seed", "1", "--force").returncode == 0
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_a_day_is_learnt_on_from_the_model_before(log_ins: Path, tmp_path: Path) -> None:
    assert run(log_ins / "train" / "a.csv", "--model", tmp_path, *QUICK).returncode == 0
    first = artifact.load(tmp_path)
    daily = run(log_ins / "train" / "b.csv", "--from", tmp_path, "--model", tmp_path, "--force", "--epochs", "1")
    assert daily.returncode == 0, daily.stderr
    second = artifact.load(tmp_path)
    assert f"of which {first.index.owned} are known from {tmp_path}" in daily.stdout
    assert (second.vector_dim, second.index.num_rows) == (first.vector_dim, first.index.num_rows)
    assert second.vocabulary.events > first.vocabulary.events
    assert first.counted is not None
    assert second.counted is not None
    assert second.counted.history.events > first.counted.history.events


def test_ipv6_is_noticed(tmp_path: Path) -> None:
    rows = [f"user_{i % 7},2001:db8:{i % 7}::{i}\nuser_{i % 7},10.0.{i % 7}.1\n" for i in range(70)]
    (tmp_path / "a.csv").write_text("".join(rows))
    trained = run(tmp_path / "a.csv", "--model", tmp_path / "m", *QUICK)
    assert trained.returncode == 0, trained.stderr
    assert "70 addresses are IPv6, so the model is for both versions (ip_version=6)" in trained.stdout
    assert artifact.load(tmp_path / "m").family.version == 6
    refused = run(tmp_path / "a.csv", "--model", tmp_path / "n", "--ip-version", "4", *QUICK)
    assert refused.returncode == 1
    assert "70 of 140 rows" in refused.stderr


def test_ctrl_c_saves_the_model_so_far(log_ins: Path, tmp_path: Path) -> None:
    command = [*COMMAND, str(log_ins / "train"), "--validation", str(log_ins / "validation.csv"), "--model"]
    with subprocess.Popen(
        [*command, str(tmp_path), "--epochs", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        deadline = time.monotonic() + 120
        for line in job.stdout:
            assert time.monotonic() < deadline
            if line.startswith("Epoch "):
                break
        job.send_signal(signal.SIGINT)
        rest, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert "because it was asked to stop" in rest
    assert json.loads((tmp_path / "manifest.json").read_text())["training"]["ended"] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "--model", "m"), "cannot read nowhere"),
        (("train", "--model", "m", "--epochs", "no"), "epochs='no' is not a whole number"),
        (("train", "--model", "m", "--saved-epoch", "best"), "saved_epoch=best compares epochs by their validation"),
        (("train", "validation.parquet", "--model", "m"), "the files are of several formats"),
        (("empty", "--model", "m"), "empty has no files with log-ins"),
        (("train", "--model", "file"), "file"),
        (("train", "--from", "empty", "--model", "m"), "empty"),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(
    log_ins: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "train").symlink_to(log_ins / "train")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "validation.parquet").touch()
    result = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("ipinsights: ")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "m" / "manifest.json").exists()


def test_every_hyperparameter_is_an_option() -> None:
    text = run("--help").stdout
    for declaration in declarations():
        assert f"--{declaration.name.replace('_', '-')} " in text
