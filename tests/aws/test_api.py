"""The check of requests sees what AWS would refuse. More of it is in tests/sagemaker/test_specification.py."""

from typing import Any

import pytest

from aws.api import faults_of

REQUEST: dict[str, Any] = {
    "TransformJobName": "a",
    "ModelName": "b",
    "MaxPayloadInMB": 6,
    "Environment": {"A": "1"},
    "TransformInput": {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/rows"}}},
    "TransformOutput": {"S3OutputPath": "s3://bucket/scores"},
    "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
}


def test_a_good_request_has_no_faults() -> None:
    assert faults_of("CreateTransformJob", REQUEST) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"MaxPayloadInMB": -1}, ".MaxPayloadInMB has value -1, not 0 to"),
        ({"MaxPayloadInMB": "6"}, ".MaxPayloadInMB is no integer"),
        ({"MaxPayloadInMB": True}, ".MaxPayloadInMB is no integer"),
        ({"Environment": ["A"]}, ".Environment is no map"),
        ({"Environment": {"A-B": "1"}}, ".Environment key 'A-B' does not match"),
        ({"Environment": {"A": 1}}, ".Environment['A'] is no string"),
        ({"Environment": {f"A{i}": "" for i in range(200)}}, ".Environment has length 200, not 0 to"),
    ],
)
def test_a_fault_is_found(change: dict[str, Any], fault: str) -> None:
    (found,) = faults_of("CreateTransformJob", REQUEST | change)
    assert found.startswith(fault)
