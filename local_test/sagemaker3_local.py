"""The same as ``sagemaker_local``, by version 3 of the SageMaker SDK: train, deploy, invoke, transform.

    pip install sagemaker
    python -m local_test.sagemaker3_local --image ipinsights:cpu --out local_test/work/sagemaker

Needs Docker with Compose, and neither an AWS account nor this package. ``ModelTrainer`` trains in its mode
LOCAL_CONTAINER. Models are served by a ``LocalSession``: ``ModelBuilder`` asks AWS even in local mode.
"""

import json
from pathlib import Path
from typing import Any

from local_test.sagemaker_local import CHANNELS, CSV_ROWS, HYPERPARAMETERS, ROLE, VERBOSE, configuration, main


def walk(image: str, out: Path, hosts: int) -> dict[str, Any]:
    """Train, serve and transform with an image."""
    from sagemaker.core.local.local_session import LocalSession
    from sagemaker.core.transformer import Transformer
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, InputData
    from sagemaker.train.model_trainer import Mode

    trainer = ModelTrainer(
        training_image=image,
        training_mode=Mode.LOCAL_CONTAINER,
        role=ROLE,
        compute=Compute(instance_type="local_cpu", instance_count=hosts),
        hyperparameters=HYPERPARAMETERS,
        input_data_config=[
            InputData(channel_name=name, data_source=str(out / "data" / name), content_type="text/csv")
            for name in CHANNELS
        ],
        local_container_root=str(out),
    )
    trainer.train()

    session = LocalSession()
    session.config = configuration(out)
    client, runtime = session.sagemaker_client, session.sagemaker_runtime_client
    artifact = f"file://{out}/compressed_artifacts/model.tar.gz"
    client.create_model(
        ModelName="model", PrimaryContainer={"Image": image, "ModelDataUrl": artifact, "Environment": {}}
    )
    variant = {"VariantName": "AllTraffic", "ModelName": "model", "InitialInstanceCount": 1, "InstanceType": "local"}
    client.create_endpoint_config(EndpointConfigName="config", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="endpoint", EndpointConfigName="config")
    try:
        deployed, verbose = (
            json.load(
                runtime.invoke_endpoint(EndpointName="endpoint", ContentType="text/csv", Accept=accept, Body=CSV_ROWS)[
                    "Body"
                ]
            )
            for accept in ("application/json", VERBOSE)
        )
    finally:
        client.delete_endpoint(EndpointName="endpoint")

    transformer = Transformer(
        model_name="model",
        instance_count=1,
        instance_type="local",
        strategy="MultiRecord",
        assemble_with="Line",
        accept="text/csv",
        output_path=f"file://{out}/scores",
        base_transform_job_name="transform",  # without one it asks AWS for the model
        sagemaker_session=session,
    )
    transformer.transform(f"file://{out}/rows", content_type="text/csv", split_type="Line", logs=False)
    (file,) = (out / "scores").rglob("*.out")
    return {"deployed": deployed, "verbose": verbose, "transformed": file.read_text()}


if __name__ == "__main__":
    main(__doc__, walk)
