"""The image as an Algorithm resource: the CreateAlgorithm request, made from what the other modules declare.

With the resource SageMaker knows of this algorithm what it knows of a built-in one, and checks a job before it starts
machines: hyperparameters and their ranges, channels, metrics, objectives. Shapes are those of the API's model
(``sagemaker`` 2017-07-24).
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ipinsights.hyperparameters import Declaration, declarations
from ipinsights.sagemaker.configuration import CHANNELS, Channel
from ipinsights.sagemaker.media import ACCEPTED_TYPES, CONTENT_TYPES
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

DEFAULT_NAME = "ipinsights"

OBJECTIVES = ("validation:discriminator_auc", "validation:shuffled_auc")
"""The metrics that a tuner may maximise; the first is the built-in's."""


def _types(families: Sequence[str], sizes: Sequence[str]) -> list[str]:
    return [f"ml.{family}.{size}" for family in families for size in sizes]


_CPU = [
    *_types(["m5"], ["large", "xlarge", "2xlarge", "4xlarge", "12xlarge", "24xlarge"]),
    *_types(["c5"], ["xlarge", "2xlarge", "4xlarge", "9xlarge", "18xlarge"]),
    *_types(
        ["m6i", "c6i", "r6i", "m7i", "c7i", "r7i"],
        ["xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge"],
    ),
]
"""x86-64 with AVX2, which the image's kernel is compiled for."""
_GPU = [
    *_types(["g4dn", "g5", "g6", "g6e"], ["xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge"]),
    *_types(["g5", "g6", "g6e"], ["24xlarge", "48xlarge"]),
    *["ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.p5.4xlarge", "ml.p5.48xlarge", "ml.p5e.48xlarge", "ml.p5en.48xlarge"],
]
"""Training uses all GPUs of an instance. Serving uses none."""
_SMALL = _types(["t2"], ["medium", "large", "xlarge", "2xlarge"])
"""For endpoints with few requests."""


def request(image: str, name: str = DEFAULT_NAME) -> dict[str, Any]:
    """The arguments of CreateAlgorithm for an image in a registry."""
    return {
        "AlgorithmName": name,
        "AlgorithmDescription": "IP Insights, open: learns from plain log-in records which (entity, IP address) pairs "
        "are normal, and scores new ones.",
        "TrainingSpecification": {
            "TrainingImage": image,
            "SupportedHyperParameters": [_hyperparameter(declaration) for declaration in declarations()],
            "SupportedTrainingInstanceTypes": _CPU + _GPU,
            "SupportsDistributedTraining": True,
            "MetricDefinitions": [{"Name": metric, "Regex": regex} for metric, regex in METRIC_DEFINITIONS.items()],
            "TrainingChannels": [_channel(*entry) for entry in CHANNELS.items()],
            "SupportedTuningJobObjectiveMetrics": [{"Type": "Maximize", "MetricName": metric} for metric in OBJECTIVES],
        },
        "InferenceSpecification": {
            "Containers": [{"Image": image}],
            "SupportedTransformInstanceTypes": _CPU,
            "SupportedRealtimeInferenceInstanceTypes": _CPU + _SMALL,
            "SupportedContentTypes": list(CONTENT_TYPES),
            "SupportedResponseMIMETypes": list(ACCEPTED_TYPES),
        },
    }


def _hyperparameter(declaration: Declaration) -> dict[str, Any]:
    type_, range_ = _range(declaration)
    specification = {
        "Name": declaration.name,
        "Description": declaration.help,
        "Type": type_,
        "Range": range_,
        "IsTunable": declaration.tuning is not None,
        "IsRequired": declaration.default is None,
    }
    # A job sends the default given here as if somebody had set it, which would keep a default that follows the data
    # from doing so: such a hyperparameter has none here.
    if declaration.default is not None and not declaration.follows_data:
        specification["DefaultValue"] = _text(declaration.default)
    return specification


def _range(declaration: Declaration) -> tuple[str, dict[str, Any]]:
    """The type and the range."""
    if declaration.range is None:
        return "Categorical", {
            "CategoricalParameterRangeSpecification": {"Values": list(map(str, declaration.choices))}
        }
    low, high = map(_text, declaration.range)
    type_ = "Integer" if declaration.type is int else "Continuous"
    return type_, {f"{type_}ParameterRangeSpecification": {"MinValue": low, "MaxValue": high}}


def _text(value: float | str) -> str:
    """A value as the API takes it; a number without an exponent."""
    return value if isinstance(value, str) else f"{Decimal(str(value)):f}"


def _channel(name: str, channel: Channel) -> dict[str, Any]:
    return {
        "Name": name,
        "Description": channel.content[0].upper() + channel.content[1:],
        "IsRequired": channel.required,
        "SupportedContentTypes": list(channel.content_types),
        # The platform unpacks as it streams, and nowhere else.
        "SupportedCompressionTypes": ["None", "Gzip"] if "Pipe" in channel.input_modes else ["None"],
        "SupportedInputModes": list(channel.input_modes),
    }
