"""Packaging: the algorithm and its SageMaker adapter live under container/."""

import platform
import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent

TEST = [
    *("clang-format", "coverage", "hypothesis", "mypy", "pandas-stubs", "psutil", "pytest", "pytest-xdist"),
    *("requests", "ruff", "polars", "safetensors", "scikit-learn"),
    *("flask-cors", "moto[s3]>=5.2"),  # moto's server stands in for AWS
]
DEMO = ["matplotlib", "requests"]
# MLflow without its server, which wants an older gunicorn than ours. The last two are what its databases need. The
# bounds keep pip from taking a release of years ago.
TUNE = ["optuna>=5,<6", "mlflow-skinny>=3.10,<4", "sqlalchemy>=2,<3", "alembic>=1.13,<2"]
# What the notebooks import, and what executes them.
NOTEBOOKS = [
    *("ipykernel>=6.29", "ipywidgets>=8", "nbclient>=0.10", "nbconvert>=7.16"),
    *("matplotlib", "polars>=1", "requests", "scikit-learn>=1.6", "shap", "skops", *TUNE),
]

# The kernel is a plain shared library that ctypes loads. x86-64-v3 is any server since 2013 (AVX2, FMA); 64-bit Arm
# needs no flag. Optional: without a compiler the package installs all the same and runs a slower path, as it logs.
NATIVE = "container/ipinsights/native"
KERNEL = runpy.run_path(str(HERE / NATIVE / "__init__.py"))
MACHINE = ["-march=x86-64-v3"] if platform.machine() in ("x86_64", "AMD64") else []
LIBRARY = Extension(
    f"ipinsights.native.{Path(KERNEL['LIBRARY']).stem}",
    sources=[f"{NATIVE}/{name}.cpp" for name in ("step", "reader", "scoring")],
    depends=[f"{NATIVE}/native.h"],
    define_macros=[("IPINSIGHTS_SOURCES", f"{KERNEL['sources']()}u")],
    language="c++",
    extra_compile_args=[
        *("-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"),
        *MACHINE,
    ],
    extra_link_args=["-pthread"],
    optional=True,
)


class BuildLibrary(build_ext):
    """Names the library for what it is: no Python imports it, so no Python's version is in its name."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's path below the package's root."""
        return str(Path(*fullname.split(".")[:-1]) / KERNEL["LIBRARY"])


class PlatformWheel(bdist_wheel):
    """Tags the wheel for any Python 3 of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, its binary interface, and the platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    name="ipinsights",
    description="Learns which (entity, IP address) pairs are normal: an open SageMaker algorithm container",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "container"},
    packages=find_packages("container"),
    # The sources of the library come along, so that it is known whether it was compiled from them.
    package_data={
        "ipinsights": ["py.typed"],
        "ipinsights.native": ["*.h", "*.cpp"],
        "ipinsights.reporting": ["page.html", "page.css", "page.js"],
    },
    ext_modules=[LIBRARY],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
    install_requires=[
        "boto3>=1.35,<2",
        "flask>=3,<4",
        "gunicorn>=23,<28",  # sagemaker/worker.py is for 27.0; with another release gunicorn's own worker serves
        "jinja2>=3.1,<4",
        "numpy>=2,<3",
        "orjson>=3.10,<4",
        "pandas>=2.2,<4",
        "plotly>=6,<8",
        "pyarrow>=18",
        "torch==2.13.*",
        "tqdm>=4.66,<5",
        "xxhash>=3.5",
    ],
    extras_require={
        # It has no wheel, so installing it needs a C compiler; and it brings a command `train` of its own that replaces
        # ours, unless it is installed first, as the Dockerfiles and the Makefile do.
        "toolkit": ["sagemaker-training>=5.1.4,<6"],
        "sklearn": ["scikit-learn>=1.6"],  # for IPInsightsDetector
        "tune": TUNE,  # for `ipinsights tune` and `train --mlflow`
        "demo": DEMO,
        "notebooks": [*NOTEBOOKS, "jupyterlab"],
        "test": TEST + DEMO + NOTEBOOKS,
    },
    entry_points={
        "console_scripts": [
            "ipinsights = ipinsights.sagemaker.commands:main",
            "train = ipinsights.sagemaker.__main__:train",
            "serve = ipinsights.sagemaker.__main__:serve",
        ]
    },
)
