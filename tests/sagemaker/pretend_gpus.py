"""A training job on one host whose GPUs are not there. Run by `test_gpus`, with the options of `job.train` as JSON.

What chooses GPUs, starts processes and brings ranks together is real. Only tensors lie on the CPU, and a step is
torch's, or with PRETEND_STEP=graph a recorded one with interpreted kernels. Further processes import this file, too.
"""

import contextlib
import json
import os
import sys
from typing import Any

import torch

from ipinsights.distributed.group import ALONE, Group
from ipinsights.sagemaker import job, stopping
from ipinsights.training import fit, gpu_step, placement, together, trainer
from ipinsights.training.gpu_step import GpuStep
from ipinsights.training.step import Parameters, TorchStep

NUMBER = int(os.environ["PRETEND_GPUS"])
SMALL = os.environ.get("PRETEND_SMALL", "")
"""The number of a GPU that has too little memory."""
MODULES = fit, together  # imported before what they name is replaced


def best_device(needed: int, group: Group = ALONE) -> tuple[torch.device, str]:
    if str(group.process) == SMALL:
        return torch.device("cpu"), "the GPU has 1 MB free"
    return placement._gpu(group), ""


def recorded(parameters: Parameters, weight_decay: float) -> GpuStep:
    from training.recorder import Recorder

    return GpuStep(parameters, weight_decay, Recorder())


class Torch:
    """torch, but for random numbers, which are drawn on the CPU, and so whatever is made of them lies there."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def Generator(self, device: torch.device) -> torch.Generator:  # noqa: N802  # torch's name
        return torch.Generator("cpu")


setattr(trainer, "torch", Torch())  # noqa: B010
setattr(job, "has_gpu", lambda: True)  # noqa: B010
setattr(placement, "gpus", lambda: NUMBER)  # noqa: B010
setattr(placement, "gpu_fault", lambda group=ALONE: "")  # noqa: B010
setattr(placement, "require_gpu", lambda group=ALONE: None)  # noqa: B010
setattr(placement, "_best_device", best_device)  # noqa: B010
setattr(placement.Placement, "current", contextlib.nullcontext())  # noqa: B010
setattr(gpu_step, "why_not", lambda *_: "")  # noqa: B010
setattr(trainer, "GpuStep", recorded if os.environ.get("PRETEND_STEP") == "graph" else TorchStep)  # noqa: B010

if __name__ == "__main__":
    stopping.watch()
    job.train(**json.loads(sys.argv[1]))
