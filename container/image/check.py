"""Fails where the image would lack something: `python check.py {cpu|gpu}`.

A build can end well without a kernel, since the package can be installed without a C++ compiler, and with the other
build of torch, since every index has one.
"""

import ctypes
import sys
from pathlib import Path

import torch

from ipinsights import native
from ipinsights.reporting import page  # noqa: F401  # what the roles and the commands import is to be there
from ipinsights.sagemaker import commands, job, server  # noqa: F401
from ipinsights.training import fit  # noqa: F401


def main(kind: str) -> None:
    """Exit with a sentence that says what is wrong."""
    kernel = Path(native.__file__).with_name(native.LIBRARY)
    if not kernel.exists():
        sys.exit(f"There is no {kernel}: the C++ compiler was missing or failed. Look at the output of the steps above")
    if ctypes.c_uint32(ctypes.CDLL(str(kernel)).ipinsights_sources()).value != native.sources():
        sys.exit(f"{kernel} was compiled from other sources")
    cuda = torch.version.cuda
    if kind == "cpu" and cuda:
        sys.exit(
            f"Torch {torch.__version__} is a build for CUDA {cuda}, several gigabytes larger: give the build an index "
            "that has torch's CPU build, with --build-arg TORCH_INDEX=URL"
        )
    if kind == "gpu" and not cuda:
        sys.exit(
            f"Torch {torch.__version__} is a build without CUDA: give the build an index that has torch's build for "
            "CUDA, with --build-arg TORCH_INDEX=URL"
        )
    print(f"The kernel and both roles are there, with torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
