"""What a figure of speed was measured on."""

import os
import platform
from pathlib import Path

import torch

from ipinsights import native


def description() -> str:
    """Processor, cores, versions, the load now, and whether the native kernel is there, as half a sentence."""
    kernel = "with the native kernel" if native.library() else f"without the native kernel: {native.why_absent()}"
    return (
        f"{_processor()}, {os.cpu_count()} cores with a load of {os.getloadavg()[0]:.1f} at the end, "
        f"torch {torch.__version__}, {kernel}"
    )


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
