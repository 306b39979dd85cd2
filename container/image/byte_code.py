"""Imports what the roles import, so that Python leaves the byte code of it in the image, and of no more.

Without it, every job would start with compiling: where it runs, the image is read-only.
"""

import contextlib

import boto3.s3.transfer  # noqa: F401
import flask  # noqa: F401
import gunicorn.app.base
import gunicorn.workers.gthread  # noqa: F401
import jinja2  # noqa: F401
import orjson  # noqa: F401
import pandas  # noqa: F401
import plotly.offline  # noqa: F401
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet  # noqa: F401
import sagemaker_training.trainer  # noqa: F401
import torch.distributed
import torch.nn.functional  # noqa: F401
import tqdm  # noqa: F401
import xxhash  # noqa: F401

with contextlib.suppress(ImportError):  # only torch's builds for GPUs bring it
    import triton.language  # noqa: F401
