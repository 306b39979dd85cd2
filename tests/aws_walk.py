"""The tutorial's walk in AWS, before a stand-in of AWS (moto): prints the requests as JSON, and what came of them.

    python tests/aws_walk.py MODEL LOG_INS WORK

MODEL is a folder with a model, LOG_INS one with a CSV file. It runs in a process of its own, since the SDK changes
logging and warnings.
"""

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

os.environ |= {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_EC2_METADATA_DISABLED": "true",
    "SAGEMAKER_VALIDATE_ROLE": "false",
}
sys.path.insert(0, str(Path(__file__).parents[1]))

import boto3
from botocore.awsrequest import AWSResponse
from moto import mock_aws
from notebooks.platforms import Aws

IMAGE, ROLE = "000000000000.dkr.ecr.us-east-1.amazonaws.com/ipinsights:cpu", "arn:aws:iam::000000000000:role/none"
HYPERPARAMETERS = {"num_entity_vectors": 600, "vector_dim": 16, "epochs": 2}


class Body(io.BytesIO):
    """A response's body, as botocore wants to read it."""

    def stream(self, **_: Any) -> Any:
        while part := self.read():
            yield part


def main(model: Path, log_ins: Path, work: Path) -> None:
    requests: list[tuple[str, str, Any]] = []

    def record(params: Any, model: Any, **_: Any) -> None:
        kept = {name: value for name, value in params.items() if name not in {"Body", "Fileobj"}}
        requests.append((model.service_model.service_name, model.name, json.loads(json.dumps(kept, default=str))))

    def predict(request: Any, **_: Any) -> AWSResponse:
        lines = request.body.decode().splitlines()
        body = json.dumps({"predictions": [{"dot_product": float(number)} for number, _ in enumerate(lines)]})
        return AWSResponse(request.url, 200, {"Content-Type": "application/json"}, Body(body.encode()))

    with mock_aws():
        boto3.setup_default_session()
        events = boto3.DEFAULT_SESSION.events
        events.register("provide-client-params.*.*", record)
        events.register_first("before-send.sagemaker-runtime.InvokeEndpoint", predict)
        boto3.client("logs").create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
        platform = Aws(work / "aws", IMAGE, ROLE)
        channels = {"train": log_ins, "validation": log_ins}

        def finish(url: str, data: bytes) -> None:
            """Put what the job would have written."""
            bucket, _, key = url.removeprefix("s3://").partition("/")
            boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)

        download = platform.download

        def downloaded(url: str) -> None:
            finish(url, packed(model) if url.endswith(".tar.gz") else b"user_1,192.0.2.1,1.5\n")
            download(url)

        platform.download = downloaded  # type: ignore[method-assign]
        platform.train(channels, HYPERPARAMETERS)
        platform.deploy()
        predictions = platform.predict("user_1,192.0.2.1\nuser_2,192.0.2.2\n", accept="application/json; verbose=True")
        platform.tune(channels, HYPERPARAMETERS, names=["vector_dim", "learning_rate"], jobs=4)
        lines = next(log_ins.iterdir())
        transformed = platform.transform(lines)
        platform.clean_up()
        left = boto3.client("sagemaker").list_endpoints()["Endpoints"]
    files = sorted(path.name for path in platform.model.iterdir())
    found = {"predictions": predictions, "transformed": transformed, "model": files, "left": len(left)}
    print(json.dumps({"requests": requests, **found}))


def packed(folder: Path) -> bytes:
    """A folder as model.tar.gz."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path in folder.iterdir():
            tar.add(path, path.name)
    return archive.getvalue()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
