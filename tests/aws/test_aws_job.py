"""The program that goes through SageMaker by boto3, as a process, on an account that trains and serves for real."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("moto", reason="moto, which stands in for AWS, is not installed")

from aws.api import faults_of
from aws.stand_in import StandIn, stand_in
from local_test import aws_job

ROOT = Path(__file__).parents[2]
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/ipinsights:cpu"
ARGUMENTS = ["--image", IMAGE, "--role", "arn:aws:iam::123456789012:role/SageMaker", "--bucket", "bucket"]
ALL = ["tune", "endpoint", "serverless", "asynchronous", "multi-model", "transform"]
SMALL = ["--set", "num_entity_vectors=100", "--set", "vector_dim=16", "--set", "epochs=1", "--tuning-jobs", "1"]


def start(*arguments: str, account: StandIn | None = None) -> "subprocess.Popen[str]":
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "local_test.aws_job", *arguments, *ARGUMENTS, "--name", "ours", "--poll", ".2"],
        cwd=ROOT,
        env={**ours, **(account.environment() if account else {"AWS_DEFAULT_REGION": "us-east-1"})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(account: StandIn) -> list[str]:
    """What is in the account that costs money."""
    sagemaker, s3 = account.client("sagemaker"), account.client("s3")
    objects = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    models = [*sagemaker.list_models()["Models"], *sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    return [item["Key"] for item in objects] + [str(model) for model in models] + account.serving()


@pytest.mark.slow
def test_all_steps_and_nothing_is_left(tmp_path: Path) -> None:
    with stand_in(tmp_path / "aws") as account:
        run = start(*ALL, *SMALL, "--run", account=account)
        printed, errors = run.communicate(timeout=1200)
        assert run.returncode == 0, printed + errors
        for operation, asked in account.sent:
            assert not faults_of(operation, asked)
        assert left(account) == []
    # It waited, for the first look finds no job done.
    assert re.search(r"^training ours: InProgress Training .*\ntraining ours: Completed \(", printed, re.MULTILINE)
    assert float(re.findall("validation:discriminator_auc = (.+)", printed)[0]) > 0.6
    assert float(re.findall(r"best: ours-001, validation:discriminator_auc (\S+),", printed)[0]) > 0.6
    # The four endpoints have one model, and give one answer.
    answers = re.findall(r'^  \{"predictions": ?\[(.*)\]\}$', printed, re.MULTILINE)
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert answers[0].count("dot_product") == 2
    # The transform job wrote the score behind each log-in.
    lines = (ROOT / "local_test/test_dir/input/data/validation/log-ins.csv").read_text().splitlines()
    written = account.written["s3://bucket/ours/scores/log-ins.csv.out"].splitlines()
    assert [line.rpartition(",")[0] for line in written] == lines
    assert all(float(line.rpartition(",")[2]) for line in written)


def test_what_is_to_be_kept_is_left_and_named(tmp_path: Path) -> None:
    with stand_in(tmp_path / "aws") as account:
        run = start("upload", "--run", "--keep", account=account)
        printed, errors = run.communicate(timeout=1200)
        assert run.returncode == 0, printed + errors
        assert left(account) == ["ours/train/log-ins.csv", "ours/validation/log-ins.csv"]
    assert "Kept s3://bucket/ours/train/log-ins.csv\n" in printed


def test_ctrl_c_stops_the_job_and_removes_what_was_made(tmp_path: Path) -> None:
    with stand_in(tmp_path / "aws", hang="Training") as account:
        run = start("endpoint", *SMALL, "--run", account=account)
        assert account.hanging.wait(600)
        run.send_signal(signal.SIGINT)
        printed, errors = run.communicate(timeout=1200)
        assert run.returncode == 1
        assert errors == "Stopped by Ctrl-C\n"
        assert account.operations() == ["CreateTrainingJob", "StopTrainingJob"]
        assert left(account) == []
    assert "training ours: Stopped" in printed


def test_a_job_that_fails_tells_why_and_leaves_nothing(tmp_path: Path) -> None:
    with stand_in(tmp_path / "aws") as account:
        run = start("train", "--set", "vector_dim=2", "--run", account=account)
        _, errors = run.communicate(timeout=1200)
        assert run.returncode == 1
        assert errors.startswith("training ours is Failed: ClientError: ")
        assert "vector_dim" in errors
        assert left(account) == []


def test_what_aws_refuses_is_one_sentence(tmp_path: Path) -> None:
    with stand_in(tmp_path / "aws") as account:
        run = start("train", "--instance", "ml.none", "--run", account=account)
        _, errors = run.communicate(timeout=1200)
        assert run.returncode == 1
        assert re.fullmatch("AWS refused: .*'ml.none', which the enumeration lacks\n", errors)
        assert left(account) == []


def test_nothing_is_sent_without_being_told_to() -> None:
    run = start(*ALL)
    printed, errors = run.communicate(timeout=1200)
    assert (run.returncode, errors) == (0, "")
    shown = re.findall(r"^SageMaker (\w+) (\{.*?^\})", printed, re.MULTILINE | re.DOTALL)
    for operation, request in shown:
        assert not faults_of(operation, json.loads(request))
    made = [operation for operation, _ in shown if operation.startswith("Create")]
    assert made.count("CreateEndpoint") == 4
    assert {"CreateTrainingJob", "CreateHyperParameterTuningJob", "CreateTransformJob"} < set(made)
    assert "S3 PutObject" in printed
    assert printed.endswith("Nothing was sent: --run sends it\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fly"], "no such step: fly. Steps are upload, train"),
        (["train", "--set", "epochs"], "--set epochs: write NAME=VALUE"),
    ],
)
def test_a_wrong_option_is_told(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["aws_job", *arguments, *ARGUMENTS])
    with pytest.raises(SystemExit):
        aws_job.main()
    assert reason in capsys.readouterr().err
