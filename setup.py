"""Packaging: the algorithm and its SageMaker adapter live under container/."""

import platform
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "container" / "ipinsights" / "__init__.py").read_text())[1]

TEST = [
    *("coverage", "hypothesis", "mypy", "pandas-stubs", "psutil", "pytest", "requests", "ruff", "safetensors"),
    "scikit-learn",
]
DEMO = ["matplotlib", "requests"]

# The kernel is a plain shared library that ctypes loads. x86-64-v3 is any server since 2013 (AVX2, FMA); 64-bit Arm
# needs no flag. Optional: without a compiler the package installs all the same and runs a slower path, as it logs.
NATIVE = "container/ipinsights/native"
MACHINE = ["-march=x86-64-v3"] if platform.machine() in ("x86_64", "AMD64") else []
LIBRARY = Extension(
    "ipinsights.native._native",
    sources=[f"{NATIVE}/{name}.cpp" for name in ("step", "reader", "scoring")],
    language="c++",
    extra_compile_args=[
        *("-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"),
        *MACHINE,
    ],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(
    name="ipinsights",
    version=VERSION,
    description="Learns which (entity, IP address) pairs are normal: an open SageMaker algorithm container",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "container"},
    packages=find_packages("container"),
    package_data={"ipinsights": ["py.typed"]},
    ext_modules=[LIBRARY],
    install_requires=[
        "boto3>=1.35,<2",
        "flask>=3.1,<4",
        "gunicorn>=27,<28",  # sagemaker/worker.py mends what is not its interface
        "numpy>=2,<3",
        "orjson>=3.10,<4",
        "pandas>=2.2,<4",
        "pyarrow>=18",
        "torch==2.13.*",
        "tqdm>=4.66,<5",
        "xxhash>=3.5",
    ],
    extras_require={
        # It has no wheel, so installing it needs a C compiler; and it brings a command `train` of its own that replaces
        # ours, unless it is installed first, as the Dockerfiles and the Makefile do.
        "toolkit": ["sagemaker-training>=5.1.4,<6"],
        "demo": DEMO,
        "test": TEST + DEMO,
    },
    entry_points={
        "console_scripts": [
            "ipinsights = ipinsights.sagemaker.commands:main",
            "train = ipinsights.sagemaker.__main__:train",
            "serve = ipinsights.sagemaker.__main__:serve",
        ]
    },
)
