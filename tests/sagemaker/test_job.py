"""`train` as the platform runs it: a process on an /opt/ml tree."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from conftest import SMALL, Traffic, Tree, to_csv
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

Trained = tuple[Tree, "subprocess.CompletedProcess[str]"]

# The expressions that the built-in registers, from the MetricDefinitions that DescribeTrainingJob returns for it.
_EPOCH = r"#quality_metric: host=\S+, epoch=\S+, "
_BATCH = _EPOCH + r"batch=\S+ "
_TRAIN = r"train binary_classification_"
BUILT_IN = {
    "train:binary_classification_accuracy": _BATCH + _TRAIN + r"accuracy <score>=(\S+)",
    "train:binary_classification_cross_entropy": _BATCH + _TRAIN + r"cross_entropy <loss>=(\S+)",
    "train:binary_classification_accuracy:epoch": _EPOCH + _TRAIN + r"accuracy <score>=(\S+)",
    "train:binary_classification_cross_entropy:epoch": _EPOCH + _TRAIN + r"cross_entropy <loss>=(\S+)",
    "validation:discriminator_auc": _EPOCH + r"validation discriminator_auc <score>=(\S+)",
    "train:progress": r"#progress_metric: host=\S+, completed (\S+) %",
    "train:throughput": r"#throughput_metric: host=\S+, train throughput=(\S+) records/second",
}


def test_the_artifact_holds_hyperparameters_facts_and_metrics(trained: Trained, traffic: Traffic) -> None:
    manifest = json.loads((trained[0].model / "manifest.json").read_text())
    assert manifest["hyperparameters"]["vector_dim"] == 16
    assert manifest["training"]["events"] == len(traffic.train)
    assert 0.5 < manifest["metrics"]["discriminator_auc"] <= 1
    assert sorted(path.name for path in trained[0].model.iterdir()) == ["manifest.json", "model.safetensors"]
    assert not trained[0].failure.exists()


def test_metric_definitions_are_the_built_ins() -> None:
    ours = {"validation:shuffled_auc": _EPOCH + r"validation shuffled_auc <score>=(\S+)"}
    assert BUILT_IN | ours == METRIC_DEFINITIONS


def test_every_expression_reads_its_values_back(trained: Trained, traffic: Traffic) -> None:
    found = {name: re.findall(pattern, trained[1].stdout) for name, pattern in METRIC_DEFINITIONS.items()}
    epochs, interval = int(SMALL["epochs"]), 20
    batches = 3 * -(-len(traffic.train) // int(SMALL["mini_batch_size"]))
    prints = epochs * len(range(0, batches, interval))
    assert {name: len(values) for name, values in found.items()} == {
        "train:binary_classification_accuracy": prints,
        "train:binary_classification_cross_entropy": prints,
        "train:binary_classification_accuracy:epoch": epochs,
        "train:binary_classification_cross_entropy:epoch": epochs,
        "validation:discriminator_auc": epochs,
        "validation:shuffled_auc": epochs,
        "train:progress": epochs,
        "train:throughput": epochs,
    }
    values = {name: [float(value) for value in texts] for name, texts in found.items()}
    assert values["train:progress"] == [50.0, 100.0]
    assert all(0 <= value <= 1 for name in values if "accuracy" in name or "auc" in name for value in values[name])


def test_lines_have_the_built_ins_form(trained: Trained) -> None:
    assert trained[1].stdout.startswith("Docker entrypoint called with argument(s): train\n")
    prefix = r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d (INFO|WARNING) \d+\] "
    lines = trained[1].stdout.split("\n")
    for number, line in enumerate(lines):
        if line.startswith("#metrics "):
            document = json.loads(line.removeprefix("#metrics "))
            assert document["Dimensions"]["Algorithm"] == "ipinsights"
            assert document["EndTime"] >= document["StartTime"]
            assert lines[number + 1] == ""
        elif line and number:
            assert re.match(prefix, line), line
    text = trained[1].stdout
    for pattern in (
        r"Epoch\[0\] Batch \[20\]\tSpeed: [\d.]+ samples/sec\tbinary_classification_accuracy=0\.\d{6}\tbinary_",
        r"Epoch\[1\] Train-binary_classification_accuracy=[\d.]+\n",
        r"Epoch\[1\] Time cost=[\d.]+\n",
        r'"initialize.time": .*"init_train_data_iter": ',
        r'"epoch": 1, "Meta": "training_data_iter"}, "Metrics": {"Total Records Seen"',
        r'"finalize.time"',
        r'"setuptime": .*"totaltime": ',
    ):
        assert re.search(pattern, text), pattern
    assert trained[1].stderr == ""  # no progress bar where nobody watches


@pytest.fixture
def ready(tree: Tree) -> Tree:
    """A tree with a small job that would succeed."""
    tree.configure(SMALL)
    tree.channel("train", **{"a.csv": "u,1.2.3.4\nv,5.6.7.8\n" * 50})
    return tree


def fails(tree: Tree, *parts: str) -> None:
    """The job ends as the user's fault, and the failure file says why."""
    job = tree.train()
    assert job.returncode == 1, job.stdout
    text = tree.failure.read_text()
    assert text.startswith("ClientError: ")
    assert len(text) <= 1024
    for part in parts:
        assert part in text
    assert "Traceback" not in job.stdout + job.stderr
    assert text in job.stdout  # the log says the same
    assert not (tree.model / "manifest.json").exists()


def test_a_job_without_validation_says_so(ready: Tree) -> None:
    job = ready.train()
    assert job.returncode == 0
    assert "Test data is not provided." in job.stdout
    assert "discriminator_auc" not in job.stdout


def test_a_malformed_row_stops_the_job(ready: Tree) -> None:
    ready.channel("train", **{"nested__b.csv": "u,1.2.3.4\n" * 632 + '3769,"37.244.105.230, 165.225.16.83"\n'})
    fails(ready, "nested/b.csv, line 633: ", "37.244.105.230, 165.225.16.83")


def test_faulty_hyperparameters_stop_the_job_together(ready: Tree) -> None:
    ready.configure({"vector_dim": "2", "epoch": "3"})
    fails(ready, "vector_dim=2 is out of range", "did you mean 'epochs'", "num_entity_vectors is required")


def test_what_the_platform_leaves_out_may_be_left_out(ready: Tree) -> None:
    ready.configure(
        {**SMALL, "_tuning_objective_metric": "validation:discriminator_auc", "sagemaker_region": '"eu-west-1"'},
        inputdataconfig={"train": {"TrainingInputMode": "File", "ContentType": "text/csv;label_size=0"}},
        resourceconfig={"current_host": "algo-7", "hosts": ["algo-7"], "network_interface_name": "eth0"},
    )
    job = ready.train()
    assert job.returncode == 0
    assert "host=algo-7" in job.stdout


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ({"inputdataconfig": {"train": {"ContentType": "application/x-recordio"}}}, "it must be text/csv"),
        ({"inputdataconfig": {"train": {"ContentType": "csv"}}}, "has content type 'csv'; it must be text/csv"),
        ({"inputdataconfig": {"train": {"TrainingInputMode": "Pipe"}}}, "Pipe mode"),
        ({"resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}}, "several hosts"),
    ],
)
def test_what_is_not_supported_is_told(ready: Tree, others: dict[str, object], complaint: str) -> None:
    ready.configure(SMALL, **others)
    fails(ready, complaint)


def test_missing_input_is_told(tree: Tree) -> None:
    fails(tree, "hyperparameters.json is missing")
    tree.configure(SMALL)
    fails(tree, "channel 'train' has no data")
    tree.channel("train", **{"a.csv": "\n\n"})
    fails(tree, "channel 'train' holds no rows")
    tree.channel("train", **{"a.csv": "u,1.2.3.4\n"})
    tree.channel("validation", **{"a.csv": "\n\n"})
    fails(tree, "channel 'validation' holds no rows")


def test_a_validation_channel_that_was_promised_is_not_done_without(ready: Tree) -> None:
    ready.configure(SMALL, inputdataconfig={"train": {}, "validation": {"TrainingInputMode": "File"}})
    fails(ready, "channel 'validation' has no data")


def test_a_fault_of_ours_is_told_apart(ready: Tree) -> None:
    ready.model.parent.mkdir(parents=True, exist_ok=True)
    ready.model.write_text("a file where the model's folder should be")
    job = ready.train()
    assert job.returncode == 1
    assert ready.failure.read_text().startswith("AlgorithmError: ")
    assert "Traceback" in job.stdout  # we need it, and it is in the log, not in the failure file
    assert "Traceback" not in ready.failure.read_text()


def test_a_failure_of_an_earlier_run_is_forgotten(ready: Tree) -> None:
    ready.failure.parent.mkdir(parents=True)
    ready.failure.write_text("old")
    assert ready.train().returncode == 0
    assert not ready.failure.exists()


@pytest.mark.parametrize("arguments", [[], ["help"], ["train", "serve"]])
def test_any_other_argument_prints_the_usage(tree: Tree, arguments: list[str]) -> None:
    result = tree.run("ipinsights.sagemaker", *arguments)
    assert result.returncode == 2
    assert "usage: docker run IMAGE {train|serve}" in result.stderr


def test_a_person_at_a_terminal_sees_progress(ready: Tree, traffic: Traffic) -> None:
    ready.channel("train", **{"a.csv": to_csv(traffic.train)})
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 120))
    command = [sys.executable, "-m", "ipinsights.sagemaker", "train"]
    with subprocess.Popen(command, env=ready.environment({}), stdout=its_end, stderr=its_end) as job:
        os.close(its_end)
        shown = ""
        with contextlib.suppress(OSError):  # how a terminal says that the other end has gone
            while part := os.read(terminal, 1 << 16):
                shown += part.decode()
    os.close(terminal)
    assert job.returncode == 0
    assert re.search(r"epoch 2 of 2: +\d+%\|", shown)
    assert "#progress_metric: host=algo-1, completed 100.0 % of epochs" in shown


TOOLKIT = {"SAGEMAKER_TRAINING_MODULE": "ipinsights.sagemaker.job:train"}
PLATFORM = {
    "inputdataconfig": {"train": {"TrainingInputMode": "File"}},
    "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"},
}


@pytest.fixture
def _toolkit() -> None:
    pytest.importorskip("sagemaker_training", reason="the sagemaker-training toolkit is not installed (extra: toolkit)")


@pytest.mark.usefixtures("_toolkit")
def test_it_runs_under_the_training_toolkit(ready: Tree) -> None:
    """The toolkit calls the same function; a failure keeps our failure file and the exit code."""
    ready.configure(SMALL, **PLATFORM)
    job = ready.train(**TOOLKIT)
    assert job.returncode == 0, job.stderr
    assert "Imported framework ipinsights.sagemaker.job" in job.stderr
    assert (ready.model / "manifest.json").exists()
    ready.configure({"vector_dim": "2"}, **PLATFORM)
    job = ready.train(**TOOLKIT)
    assert job.returncode == 1
    assert ready.failure.read_text().startswith("ClientError: Invalid hyperparameters")
    assert "Traceback" not in job.stdout + job.stderr


@pytest.mark.usefixtures("_toolkit")
def test_configuration_that_the_toolkit_cannot_judge_is_ours(ready: Tree) -> None:
    job = ready.train(**TOOLKIT)  # two files missing, as in a tree made by hand
    assert job.returncode == 0
    assert "Imported framework" not in job.stderr
    assert (ready.model / "manifest.json").exists()
    ready.configure(SMALL, **PLATFORM)
    (ready.base / "input" / "config" / "inputdataconfig.json").write_text("{")
    job = ready.train(**TOOLKIT)
    assert job.returncode == 1
    assert ready.failure.read_text().startswith("ClientError: ")
    assert "inputdataconfig.json is not JSON" in ready.failure.read_text()
    assert "Traceback" not in job.stdout + job.stderr


def test_a_file_of_any_name_can_be_told_of(ready: Tree) -> None:
    folder = ready.channel("train")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.csv")).write_text("u,nowhere\n")
    fails(ready, "caf\\udce9.csv, line 1")


def test_what_the_data_made_of_the_defaults_is_logged_with_its_reason(ready: Tree) -> None:
    ready.configure({"num_entity_vectors": "4", "vector_dim": "8"})
    job = ready.train()
    assert job.returncode == 0
    assert re.search(
        r"mini_batch_size is not set: \d+ in place of the default 10000, with which 100 events", job.stdout
    )
    assert re.search(r"learning_rate is not set: 0.03 in place of the default 0.001", job.stdout)
    manifest = json.loads((ready.model / "manifest.json").read_text())
    assert manifest["hyperparameters"]["learning_rate"] == 0.03
    ready.configure(SMALL)
    assert "is not set" not in ready.train().stdout


def test_training_without_shuffled_negatives_is_warned_of(ready: Tree) -> None:
    ready.configure({**SMALL, "shuffled_negative_sampling_rate": "0"})
    assert re.search(r"WARNING .*shuffled_negative_sampling_rate is 0", ready.train().stdout)
    ready.configure(SMALL)
    assert "WARNING" not in ready.train().stdout


def test_what_is_known_of_entities_and_prefixes_is_logged(trained: Trained, ready: Tree) -> None:
    assert "100 entities have a row of their own, of 200 rows" in trained[1].stdout
    assert re.search(r"Known prefixes: [\d,]+ of /8 \(100% of the events\), .* of /24 \(\d+% of the", trained[1].stdout)
    ready.configure({**SMALL, "num_entity_vectors": "1"})
    assert re.search(r"WARNING .* 1 entities found no row of their own and share another's", ready.train().stdout)


def test_a_networks_channel_adds_providers_and_countries(ready: Tree, traffic: Traffic) -> None:
    ready.channel("train", **{"a.csv": to_csv(traffic.train)})
    rows = "".join(f"{i << 24}\t{(i << 24) + 0xFFFFFF}\t{i}\t{'DE' if i % 2 else 'FR'}\tAS{i}\n" for i in range(1, 224))
    ready.channel("networks", **{"ip2asn.tsv": rows})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert "Read 223 networks" in job.stdout
    assert re.search(r"\d+ of provider, 2 of country", job.stdout)
    ready.channel("networks", **{"ip2asn.tsv": "nonsense\n"})
    fails_with = ready.train()
    assert fails_with.returncode == 1
    assert ready.failure.read_text().startswith("ClientError: ")
    assert "ip2asn.tsv" in ready.failure.read_text()


def test_ipv6_is_trained_where_it_is_asked_for(ready: Tree) -> None:
    ready.channel("train", **{"b.csv": "u,2001:db8::1\n"})
    fails(ready, "b.csv, line 1", "ip_version=6")
    ready.configure({**SMALL, "ip_version": "6"})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert json.loads((ready.model / "manifest.json").read_text())["vocabulary"]["ip_version"] == 6
