"""Imports point one way, and what a folder is for decides what it may import."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipinsights

PACKAGE = Path(ipinsights.__file__).parent
REPOSITORY = PACKAGE.parents[1]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")

FLOORS = (
    {"errors", "version"},
    {"hyperparameters", "machine", "metrics"},
    {"native"},
    {"distributed"},
    {"data"},
    {"model", "logs"},
    {"training", "evaluation", "alerts"},
    {"estimators", "reporting", "tuning", "tracking"},
    {"commands", "detector"},
    {"sagemaker"},
)
"""Folders and modules from the bottom up. Each may import its own members and what lies below its floor."""
NEEDS = {"logs": {"logs", "data", "errors"}}
"""Folders that may import less of ours than their floor allows."""
HOMES = {
    "torch": {"distributed", "training"},
    "triton": {"training"},
    "plotly": {"reporting"},
    "jinja2": {"reporting"},
    "optuna": {"tuning"},
    "mlflow": {"tracking"},
    "flask": {"sagemaker"},
    "gunicorn": {"sagemaker"},
    "werkzeug": {"sagemaker"},
    "boto3": {"sagemaker"},
    "botocore": {"sagemaker"},
    "sagemaker_training": {"sagemaker"},
}
"""Where alone a library may be imported."""
MATHEMATICS = {"numpy", "pyarrow", "scipy", "torch"}
"""What the adapter does without."""


def place(path: Path) -> str:
    """The folder of the package, or the module, that a file is part of; "" for the package itself."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    return "" if relative.name == "__init__" and len(relative.parts) == 1 else relative.parts[0]


def imported(path: Path) -> Iterator[str]:
    """What a file imports anywhere in it: inside functions and for type checkers, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor(name: str) -> int:
    return next(number for number, members in enumerate(FLOORS) if name in members)


def upward(path: Path) -> list[str]:
    """Imports of a file that point to its own floor's other folders, or up."""
    own = place(path)
    found = list(imported(path))
    assert "ipinsights" not in found, f"{path}: the package as a whole stands above all of its parts"
    names = (name.split(".")[1] for name in found if name.startswith("ipinsights."))
    return [name for name in names if name in set().union(*FLOORS) and name != own and floor(name) >= floor(own)]


def test_every_folder_has_a_floor() -> None:
    assert {place(path) for path in MODULES} - {""} == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    if place(path):
        assert not upward(path)
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("ipinsights.")}
        assert ours <= NEEDS.get(place(path), ours)
        libraries = {name.split(".")[0] for name in imported(path)}
        assert not [name for name in libraries & HOMES.keys() if place(path) not in HOMES[name]]
        if place(path) == "sagemaker":
            assert not libraries & MATHEMATICS


def test_an_import_inside_a_function_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "data" / "records.py"
    file.parent.mkdir()
    file.write_text("def read():\n    from ipinsights.model import scoring\n    from ipinsights.native import reader\n")
    assert upward(file) == ["model"]


def test_only_the_command_that_registers_knows_the_aws_client() -> None:
    using = [path.name for path in MODULES if any(name.startswith("boto") for name in imported(path))]
    assert using == ["commands.py"]
    code = "import sys, ipinsights.sagemaker.commands; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def texts() -> Iterator[tuple[Path, str]]:
    """The files that speak of modules."""
    for pattern in ("*.md", "*.toml", "Makefile", "Dockerfile*", "setup.py", ".ci/*", "[bcdlnt]*/**/*"):
        for path in REPOSITORY.glob(pattern):
            generated = any(part.endswith(".egg-info") for part in path.parts)
            if path.is_file() and not generated and path.suffix in (".py", ".md", ".toml", ".cpp", ".h", ".sh", ""):
                yield path, path.read_text()


def test_modules_and_files_are_called_by_names_that_they_have() -> None:
    """A name in a docstring or a document, of a module or a file of the package, that has moved meanwhile."""
    strange = set()
    for path, text in texts():
        imported_names = re.findall(r"from (ipinsights[\w.]*) import (\w+)", text)
        for name in {*re.findall(r"\bipinsights(?:\.[a-z]\w*)+", text), *map(".".join, imported_names)}:
            if not exists(name):
                strange.add(f"{path.relative_to(REPOSITORY)}: {name}")
        for name in set(re.findall(r"(?<![\w/.])(?:container|tests|benchmarks|local_test|docs)/[\w./]+\.\w+", text)):
            if not (REPOSITORY / name).exists():
                strange.add(f"{path.relative_to(REPOSITORY)}: {name}")
    assert not strange


def exists(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one. What needs another machine counts as there."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        folder = PACKAGE.joinpath(*parts[1:end])
        if folder.is_dir() or folder.with_suffix(".py").exists():
            rest = parts[end:]
            if not rest:
                return True
            try:
                return len(rest) == 1 and hasattr(importlib.import_module(".".join(parts[:end])), rest[0])
            except ImportError:
                return True
    return False


def test_importing_reads_no_environment_and_makes_no_folder(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in MODULES
        if path.name not in ("__init__.py", "gpu_kernels.py")  # Triton reads it, and is not everywhere
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
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())
