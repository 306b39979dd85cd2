"""The calls of the AWS tutorial, by version 2 of the SageMaker SDK in its local mode: fit, deploy, predict, transform.

    pip install "sagemaker[local]<3"
    python -m local_test.sagemaker_local --image ipinsights:cpu --out local_test/work/sagemaker

Needs Docker with Compose, and neither an AWS account nor this package. The data are those of local_test/test_dir. With
``--hosts 2`` two containers train one model. What comes out is printed as JSON: the scores of the deployed model, and
those that the transform wrote beside them.
"""

import argparse
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "test_dir" / "input" / "data"
CHANNELS = ("train", "validation")
ROWS = [["user_1", "192.0.2.1"], ["user, 2", "198.51.100.4"], ["nobody", "203.0.113.9"]]
CSV_ROWS = 'user_1,192.0.2.1\n"user, 2",198.51.100.4\nnobody,203.0.113.9\n'
HYPERPARAMETERS = {
    "num_entity_vectors": 1000,
    "vector_dim": 16,
    "epochs": 2,
    "learning_rate": 0.01,
    "mini_batch_size": 500,
    "training_hosts": "all",  # or little data trains on one host, whatever their number
}
ROLE = "arn:aws:iam::000000000000:role/none"
VERBOSE = "application/json;verbose=True"

CONFIG = "SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n"
"""Of the SDK, which would tell AWS of every call, and wait long where it cannot."""
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What the SDK does not start without, and does not use in local mode."""


def main(description: str | None, walk: Callable[[str, Path, int], dict[str, Any]]) -> None:
    """Do all of it in a folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="ipinsights:cpu")
    parser.add_argument("--hosts", type=int, default=1, help="containers that train together")
    parser.add_argument("--out", type=Path, default=Path("local_test/work/sagemaker"), help="emptied first")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    (options.out / "config.yaml").write_text(CONFIG)
    for name, value in (ENVIRONMENT | {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(options.out / "config.yaml")}).items():
        os.environ.setdefault(name, value)
    shutil.copytree(DATA, options.out / "data")
    (options.out / "rows").mkdir()
    (options.out / "rows" / "rows.csv").write_text(CSV_ROWS)
    print(json.dumps(walk(options.image, options.out.resolve(), options.hosts)))


def configuration(out: Path) -> dict[str, Any]:
    """What a session needs to know in local mode: where to put its files, and a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"local": {"local_code": True, "container_root": str(out), "serving_port": port}}


def walk(image: str, out: Path, hosts: int) -> dict[str, Any]:
    """Train, serve and transform with an image."""
    from sagemaker.deserializers import JSONDeserializer
    from sagemaker.estimator import Estimator
    from sagemaker.inputs import TrainingInput
    from sagemaker.local import LocalSession
    from sagemaker.serializers import CSVSerializer

    session = LocalSession()
    session.config = configuration(out)
    estimator = Estimator(
        image,
        ROLE,
        instance_count=hosts,
        instance_type="local",
        sagemaker_session=session,
        output_path=f"file://{out}/model",
    )
    estimator.set_hyperparameters(**HYPERPARAMETERS)
    estimator.fit({name: TrainingInput(f"file://{out}/data/{name}", content_type="text/csv") for name in CHANNELS})

    predictor = estimator.deploy(1, "local", serializer=CSVSerializer(), deserializer=JSONDeserializer())
    try:
        deployed = predictor.predict(ROWS)
        predictor.deserializer = JSONDeserializer(accept=VERBOSE)
        verbose = predictor.predict(ROWS)
    finally:
        predictor.delete_endpoint()

    transformer = estimator.transformer(
        1, "local", accept="text/csv", assemble_with="Line", strategy="MultiRecord", output_path=f"file://{out}/scores"
    )
    transformer.transform(f"file://{out}/rows", content_type="text/csv", split_type="Line", logs=False)
    (file,) = (out / "scores").rglob("*.out")
    return {"deployed": deployed, "verbose": verbose, "transformed": file.read_text()}


if __name__ == "__main__":
    main(__doc__, walk)
