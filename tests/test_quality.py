"""The model against counting on real data, as `python -m benchmarks.quality` measures it; one seed of each."""

import sys
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
