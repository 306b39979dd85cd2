"""``ipinsights tune`` and ``train --mlflow``, as a person at a shell calls them, and the model that MLflow loads."""

import importlib.util
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from conftest import Traffic, to_csv, to_events
from ipinsights.commands import tune
from ipinsights.data.events import Events
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters, declarations
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker import tuner
from ipinsights.training.progress import EpochSummary
from ipinsights.tuning.space import Range, ranges
from ipinsights.tuning.trials import measure
from ipinsights.tuning.worker import Failed, Need, Work, Worker

COMMAND = [sys.executable, "-c", "from ipinsights.sagemaker.commands import main; main()"]
SEARCH = ("--tune", "vector_dim=4:16", "--tune", "learning_rate", "--epochs", "2", "--jobs", "2")
ABSENT = [name for name in ("optuna", "mlflow", "sqlalchemy", "alembic") if not importlib.util.find_spec(name)]

installed = pytest.mark.skipif(bool(ABSENT), reason=f"the extra `tune` is not installed: {', '.join(ABSENT)}")


def run(*arguments: str | Path, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def states(folder: Path) -> list[str]:
    """Of the trials of a study, in their order."""
    return [state for (state,) in rows(folder / "study.db", "select state from trials order by number")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, traffic: Traffic) -> Path:
    folder = tmp_path_factory.mktemp("log-ins")
    (folder / "train.csv").write_text(to_csv(traffic.train))
    (folder / "validation.csv").write_text(to_csv(traffic.normal))
    return folder


@pytest.fixture(scope="module")
def search(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a search of three trials, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    found = run("tune", data / "train.csv", "--validation", data / "validation.csv", "--out", folder / "out", *SEARCH,
                "--trials", "3")  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    yield folder / "out", found.stdout
    shutil.rmtree(folder)


def search_in(folder: Path, data: Path) -> list[str | Path]:
    """The arguments of a search that MLflow does not record."""
    return ["tune", data / "train.csv", "--validation", data / "validation.csv", "--out", folder, "--no-mlflow"]


@installed
@pytest.mark.slow
def test_the_best_model_is_kept_as_train_writes_it(search: tuple[Path, str], traffic: Traffic) -> None:
    folder, printed = search
    assert states(folder) == ["COMPLETE"] * 3
    values = rows(folder / "study.db", "select value from trial_values")
    model, manifest = artifact.read(folder / "model")
    assert manifest["metrics"]["discriminator_auc"] == max(values)[0]
    assert manifest["training"]["epochs"] == 2
    assert Scorer(model).score(traffic.normal).mean() > Scorer(model).score(traffic.attacks).mean()
    assert sorted(path.name for path in folder.iterdir()) == [
        *("history.html", "importance.html", "mlflow-models", "mlflow.db", "model", "study.db")
    ]
    best = re.search(r"^Best of 3: trial (\d) with discriminator_auc (\S+)", printed, re.MULTILINE)
    assert best
    assert float(best[2].rstrip(";")) == pytest.approx(max(values)[0], abs=1e-5)
    chosen = re.search(r"--vector-dim (\d+) --learning-rate (\S+)$", printed, re.MULTILINE)
    assert chosen
    assert int(chosen[1]) == model.vector_dim
    assert float(chosen[2]) == pytest.approx(manifest["hyperparameters"]["learning_rate"], rel=1e-5)


@installed
@pytest.mark.slow
def test_the_first_trial_is_a_plain_training(search: tuple[Path, str]) -> None:
    first = rows(
        search[0] / "study.db",
        "select param_name, param_value from trial_params join trials using (trial_id) where number = 0",
    )
    assert dict(first) == {"vector_dim": 16, "learning_rate": pytest.approx(0.03)}  # 64 lies beyond the range


@installed
@pytest.mark.slow
def test_every_trial_is_a_run_with_its_parameters_metrics_and_model(search: tuple[Path, str]) -> None:
    folder = search[0]
    runs = rows(folder / "mlflow.db", "select name, status, run_uuid from runs order by name")
    assert [(name, status) for name, status, _ in runs] == [(f"trial {n}", "FINISHED") for n in range(3)]
    for _, _, run_id in runs:
        told = f"where run_uuid = '{run_id}'"
        parameters = dict(rows(folder / "mlflow.db", f"select key, value from params {told}"))
        assert {declaration.name for declaration in declarations()} == set(parameters)
        steps = rows(
            folder / "mlflow.db", f"select step from metrics {told} and key = 'discriminator_auc' order by step"
        )
        assert steps == [(1,), (2,)]
    models = list((folder / "mlflow-models").rglob("MLmodel"))
    assert len(models) == 3
    best = (folder / "model" / "model.safetensors").read_bytes()
    assert best in [path.read_bytes() for path in (folder / "mlflow-models").rglob("model.safetensors")]


@installed
@pytest.mark.slow
def test_mlflow_loads_and_scores_the_model(search: tuple[Path, str], tmp_path: Path) -> None:
    folder = next((search[0] / "mlflow-models").rglob("MLmodel")).parent
    (tmp_path / "in.csv").write_text("entity,ip\nuser_3,1.2.3.4\nnobody,1.2.3.4\nuser_3,nowhere\n")
    command = ["predict", "--env-manager", "local", "-m", str(folder), "-i", "in.csv", "-t", "csv", "-o", "out.json"]
    predicted = subprocess.run(
        [sys.executable, "-m", "mlflow", "models", *command],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    answers = json.loads((tmp_path / "out.json").read_text())["predictions"]
    scorer = Scorer.open(next(folder.rglob("manifest.json")).parent)
    assert [answer["known"] for answer in answers] == [True, False, False]
    score = scorer.score_columns(["user_3"], ["1.2.3.4"])[0]
    assert answers[0]["dot_product"] == pytest.approx(score)
    assert answers[0]["percentile"] == pytest.approx(scorer.percentile_columns(["user_3"], ["1.2.3.4"])[0])
    assert answers[2]["dot_product"] != answers[2]["dot_product"]


@installed
@pytest.mark.slow
def test_the_pictures_need_no_network(search: tuple[Path, str]) -> None:
    for name, title in (("history", "How the search went"), ("importance", "Which settings mattered")):
        page = (search[0] / f"{name}.html").read_text()
        assert title in page
        assert not re.search(r'<(script|link)[^>]*(src|href)="http', page)


@installed
@pytest.mark.slow
def test_a_search_goes_on_and_refuses_other_data(search: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(search[0], folder)
    arguments = search_in(folder, data)
    more = run(*arguments, *SEARCH, "--trials", "4")
    assert more.returncode == 0, more.stderr
    assert f"Going on with the search in {folder}: 3 of 4 trials have ended" in more.stdout
    assert len(states(folder)) == 4
    enough = run(*arguments, *SEARCH, "--trials", "4")
    assert "4 of 4 trials have ended" in enough.stdout
    assert len(states(folder)) == 4
    other = run(*arguments, *SEARCH, "--trials", "5", "--epochs", "3")
    assert other.returncode == 1
    assert other.stderr == f"ipinsights: the search in {folder} has other hyperparameters: name another folder\n"


@installed
@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is(data: Path, tmp_path: Path) -> None:
    arguments = search_in(tmp_path, data)
    endless = [*COMMAND, *map(str, arguments), "--tune", "learning_rate", "--jobs", "1", "--trials", "100"]
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        deadline = time.monotonic() + 300
        for line in job.stdout:
            assert time.monotonic() < deadline
            if line.startswith("Trial "):
                break
        refused = run(*arguments, "--tune", "learning_rate")
        job.send_signal(signal.SIGINT)
        rest, errors = job.communicate(timeout=300)
    assert f"another search is at work in {tmp_path}" in refused.stderr
    assert job.returncode == 0, errors
    assert errors == ""
    told = re.search(r"^Stopped after (\d+) of 100 trials. They are kept in", rest, re.MULTILINE)
    assert told
    assert states(tmp_path).count("FAIL") <= 1  # what was broken off waits to be tried again
    assert states(tmp_path).count("FAIL") == states(tmp_path).count("WAITING")
    assert artifact.load(tmp_path / "model").vector_dim == 64
    assert not list(tmp_path.glob(".trial-*"))


@installed
@pytest.mark.slow
def test_a_training_below_the_median_is_given_up(data: Path, tmp_path: Path) -> None:
    found = run(
        *("tune", data / "train.csv", "--validation", data / "validation.csv", "--out", tmp_path, "--no-mlflow"),
        *("--tune", "learning_rate=0.000001:0.1", "--epochs", "4", "--vector-dim", "4", "--jobs", "1"),
        *("--trials", "12", "--objective", "mean"),
    )
    assert found.returncode == 0, found.stderr
    assert "given up after" in found.stdout
    assert "because its validation is below the median of the others'" in found.stdout
    assert "PRUNED" in states(tmp_path)
    assert len([state for state in states(tmp_path) if state in ("PRUNED", "COMPLETE")]) == 12


@installed
@pytest.mark.slow
def test_one_training_is_a_run(data: Path, tmp_path: Path) -> None:
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    validation = ("--validation", data / "validation.csv")
    arguments = (*validation, "--model", tmp_path / "m", "--epochs", "1", "--vector-dim", "4", "--mlflow", tracking)
    trained = subprocess.run(
        [*COMMAND, "train", str(data / "train.csv"), *map(str, arguments)],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    (name, status), = rows(tmp_path / "mlflow.db", "select name, status from runs")  # fmt: skip
    assert (name, status) == ("train", "FINISHED")
    assert f"at {tracking}" in trained.stdout
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    (value,), = rows(tmp_path / "mlflow.db", "select value from metrics where key = 'discriminator_auc'")  # fmt: skip
    assert value == manifest["metrics"]["discriminator_auc"]
    assert len(list(tmp_path.rglob("MLmodel"))) == 1


@installed
def test_what_is_missing_is_told_with_the_command_that_installs_it(data: Path, tmp_path: Path) -> None:
    for hidden, arguments, library in (
        ("optuna", ["tune", "--out", "out"], "`ipinsights tune` needs Optuna"),
        ("mlflow", ["tune", "--out", "out"], "tracking needs MLflow"),
        ("mlflow", ["train", "--model", "m", "--mlflow"], "tracking needs MLflow"),
    ):
        hide = f"import sys; sys.modules[{hidden!r}] = None; "
        command = [sys.executable, "-c", hide + COMMAND[-1], *arguments]
        inputs = [str(data / "train.csv"), "--validation", str(data / "validation.csv")]
        found = subprocess.run(
            [*command[:4], *inputs, *arguments[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert found.returncode == 1
        assert found.stderr == f"ipinsights: {library}: pip install 'ipinsights[tune]'\n"


def test_the_ranges_are_those_that_are_declared() -> None:
    declared = {d.name: d for d in declarations() if d.tuning and d.name not in ("num_entity_vectors", "epochs")}
    found = {range_.name: range_ for range_ in ranges([], {"epochs"})}
    assert found.keys() == declared.keys()
    for name, range_ in found.items():
        assert (range_.low, range_.high) == declared[name].tuning
        assert range_.whole == (declared[name].type is int)
    assert found["learning_rate"].logarithmic
    assert not found["weight_decay"].logarithmic  # it begins at 0
    assert ranges(["weight-decay=1e-6:0.1"], {}) == [Range("weight_decay", 1e-6, 0.1, whole=False, logarithmic=True)]


@pytest.mark.parametrize(
    ("asked", "fixed", "said"),
    [
        (["vector_dims"], [], "did you mean 'vector_dim'"),
        (["seed"], [], "'seed' cannot be tuned"),
        (["num_entity_vectors"], [], "is not tuned, because no value is better"),
        (["vector_dim"], ["vector_dim"], "leave one of them out"),
        (["vector_dim", "vector_dim=4:8"], [], "twice"),
        (["vector_dim=8"], [], "two numbers with a colon"),
        (["vector_dim=8:x"], [], "vector_dim='x' is not a whole number"),
        (["vector_dim=8:5000"], [], "out of range"),
        (["vector_dim=9:8"], [], "ends before it begins"),
        ([], [d.name for d in declarations()], "leave one out"),
    ],
)
def test_a_range_that_cannot_be_is_refused(asked: list[str], fixed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        ranges(asked, fixed)


def test_the_objective_is_a_metric_or_the_mean_of_two() -> None:
    metrics = {"discriminator_auc": 0.9, "shuffled_auc": 0.7, "accuracy": 0.1}
    assert measure(metrics, "discriminator_auc") == 0.9
    assert measure(metrics, "mean") == pytest.approx(0.8)
    with pytest.raises(UserError, match="do not tell shuffled_auc"):
        measure({**metrics, "shuffled_auc": None}, "shuffled_auc")


def test_the_code_for_sagemaker_asks_its_sdk_for_the_same_search() -> None:
    asked = ranges(["vector_dim=64:1024", "learning_rate", "weight_decay"], {})
    code = tuner.code(asked, {"num_entity_vectors": 20_000, "epochs": 5}, "shuffled_auc", 20, 4)
    sdk = {
        "sagemaker.core.parameter": ("ContinuousParameter", "IntegerParameter"),
        "sagemaker.train": ("ModelTrainer",),
        "sagemaker.train.configs": ("Compute", "InputData"),
        "sagemaker.train.tuner": ("HyperparameterTuner",),
    }
    modules = {name: types.ModuleType(name) for name in ("sagemaker", "sagemaker.core", *sdk)}
    called = mock.Mock()
    for name, classes in sdk.items():
        for class_ in classes:
            setattr(modules[name], class_, getattr(called, class_))
    with mock.patch.dict(sys.modules, modules):
        exec(code, {})
    trainer, tuning = called.ModelTrainer.call_args.kwargs, called.HyperparameterTuner.call_args.kwargs
    assert called.HyperparameterTuner.call_args.args == (called.ModelTrainer.return_value,)
    assert trainer["hyperparameters"] == {"num_entity_vectors": 20_000, "epochs": 5}
    assert called.IntegerParameter.mock_calls[0] == mock.call(64, 1024, scaling_type="Logarithmic")
    assert called.ContinuousParameter.mock_calls == [
        mock.call(0.0001, 0.1, scaling_type="Logarithmic"),
        mock.call(0.0, 1.0, scaling_type="Linear"),
    ]
    assert set(tuning["hyperparameter_ranges"]) == {"vector_dim", "learning_rate", "weight_decay"}
    (metric,) = tuning["metric_definitions"]
    assert tuning["objective_metric_name"] == metric["Name"] == "validation:shuffled_auc"
    line = "#quality_metric: host=algo-1, epoch=3, validation shuffled_auc <score>=0.75"
    assert re.search(metric["Regex"], line)[1] == "0.75"  # type: ignore[index]
    assert (tuning["objective_type"], tuning["max_jobs"], tuning["max_parallel_jobs"]) == ("Maximize", 20, 4)
    channels = [call.kwargs["channel_name"] for call in called.InputData.mock_calls]
    assert channels == ["train", "validation"]
    assert called.HyperparameterTuner.return_value.tune.call_count == 1
    assert max(map(len, code.splitlines())) < 160


@pytest.fixture(scope="module")
def work(traffic: Traffic) -> Work:
    train = to_events(traffic.train, 400)
    validation = Events(train.index.find(traffic.normal.entities), traffic.normal.addresses, train.index)
    return Work(train, validation, None)


@pytest.mark.slow
def test_as_many_trainings_as_fit_into_the_memory(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    hp = Hyperparameters(num_entity_vectors=400, vector_dim=8)
    asked = ranges(["vector_dim=8:4096"], [])
    needed: list[int] = []

    def need(self: Worker, hyperparameters: Hyperparameters, need: Callable[..., Need] = Worker.need) -> Need:
        assert hyperparameters.vector_dim == 4096
        needed.append(need(self, hyperparameters).memory)
        return Need(needed[-1], "cpu", hyperparameters)

    monkeypatch.setattr(Worker, "need", need)
    monkeypatch.setattr(tune, "usable_cores", lambda: 8)
    for room, jobs in ((0, 1), (10**15, 8)):
        monkeypatch.setattr(tune, "available_memory", lambda room=room: room)
        assert tune._affordable(work, hp, asked, 10) == jobs
    assert needed[0] > 4 * 4096 * 400  # the table, and more
    monkeypatch.setattr(tune, "available_memory", lambda: 3 * needed[0] + needed[0] // 2)
    assert tune._affordable(work, hp, asked, 10) == 3


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_training_that_failed(work: Work, tmp_path: Path) -> None:
    worker = Worker(work, threads=1)
    try:
        worker.train(Hyperparameters(num_entity_vectors=400, vector_dim=8, epochs=1000), tmp_path / "m")
        assert isinstance(worker.hear(), EpochSummary)
        os.kill(worker.pid, signal.SIGKILL)
        worker.go_on(True)
        assert worker.hear() == Failed("its process was ended by signal 9, perhaps for want of memory")
        assert not worker.alive
    finally:
        worker.end()
