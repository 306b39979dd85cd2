"""AWS on this machine: moto's server keeps buckets, models and jobs, and this program's processes train and serve.

moto runs nothing. Here a training job runs `train` on a tree of what the job's channels have in S3, an endpoint is a
`serve` on the model's archive, and a transform job asks one. Every request is held against the API's model first.
"""

import hashlib
import io
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import boto3
import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from aws.api import faults_of
from conftest import Server, Tree

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}


class StandIn:
    """The account. ``sent`` has every request to SageMaker in order, and ``written`` what transform jobs wrote."""

    def __init__(self, folder: Path, hang: str = "", brief: bool = False) -> None:
        """With a folder for its trees. A job of the kind ``hang`` does not end until it is stopped.

        If it is to be ``brief``, tuning jobs train nothing.
        """
        self.folder, self.hang, self.brief = folder, hang, brief
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.written: dict[str, str] = {}
        self.hanging = threading.Event()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._threads, self._closed = ThreadPoolExecutor(4), threading.Event()
        self._work: dict[tuple[str, str], Future[dict[str, Any]]] = {}  # of each job and endpoint, by kind and name
        self._seen: set[tuple[str, str]] = set()
        self._stopped: set[tuple[str, str]] = set()
        self._models: dict[str, dict[str, Any]] = {}
        self._servers: dict[str, Server] = {}
        self._configurations: dict[str, dict[str, Any]] = {}
        self._acts = {
            "CreateTrainingJob": self._create_training_job,
            "CreateHyperParameterTuningJob": self._create_tuning_job,
            "CreateTransformJob": self._create_transform_job,
            "CreateModel": self._create_model,
            "CreateEndpointConfig": self._create_endpoint_config,
            "CreateEndpoint": self._create_endpoint,
            "DeleteEndpoint": self._delete_endpoint,
        }
        """What moto only writes down."""
        self.url = ""

    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true"}

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",
        )

    def operations(self) -> list[str]:
        """The names of what was asked, without those that only look."""
        return [name for name, _ in self.sent if not name.startswith(("Describe", "List"))]

    def serving(self) -> list[str]:
        """The endpoints that exist."""
        return list(self._servers)

    def close(self) -> None:
        """Stop what still runs."""
        self._closed.set()
        self._threads.shutdown()
        while self._servers:
            self._servers.popitem()[1].stop()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """As a WSGI application."""
        request = Request(environ)
        operation = request.headers.get("X-Amz-Target", "").removeprefix("SageMaker.")
        if found := re.fullmatch(r"/endpoints/(.+)/(invocations|async-invocations)", request.path):
            return self._invoke(request, *found.groups())(environ, start_response)
        if operation == request.headers.get("X-Amz-Target", ""):  # of another service
            return cast("Iterable[bytes]", self._moto(environ, start_response))
        body = request.get_data()
        environ["wsgi.input"] = io.BytesIO(body)
        asked = json.loads(body)
        self.sent.append((operation, asked))
        if wrong := faults_of(operation, asked):
            return _json({"__type": "ValidationException", "message": wrong[0]}, 400)(environ, start_response)
        kind = re.fullmatch(r"(Describe|Stop)(\w+)Job", operation)
        if kind and kind[1] == "Stop":
            self._stopped.add((kind[2], asked[f"{kind[2]}JobName"]))
            return _json({})(environ, start_response)
        answer = Response.from_app(self._moto, environ)
        if answer.status_code == 200:
            if operation.startswith("Describe"):  # where moto tells of what there is not
                told = {name: value for name, value in json.loads(answer.get_data()).items() if value not in ({}, None)}
                if kind:
                    told |= self._state(kind[2], asked[f"{kind[2]}JobName"])
                if operation == "DescribeEndpoint":
                    told |= self._state("Endpoint", asked["EndpointName"])
                answer = _json(told)
            elif operation in self._acts:
                self._acts[operation](asked)
        return answer(environ, start_response)

    # What is done when moto has written it down

    def _create_training_job(self, asked: dict[str, Any]) -> None:
        self._begin(
            "Training",
            asked["TrainingJobName"],
            lambda: self._train(asked["TrainingJobName"], asked, asked["HyperParameters"]),
        )

    def _create_tuning_job(self, asked: dict[str, Any]) -> None:
        """One job, with the least value of each range."""
        definition = asked["TrainingJobDefinition"]
        ranges = asked["HyperParameterTuningJobConfig"]["ParameterRanges"].values()
        tuned = {each["Name"]: each["MinValue"] for kind in ranges for each in kind}
        objective = asked["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]

        def tune() -> dict[str, Any]:
            hyperparameters = {**definition["StaticHyperParameters"], **tuned}
            hyperparameters["_tuning_objective_metric"] = objective["MetricName"]
            name = f"{asked['HyperParameterTuningJobName']}-001"
            job = {} if self.brief else self._train(name, definition, hyperparameters)
            values = {metric["MetricName"]: metric["Value"] for metric in job.get("FinalMetricDataList", [])}
            value = 0.0 if self.brief else values[objective["MetricName"]]
            best = {
                "TrainingJobName": name,
                "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}",
                "CreationTime": 0,
                "TrainingJobStatus": "Completed",
                "TunedHyperParameters": tuned,
                "FinalHyperParameterTuningJobObjectiveMetric": {**objective, "Value": value},
            }
            return {"BestTrainingJob": best}

        self._begin("HyperParameterTuning", asked["HyperParameterTuningJobName"], tune)

    def _create_transform_job(self, asked: dict[str, Any]) -> None:
        self._begin("Transform", asked["TransformJobName"], lambda: self._transform(asked))

    def _create_model(self, asked: dict[str, Any]) -> None:
        self._models[asked["ModelName"]] = asked["PrimaryContainer"]

    def _create_endpoint_config(self, asked: dict[str, Any]) -> None:
        self._configurations[asked["EndpointConfigName"]] = asked

    def _create_endpoint(self, asked: dict[str, Any]) -> None:
        (variant,) = self._configurations[asked["EndpointConfigName"]]["ProductionVariants"]

        def serve() -> dict[str, Any]:
            self._servers[asked["EndpointName"]] = self._serve(variant["ModelName"])
            return {}

        self._begin("Endpoint", asked["EndpointName"], serve)

    def _delete_endpoint(self, asked: dict[str, Any]) -> None:
        self._work["Endpoint", asked["EndpointName"]].result()
        self._servers.pop(asked["EndpointName"]).stop()

    # Jobs, and endpoints while they are made

    def _begin(self, kind: str, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Let something be done in the background. It returns what is told of it in the end."""
        self._work[kind, name] = self._threads.submit(self._hang if self.hang == kind else work)

    def _hang(self) -> dict[str, Any]:
        self._closed.wait()
        return {}

    def _state(self, kind: str, name: str) -> dict[str, Any]:
        """How far it is. Who looks for the first time learns that it is not done."""
        endpoint, work = kind == "Endpoint", self._work[kind, name]
        status = "EndpointStatus" if endpoint else f"{kind}JobStatus"
        if (kind, name) in self._stopped:
            return {status: "Stopped", "SecondaryStatus": "Stopped"}
        if (kind, name) not in self._seen or not work.done():
            self._seen.add((kind, name))
            if self.hang == kind:
                self.hanging.set()
            return {status: "Creating" if endpoint else "InProgress", "SecondaryStatus": kind}
        return {status: "InService" if endpoint else "Completed", "SecondaryStatus": "Completed", **work.result()}

    def _train(self, name: str, asked: dict[str, Any], hyperparameters: dict[str, str]) -> dict[str, Any]:
        """Run `train`, put its model where the request says, and read its metrics as SageMaker does."""
        tree = Tree(self.folder / name)
        config = {}
        for channel in asked["InputDataConfig"]:
            source = channel["DataSource"]["S3DataSource"]
            self._download(source["S3Uri"], tree.channel(channel["ChannelName"]))
            given = {"ContentType": channel["ContentType"]} if channel.get("ContentType") else {}
            config[channel["ChannelName"]] = {
                "TrainingInputMode": "File",
                "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
                **given,
            }
        hosts = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
        tree.configure(hyperparameters, inputdataconfig=config, resourceconfig=hosts)
        job = tree.train()
        if job.returncode:
            return {"TrainingJobStatus": "Failed", "FailureReason": tree.failure.read_text()}
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for file in tree.model.iterdir():
                tar.add(file, file.name)
        bucket, key = _location(f"{asked['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output/model.tar.gz")
        self.client("s3").put_object(Bucket=bucket, Key=key, Body=archive.getvalue())
        log = job.stdout + job.stderr
        definitions = asked["AlgorithmSpecification"].get("MetricDefinitions", [])
        found = {definition["Name"]: re.findall(definition["Regex"], log) for definition in definitions}
        metrics = [
            {"MetricName": metric, "Value": float(values[-1]), "Timestamp": 0}
            for metric, values in found.items()
            if values
        ]
        return {"FinalMetricDataList": metrics, "ModelArtifacts": {"S3ModelArtifacts": f"s3://{bucket}/{key}"}}

    def _transform(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One request for each file; join its lines with those of the answer if so asked."""
        source, output = asked["TransformInput"], asked["TransformOutput"]
        rows, (bucket, prefix) = self.folder / f"rows-{asked['TransformJobName']}", _location(output["S3OutputPath"])
        self._download(source["DataSource"]["S3DataSource"]["S3Uri"], rows)
        server = self._serve(asked["ModelName"], SAGEMAKER_BATCH="true")
        try:
            for file in sorted(rows.iterdir()):
                answer = server.post(file.read_bytes(), source["ContentType"], output["Accept"])
                if answer.status_code != 200:
                    return {"TransformJobStatus": "Failed", "FailureReason": answer.text}
                lines = answer.text.splitlines()
                if asked.get("DataProcessing", {}).get("JoinSource") == "Input":
                    lines = [f"{a},{b}" for a, b in zip(file.read_text().splitlines(), lines, strict=True)]
                key, text = f"{prefix.rstrip('/')}/{file.name}.out", "".join(f"{line}\n" for line in lines)
                self.client("s3").put_object(Bucket=bucket, Key=key, Body=text)
                self.written[f"s3://{bucket}/{key}"] = text
        finally:
            server.stop()
        return {}

    # Endpoints

    def _serve(self, name: str, **environment: str) -> Server:
        """`serve` with a model that was created under a name."""
        container = self._models[name]
        tree = Tree(self.folder / f"served-{name}-{len(self.sent)}")
        tree.base.mkdir(parents=True)
        given = dict(container.get("Environment", {}))
        if container.get("Mode") == "MultiModel":
            (tree.base / "models").mkdir()
            given |= {"SAGEMAKER_MULTI_MODEL": "true", "IPINSIGHTS_MODELS_FOLDER": str(tree.base / "models")}
        else:
            self._unpack(container["ModelDataUrl"], tree.model)
        return Server(tree, **given, **environment)

    def _invoke(self, request: Request, name: str, way: str) -> Response:
        """Pass a request on to the server of an endpoint."""
        server, kind = self._servers[name], request.headers.get("Content-Type")
        if way == "async-invocations":
            kind = request.headers.get("X-Amzn-SageMaker-Content-Type")
            bucket, key = _location(request.headers["X-Amzn-SageMaker-InputLocation"])
            answer = server.post(self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read(), kind)
            settings = self._configurations[name]["AsyncInferenceConfig"]["OutputConfig"]
            bucket, key = _location(f"{settings['S3OutputPath']}/answer.out")
            self.client("s3").put_object(Bucket=bucket, Key=key, Body=answer.content)
            response = _json({"InferenceId": "one"}, 202)
            response.headers["X-Amzn-SageMaker-OutputLocation"] = f"s3://{bucket}/{key}"
            return response
        path = "/invocations"
        if target := request.headers.get("X-Amzn-SageMaker-Target-Model"):
            path = self._load(name, target)
        accept = request.headers.get("Accept")
        answer = server.post(request.get_data(), kind, accept, path)
        if answer.status_code != 200:
            error = {"OriginalStatusCode": answer.status_code, "OriginalMessage": answer.text, "Message": answer.text}
            response = _json(error, 424)
            response.headers["X-Amzn-ErrorType"] = "ModelError"
            return response
        return Response(answer.content, 200, {"Content-Type": answer.headers["Content-Type"]})

    def _load(self, endpoint: str, target: str) -> str:
        """Have a multi-model endpoint load a model. Returns where it is asked."""
        (variant,) = self._configurations[endpoint]["ProductionVariants"]
        name = hashlib.sha256(target.encode()).hexdigest()[:32]
        (root,) = self.folder.glob(f"served-{variant['ModelName']}-*")
        folder, server = root / "models" / name / "model", self._servers[endpoint]
        if not folder.exists():
            self._unpack(self._models[variant["ModelName"]]["ModelDataUrl"] + target, folder)
            asked = {"model_name": name, "url": str(folder)}
            requests.post(f"{server.url}/models", json=asked, timeout=60).raise_for_status()
        return f"/models/{name}/invoke"

    # S3

    def _download(self, address: str, folder: Path) -> None:
        bucket, prefix = _location(address)
        s3 = self.client("s3")
        found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        assert found, f"there is nothing at {address}"
        folder.mkdir(parents=True)
        for item in found:
            s3.download_file(bucket, item["Key"], str(folder / Path(item["Key"]).name))

    def _unpack(self, address: str, folder: Path) -> None:
        bucket, key = _location(address)
        body = self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            tar.extractall(folder, filter="data")


def _location(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key


def _json(answer: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(answer), status, {"Content-Type": "application/x-amz-json-1.1"})


@contextmanager
def stand_in(folder: Path, hang: str = "", brief: bool = False) -> Iterator[StandIn]:
    """An account with a bucket named "bucket"."""
    account = StandIn(folder, hang, brief)
    server = make_server("127.0.0.1", 0, account, threaded=True, request_handler=MotoRequestHandler)
    account.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        requests.post(f"{account.url}/moto-api/reset", timeout=60).raise_for_status()  # moto's state is the process's
        account.client("s3").create_bucket(Bucket="bucket")
        yield account
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        account.close()
        shutil.rmtree(folder, ignore_errors=True)
