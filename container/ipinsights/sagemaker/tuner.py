"""The same search on SageMaker: the code for a `HyperparameterTuner` of the SageMaker SDK 3."""

from collections.abc import Mapping, Sequence
from typing import Any

from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS
from ipinsights.sagemaker.specification import OBJECTIVES
from ipinsights.tuning.space import Range

_CODE = """\
from sagemaker.core.parameter import ContinuousParameter, IntegerParameter
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData
from sagemaker.train.tuner import HyperparameterTuner

trainer = ModelTrainer(
    training_image="ACCOUNT.dkr.ecr.REGION.amazonaws.com/ipinsights:cpu",
    role="arn:aws:iam::ACCOUNT:role/ROLE",
    compute=Compute(instance_type="ml.m5.xlarge", instance_count=1),
    hyperparameters={{
{fixed}    }},
)
tuner = HyperparameterTuner(
    trainer,
    objective_metric_name="{objective}",
    hyperparameter_ranges={{
{ranges}    }},
    metric_definitions=[
{metrics}    ],
    objective_type="Maximize",
    max_jobs={trials},
    max_parallel_jobs={jobs},
    early_stopping_type="Auto",
)
tuner.tune(
    [
        InputData(channel_name="train", data_source="s3://BUCKET/log-ins/train", content_type="text/csv"),
        InputData(channel_name="validation", data_source="s3://BUCKET/log-ins/validation", content_type="text/csv"),
    ]
)
"""


def code(ranges: Sequence[Range], fixed: Mapping[str, Any], objective: str, trials: int, jobs: int) -> str:
    """Python code for the search of ``ranges``, with what is ``fixed``. In it, names in capitals are to be replaced.

    SageMaker maximises one metric, so for the mean of two it takes the first.
    """
    metric = next((name for name in OBJECTIVES if name.endswith(f":{objective}")), OBJECTIVES[0])
    text = _CODE.format(
        fixed="".join(f'        "{name}": {value!r},\n' for name, value in fixed.items()),
        objective=metric,
        ranges="".join(f'        "{range_.name}": {_parameter(range_)},\n' for range_ in ranges),
        metrics=f'        {{"Name": "{metric}", "Regex": r"{METRIC_DEFINITIONS[metric]}"}},\n',
        trials=trials,
        jobs=jobs,
    )
    if objective == "mean":
        text = "# A tuner maximises one metric, not the mean of two.\n" + text
    return text


def _parameter(range_: Range) -> str:
    kind = "Integer" if range_.whole else "Continuous"
    scale = "Logarithmic" if range_.logarithmic else "Linear"
    return f'{kind}Parameter({range_.low!r}, {range_.high!r}, scaling_type="{scale}")'
