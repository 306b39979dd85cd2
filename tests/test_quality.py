"""The model against counting on real data, as `python -m benchmarks.quality` measures it; one seed of each."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import calibration, contenders, datasets, quality
from benchmarks.ranking import Task
from ipinsights.data.addresses import IPV4, IPV6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (datasets.TOR.exists() and datasets.TOR_IPV6.exists() and datasets.RANGES.exists()),
        reason=f"the real data is not at {datasets.FOLDER} (see IPINSIGHTS_DATA)",
    ),
]


def test_on_networks_of_later_months_the_model_beats_counting() -> None:
    task = Task.tor("far", IPV4)
    model = task.measure(contenders.model(datasets.TOR_HYPERPARAMETERS), 0).mean()
    assert model > 0.975
    for name, baseline in contenders.BASELINES.items():
        assert model > task.measure(baseline, 0).mean(), name
    with_networks = task.measure(contenders.model(datasets.TOR_HYPERPARAMETERS, contenders.networks()), 0).mean()
    assert with_networks > model + 0.003


def test_ipv6_is_as_good_as_ipv4() -> None:
    task = Task.tor("validation", IPV6)
    model = task.measure(contenders.model(datasets.TOR_HYPERPARAMETERS), 0).mean()
    assert model > 0.97
    assert model > task.measure(contenders.BASELINES["longest shared prefix"], 0).mean()


def test_the_documented_defaults_do() -> None:
    assert Task.tor("validation", IPV4).measure(contenders.model({"vector_dim": 64}), 0).mean() > 0.98


def test_several_ranks_learn_what_one_learns() -> None:
    rows = scaled("--quality", "--ranks", "1", "2", "--splits", "far")
    assert [row[:2] for row in rows] == [["far", "1"], ["far", "2"]]
    one, two = (float(row[2]) for row in rows)
    assert two == pytest.approx(one, abs=0.003)


def test_the_speed_of_several_ranks_is_compared() -> None:
    rows = scaled("--users", "60", "--ranks", "1", "2", "--rounds", "1", "--epochs", "2", "--batch", "500")
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)


def scaled(*options: str) -> list[list[str]]:
    """The cells that `benchmarks.scaling` prints, run as a process since it starts others."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *options],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()[2:]]


def test_only_rows_of_the_model_are_ahead_of_a_baseline() -> None:
    lines = quality.tor_table("validation", IPV6, [0]).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:] if line.startswith("|")]
    assert [row[0] for row in rows] == [*quality.tor_rows(IPV6)]
    means = {row[0]: float(row[1]) for row in rows}
    best = max(means[name] for name in contenders.BASELINES)
    for name, mean, *_, ahead in rows:
        assert bool(ahead) == ("model" in name)
        if ahead:
            assert float(ahead.split()[0]) == pytest.approx(float(mean) - best, abs=0.0002)


def test_the_table_has_a_row_a_contender(capsys: pytest.CaptureFixture[str]) -> None:
    quality.main(["--tutorial", "--users", "60"])
    printed = capsys.readouterr().out
    for name in (*contenders.BASELINES, "model"):
        assert f"{name}" in printed


def test_whether_calibration_keeps_its_promise_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Small; with the Tor relays where they are."""
    with patch.object(sys, "argv", ["calibration", "--users", "40", "--seeds", "1"]):
        calibration.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| share with a percentile of at most | calibrated by |")
    assert lines[2].startswith("| tutorial: later log-ins |")
    assert {line.count("|") for line in lines} == {6}
    for line in lines[2:]:
        shares = [float(cell.strip(" %")) for cell in line.split("|")[3:6]]
        assert 0 <= shares[2] <= shares[1] <= shares[0] < 60
