"""What docs/aws.md has to copy runs as it stands: on an account that trains and serves here."""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto", reason="moto, which stands in for AWS, is not installed")

from aws.api import faults_of
from aws.stand_in import stand_in
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS
from local_test.sagemaker_local import CONFIG, DATA

ROOT = Path(__file__).parents[2]
HASTE = "import time; time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.5))"
"""The SDKs look at jobs every ten seconds, and these take few."""
NAMES = {"ACCOUNT": "123456789012", "REGION": "us-east-1", "BUCKET": "bucket", "ROLE": "SageMaker"}


def blocks(section: str, language: str) -> list[str]:
    """The blocks of a section of the document, with names in place of its capitals."""
    text = (ROOT / "docs" / "aws.md").read_text()
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(rf"^```{language}\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    assert found, f"{section} has no block of {language or 'the shell'}"
    return [re.sub("|".join(NAMES), lambda name: NAMES[name[0]], block) for block in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "environment", "created"),
    [
        ("SDK 2", "sdk", {"CreateTrainingJob": 2, "CreateEndpoint": 2, "CreateTransformJob": 1}),
        ("SDK 3", "sdk3", {"CreateTrainingJob": 1, "CreateEndpoint": 1, "CreateTransformJob": 1}),
    ],
)
def test_the_code_for_each_sdk_runs(section: str, environment: str, created: dict[str, int], tmp_path: Path) -> None:
    python = ROOT / ".venv" / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the SageMaker SDK is not installed in .venv/{environment}")
    definitions = [{"Name": name, "Regex": regex} for name, regex in METRIC_DEFINITIONS.items()]
    code = "\n".join([HASTE, f"metric_definitions = {definitions!r}", *blocks(section, "python")])
    (tmp_path / "config.yaml").write_text(CONFIG)
    with stand_in(tmp_path / "aws", brief=True) as account:
        for channel in ("train", "validation"):
            (file,) = (DATA / channel).iterdir()
            account.client("s3").upload_file(str(file), "bucket", f"log-ins/{channel}/{file.name}")
        settings = {
            "SAGEMAKER_VALIDATE_ROLE": "false",
            "SAGEMAKER_USER_CONFIG_OVERRIDE": str(tmp_path / "config.yaml"),
        }
        run = subprocess.run(
            [python, "-c", code],
            env={**os.environ, **account.environment(), **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-5000:]
        for operation, asked in account.sent:
            assert not faults_of(operation, asked)
        operations = account.operations()
        created = {**created, "CreateHyperParameterTuningJob": 1, "DeleteEndpoint": created["CreateEndpoint"]}
        assert {operation: operations.count(operation) for operation in created} == created
        assert len(re.findall("dot_product", run.stdout)) == created["CreateEndpoint"]
        assert "-001" in run.stdout  # the best job's name
        (scores,) = account.written.values()
        assert len(scores.splitlines()) == len(file.read_text().splitlines())


def allowed(policy: dict[str, Any]) -> list[tuple[str, str]]:
    """The (action, resource) pairs of a policy."""
    pairs = []
    for statement in policy["Statement"]:
        assert statement.keys() <= {"Effect", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        pairs += [(action, statement["Resource"]) for action in ([actions] if isinstance(actions, str) else actions)]
    return pairs


def test_the_policies_allow_what_is_done_and_no_more() -> None:
    role, caller = map(json.loads, blocks("Permissions", "json"))
    for policy in (role, caller):
        assert policy["Version"] == "2012-10-17"
        pairs = allowed(policy)
        assert len(pairs) == len(set(pairs))
        assert not any("*" in action for action, _ in pairs)
        everywhere = {action for action, resource in pairs if resource == "*"}
        assert everywhere <= {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}  # which have no resource
    # What the program by boto3 calls, it may.
    program = (ROOT / "local_test" / "aws_job.py").read_text()
    kinds = re.findall(r'self\._job\(\s*"(\w+)"', program)
    calls = {f"{verb}_{kind}_job" for verb in ("create", "describe", "stop") for kind in kinds} | {"describe_endpoint"}
    calls |= set(re.findall(r"self\.(?:sagemaker|runtime)\.((?:create|delete|invoke)\w+)", program))
    actions = [f"sagemaker:{call.title().replace('_', '')}" for call in calls]
    assert len(actions) > 15
    resource = "arn:aws:sagemaker:us-east-1:123456789012:training-job/ipinsights-20260101-000000"
    for action in actions:
        assert any(action == may and fnmatch(resource, where) for may, where in allowed(caller)), action


def test_the_commands_of_the_shell_run(tmp_path: Path) -> None:
    """As far as they send nothing."""
    lines = [line.split("#")[0].strip() for block in blocks("boto3", "") for line in block.splitlines()]
    assert len(lines) == 2
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "container"), str(ROOT)])}
    for line in lines:
        command = line.removesuffix("--run").replace("python ", f"{sys.executable} ")
        run = subprocess.run(command.split(), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert "Nothing was sent" in run.stdout


def build_and_push(*arguments: str, tmp_path: Path, **tools: str) -> "subprocess.CompletedProcess[str]":
    """Run the script where docker and aws are scripts of a line each, which write down how they were called."""
    for name in ("docker", "aws"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{tools.get(name, "")}\n')
        tool.chmod(0o755)
    return subprocess.run(
        [ROOT / "local_test" / "build_and_push.sh", *arguments],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


URI = "123456789012.dkr.ecr.us-east-1.amazonaws.com/ipinsights:cpu"
THERE = ["aws ecr describe-repositories --region us-east-1 --repository-names ipinsights"]
MISSING = 'case $2 in describe*) echo "An error (RepositoryNotFoundException)" >&2; exit 254 ;; esac'
REFUSED = 'case $2 in describe*) echo "An error (AccessDeniedException)" >&2; exit 254 ;; esac'


def test_the_image_is_not_pushed_without_being_told_to(tmp_path: Path) -> None:
    dry, _ = (line.split("#")[0].split() for line in blocks("The image", "")[0].splitlines())
    run = build_and_push(*dry[1:], tmp_path=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert not (tmp_path / "calls").exists()
    assert run.stdout.splitlines()[-1] == URI
    assert "docker build --platform linux/amd64" in run.stdout
    assert f"-f Dockerfile.cpu -t {URI} ." in run.stdout
    assert f"docker push {URI}" in run.stdout


@pytest.mark.parametrize(("aws", "created"), [("", False), (MISSING, True)], ids=["repository", "no repository"])
def test_the_image_is_built_and_pushed(aws: str, created: bool, tmp_path: Path) -> None:
    _, wet = (line.split("#")[0].split() for line in blocks("The image", "")[0].splitlines())
    run = build_and_push(*wet[1:], tmp_path=tmp_path, aws=aws)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == URI
    build, *calls = (tmp_path / "calls").read_text().splitlines()
    assert build.startswith("docker build --platform linux/amd64 ")
    create = ["aws ecr create-repository --region us-east-1 --repository-name ipinsights"] if created else []
    login = f"docker login --username AWS --password-stdin {URI.partition('/')[0]}"
    password = "aws ecr get-login-password --region us-east-1"
    assert calls[:-3] == THERE + create
    assert sorted(calls[-3:-1]) == [password, login]  # the two ends of a pipe
    assert calls[-1] == f"docker push {URI}"


def test_what_goes_wrong_ends_the_push(tmp_path: Path) -> None:
    arguments = ["--account", "123456789012", "--region", "us-east-1", "--run"]
    refused = build_and_push(*arguments, tmp_path=tmp_path, aws=REFUSED)
    assert refused.returncode == 1
    assert "AccessDeniedException" in refused.stderr
    assert "push" not in (tmp_path / "calls").read_text()
    no_build = build_and_push(*arguments, tmp_path=tmp_path, docker="exit 3")
    assert no_build.returncode == 3
    usage = build_and_push("--region", "us-east-1", tmp_path=tmp_path)
    assert usage.returncode == 2
    assert usage.stderr.startswith("usage: local_test/build_and_push.sh --account ACCOUNT")
