"""``ipinsights evaluate`` as people call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Traffic, Tree, to_csv

pytestmark = pytest.mark.slow


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ipinsights.commands.main import main; main()", "evaluate"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def files(traffic: Traffic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    lines = to_csv(traffic.normal).splitlines() + ["stranger,192.0.2.1"] * 3
    (folder / "plain.csv").write_text("\n".join(lines))
    times = (f"2026-01-{2 + n * 3 // len(lines):02}T12:00:00Z" for n in range(len(lines)))
    (folder / "timed.csv").write_text("".join(f"{line},{time}\n" for line, time in zip(lines, times, strict=True)))
    (folder / "attacks.csv").write_text(to_csv(traffic.attacks))
    (folder / "networks.tsv").write_text("0.0.0.0\t127.255.255.255\t7\tUS\n128.0.0.0\t223.255.255.255\t9\tDE\n")
    (folder / "train").mkdir()
    (folder / "train" / "part.csv").write_text(to_csv(traffic.train))
    return folder


def test_everything_stands_in_one_table(trained: tuple[Tree, object], files: Path) -> None:
    options = ["--train", files / "train", "--attacks", files / "attacks.csv", "--networks", files / "networks.tsv"]
    result = run("--model", trained[0].model, files / "timed.csv", *options, "--budget", 20, "--sweep")
    assert result.returncode == 0, result.stderr
    head, unknown, a_day, title, *rest = result.stdout.splitlines()
    assert "2,000 log-ins of " in head
    assert " in 2.0 days, flagged below a score of " in head
    assert unknown.startswith("Not compared: 3 log-ins of 1 entity that the model does not know")
    assert a_day == "40 log-ins are flagged, 20.0 a day"
    assert title.split() == ["against", "by", "AUC", "95", "%", "AP", "95", "%", "precision", "recall", "F1", "FPR"]
    for kind in ("random addresses", "other entities' addresses", "same provider or country", "labelled attacks"):
        assert [line[28:52].strip() for line in rest if line.startswith(kind)][:3] == [
            "model",
            "longest shared prefix",
            "counting",
        ]
        assert f"{kind}, by threshold" in rest
    assert "Baselines" not in result.stdout


def test_json_has_the_documented_keys(trained: tuple[Tree, object], files: Path) -> None:
    result = run("--model", trained[0].model, files / "plain.csv", "--json", "--max-false-alarms", 0.01)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    documented = (Path(__file__).parents[2] / "docs" / "judging.md").read_text()
    keys = {*found, *found["threshold"], *found["comparisons"][0], *found["sweep"]["random addresses"][0]}
    assert [key for key in keys | {*found["promises"][0], *found["unknown"]} if f"`{key}`" not in documented] == []
    assert found["unknown"] == {"log_ins": 3, "entities": 1, "attacks": 0}
    assert found["threshold"]["chosen_by"] == "max_false_alarms"
    assert found["false_alarms"] == 20
    assert found["days"] is found["false_alarms_a_day"] is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--budget", "20"], "a budget of alerts a day needs to know the days: give each log-in a time"),
        (["--attacks", "/nowhere"], "cannot read /nowhere"),
        (["--train", "/nowhere"], "cannot read /nowhere"),
        (["--networks", "/nowhere"], "/nowhere: not a table of networks"),
        (["--budget", "0"], "'0' is not a number above 0"),
        (["--budget", "many"], "'many' is not a number"),
        (["--threshold", "nan"], "'nan' is not a number"),
        (["--max-false-alarms", "2"], "'2' is not a share from 0 to 1"),
        (["--budget", "1", "--threshold", "1"], "not allowed with argument"),
    ],
)
def test_a_fault_is_told_in_a_sentence(
    options: list[str], complaint: str, trained: tuple[Tree, object], files: Path
) -> None:
    result = run("--model", trained[0].model, files / "plain.csv", *options)
    assert result.returncode != 0
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_accounts_that_the_model_does_not_know_are_taken_where_asked_for(
    trained: tuple[Tree, object], tmp_path: Path
) -> None:
    (tmp_path / "strangers.csv").write_text("".join(f"stranger {n},192.0.2.{n}\n" for n in range(20)))
    refused = run("--model", trained[0].model, tmp_path / "strangers.csv")
    assert refused.returncode == 1
    assert "the model knows none of the 20 accounts of these 20 log-ins" in refused.stderr
    taken = run("--model", trained[0].model, tmp_path / "strangers.csv", "--all")
    assert taken.returncode == 0
    assert taken.stdout.startswith("20 log-ins of 20 entities, flagged below a score of 0\n")
