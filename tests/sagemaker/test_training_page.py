"""The page about the validation channel that a job leaves in /opt/ml/output/data."""

from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, Traffic, Tree, to_csv
from ipinsights.commands.main import main
from ipinsights.data.sources import Pipe
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.sagemaker import page
from ipinsights.sagemaker.configuration import Configuration
from ipinsights.sagemaker.paths import Paths

pytestmark = pytest.mark.slow
MADE = {"IPINSIGHTS_REPORT": ""}


def report(tree: Tree) -> Path:
    return tree.base / "output" / "data" / "report.html"


def test_a_job_writes_the_page_that_the_command_writes(tree: Tree, traffic: Traffic, tmp_path: Path) -> None:
    tree.configure(SMALL | {"malformed_rows": "skip"})
    tree.channel("train", **{"part-0.csv": to_csv(traffic.train), "part-1.csv": "who,what\n"})
    tree.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    job = tree.train(**MADE)
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.splitlines()[-1].endswith(f"Wrote a page about the validation channel to {report(tree)}")
    (tree.base / "input" / "data" / "train" / "part-1.csv").unlink()
    data = tree.base / "input" / "data"
    others = ["--model", str(tree.model), "--train", str(data / "train"), "--out", str(tmp_path / "made.html")]
    main(["report", str(data / "validation"), *others])
    written, expected = report(tree).read_text(), (tmp_path / "made.html").read_text()
    assert "Validation report" in written
    assert written.replace("Validation report", "Log-in report") == expected
    assert "counting" in expected  # the baselines are there


def test_a_job_without_validation_makes_none(tree: Tree, traffic: Traffic) -> None:
    tree.configure(SMALL)
    tree.channel("train", **{"t.csv": to_csv(traffic.train)})
    assert tree.train(**MADE).returncode == 0
    assert not report(tree).exists()


@pytest.fixture
def trained_paths(trained: tuple[Tree, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A base with a trained model, and nothing else, where pages are wanted."""
    monkeypatch.delenv("IPINSIGHTS_REPORT")
    (tmp_path / "model").symlink_to(trained[0].model)
    return Paths(tmp_path)


def job(trained: tuple[Tree, object], **others: Any) -> Configuration:
    data = trained[0].base / "input" / "data"
    files = {"train": [data / "train" / "part-0.csv"], "validation": [data / "validation" / "v.csv"]}
    given: dict[str, Any] = {"hyperparameters": Hyperparameters.parse(SMALL), "networks": None, "model": None}
    return Configuration(**{**given, **files, **others})


def test_the_log_says_why_there_is_none(
    trained: tuple[Tree, object], trained_paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ipinsights")

    def told(events: int = 10, **others: object) -> str:
        caplog.clear()
        page.write(trained_paths, job(trained, **others), 10, events)
        assert not trained_paths.report.exists()
        return caplog.messages[-1]

    assert "it came through a pipe" in told(validation=[Pipe(Path("validation_0"))])
    assert "it is not text/csv" in told(content_types={"validation": "application/jsonlines"})
    assert "1,000,001 log-ins, more than 1,000,000" in told(page.MOST + 1)
    assert "only some of its files" in told(sharded=frozenset({"validation"}))
    gone = told(validation=[Path("gone.csv")])
    assert "gone.csv" in gone
    assert caplog.records[-1].levelname == "WARNING"


def test_a_fault_costs_the_page_and_not_the_job(
    trained: tuple[Tree, object],
    trained_paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of the page")

    monkeypatch.setattr(page, "_write", broken)
    page.write(trained_paths, job(trained), 10, 10)
    assert caplog.records[-1].levelname == "ERROR"
    assert "ZeroDivisionError: of the page" in caplog.text
    assert "The model is saved" in caplog.text


def test_large_training_channels_leave_out_the_baselines(trained: tuple[Tree, object], trained_paths: Paths) -> None:
    page.write(trained_paths, job(trained), page.MOST + 1, 10)
    assert "Baselines (longest shared prefix, counting) are left out" in trained_paths.report.read_text()
