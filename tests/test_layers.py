"""Imports point one way: the adapter knows the algorithm, the algorithm knows nothing of SageMaker."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ipinsights

PACKAGE = Path(ipinsights.__file__).parent
ALGORITHM = sorted(path for path in PACKAGE.rglob("*.py") if "sagemaker" not in path.relative_to(PACKAGE).parts)
ADAPTER = sorted((PACKAGE / "sagemaker").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_both_layers_were_found() -> None:
    assert len(ALGORITHM) > 10
    assert len(ADAPTER) > 5


@pytest.mark.parametrize("path", ALGORITHM, ids=lambda path: path.name)
def test_the_algorithm_does_not_know_sagemaker(path: Path) -> None:
    foreign = ("ipinsights.sagemaker", "sagemaker", "flask", "gunicorn", "boto")
    assert not [name for name in imported(path) if name.startswith(foreign)]


@pytest.mark.parametrize("path", ADAPTER, ids=lambda path: path.name)
def test_the_adapter_does_no_mathematics(path: Path) -> None:
    assert not [name for name in imported(path) if name.split(".")[0] in ("numpy", "torch", "pyarrow", "scipy")]


def test_only_the_command_that_registers_knows_the_aws_client() -> None:
    using = [path.name for path in ADAPTER if any(name.startswith("boto") for name in imported(path))]
    assert using == ["commands.py"]
    code = "import sys, ipinsights.sagemaker.commands; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_reads_no_environment_and_makes_no_folder(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in [*ALGORITHM, *ADAPTER]
        if path.name not in ("__init__.py", "__main__.py")
    ]
    code = f"""
import importlib, os, sys
class Watched(dict):
    def __getattribute__(self, name):
        reader = sys._getframe(1)
        while reader.f_globals['__name__'] in ('os', '_collections_abc'):
            reader = reader.f_back
        assert not reader.f_globals['__name__'].startswith('ipinsights'), reader.f_globals['__name__']
        return super().__getattribute__(name)
os.environ = Watched(os.environ)
for module in {modules}:
    importlib.import_module(module)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())
