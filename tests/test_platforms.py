"""Where the tutorial's notebook runs: the requests of its walk in AWS, and the blocks that an endpoint takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st
from notebooks import platforms

from ipinsights.hyperparameters import declarations
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

PYTHON = Path(__file__).parents[1] / ".venv" / "sdk3" / "bin" / "python"
"""Has version 3 of the SageMaker SDK, and nothing of ours or of the stand-in: these are on its path."""


@pytest.fixture(scope="module")
def walk(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("moto")
    if not PYTHON.exists():
        pytest.skip("version 3 of the SageMaker SDK is not installed in .venv/sdk3")
    log_ins = tmp_path_factory.mktemp("log-ins")
    (log_ins / "log-ins.csv").write_text("user_1,192.0.2.1\n")
    command = [str(PYTHON), str(Path(__file__).parent / "aws_walk.py"), str(trained[0].model), str(log_ins)]
    work = tmp_path_factory.mktemp("work")
    done = subprocess.run(
        [*command, str(work)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def sent(walk: dict[str, Any], operation: str) -> Any:
    (params,) = [params for _, name, params in walk["requests"] if name == operation]
    return params


@pytest.mark.slow
def test_requests_to_aws_are_valid(walk: dict[str, Any]) -> None:
    session = botocore.session.get_session()
    names = []
    for service, operation, params in walk["requests"]:
        if service == "sagemaker" and operation.startswith("Create"):
            model = session.get_service_model(service).operation_model(operation)
            report = ParamValidator().validate(params, model.input_shape)
            assert not report.has_errors(), f"{operation}: {report.generate_report()}"
            names.append(operation)
    jobs = ["CreateTrainingJob", "CreateHyperParameterTuningJob", "CreateTransformJob"]
    assert sorted(names) == sorted(["CreateModel", "CreateEndpointConfig", "CreateEndpoint", *jobs])


@pytest.mark.slow
def test_what_the_jobs_are_asked_for(walk: dict[str, Any]) -> None:
    training = sent(walk, "CreateTrainingJob")
    assert training["HyperParameters"] == {"num_entity_vectors": "600", "vector_dim": "16", "epochs": "2"}
    assert {channel["ChannelName"]: channel["ContentType"] for channel in training["InputDataConfig"]} == {
        "train": "text/csv",
        "validation": "text/csv",
    }
    metrics = {each["Name"]: each["Regex"] for each in training["AlgorithmSpecification"]["MetricDefinitions"]}
    assert metrics == METRIC_DEFINITIONS

    tuning = sent(walk, "CreateHyperParameterTuningJob")["HyperParameterTuningJobConfig"]
    objective = tuning["HyperParameterTuningJobObjective"]
    assert objective == {"Type": "Maximize", "MetricName": "validation:discriminator_auc"}
    ranges = [
        each for kind in ("Integer", "Continuous") for each in tuning["ParameterRanges"][f"{kind}ParameterRanges"]
    ]
    declared = {each.name: each.tuning for each in declarations()}
    assert {each["Name"]: (float(each["MinValue"]), float(each["MaxValue"])) for each in ranges} == {
        name: declared[name] for name in ("vector_dim", "learning_rate")
    }

    transform = sent(walk, "CreateTransformJob")
    assert transform["DataProcessing"]["JoinSource"] == "Input"
    assert transform["TransformOutput"] | {"S3OutputPath": ""} == {
        "Accept": "text/csv",
        "AssembleWith": "Line",
        "S3OutputPath": "",
    }


@pytest.mark.slow
def test_what_comes_of_the_walk(walk: dict[str, Any]) -> None:
    assert walk["model"] == ["manifest.json", "model.safetensors"]
    assert walk["predictions"] == [{"dot_product": 0.0}, {"dot_product": 1.0}]
    assert walk["transformed"] == "user_1,192.0.2.1,1.5\n"
    assert walk["left"] == 0


@given(lines=st.lists(st.text("aé,1.", min_size=1, max_size=4)), limit=st.integers(10, 40))
def test_payloads_are_whole_lines_within_the_limit(lines: list[str], limit: int) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    blocks = list(platforms.payloads(text, limit))
    assert b"".join(blocks) == text
    assert all(block.endswith(b"\n") and len(block) <= limit for block in blocks)


def test_a_failed_command_is_an_error_that_shows_what_it_printed() -> None:
    with pytest.raises(RuntimeError, match="usage: ipinsights"):
        platforms.run("ipinsights nonsense")
