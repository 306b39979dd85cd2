"""Where the tutorial runs: on this machine, in the SDK's local mode, or in an AWS account.

Each platform has the same methods. ``train`` returns the log of the training job, and ``model`` is then a folder with
the model on this machine. ``deploy`` starts an endpoint, ``predict`` asks it, ``transform`` scores a file, and
``clean_up`` ends what costs something.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import requests

from ipinsights.hyperparameters import declarations
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

PAYLOAD_BYTES = 5_000_000
"""Below the 6 MB that an endpoint takes."""

NO_ACCOUNT = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What the SDK does not start without, and does not use in its local mode."""

Channels = Mapping[str, Path]
"""A folder of log-ins for each channel."""


class Platform(Protocol):
    """What a platform does."""

    model: Path

    def train(self, channels: Channels, hyperparameters: Mapping[str, Any]) -> str:
        """Train, and return the log."""

    def deploy(self) -> None:
        """Start an endpoint with the model."""

    def predict(self, body: str, accept: str = "application/json") -> list[dict[str, Any]]:
        """The predictions for lines of CSV."""

    def transform(self, lines: Path) -> str:
        """The lines of a CSV file, each with its score behind it."""

    def clean_up(self) -> None:
        """End the endpoint."""


def run(command: str, **environment: str) -> str:
    """Run a command, as a shell does, and return what it prints. Raises RuntimeError with that if it fails."""
    programs = str(Path(sys.executable).parent)  # where those of this package are, whatever the PATH
    found = {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]), **environment}
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=found)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}")
    return done.stdout


def payloads(text: bytes, limit: int = PAYLOAD_BYTES) -> Iterator[bytes]:
    """The text in blocks of whole lines that an endpoint takes."""
    begin = 0
    while begin < len(text):
        end = len(text) if len(text) - begin <= limit else text.rindex(b"\n", begin, begin + limit) + 1
        yield text[begin:end]
        begin = end


class Local:
    """On this machine, without an account and without Docker.

    ``train`` and ``serve`` are the programs that SageMaker starts in the container. Here they run on a folder that
    plays /opt/ml.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is emptied."""
        shutil.rmtree(folder, ignore_errors=True)
        self._tree = folder.resolve()
        self._server: subprocess.Popen[bytes] | None = None
        self._url = ""
        self.model = folder / "model"

    def train(self, channels: Channels, hyperparameters: Mapping[str, Any]) -> str:
        """Train, and return the log."""
        config, data = self._tree / "input" / "config", self._tree / "input" / "data"
        config.mkdir(parents=True, exist_ok=True)
        data.mkdir(exist_ok=True)
        strings = {name: str(value) for name, value in hyperparameters.items()}  # as the platform sends them
        (config / "hyperparameters.json").write_text(json.dumps(strings))
        for name, folder in channels.items():
            (data / name).symlink_to(folder.resolve(), target_is_directory=True)
        return run("train", SAGEMAKER_BASE_DIR=str(self._tree))

    def deploy(self) -> None:
        """Start ``serve``, and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        programs = Path(sys.executable).parent
        serve = shutil.which("serve", path=os.pathsep.join([str(programs), os.environ.get("PATH", "")]))
        if serve is None:
            raise RuntimeError("there is no program `serve`: install this package")
        environment = {"SAGEMAKER_BASE_DIR": str(self._tree), "SAGEMAKER_BIND_TO_PORT": str(port)}
        private = {"IPINSIGHTS_BIND_ADDRESS": "127.0.0.1", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
        with (self._tree / "serve.log").open("wb") as log:
            self._server = subprocess.Popen(
                [serve], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment, **private}
            )
        self._url = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                if requests.get(f"{self._url}/ping", timeout=5).ok:
                    return
            if self._server.poll() is not None:
                raise RuntimeError(f"serve ended:\n{(self._tree / 'serve.log').read_text()}")
            time.sleep(0.1)

    def predict(self, body: str, accept: str = "application/json") -> list[dict[str, Any]]:
        """The predictions for lines of CSV."""
        predictions: list[dict[str, Any]] = []
        for block in payloads(body.encode()):
            headers = {"Content-Type": "text/csv", "Accept": accept}
            answer = requests.post(f"{self._url}/invocations", data=block, headers=headers, timeout=120)
            answer.raise_for_status()
            predictions += answer.json()["predictions"]
        return predictions

    def transform(self, lines: Path) -> str:
        """The lines of a CSV file, each with its score behind it."""
        return run(f"ipinsights score --model {shlex.quote(str(self.model))} {shlex.quote(str(lines))}")

    def clean_up(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)
            self._server = None


class Sdk:
    """What the SageMaker SDK (version 3) does alike in its local mode and in AWS."""

    instance, host = "ml.m5.xlarge", "ml.m5.large"
    """The machines for training and for scoring."""

    def __init__(self, session: Any, folder: Path, image: str, role: str) -> None:
        """``folder`` is emptied. ``session`` is a session of the SDK."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._session, self._image, self._role = session, image, role
        self._name = f"ipinsights-{time.time_ns() // 1_000_000}"
        self._url = ""
        self._deployed = False
        self.folder = folder.resolve()
        self.model = folder / "model"

    def trainer(self, hyperparameters: Mapping[str, Any], **options: Any) -> Any:
        """A training job that is not started yet."""
        from sagemaker.train import ModelTrainer
        from sagemaker.train.configs import Compute, MetricDefinition

        trainer = ModelTrainer(
            training_image=self._image,
            role=self._role,
            sagemaker_session=self._session,
            base_job_name="ipinsights",
            compute=Compute(instance_type=self.instance, instance_count=1),
            hyperparameters=dict(hyperparameters),
            **options,
        )
        definitions = [MetricDefinition(name=name, regex=regex) for name, regex in METRIC_DEFINITIONS.items()]
        return trainer.with_metric_definitions(definitions)

    def inputs(self, channels: Channels) -> list[Any]:
        """The data of a training job."""
        from sagemaker.train.configs import InputData

        return [
            InputData(channel_name=name, data_source=self._source(folder, name), content_type="text/csv")
            for name, folder in channels.items()
        ]

    def deploy(self) -> None:
        """Start an endpoint."""
        sagemaker = self._session.sagemaker_client
        self._create_model()
        variant = {"VariantName": "all", "ModelName": self._name, "InitialInstanceCount": 1, "InstanceType": self.host}
        sagemaker.create_endpoint_config(EndpointConfigName=self._name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=self._name, EndpointConfigName=self._name)
        self._deployed = True
        self._wait()

    def predict(self, body: str, accept: str = "application/json") -> list[dict[str, Any]]:
        """The predictions for lines of CSV."""
        predictions: list[dict[str, Any]] = []
        for block in payloads(body.encode()):
            answer = self._session.sagemaker_runtime_client.invoke_endpoint(
                EndpointName=self._name, ContentType="text/csv", Accept=accept, Body=block
            )
            predictions += json.loads(answer["Body"].read())["predictions"]
        return predictions

    def clean_up(self) -> None:
        """Delete the endpoint, its configuration and the model."""
        sagemaker = self._session.sagemaker_client
        if self._deployed:
            sagemaker.delete_endpoint(EndpointName=self._name)
            sagemaker.delete_endpoint_config(EndpointConfigName=self._name)
            sagemaker.delete_model(ModelName=self._name)
            self._deployed = False

    def _create_model(self) -> None:
        container = {"Image": self._image, "ModelDataUrl": self._url, "Environment": {}}
        self._session.sagemaker_client.create_model(
            ModelName=self._name, PrimaryContainer=container, ExecutionRoleArn=self._role
        )

    def _source(self, folder: Path, name: str) -> str:
        """Where the SDK finds the data of a channel."""
        del name
        return str(folder)

    def _wait(self) -> None:
        """Until the endpoint answers."""

    def _transformer(self, output: str) -> Any:
        from sagemaker.core.transformer import Transformer

        return Transformer(
            model_name=self._name,
            instance_count=1,
            instance_type=self.host,
            strategy="MultiRecord",
            assemble_with="Line",
            accept="text/csv",
            output_path=output,
            base_transform_job_name="ipinsights",
            sagemaker_session=self._session,
        )

    def _unpack(self, archive: Path) -> None:
        shutil.unpack_archive(archive, self.model, filter="data")


class Container(Sdk):
    """The image on this machine, by the SDK's local mode: it needs Docker with Compose, and no account."""

    instance, host = "local_cpu", "local"

    def __init__(self, folder: Path, image: str) -> None:
        """``folder`` is emptied."""
        from sagemaker.core.local.local_session import LocalSession

        for name, value in NO_ACCOUNT.items():
            os.environ.setdefault(name, value)
        super().__init__(LocalSession(), folder, image, "arn:aws:iam::000000000000:role/none")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        local = {"local_code": True, "container_root": str(self.folder), "serving_port": port}
        self._session.config = {"local": local}

    def train(self, channels: Channels, hyperparameters: Mapping[str, Any]) -> str:
        """Train, and return the log."""
        from sagemaker.train.model_trainer import Mode

        trainer = self.trainer(
            hyperparameters, training_mode=Mode.LOCAL_CONTAINER, local_container_root=str(self.folder)
        )
        with contextlib.redirect_stdout(io.StringIO()) as log:
            trainer.train(self.inputs(channels))
        archive = self.folder / "compressed_artifacts" / "model.tar.gz"
        self._url = archive.as_uri()
        self._unpack(archive)
        return log.getvalue()

    def transform(self, lines: Path) -> str:
        """The lines of a CSV file, each with its score behind it."""
        source, scores = self.folder / "transform", self.folder / "transformed"
        source.mkdir(exist_ok=True)
        shutil.copy(lines, source)
        self._transformer(scores.as_uri()).transform(
            source.as_uri(), content_type="text/csv", split_type="Line", logs=False
        )
        # The local mode does not join what it scored with the scores (join_source).
        pairs = zip(lines.read_text().splitlines(), (scores / f"{lines.name}.out").read_text().split(), strict=True)
        return "".join(f"{line},{score}\n" for line, score in pairs)


class Aws(Sdk):
    """An AWS account, with the image in its registry (README.md says how) and a role that may use SageMaker and S3."""

    def __init__(self, folder: Path, image: str, role: str) -> None:
        """``folder`` is emptied."""
        from sagemaker.core.helper.session_helper import Session

        super().__init__(Session(), folder, image, role)
        self._bucket = f"s3://{self._session.default_bucket()}/{self._name}"

    def train(self, channels: Channels, hyperparameters: Mapping[str, Any]) -> str:
        """Train, and return the log."""
        trainer = self.trainer(hyperparameters)
        trainer.train(self.inputs(channels), wait=True, logs=False)
        job = trainer._latest_training_job
        job.refresh()
        self._url = job.model_artifacts.s3_model_artifacts
        self.download(self._url)
        self._unpack(self.folder / "model.tar.gz")
        pages = self._session.boto_session.client("logs").get_paginator("filter_log_events")
        logs = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamNamePrefix": f"{job.training_job_name}/"}
        return "\n".join(event["message"] for page in pages.paginate(**logs) for event in page["events"])

    def tune(self, channels: Channels, hyperparameters: Mapping[str, Any], names: Collection[str], jobs: int) -> Any:
        """Tune some hyperparameters in the ranges that are declared for it, and return the tuner."""
        from sagemaker.core.parameter import ContinuousParameter, IntegerParameter
        from sagemaker.train.tuner import HyperparameterTuner

        ranges = {}
        for declared in declarations():
            if declared.name in names and declared.tuning:
                of = IntegerParameter if declared.type is int else ContinuousParameter
                ranges[declared.name] = of(*map(declared.type, declared.tuning))
        fixed = {name: value for name, value in hyperparameters.items() if name not in ranges}
        tuner = HyperparameterTuner(
            model_trainer=self.trainer(fixed),
            objective_metric_name="validation:discriminator_auc",
            metric_definitions=[{"Name": name, "Regex": regex} for name, regex in METRIC_DEFINITIONS.items()],
            hyperparameter_ranges=ranges,
            max_jobs=jobs,
            max_parallel_jobs=2,
        )
        tuner.tune(self.inputs(channels), wait=False)
        return tuner

    def transform(self, lines: Path) -> str:
        """The lines of a CSV file, each with its score behind it."""
        from sagemaker.core.s3 import S3Uploader

        source = S3Uploader.upload(str(lines), f"{self._bucket}/transform", sagemaker_session=self._session)
        transformer = self._transformer(f"{self._bucket}/transformed")
        transformer.transform(
            source, content_type="text/csv", split_type="Line", join_source="Input", wait=True, logs=False
        )
        self.download(f"{self._bucket}/transformed/{lines.name}.out")
        return (self.folder / f"{lines.name}.out").read_text()

    def _source(self, folder: Path, name: str) -> str:
        from sagemaker.core.s3 import S3Uploader

        return str(S3Uploader.upload(str(folder), f"{self._bucket}/{name}", sagemaker_session=self._session))

    def download(self, url: str) -> None:
        """Bring a file of S3 into the folder."""
        from sagemaker.core.s3 import S3Downloader

        S3Downloader.download(url, str(self.folder), sagemaker_session=self._session)

    def _wait(self) -> None:
        self._session.sagemaker_client.get_waiter("endpoint_in_service").wait(EndpointName=self._name)
