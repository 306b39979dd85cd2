"""``ipinsights report`` and the page of ``ipinsights evaluate`` as people call them."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Traffic, Tree, to_csv

pytestmark = pytest.mark.slow


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ipinsights.commands.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def log_ins(traffic: Traffic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log-ins") / "later.csv"
    path.write_text(to_csv(traffic.normal))
    return path


@pytest.mark.parametrize(("command", "title"), [("report", "Log-in report"), ("evaluate", "Evaluation")])
def test_a_page_is_written(
    command: str, title: str, trained: tuple[Tree, object], log_ins: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    train = trained[0].base / "input" / "data" / "train"
    result = run(command, log_ins, "--model", trained[0].model, "--train", train, "--out", out)
    assert result.returncode == 0, result.stderr
    text = out.read_text()
    assert f"<h1>{title}</h1>" in text
    assert "<dt>log-ins</dt><dd>2,000</dd>" in text
    assert "longest shared prefix" in text
    assert "Does the model keep its promises?" in text
    assert "What the model learnt from" in text
    assert ("This morning&#39;s list" in text) == (command == "report")
    if command == "report":
        assert result.stdout == f"{out}: 2,000 log-ins, {out.stat().st_size / 1e6:.1f} MB\n"


def test_a_page_that_cannot_be_written_is_told(trained: tuple[Tree, object], log_ins: Path, tmp_path: Path) -> None:
    for command in ("report", "evaluate"):
        result = run(command, log_ins, "--model", trained[0].model, "--out", tmp_path / "no" / "page.html")
        assert result.returncode == 1
        assert f"cannot write {tmp_path / 'no' / 'page.html'}: No such file or directory" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_command_that_writes_no_page_loads_no_library_for_it() -> None:
    heavy = {"plotly", "jinja2", "sklearn", "torch"}
    code = f"import sys; from ipinsights.commands import main; print({heavy} & {{*sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "set()\n"
