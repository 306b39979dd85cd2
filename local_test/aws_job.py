"""The whole of it on AWS by boto3 alone: upload, train, tune, host in four ways, transform, and clean up.

    python -m local_test.aws_job --image ACCOUNT.dkr.ecr.REGION.amazonaws.com/ipinsights:cpu --role ROLE --bucket BUCKET
    python -m local_test.aws_job ... transform --run

Without ``--run`` nothing is sent, and no credentials are needed: each request is checked against the API's model that
botocore ships, and printed. With it, a line tells each change of a job's or an endpoint's state. In the end everything
that was made is removed, after an error and after Ctrl-C too, unless ``--keep`` is given.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError, ClientError

from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

DATA = Path(__file__).parent / "test_dir" / "input" / "data"
ROWS = "user_1,192.0.2.1\nnobody,203.0.113.9\n"
OBJECTIVE = "validation:discriminator_auc"
HYPERPARAMETERS = {"num_entity_vectors": "20000", "vector_dim": "128", "epochs": "5"}
UNFINISHED = {"InProgress", "Stopping", "Creating", "Updating"}
"""States that a job or an endpoint leaves by itself."""


class Run:
    """One run: its names in the account, and what it has made there. Steps build on one another, see ``STEPS``."""

    def __init__(self, options: argparse.Namespace, clients: Callable[[str], Any]) -> None:
        """With ``clients`` making the client of a service."""
        self.options = options
        self.name = options.name
        self.folder = f"s3://{options.bucket}/{self.name}"
        self.artifact = f"{self.folder}/models/{self.name}/output/model.tar.gz"  # where a training job puts it
        self.s3, self.sagemaker, self.runtime = map(clients, ("s3", "sagemaker", "sagemaker-runtime"))
        self._made: list[tuple[str, Callable[[], object]]] = []

    # Steps

    def upload(self) -> None:
        """Put the log-ins where SageMaker reads them."""
        for channel in ("train", "validation"):
            folder = getattr(self.options, channel)
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            if not files:
                raise SystemExit(f"there are no files in {folder}: name a folder of log-ins with --{channel}")
            for file in files:
                self._put(f"{channel}/{file.relative_to(folder)}", file)

    def train(self) -> None:
        """One training job, on the hosts and the instance type of the options."""
        job = self._job(
            "training", RoleArn=self.options.role, HyperParameters=self._hyperparameters(), **self._training()
        )
        for metric in job.get("FinalMetricDataList", []):
            print(f"  {metric['MetricName']} = {metric['Value']:.6g}")

    def tune(self) -> None:
        """A few training jobs that look for a better learning rate and dimension."""
        training = self._training()
        definition = {"RoleArn": self.options.role, "StaticHyperParameters": self._hyperparameters("vector_dim")}
        number = self.options.tuning_jobs
        job = self._job(
            "hyper_parameter_tuning",
            HyperParameterTuningJobConfig={
                "Strategy": "Bayesian",
                "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": OBJECTIVE},
                "ResourceLimits": {"MaxNumberOfTrainingJobs": number, "MaxParallelTrainingJobs": min(number, 2)},
                "ParameterRanges": {
                    "ContinuousParameterRanges": [
                        {"Name": "learning_rate", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
                    ],
                    "IntegerParameterRanges": [{"Name": "vector_dim", "MinValue": "64", "MaxValue": "256"}],
                },
            },
            TrainingJobDefinition={**definition, **training},
        )
        if best := job.get("BestTrainingJob"):
            value = best["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
            print(f"  best: {best['TrainingJobName']}, {OBJECTIVE} {value:.6g}, {best['TunedHyperParameters']}")

    def model(self) -> None:
        """The trained model under a name, for endpoints and transform jobs."""
        self._model(self.name, ModelDataUrl=self.artifact)

    def endpoint(self) -> None:
        """A machine that always answers."""
        instance = {"InitialInstanceCount": 1, "InstanceType": self.options.host}
        self._ask(self._endpoint(self.name, self.name, instance))

    def serverless(self) -> None:
        """An endpoint that costs nothing while nobody asks."""
        name = f"{self.name}-serverless"
        self._model(name, ModelDataUrl=self.artifact, Environment={"SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
        self._ask(self._endpoint(name, name, {"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 1}}))

    def asynchronous(self) -> None:
        """An endpoint for large requests: each is an object in S3, and so is its answer."""
        name = f"{self.name}-asynchronous"
        self._model(name, ModelDataUrl=self.artifact, Environment={"MAX_CONTENT_LENGTH": str(1 << 30)})
        instance = {"InitialInstanceCount": 1, "InstanceType": self.options.host}
        answers = {"OutputConfig": {"S3OutputPath": f"{self.folder}/asynchronous"}}
        self._endpoint(name, name, instance, AsyncInferenceConfig=answers)
        rows = self._put("rows/rows.csv", ROWS)
        answer = self.runtime.invoke_endpoint_async(EndpointName=name, InputLocation=rows, ContentType="text/csv")
        print(self._fetch(answer["OutputLocation"], answer.get("FailureLocation")))

    def multi_model(self) -> None:
        """An endpoint that loads, of all models in a folder, those that somebody asks for."""
        name = f"{self.name}-multi-model"
        bucket, key = _location(self.artifact)
        with self._making("the copy of the model", lambda: self._empty(f"{self.name}/hosted/")):
            self.s3.copy_object(Bucket=bucket, Key=f"{self.name}/hosted/first.tar.gz", CopySource=f"{bucket}/{key}")
        self._model(name, ModelDataUrl=f"{self.folder}/hosted/", Mode="MultiModel")
        instance = {"InitialInstanceCount": 1, "InstanceType": self.options.host}
        self._ask(self._endpoint(name, name, instance), TargetModel="first.tar.gz")

    def transform(self) -> None:
        """A job that writes each log-in of the validation folder, and its score behind it, into a file."""
        self._job(
            "transform",
            output="scores",
            ModelName=self.name,
            BatchStrategy="MultiRecord",
            TransformInput={
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"{self.folder}/validation"}},
                "ContentType": "text/csv",
                "SplitType": "Line",
            },
            TransformOutput={"S3OutputPath": f"{self.folder}/scores", "Accept": "text/csv", "AssembleWith": "Line"},
            TransformResources={"InstanceType": self.options.host, "InstanceCount": 1},
            DataProcessing={"JoinSource": "Input"},
        )
        print(f"  {self.folder}/scores")

    # What was made, and its removal

    def clean_up(self) -> None:
        """Remove what was made, the last first. One failure leaves the others to be removed."""
        left = []
        while self._made:
            what, remove = self._made[-1]
            print(f"Removing {what}", flush=True)
            try:
                remove()
            except (BotoCoreError, ClientError) as error:
                left.append(f"{what}: {' '.join(str(error).split())}")
            except KeyboardInterrupt:  # the second one
                self.leave()
                raise
            self._made.pop()
        if left:
            raise SystemExit("These could not be removed, and may cost money:\n" + "\n".join(left))

    def leave(self) -> None:
        """Name what was made."""
        for what, _ in self._made:
            print(f"Kept {what}")

    @contextlib.contextmanager
    def _making(self, what: str, remove: Callable[[], object]) -> Iterator[None]:
        """Whatever is made inside is to be removed: also if Ctrl-C comes while the request is on its way."""
        self._made.append((what, remove))
        try:
            yield
        except ClientError:  # refused, so there is nothing to remove
            self._made.pop()
            raise

    def _stop(self, kind: str, name: str) -> None:
        """Stop a job unless it has ended: jobs cannot be removed, and cost nothing then."""
        if self._describe(kind, name)[f"{_title(kind)}JobStatus"] == "InProgress":
            getattr(self.sagemaker, f"stop_{kind}_job")(**{f"{_title(kind)}JobName": name})
        self._wait(kind, name, f"{_title(kind)}JobStatus")

    def _delete_endpoint(self, name: str) -> None:
        self._wait("endpoint", name, "EndpointStatus")  # one that is being made cannot be deleted
        self.sagemaker.delete_endpoint(EndpointName=name)

    def _empty(self, prefix: str) -> None:
        """Delete the objects below a prefix."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.options.bucket, Prefix=prefix)
        for page in pages:
            if found := [{"Key": item["Key"]} for item in page.get("Contents", [])]:
                self.s3.delete_objects(Bucket=self.options.bucket, Delete={"Objects": found})

    # Parts of requests

    def _hyperparameters(self, *without: str) -> dict[str, str]:
        return {name: value for name, value in self.options.hyperparameters.items() if name not in without}

    def _training(self) -> dict[str, Any]:
        """What a training job and a tuning job have in common."""
        return {
            "AlgorithmSpecification": {
                "TrainingImage": self.options.image,
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in METRIC_DEFINITIONS.items()],
            },
            "InputDataConfig": [
                {
                    "ChannelName": channel,
                    "ContentType": "text/csv",
                    "DataSource": {
                        "S3DataSource": {
                            "S3DataType": "S3Prefix",
                            "S3Uri": f"{self.folder}/{channel}",
                            "S3DataDistributionType": "FullyReplicated",
                        }
                    },
                }
                for channel in ("train", "validation")
            ],
            "OutputDataConfig": {"S3OutputPath": f"{self.folder}/models"},
            "ResourceConfig": {
                "InstanceType": self.options.instance,
                "InstanceCount": self.options.instances,
                "VolumeSizeInGB": 30,
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": self.options.hours * 3600},
        }

    def _model(self, name: str, **container: Any) -> None:
        with self._making(f"model {name}", lambda: self.sagemaker.delete_model(ModelName=name)):
            self.sagemaker.create_model(
                ModelName=name,
                ExecutionRoleArn=self.options.role,
                PrimaryContainer={"Image": self.options.image, **container},
            )

    def _endpoint(self, name: str, model: str, variant: Mapping[str, Any], **configuration: Any) -> str:
        """An endpoint of its own configuration, once it answers."""
        variants = [{"VariantName": "AllTraffic", "ModelName": model, **variant}]
        remove = self.sagemaker.delete_endpoint_config
        with self._making(f"endpoint configuration {name}", lambda: remove(EndpointConfigName=name)):
            self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants, **configuration)
        with self._making(f"endpoint {name}", lambda: self._delete_endpoint(name)):
            self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        self._wait("endpoint", name, "EndpointStatus", good="InService")
        return name

    def _ask(self, endpoint: str, **more: str) -> None:
        answer = self.runtime.invoke_endpoint(EndpointName=endpoint, ContentType="text/csv", Body=ROWS, **more)
        print(f"  {answer['Body'].read().decode()}")

    def _put(self, key: str, content: Path | str) -> str:
        """An object from a file or a text. Returns its address."""
        bucket, key = self.options.bucket, f"{self.name}/{key}"
        with self._making(f"s3://{bucket}/{key}", lambda: self.s3.delete_object(Bucket=bucket, Key=key)):
            if isinstance(content, str):
                self.s3.put_object(Bucket=bucket, Key=key, Body=content.encode())
            else:
                self.s3.upload_file(str(content), bucket, key)
        return f"s3://{bucket}/{key}"

    def _fetch(self, answer: str, failure: str | None) -> str:
        """The text of an object, as soon as it is there. Ends with the reason if one of a failure comes instead."""
        while True:
            for address in filter(None, (answer, failure)):
                bucket, key = _location(address)
                try:
                    text = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
                except self.s3.exceptions.NoSuchKey:
                    continue
                self._made.append((address, partial(self.s3.delete_object, Bucket=bucket, Key=key)))
                if address == failure:
                    raise SystemExit(f"the request failed: {text}")
                return f"  {text}"
            time.sleep(self.options.poll)

    # Waiting

    def _job(self, kind: str, *, output: str = "models", **request: Any) -> dict[str, Any]:
        """Make a job. Returns what is told of it once it is done."""
        # Below the job, so that this has stopped before its output is removed.
        self._made.append((f"{self.folder}/{output}", lambda: self._empty(f"{self.name}/{output}/")))
        with self._making(f"what still runs of the {_words(kind)} job", lambda: self._stop(kind, self.name)):
            getattr(self.sagemaker, f"create_{kind}_job")(**{f"{_title(kind)}JobName": self.name}, **request)
        return self._wait(kind, self.name, f"{_title(kind)}JobStatus", good="Completed")

    def _describe(self, kind: str, name: str) -> dict[str, Any]:
        kind, parameter = (kind, "EndpointName") if kind == "endpoint" else (f"{kind}_job", f"{_title(kind)}JobName")
        answer: dict[str, Any] = getattr(self.sagemaker, f"describe_{kind}")(**{parameter: name})
        return answer

    def _wait(self, kind: str, name: str, key: str, good: str | None = None) -> dict[str, Any]:
        """Wait for a final state, and tell each change. Ends with the reason unless the state is the good one."""
        began, told = time.monotonic(), ""
        while True:
            answer = self._describe(kind, name)
            state = answer[key]
            text = " ".join(dict.fromkeys(filter(None, (state, answer.get("SecondaryStatus")))))
            if text != told and self.options.run:
                print(f"{_words(kind)} {name}: {text} ({time.monotonic() - began:.0f} s)", flush=True)
                told = text
            if state not in UNFINISHED:
                if good not in (None, state):
                    raise SystemExit(
                        f"{_words(kind)} {name} is {state}: {answer.get('FailureReason', 'no reason is given')}"
                    )
                return answer
            time.sleep(self.options.poll)


STEPS: dict[str, tuple[Callable[[Run], None], tuple[str, ...]]] = {
    "upload": (Run.upload, ()),
    "train": (Run.train, ("upload",)),
    "tune": (Run.tune, ("upload",)),
    "model": (Run.model, ("train",)),
    "endpoint": (Run.endpoint, ("model",)),
    "serverless": (Run.serverless, ("train",)),
    "asynchronous": (Run.asynchronous, ("train",)),
    "multi-model": (Run.multi_model, ("train",)),
    "transform": (Run.transform, ("model",)),
}
"""Each step, and those that it needs before it."""


def _with_needs(steps: list[str]) -> list[str]:
    """The steps and all that they need, in order."""
    wanted = set(steps)
    for step in reversed(STEPS):
        if step in wanted:
            wanted |= set(STEPS[step][1])
    return [step for step in STEPS if step in wanted]


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _title(kind: str) -> str:
    return kind.title().replace("_", "")


def _location(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key


def pretend(client: Any) -> Any:
    """Have a client check and print each request, and answer as if all went well, without sending anything."""
    answers: dict[str, dict[str, Any]] = {
        "DescribeTrainingJob": {"TrainingJobStatus": "Completed"},
        "DescribeHyperParameterTuningJob": {"HyperParameterTuningJobStatus": "Completed"},
        "DescribeTransformJob": {"TransformJobStatus": "Completed"},
        "DescribeEndpoint": {"EndpointStatus": "InService"},
        "InvokeEndpointAsync": {"OutputLocation": "s3://bucket/answer"},
    }

    def show(params: dict[str, Any], model: Any, **_: object) -> None:
        if not model.name.startswith(("Describe", "ListObjects")):
            shown = {name: value for name, value in params.items() if name != "Body"}
            print(f"{model.service_model.service_id} {model.name} {json.dumps(shown, indent=2)}")

    def answer(model: Any, **_: object) -> tuple[AWSResponse, dict[str, Any]]:
        parsed = {"Body": io.BytesIO(), **answers.get(model.name, {})}
        return AWSResponse("", 200, {}, None), parsed

    client.meta.events.register("provide-client-params", show)
    client.meta.events.register("before-call", answer)
    return client


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = ["endpoint", "transform"]
    parser.add_argument(
        "steps", nargs="*", help=f"{', '.join(STEPS)} (default: {' '.join(usual)}); also what they need"
    )
    parser.add_argument("--image", required=True, help="the image's URI in ECR, in the same region")
    parser.add_argument(
        "--role", required=True, help="ARN of the role that SageMaker takes; docs/aws.md has its policy"
    )
    parser.add_argument("--bucket", required=True, help="a bucket in the same region, for the data and the models")
    parser.add_argument("--region", help="default: that of the AWS command line")
    parser.add_argument("--name", default=time.strftime("ipinsights-%Y%m%d-%H%M%S"), help="of all that is made")
    for channel in ("train", "validation"):
        parser.add_argument(f"--{channel}", type=Path, default=DATA / channel, help=f"folder of {channel} log-ins")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter")
    parser.add_argument("--instance", default="ml.m5.xlarge", help="type of the machines that train")
    parser.add_argument("--instances", type=int, default=1, help="number of the machines that train together")
    parser.add_argument("--host", default="ml.m5.large", help="type of the machines that serve and transform")
    parser.add_argument("--hours", type=int, default=24, help="after which a training job is stopped")
    parser.add_argument("--tuning-jobs", type=int, default=4, help="number of training jobs of a tuning job")
    parser.add_argument("--poll", type=float, default=15, help="seconds between two looks at a job")
    parser.add_argument("--run", action="store_true", help="send the requests, which costs money")
    parser.add_argument("--keep", action="store_true", help="leave what was made")
    options = parser.parse_args()
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"no such step: {unknown[0]}. Steps are {', '.join(STEPS)}")
    if bad := [text for text in options.set if "=" not in text]:
        parser.error(f"--set {bad[0]}: write NAME=VALUE")
    options.steps = _with_needs(options.steps or usual)
    options.hyperparameters = HYPERPARAMETERS | dict(text.split("=", 1) for text in options.set)
    return options


def main() -> None:
    """Do the steps, then clean up."""
    options = _options()
    session = boto3.Session(region_name=options.region)

    def client(service: str) -> Any:
        made = session.client(service)
        return made if options.run else pretend(made)

    try:
        run = Run(options, client)
        try:
            for step in options.steps:
                print(f"\n{step}", flush=True)
                STEPS[step][0](run)
        finally:
            print()
            (run.leave if options.keep else run.clean_up)()
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"AWS refused: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("Stopped by Ctrl-C")
    if not options.run:
        print("Nothing was sent: --run sends it")


if __name__ == "__main__":
    main()
