"""`train` as the platform runs it: a process on an /opt/ml tree."""

import ast
import contextlib
import gzip
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from benchmarks.servers import time_limit
from conftest import SMALL, Traffic, Tree, bound, to_csv
from ipinsights.errors import UserError
from ipinsights.sagemaker import channels, reporting
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

pytestmark = pytest.mark.slow

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
    names = ("shuffled_auc", "known_discriminator_auc", "known_shuffled_auc")
    ours = {f"validation:{name}": _EPOCH + rf"validation {name} <score>=(\S+)" for name in names}
    assert BUILT_IN | ours == METRIC_DEFINITIONS


@pytest.mark.parametrize("strangers", [False, True])
def test_every_expression_reads_its_values_back(
    strangers: bool, trained: Trained, trained_with_strangers: Trained, traffic: Traffic
) -> None:
    """Those of known entities alone are printed where others are validated too."""
    log = (trained_with_strangers if strangers else trained)[1].stdout
    assert re.findall(r"(\d+) validation events are of entities that training never saw", log) == ["50"] * strangers
    found = {name: re.findall(pattern, log) for name, pattern in METRIC_DEFINITIONS.items()}
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
        "validation:known_discriminator_auc": epochs * strangers,
        "validation:known_shuffled_auc": epochs * strangers,
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


def test_malformed_rows_are_left_out_where_that_is_asked_for(ready: Tree) -> None:
    """And the rest is trained with as if they had not been there."""
    assert ready.train().returncode == 0
    plain = (ready.model / "model.safetensors").read_bytes()
    ready.channel("train", **{"a.csv": "u,1.2.3.4\nv,5.6.7.8\n-,NULL\n" * 2 + "u,1.2.3.4\nv,5.6.7.8\n" * 48})
    ready.model.joinpath("manifest.json").unlink()
    fails(
        ready,
        "2 of 102 rows of channel 'train' are malformed (all with a placeholder for an address): ",
        "/train/a.csv, line 3: not an IPv4 address: ",
    )
    ready.configure({**SMALL, "malformed_rows": "skip"})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert re.search(
        r"WARNING \d+\] Channel 'train': skipped 2 malformed rows of 102 \(2%\): .*/a\.csv, line 3: .*'-,NULL'; ",
        job.stdout,
    )
    assert "Read 100 training and 0 validation events" in job.stdout
    assert (ready.model / "model.safetensors").read_bytes() == plain


def test_files_that_were_joined_with_their_byte_order_marks_are_read(ready: Tree) -> None:
    ready.channel("train", **{"a.csv": "\ufeffu,1.2.3.4\nv,5.6.7.8\n" * 50})
    ready.channel("validation", **{"v.csv": "\ufeffu,1.2.3.4\n"})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    said = "Read 100 training and 1 validation events, and removed 51 byte order marks from the starts of lines"
    assert said in job.stdout
    assert "2 entities have their own row" in job.stdout


def test_a_name_that_another_program_quoted_otherwise_stops_the_job(ready: Tree) -> None:
    ready.channel("train", **{"b.csv": 'u,1.2.3.4\n"Smith, \\"Bob\\"",1.2.3.4\n'})
    fails(ready, "b.csv, line 2: text behind a closing quote: a quote within a quoted field must be written twice, in")


def test_of_malformed_rows_no_more_are_left_out_than_the_limit_allows(ready: Tree) -> None:
    ready.channel("validation", **{"v.csv": "u,1.2.3.4\n" * 7 + "x\n" * 3})
    ready.configure({**SMALL, "malformed_rows": "skip", "malformed_rows_limit": "0.2"})
    fails(
        ready,
        "3 of 10 rows of channel 'validation' are malformed (all with too few columns), more than "
        "malformed_rows_limit=0.2 allows: ",
    )
    ready.channel("validation", **{"v.csv": "x\n" * 10})
    ready.configure({**SMALL, "malformed_rows": "skip", "malformed_rows_limit": "1"})
    fails(ready, "channel 'validation' has no rows except malformed ones")


def test_rows_without_an_address_are_left_out_apart_from_the_limit_on_damage(ready: Tree) -> None:
    """The model is that of the other rows; and ports are dropped, as the log says."""
    assert ready.train().returncode == 0
    plain = (ready.model / "model.safetensors").read_bytes()
    absent = "u,ec2.amazonaws.com\nu,AWS Internal\nu,-\nu,\n" * 30
    rows = ("u,1.2.3.4:443\nv,::ffff:5.6.7.8\n" + "u,1.2.3.4\nv,5.6.7.8\n") * 25
    ready.channel("train", **{"a.csv": absent + rows + "x\n"})
    ready.model.joinpath("manifest.json").unlink()
    ready.configure({**SMALL, "malformed_rows": "skip"})
    fails(
        ready, "121 of 221 rows", "more than malformed_rows_limit=0.1 allows", "malformed_rows=skip_placeholders skips"
    )
    ready.configure({**SMALL, "malformed_rows": "skip_placeholders", "malformed_rows_limit": "0.01"})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert (
        "Channel 'train': skipped 121 malformed rows of 221 (55%): 60 with a placeholder for an address, 30 with the "
        "name of an AWS service, 30 with an empty address, 1 with too few columns: "
    ) in job.stdout
    assert (
        "Channel 'train': read 25 addresses without the port behind them, and 25 IPv4 addresses written ::ffff:a.b.c.d"
    ) in job.stdout
    assert (ready.model / "model.safetensors").read_bytes() == plain
    ready.configure({**SMALL, "malformed_rows": "skip_placeholders", "malformed_rows_limit": "0"})
    ready.model.joinpath("manifest.json").unlink()
    fails(ready, "1 of 101 rows of channel 'train' is malformed, more than malformed_rows_limit=0 allows, besides 120 ")


@pytest.mark.parametrize("content_type", ["application/jsonlines", "Application/X-Parquet"])
def test_log_ins_are_read_in_the_content_type_that_is_declared(ready: Tree, content_type: str) -> None:
    assert ready.train().returncode == 0
    plain = (ready.model / "model.safetensors").read_bytes()
    rows = [("u", "1.2.3.4"), ("v", "5.6.7.8")] * 50
    data = ready.channel("train", **{"a.csv": ""}) / "a.csv"
    if "json" in content_type:
        data.write_text("".join(json.dumps({"features": row}) + "\n" for row in rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        names, texts = map(list, zip(*rows, strict=True))
        parquet.write_table(pa.table({"user": names, "ip": texts}), data)
    ready.model.joinpath("manifest.json").unlink()
    fails(ready, "train/a.csv of channel 'train' looks like ", f"Declare the content type {content_type.lower()}")
    ready.configure(SMALL, inputdataconfig={"train": {"ContentType": content_type}})
    assert ready.train().returncode == 0
    assert (ready.model / "model.safetensors").read_bytes() == plain


def test_files_may_be_gzip_whatever_their_names(ready: Tree) -> None:
    (ready.channel("train") / "b").write_bytes(gzip.compress(b"w,9.9.9.9\n") + gzip.compress(b"w,9.9.9.8\n"))
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert "Read 102 training" in job.stdout
    (ready.channel("train") / "b").write_bytes(gzip.compress(b"w,9.9.9.9\n")[:-3])
    ready.model.joinpath("manifest.json").unlink()
    fails(ready, "train/b is a truncated or damaged gzip file")


def test_channels_in_pipe_mode_are_read_once_they_come(ready: Tree) -> None:
    """Whose pipes appear when the job waits already. The model is that which the same rows in a file make."""
    ready.channel("validation", **{"v.csv": "u,1.2.3.4\nnew,5.6.7.8\n"})
    plain = ready.train()
    assert plain.returncode == 0
    assert "2 entities have their own row" in plain.stdout  # one that only validation has is unknown
    weights = (ready.model / "model.safetensors").read_bytes()
    rows = {
        name: (ready.channel(name) / file).read_bytes() for name, file in (("train", "a.csv"), ("validation", "v.csv"))
    }
    for name in rows:
        shutil.rmtree(ready.channel(name))
    ready.configure(SMALL, inputdataconfig={name: {"TrainingInputMode": "Pipe"} for name in rows})
    command = [sys.executable, "-m", "ipinsights.sagemaker", "train"]
    shown = []
    with (
        subprocess.Popen(command, env=ready.environment({}), stdout=subprocess.PIPE, text=True) as job,
        time_limit(job, 300),
    ):
        for line in job.stdout or []:
            shown.append(line)
            waiting = re.search("Waiting for data in channel '(.*)' for 0 s", line)
            if waiting:
                pipe = ready.channel(f"{waiting[1]}_0")
                os.mkfifo(pipe)
                packed = gzip.compress(rows[waiting[1]])
                threading.Thread(target=pipe.write_bytes, args=(packed,), daemon=True).start()  # once it is opened
        job.wait()
    assert job.returncode == 0, shown
    assert "".join(shown).count("Waiting for") == 2
    assert "Read 100 training and 2 validation events" in "".join(shown)
    assert (ready.model / "model.safetensors").read_bytes() == weights


def test_a_job_that_waits_for_its_pipe_can_be_stopped(ready: Tree) -> None:
    ready.configure(SMALL, inputdataconfig={"train": {"TrainingInputMode": "Pipe"}})
    os.mkfifo(ready.channel("train_0"))
    command = [sys.executable, "-m", "ipinsights.sagemaker", "train"]
    with (
        subprocess.Popen(command, env=ready.environment({}), stdout=subprocess.PIPE, text=True) as job,
        time_limit(job, 300),
    ):
        for line in job.stdout or []:
            if "Waiting for data" in line:
                job.terminate()
        job.wait()
    assert job.returncode == 0
    assert (ready.model / "manifest.json").exists()


def test_a_channel_is_waited_for_with_reminders_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(logging.getLogger("ipinsights"), "propagate", True)
    caplog.set_level(logging.INFO, "ipinsights")
    with reporting.progress_bar(None, "B", "reading") as bar:
        hear = channels._Reception("train", bar)
        for clock[0] in range(150):
            hear(0)
        assert [record.args for record in caplog.records] == [("train", 0.0), ("train", 60.0), ("train", 120.0)]
        caplog.clear()
        hear(1)  # and from here on anew, but for the first line: a stream may pause
        for clock[0] in range(150, 149 + 15 * 60):
            hear(0)
        assert len(caplog.records) == 14
        clock[0] += 1
        with pytest.raises(UserError, match="channel 'train' delivered no data for 15 minutes"):
            hear(0)


def test_faulty_hyperparameters_stop_the_job_together(ready: Tree) -> None:
    ready.configure({"vector_dim": "2", "epoch": "3"})
    fails(ready, "vector_dim=2 is out of range", "did you mean 'epochs'", "num_entity_vectors is required")


def test_what_the_platform_leaves_out_may_be_left_out(ready: Tree) -> None:
    ready.configure(
        {**SMALL, "_tuning_objective_metric": "validation:discriminator_auc", "sagemaker_region": '"eu-west-1"'},
        inputdataconfig={
            "train": {
                "TrainingInputMode": "FastFile",
                "ContentType": "text/csv;label_size=0",
                "S3DistributionType": "ShardedByS3Key",
                "RecordWrapperType": "None",
            },
            "validation": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"},
        },
        resourceconfig={"current_host": "algo-7", "hosts": ["algo-7"], "network_interface_name": "eth0"},
    )
    ready.channel("validation", **{"v.csv": "u,1.2.3.4\n"})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert "host=algo-7" in job.stdout
    assert "WARNING" not in job.stdout


def test_names_that_people_use_are_taken_with_a_warning(ready: Tree) -> None:
    ready.channel("train").rename(ready.channel("Training"))
    ready.channel("test", **{"a.csv": "no data of ours"})
    ready.configure(SMALL, inputdataconfig={"Training": {"ContentType": "csv"}})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    warnings = re.findall(r"WARNING \d+\] (.*)", job.stdout)
    assert warnings == [
        "There is no channel 'train': channel 'Training' is used instead",
        "Ignored unknown channels: test. The known channels are train, validation, networks, model.",
        "Channel 'Training' has content type 'csv', which is read as text/csv: use that name",
    ]
    ready.channel("train", **{"b.csv": "u,1.2.3.4\n"})
    assert "Ignored unknown channels: Training, test." in ready.train().stdout


def test_capital_letters_in_a_channels_name_do_not_matter(trained: Trained, ready: Tree) -> None:
    ready.channel("train").rename(ready.channel("Train"))
    ready.channel("Validation", **{"v.csv": "u,1.2.3.4\n"})
    shutil.copytree(trained[0].model, ready.channel("MODEL"))
    job = ready.train()
    assert job.returncode == 0, job.stdout
    for use, name in (("train", "Train"), ("validation", "Validation"), ("model", "MODEL")):
        assert f"There is no channel '{use}': channel '{name}' is used instead" in job.stdout
    assert "Read 100 training and 1 validation events" in job.stdout
    assert "Continuing from the model" in job.stdout


def test_a_folder_that_can_only_be_read_is_enough(ready: Tree) -> None:
    folder = ready.channel("train")
    (folder / "a.csv").chmod(0o444)
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("nothing is read-only to this user")
    assert ready.train().returncode == 0
    folder.chmod(0o755)


def test_a_model_channel_that_was_promised_is_not_done_without(ready: Tree) -> None:
    ready.configure(SMALL, inputdataconfig={"model": {"ContentType": "application/x-sagemaker-model"}})
    fails(ready, "channel 'model' has no data: put an earlier model.tar.gz in")


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        (
            {"inputdataconfig": {"train": {"ContentType": "application/x-parquet", "TrainingInputMode": "Pipe"}}},
            "channel 'train' has Parquet, which cannot be read in Pipe mode: use File or FastFile mode",
        ),
        (
            {"inputdataconfig": {"train": {"ContentType": "application/x-recordio"}}},
            "it must be one of text/csv, application/jsonlines, application/x-parquet",
        ),
        (
            {"inputdataconfig": {"train": {"RecordWrapperType": "RecordIO"}}},
            "channel 'train' has RecordWrapperType RecordIO",
        ),
        (
            {"inputdataconfig": {"networks": {"TrainingInputMode": "Pipe"}}},
            "'networks' does not support Pipe mode: use File",
        ),
        ({"inputdataconfig": {"model": {"TrainingInputMode": "Pipe"}}}, "'model' does not support Pipe mode: use File"),
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
    fails(tree, "channel 'train' has no rows")
    tree.channel("train", **{"a.csv": "u,1.2.3.4\n"})
    tree.channel("validation", **{"a.csv": "\n\n"})
    fails(tree, "channel 'validation' has no rows")


def test_a_validation_channel_that_was_promised_is_not_done_without(ready: Tree) -> None:
    ready.configure(SMALL, inputdataconfig={"train": {}, "validation": {"TrainingInputMode": "File"}})
    fails(ready, "channel 'validation' has no data")


def test_a_fault_of_ours_is_told_apart(ready: Tree) -> None:
    code = "from ipinsights.sagemaker import __main__, channels; channels.read = None; __main__.train()"
    job = subprocess.run(
        [sys.executable, "-c", code], env=ready.environment({}), capture_output=True, text=True, timeout=60, check=False
    )
    assert job.returncode == 1
    assert ready.failure.read_text().startswith("AlgorithmError: ")
    assert "Traceback" in job.stdout  # we need it, and it is in the log, not in the failure file
    assert "Traceback" not in ready.failure.read_text()


PERMISSION = "Give user "
"""What is to be done about a folder or a file that this user may not use."""


def refused(tree: Tree, *parts: str) -> None:
    """The job, which bits of permission bind, ends as the user's fault at once, and the failure file says why."""
    command = [*bound(), sys.executable, "-m", "ipinsights.sagemaker", "train"]
    environment = tree.environment({})
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert job.returncode == 1, job.stdout + job.stderr
    text = tree.failure.read_text()
    assert text.startswith("ClientError: "), text
    assert text in job.stdout
    assert "Traceback" not in job.stdout + job.stderr
    assert not re.search(r"Read [\d,]+ training", job.stdout)  # it is found out before
    for part in parts:
        assert part in text


@pytest.mark.parametrize("name", ["model", "checkpoints"])
def test_a_folder_to_write_to_is_tried_before_anything_is_read(name: str, ready: Tree) -> None:
    what = "the model" if name == "model" else "checkpoints"
    folder = ready.base / name
    folder.mkdir()
    folder.chmod(0o555)
    refused(ready, f"cannot write {what} to {folder}: Permission denied", PERMISSION)
    folder.chmod(0o333)  # it can be written, but what lies in it is not seen
    refused(ready, f"cannot write {what} to {folder}: Permission denied", PERMISSION)
    folder.rmdir()
    folder.write_text("a file where the folder should be")
    refused(ready, f"cannot write {what} to {folder}: File exists")
    folder.unlink()


def mounted(tree: Tree, *commands: str) -> subprocess.CompletedProcess[str]:
    """The job, after commands that mount something over the model's folder, for it alone."""
    tree.model.mkdir()
    script = " && ".join([*commands, f"exec {sys.executable} -m ipinsights.sagemaker train"])
    command = ["unshare", "-m", "sh", "-ec", script]
    environment = {**tree.environment({}), "M": str(tree.model)}
    if subprocess.run(["unshare", "-m", "sh", "-ec", " && ".join(commands)], env=environment, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


READ_ONLY = ('mount --bind "$M" "$M"', 'mount -o remount,ro,bind "$M"')
SMALL_DISK = ('mount -t tmpfs -o size=64k ipinsights "$M"',)
FULL_DISK = (*SMALL_DISK, '! dd if=/dev/zero of="$M/x" 2> /dev/null')


@pytest.mark.parametrize(
    ("mount", "entities", "complaint"),
    [
        (READ_ONLY, 10, "cannot write the model to {}: Read-only file system. Mount it so that it can be written"),
        (FULL_DISK, 10, "cannot write the model to {}: No space left on device. Free some, or use a larger volume"),
        (
            SMALL_DISK,
            1000,
            "no space left on the disk to write the model to {}: at least 0.1 MB are needed, and",
        ),
    ],
    ids=["read-only", "full", "too small"],
)
def test_a_disk_that_cannot_take_the_model_is_told_before_anything_is_read(
    mount: tuple[str, ...], entities: int, complaint: str, ready: Tree
) -> None:
    ready.configure({**SMALL, "num_entity_vectors": str(entities), "vector_dim": "20"})
    job = mounted(ready, *mount)
    assert job.returncode == 1
    text = ready.failure.read_text()
    assert text.startswith("ClientError: ")
    assert complaint.format(ready.model) in text
    assert "Traceback" not in job.stdout + job.stderr
    assert not re.search(r"Read [\d,]+ training", job.stdout)


def test_a_disk_that_is_full_when_the_model_is_written_is_told(ready: Tree) -> None:
    """Since something else has filled it; here it takes the table, but not what lies beside it."""
    ready.configure({**SMALL, "num_entity_vectors": "980"})
    job = mounted(ready, *SMALL_DISK)
    assert job.returncode == 1
    assert "Read 100 training" in job.stdout
    expected = f"ClientError: cannot write the model to {ready.model}: No space left on device. Free some, or use"
    assert ready.failure.read_text().startswith(expected)
    assert "Traceback" not in job.stdout + job.stderr


def test_what_cannot_be_read_of_the_input_is_told_with_its_path(ready: Tree) -> None:
    """Half of the data would be missed in silence, or a file of configuration."""
    inner = ready.channel("train", **{"deeper__b.csv": "w,1.2.3.4\n"}) / "deeper"
    config = ready.base / "input" / "config"
    ready.configure(SMALL, resourceconfig={}, inputdataconfig={})
    for path in (
        inner,
        inner / "b.csv",
        ready.channel("train"),
        ready.base / "input" / "data",
        *(config / f"{name}.json" for name in ("hyperparameters", "resourceconfig", "inputdataconfig")),
    ):
        mode = path.stat().st_mode
        path.chmod(0)
        refused(ready, f"cannot read {path}: Permission denied", PERMISSION)
        path.chmod(mode)
    inner.chmod(0o444)  # its files have names, and nothing more
    refused(ready, f"cannot read {inner / 'b.csv'}: Permission denied", PERMISSION)
    inner.chmod(0o755)
    (inner / "b.csv").unlink()
    (inner / "b.csv").symlink_to(inner / "gone.csv")
    refused(ready, f"cannot read {inner / 'b.csv'}: No such file or directory")


@pytest.mark.parametrize("channel", ["train", "validation", "networks", "model"])
@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_out_of_a_channel_shows_nobody_what_it_leads_to(linked: str, channel: str, ready: Tree) -> None:
    secret = ready.base.parent / "secrets" / "s.tar.gz"
    secret.parent.mkdir()
    secret.write_text("root:hidden:1.2.3.4\n")
    folder = ready.channel(channel, **{"a.csv": "u,1.2.3.4\n"})
    link = folder / "b"
    link.symlink_to(secret if linked == "file" else secret.parent)
    fails(ready, f"{link} leads out of channel '{channel}' by a link: copy")
    assert "hidden" not in ready.failure.read_text()


def test_links_within_a_channel_are_followed_and_so_is_one_to_all_of_it(ready: Tree) -> None:
    """As Kubernetes mounts files, and as people lay their data."""
    folder = ready.channel("train", **{"..data__b.csv": "w,1.2.3.4\n"})
    (folder / "a.csv").rename(folder / "..data" / "a.csv")
    (folder / "a.csv").symlink_to("..data/a.csv")
    folder.rename(ready.base / "elsewhere")
    folder.symlink_to(ready.base / "elsewhere")
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert "Read 100 training" in job.stdout


def test_a_limit_on_the_size_of_files_is_told(ready: Tree) -> None:
    """Of the log here, whose file has no name."""
    out = ready.base / "out"
    script = f"ulimit -f 1; exec {sys.executable} -m ipinsights.sagemaker train > {out}"
    # The tests' own measure of coverage would write a file, too.
    environment = {name: value for name, value in ready.environment({}).items() if not name.startswith("COVERAGE")}
    job = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert job.returncode == 1
    expected = "ClientError: cannot write to standard output: File too large. Raise the limit on the size of a file"
    assert ready.failure.read_text().startswith(expected)
    assert job.stderr == ""


@pytest.mark.parametrize(("channel", "file"), [("networks", "n.tsv"), ("model", "model.tar.gz")])
def test_what_cannot_be_read_of_the_other_channels_is_told(channel: str, file: str, ready: Tree) -> None:
    path = ready.channel(channel, **{file: "never read"}) / file
    path.chmod(0)
    command = [*bound(), sys.executable, "-m", "ipinsights.sagemaker", "train"]
    environment = ready.environment({})
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert job.returncode == 1
    assert re.search(rf"^ClientError: cannot \w+ {path}: Permission denied", ready.failure.read_text())


def test_a_failure_of_an_earlier_run_is_forgotten(ready: Tree) -> None:
    ready.failure.parent.mkdir(parents=True)
    ready.failure.write_text("old")
    assert ready.train().returncode == 0
    assert not ready.failure.exists()


def test_a_tuners_jobs_in_a_row(ready: Tree, traffic: Traffic) -> None:
    """On one machine, as with a warm pool: strings of all kinds, and a draw that is invalid in between."""
    ready.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    own = {"_tuning_objective_metric": "validation:discriminator_auc", "sagemaker_job_name": '"tuned-1"'}
    draws = [
        ({"vector_dim": "8", "learning_rate": "0.0010234567890123457", "weight_decay": "1e-05"}, 0),
        ({"random_negative_sampling_rate": "0", "shuffled_negative_sampling_rate": "0"}, 1),
        ({"vector_dim": '"24"', "epochs": "3", "mini_batch_size": "128.0"}, 0),
    ]
    for draw, code in draws:
        ready.configure({**SMALL, **own, **draw})
        job = ready.train()
        assert job.returncode == code, job.stdout
        printed = re.findall(METRIC_DEFINITIONS["validation:discriminator_auc"], job.stdout)
        if code:
            assert "random_negative_sampling_rate + shuffled_negative_sampling_rate = 0" in ready.failure.read_text()
            assert not printed
            continue
        assert not ready.failure.exists()
        manifest = json.loads((ready.model / "manifest.json").read_text())
        assert manifest["hyperparameters"]["vector_dim"] == int(draw["vector_dim"].strip('"'))
        assert len(printed) == int({**SMALL, **draw}["epochs"])
        assert float(printed[-1]) == manifest["metrics"]["discriminator_auc"]


@pytest.mark.parametrize("arguments", [[], ["help"], ["train", "serve"]])
def test_any_other_argument_prints_the_usage(tree: Tree, arguments: list[str]) -> None:
    result = tree.run("ipinsights.sagemaker", *arguments)
    assert result.returncode == 2
    assert "usage: docker run IMAGE {train|serve}" in result.stderr


def test_a_gpu_that_must_be_is_looked_for_before_the_data_is_read(ready: Tree) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    ready.configure({**SMALL, "device": "gpu"})
    (ready.channel("train") / "a.csv").write_text("nobody,nowhere\n")
    fails(ready, "device=gpu, but this machine has ", "With device=cpu it trains on the CPU")


def test_a_gpu_that_is_there_and_not_used_is_told_first_and_in_the_manifest(ready: Tree) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    pretend = (
        "from ipinsights.sagemaker import job; from ipinsights.training import placement; "
        "job.has_gpu = placement.has_gpu = lambda: True; job.train()"
    )
    job = ready.run_code(pretend)
    assert job.returncode == 0, job.stdout
    lines = job.stdout.splitlines()
    told = next(number for number, line in enumerate(lines) if "WARNING" in line)
    assert "This job trains on the CPU, because this machine has a GPU" in lines[told]
    assert told < next(number for number, line in enumerate(lines) if "Reading channel" in line)
    training = json.loads((ready.model / "manifest.json").read_text())["training"]
    assert training["device"] == "cpu"
    assert training["slower_because"].startswith("this machine has a GPU")


def test_without_an_argument_it_trains_where_a_job_lies(ready: Tree) -> None:
    """Version 3 of the SageMaker SDK gives none in local mode."""
    job = ready.run("ipinsights.sagemaker")
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.startswith("Docker entrypoint called with argument(s): train\n")
    assert (ready.model / "manifest.json").exists()


SCRIPT = "from ipinsights.sagemaker import __main__ as main; main.{}()"
PROGRAMS = [
    pytest.param([*command, *role], id=" ".join([name, *role]))
    for name, command, role in (
        ("image", ["-m", "ipinsights.sagemaker"], []),
        ("image", ["-m", "ipinsights.sagemaker"], ["train"]),
        ("image", ["-m", "ipinsights.sagemaker"], ["serve"]),
        ("train", ["-c", SCRIPT.format("train")], []),
        ("serve", ["-c", SCRIPT.format("serve")], []),
    )
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("-h", 0), ("--epochs=3", 2), ("now", 2)])
def test_help_and_unknown_arguments_start_nothing(program: list[str], argument: str, code: int, ready: Tree) -> None:
    before = sorted(ready.base.rglob("*"))
    result = subprocess.run(
        [sys.executable, *program, argument],
        env=ready.environment({}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert "usage: " in (result.stderr if code else result.stdout)
    assert (result.stdout if code else result.stderr) == ""
    assert sorted(ready.base.rglob("*")) == before


def test_a_person_at_a_terminal_sees_progress(ready: Tree, traffic: Traffic) -> None:
    ready.channel("train", **{"a.csv": to_csv(traffic.train)})
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 120))
    command = [sys.executable, "-m", "ipinsights.sagemaker", "train"]
    with (
        subprocess.Popen(command, env=ready.environment({}), stdout=its_end, stderr=its_end) as job,
        time_limit(job, 300),
    ):
        os.close(its_end)
        shown = ""
        with contextlib.suppress(OSError):  # how a terminal says that the other end has gone
            while part := os.read(terminal, 1 << 16):
                shown += part.decode()
        job.wait()
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


def test_only_the_image_says_that_its_entry_point_was_called(ready: Tree) -> None:
    """What a person calls prints all else that the image prints."""
    image, script = ready.train(), ready.run_code(SCRIPT.format("train"))
    first, *others = image.stdout.splitlines()
    assert first == "Docker entrypoint called with argument(s): train"

    def shape(line: str) -> str:
        return re.sub(r"[\d.e:/,-]+", "", line)

    assert list(map(shape, script.stdout.splitlines())) == list(map(shape, others))


def test_no_share_is_printed_with_more_digits_than_anybody_reads(ready: Tree) -> None:
    ready.configure({**SMALL, "epochs": "3"})
    printed = re.findall(METRIC_DEFINITIONS["train:progress"], ready.train().stdout)
    assert printed == ["33.33", "66.67", "100.0"]


def test_the_configuration_is_printed_once_as_it_ended_up(ready: Tree) -> None:
    ready.configure({"num_entity_vectors": "4", "vector_dim": '"8"', "sagemaker_region": "x"})
    job = ready.train()
    assert job.returncode == 0
    (configuration,) = re.findall(r"Final configuration: (.*)", job.stdout)
    values = ast.literal_eval(configuration)
    hp = json.loads((ready.model / "manifest.json").read_text())["hyperparameters"]
    assert values == {name: str(value) for name, value in hp.items()}
    assert (values["vector_dim"], values["learning_rate"]) == ("8", "0.03")
    assert job.stdout.count("num_entity_vectors") == 1


def test_what_takes_long_is_announced(ready: Tree) -> None:
    job = ready.train()
    lines = [line.partition("] ")[2] for line in job.stdout.splitlines()]
    size = (ready.channel("train") / "a.csv").stat().st_size / 1e6
    (read, loading, counting) = (
        lines.index(line)
        for line in (
            f"Reading channel 'train': {size:,.1f} MB",
            "Loading torch, which can take several seconds",
            "Writing what was counted into the model, which can take longer than an epoch",
        )
    )
    assert read < lines.index("Read 100 training and 0 validation events") < loading < counting
    assert counting < lines.index(f"Saved the model to {ready.model}")
    assert "Reading channel 'validation'" not in job.stdout


def test_what_the_data_made_of_the_defaults_is_logged_with_its_reason(ready: Tree) -> None:
    ready.configure({"num_entity_vectors": "4", "vector_dim": "8"})
    job = ready.train()
    assert job.returncode == 0
    reason = "which gives too few or too small steps for 100 events"
    expected = rf"mini_batch_size is not set: training uses \d+ instead of the default 10000, {reason}"
    assert re.search(expected, job.stdout)
    assert re.search(r"learning_rate is not set: training uses 0.03 instead of the default 0.001", job.stdout)
    manifest = json.loads((ready.model / "manifest.json").read_text())
    assert manifest["hyperparameters"]["learning_rate"] == 0.03
    ready.configure(SMALL)
    assert "is not set" not in ready.train().stdout


def test_training_without_shuffled_negatives_is_warned_of(ready: Tree) -> None:
    ready.configure({**SMALL, "shuffled_negative_sampling_rate": "0"})
    assert re.search(r"WARNING .*shuffled_negative_sampling_rate is 0", ready.train().stdout)
    ready.configure(SMALL)
    assert "WARNING" not in ready.train().stdout


def test_the_training_data_is_described_in_the_log_and_in_the_artifact(trained: Trained, traffic: Traffic) -> None:
    data = json.loads((trained[0].model / "manifest.json").read_text())["data"]
    assert (data["events"], data["entities"], data["doubts"]) == (len(traffic.train), 100, [])
    described = re.findall(r"INFO \d+\] Training data: (.*)", trained[1].stdout)
    assert described[0] == (
        f"{data['events']:,} events of 100 entities and {data['addresses']:,} addresses, which form {data['pairs']:,} "
        "distinct pairs"
    )
    share = f"{100 * data['busiest_address_share']:.1f}%"
    assert re.fullmatch(
        rf"the busiest entity has [\d.]+% of the events, the busiest address \({data['busiest_address']}\) {share}",
        described[1],
    )
    assert re.fullmatch(r"[\d.]+% of the entities and [\d.]+% of the pairs have only one event", described[2])
    assert re.fullmatch(
        r"[\d.]+% of the events have private, loopback or reserved addresses, and [\d.]+% have no known prefix",
        described[3],
    )
    assert "WARNING" not in trained[1].stdout


def test_doubtful_training_data_is_warned_of(ready: Tree) -> None:
    ready.channel("train", **{"a.csv": "".join(f"user{number},10.0.0.1\n" for number in range(80))})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    proxy, ids = re.findall(r"WARNING \d+\] (.*)", job.stdout)
    assert proxy.startswith("100% of the events have the address 10.0.0.1. It is probably the address of a proxy")
    assert ids.startswith("100% of the 80 entities have one event")
    assert json.loads((ready.model / "manifest.json").read_text())["data"]["doubts"] == [proxy, ids]


def test_what_is_known_of_entities_and_prefixes_is_logged(trained: Trained, ready: Tree) -> None:
    assert "100 entities have their own row in the entity table of 200 rows" in trained[1].stdout
    assert re.search(r"Known prefixes: [\d,]+ of /8 \(100% of the events\), .* of /24 \(\d+% of the", trained[1].stdout)
    ready.configure({**SMALL, "num_entity_vectors": "1"})
    assert re.search(
        r"WARNING .* 1 entities found no free row and share the row of another entity", ready.train().stdout
    )


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


@pytest.mark.parametrize(("history", "kept"), [("128", "an address"), ("16", "a /16"), ("0", "")])
def test_how_much_the_model_keeps_of_its_events_is_logged(ready: Tree, history: str, kept: str) -> None:
    ready.configure(SMALL | {"epochs": "1", "history": history})
    job = ready.train()
    assert job.returncode == 0
    described = json.loads((ready.model / "manifest.json").read_text())["history"]
    line = "The model keeps no list of the addresses of each entity"
    if kept:
        line = f"The model keeps {described['pairs']:,} pairs of an entity and {kept}, each with its number of events: "
        line += f"{described['bytes'] / 1e6:.1f} MB"
    assert f"{line} (hyperparameter history)\n" in job.stdout
    assert (described["pairs"] > 0) == bool(kept)
