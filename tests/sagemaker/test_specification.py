"""The request against the API's own model, and the command against a stub that takes and answers as AWS does."""

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.validate import ParamValidator

from aws.api import faults_of, shape_of
from conftest import Tree
from ipinsights.data.addresses import FAMILIES
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters, declarations
from ipinsights.sagemaker import commands, configuration, media, specification
from ipinsights.sagemaker.paths import Paths
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/ipinsights:cpu"
ARN = "arn:aws:sagemaker:eu-west-1:123456789012:algorithm/"
REQUIRED = {"num_entity_vectors": "20000", "vector_dim": "128"}
REQUEST = specification.request(IMAGE)
TRAINING, INFERENCE = REQUEST["TrainingSpecification"], REQUEST["InferenceSpecification"]
HYPERPARAMETERS = {h["Name"]: h for h in TRAINING["SupportedHyperParameters"]}

CREATE_ALGORITHM = shape_of("CreateAlgorithm")


def botocore_refuses(request: dict[str, Any]) -> bool:
    return bool(ParamValidator().validate(request, CREATE_ALGORITHM).has_errors())


def test_the_request_is_one_that_the_api_takes() -> None:
    assert not botocore_refuses(REQUEST)
    assert faults_of("CreateAlgorithm", REQUEST) == []


BREAKS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "pattern": (lambda r: r.update(AlgorithmName="ip_insights"), ".AlgorithmName does not match"),
    "too long": (lambda r: r.update(AlgorithmDescription="x" * 1025), ".AlgorithmDescription has length 1025"),
    "control character": (lambda r: r.update(AlgorithmDescription="a\nb"), ".AlgorithmDescription does not match"),
    "missing": (lambda r: r["TrainingSpecification"].pop("TrainingImage"), ".TrainingImage is missing"),
    "unknown": (lambda r: r["TrainingSpecification"].update(Image="x"), ".Image is unknown"),
    "enumeration": (
        lambda r: r["TrainingSpecification"]["SupportedTrainingInstanceTypes"].append("ml.m0.tiny"),
        "'ml.m0.tiny', which the enumeration lacks",
    ),
    "type": (lambda r: r["TrainingSpecification"].update(SupportsDistributedTraining="False"), "is no boolean"),
    "number": (
        lambda r: r["TrainingSpecification"]["SupportedHyperParameters"][2].update(DefaultValue=1000),
        ".SupportedHyperParameters[2].DefaultValue is no string",
    ),
    "too many": (
        lambda r: r["TrainingSpecification"].update(
            TrainingChannels=r["TrainingSpecification"]["TrainingChannels"] * 3
        ),
        ".TrainingChannels has length 12, not 1 to 8",
    ),
    "too few": (lambda r: r["InferenceSpecification"].update(Containers=[]), ".Containers has length 0, not 1 to 15"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_check_sees_what_is_wrong(name: str) -> None:
    break_it, fault = BREAKS[name]
    broken = copy.deepcopy(REQUEST)
    break_it(broken)
    assert len(faults_of("CreateAlgorithm", broken)) == 1
    assert fault in faults_of("CreateAlgorithm", broken)[0]


def test_hyperparameters_are_those_declared() -> None:
    assert list(HYPERPARAMETERS) == [d.name for d in declarations()]
    for d in declarations():
        h = HYPERPARAMETERS[d.name]
        assert (h["Description"], h["IsRequired"], h["IsTunable"]) == (d.help, d.default is None, d.tuning is not None)
        if d.choices:
            assert h["Type"] == "Categorical"
            values = h["Range"]["CategoricalParameterRangeSpecification"]["Values"]
            assert tuple(map(d.parse, values)) == d.choices
        else:
            assert h["Type"] == {int: "Integer", float: "Continuous"}[d.type]
            limits = h["Range"][f"{h['Type']}ParameterRangeSpecification"]
            assert (d.parse(limits["MinValue"]), d.parse(limits["MaxValue"])) == d.range
            assert not re.search("[eE]", limits["MinValue"] + limits["MaxValue"])


def test_what_is_tunable_is_what_the_built_in_tunes() -> None:
    assert {name for name, h in HYPERPARAMETERS.items() if h["IsTunable"]} == {
        "epochs",
        "learning_rate",
        "mini_batch_size",
        "num_entity_vectors",
        "num_ip_encoder_layers",
        "random_negative_sampling_rate",
        "shuffled_negative_sampling_rate",
        "vector_dim",
        "weight_decay",
    }


def test_a_default_is_in_its_range_and_of_nothing_required() -> None:
    for d in declarations():
        h = HYPERPARAMETERS[d.name]
        if "DefaultValue" in h:
            assert not h["IsRequired"]
            assert d.parse(h["DefaultValue"]) == d.default  # which refuses what is out of range
            [limits] = h["Range"].values()
            if h["Type"] == "Categorical":
                assert h["DefaultValue"] in limits["Values"]
            else:
                assert float(limits["MinValue"]) <= float(h["DefaultValue"]) <= float(limits["MaxValue"])


@pytest.mark.parametrize("events", [1, 59_317, 10**9])
def test_defaults_sent_by_the_platform_change_nothing(events: int) -> None:
    """A job of the resource comes with every DefaultValue; what follows the data must do so all the same."""
    sent = {name: h["DefaultValue"] for name, h in HYPERPARAMETERS.items() if "DefaultValue" in h}
    assert len(sent) == len(HYPERPARAMETERS) - len(REQUIRED) - len(("learning_rate", "mini_batch_size"))
    left_out = Hyperparameters.parse(REQUIRED).adapted(events)
    assert Hyperparameters.parse({**REQUIRED, **sent}).adapted(events) == left_out


def test_metrics_are_those_defined_and_read_the_log_of_a_job(
    trained_with_strangers: tuple[Tree, "subprocess.CompletedProcess[str]"],
) -> None:
    definitions = {m["Name"]: m["Regex"] for m in TRAINING["MetricDefinitions"]}
    assert definitions == METRIC_DEFINITIONS
    for name, regex in definitions.items():
        values = re.findall(regex, trained_with_strangers[1].stdout)
        assert values, name
        assert all(float(value) >= 0 for value in values)


def test_objectives_are_maximised_and_defined() -> None:
    objectives = TRAINING["SupportedTuningJobObjectiveMetrics"]
    assert [o["MetricName"] for o in objectives] == ["validation:discriminator_auc", "validation:shuffled_auc"]
    for objective in objectives:
        assert objective["Type"] == "Maximize"
        assert objective["MetricName"] in METRIC_DEFINITIONS


def test_channels() -> None:
    channels = {c["Name"]: c for c in TRAINING["TrainingChannels"]}
    assert {name: c["IsRequired"] for name, c in channels.items()} == {
        "train": True,
        "validation": False,
        "networks": False,
        "model": False,
    }
    assert channels["model"]["SupportedContentTypes"] == ["application/x-sagemaker-model"]
    assert channels["model"]["SupportedInputModes"] == ["File"]
    for channel in channels.values():
        assert ("Gzip" in channel["SupportedCompressionTypes"]) == ("Pipe" in channel["SupportedInputModes"])


@pytest.mark.parametrize("mode", ["File", "FastFile"])
def test_a_job_takes_every_channel_as_promised(mode: str, tree: Tree) -> None:
    for c in TRAINING["TrainingChannels"]:
        if mode in c["SupportedInputModes"]:
            tree.channel(c["Name"], **{"file.csv": "a,1.2.3.4\n"})
            for content_type in c["SupportedContentTypes"]:
                declared = {c["Name"]: {"ContentType": content_type, "TrainingInputMode": mode}}
                tree.channel("train", **{"file.csv": "a,1.2.3.4\n"})
                tree.configure(REQUIRED, inputdataconfig=declared)
                assert getattr(configuration.read(Paths(tree.base)), c["Name"])


def test_a_job_refuses_to_be_without_what_is_required(tree: Tree) -> None:
    tree.configure(REQUIRED)
    with pytest.raises(UserError, match="channel 'train' has no data"):
        configuration.read(Paths(tree.base))


def test_formats_are_those_of_the_server() -> None:
    assert {"text/csv", "application/json", "application/jsonlines"} <= set(INFERENCE["SupportedContentTypes"])
    assert {"application/json", "application/jsonlines"} <= set(INFERENCE["SupportedResponseMIMETypes"])
    for content_type in INFERENCE["SupportedContentTypes"]:
        try:
            media.read(content_type, b"", FAMILIES[4])
        except media.UnsupportedContentType:
            raise
        except UserError:
            pass  # an empty body is none of JSON
    for accept in INFERENCE["SupportedResponseMIMETypes"]:
        assert media.writer(accept).content_type == accept


def test_instance_types_are_named_once() -> None:
    for types in (
        TRAINING["SupportedTrainingInstanceTypes"],
        INFERENCE["SupportedTransformInstanceTypes"],
        INFERENCE["SupportedRealtimeInferenceInstanceTypes"],
    ):
        assert len(set(types)) == len(types)
        assert {"ml.m5.xlarge", "ml.c5.xlarge"} <= set(types)  # those of the README and of AWS's tutorial
    assert {"ml.g4dn.xlarge", "ml.g5.xlarge"} <= set(TRAINING["SupportedTrainingInstanceTypes"])


class Stub(ThreadingHTTPServer):
    """Answers CreateAlgorithm as AWS does: refuses what breaks the model, and a name that is taken."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.algorithms: dict[str, Any] = {"taken": {}}

    def create(self, request: Any) -> tuple[int, dict[str, str]]:
        if found := faults_of("CreateAlgorithm", request):
            return 400, {"__type": "ValidationException", "message": f"{len(found)} validation error: {found[0]}"}
        if request["AlgorithmName"] in self.algorithms:
            return 400, {"__type": "ResourceInUse", "Message": "Algorithm already exists: taken"}
        self.algorithms[request["AlgorithmName"]] = request
        return 200, {"AlgorithmArn": ARN + request["AlgorithmName"]}


class Handler(BaseHTTPRequestHandler):
    server: Stub
    timeout = 60

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["X-Amz-Target"] == "SageMaker.CreateAlgorithm"
        if "/eu-west-1/sagemaker/aws4_request" in self.headers.get("Authorization", ""):
            status, answer = self.server.create(json.loads(body))
        else:
            status, answer = 403, {"__type": "AccessDeniedException", "message": "not signed"}
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CREDENTIALS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
REGION = {"AWS_DEFAULT_REGION": "eu-west-1"}


def register(
    tmp_path: Path, *arguments: str, stub: Stub | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command with nothing of AWS in its environment but what is given."""
    endpoint = {"AWS_ENDPOINT_URL_SAGEMAKER": f"http://127.0.0.1:{stub.server_port}"} if stub else {}
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = "from ipinsights.sagemaker.commands import main; main()"
    return subprocess.run(
        [sys.executable, "-c", command, "algorithm-spec", "--image", IMAGE, "--register", *arguments],
        env={**ours, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", **endpoint, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("by", ["option", "environment"])
def test_registers_what_it_prints(by: str, tmp_path: Path, stub: Stub) -> None:
    region = ["--region", "eu-west-1"] if by == "option" else []
    result = register(tmp_path, *region, stub=stub, **CREDENTIALS, **({} if by == "option" else REGION))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{ARN}ipinsights\n"
    assert stub.algorithms["ipinsights"] == REQUEST


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        (["--name", "taken"], {**CREDENTIALS, **REGION}, "ResourceInUse.*Algorithm already exists: taken"),
        (["--name", "ip_insights"], {**CREDENTIALS, **REGION}, "ValidationException.*AlgorithmName does not match"),
        (["--name", ""], {**CREDENTIALS, **REGION}, "Invalid length for parameter AlgorithmName"),
        ([], REGION, "Unable to locate credentials"),
        ([], CREDENTIALS, "You must specify a region"),
        (["--region", "not a region"], CREDENTIALS, "'not a region'"),
    ],
)
def test_what_cannot_be_registered_is_one_sentence(
    arguments: list[str], environment: dict[str, str], reason: str, tmp_path: Path, stub: Stub
) -> None:
    result = register(tmp_path, *arguments, stub=stub, **environment)
    assert result.returncode == 1
    assert re.fullmatch(f"ipinsights: cannot register algorithm '.*{reason}.*\n", result.stderr), result.stderr
    assert result.stdout == ""
    assert list(stub.algorithms) == ["taken"]


def test_an_endpoint_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    environment = {"AWS_ENDPOINT_URL_SAGEMAKER": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    result = register(tmp_path, stub=None, **environment, **CREDENTIALS, **REGION)
    assert result.returncode == 1
    assert re.fullmatch("ipinsights: cannot register algorithm .*Could not connect.*\n", result.stderr)


def test_the_command_prints_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["algorithm-spec", "--image", IMAGE, "--name", "mine"])
    assert json.loads(capsys.readouterr().out) == {**REQUEST, "AlgorithmName": "mine"}


def test_the_console_script_has_the_commands_of_both_layers(capsys: pytest.CaptureFixture[str]) -> None:
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    [(module, function)] = re.findall(r'"ipinsights = ([\w.]+):(\w+)"', setup)
    with pytest.raises(SystemExit):
        getattr(importlib.import_module(module), function)(["--help"])
    text = capsys.readouterr().out
    for command in ("simulate", "score", "evaluate", "report", "embed", "forget", "algorithm-spec"):
        assert re.search(rf"^    {command}\s", text, re.MULTILINE)
