"""The notebooks run from a clean kernel, and what is committed of them was executed at full size."""

import ast
import copy
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="the notebooks are executed by nbclient (pip install '.[test]')")
pytest.importorskip("ipykernel", reason="the notebooks are executed by ipykernel (pip install '.[test]')")

import nbformat
from notebooks import execute, results
from notebooks.execute import FOLDER

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
REAL = {"real_log_ins": "tor_relay_ip_events_a.csv.gz", "api_anomaly": "api_behavior_features.parquet"}
"""What a notebook needs of IPINSIGHTS_DATA."""
LARGEST = 1_500_000
"""Bytes of a notebook: more does not open in a browser at once."""


def committed(path: Path) -> Any:
    return execute.read(path)


def imports(notebook: Any) -> list[str]:
    """The packages that a notebook imports, but for those of its own folder."""
    tree = ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return sorted({name.split(".")[0] for name in names} - {path.stem for path in FOLDER.glob("*.py")})


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_clean_kernel(path: Path, tmp_path: Path) -> None:
    missing = [name for name in imports(committed(path)) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing (pip install '.[notebooks]')")
    needed = REAL.get(path.stem)
    if needed and not (Path(os.environ.get("IPINSIGHTS_DATA", "/nowhere")) / needed).exists():
        pytest.skip(f"IPINSIGHTS_DATA names no folder with {needed}")
    notebook = execute.execute(path, tmp_path / "notebooks", small=True)
    assert execute.faults(notebook) == []
    assert results.records(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_executed_and_tells_nothing_of_a_machine(path: Path) -> None:
    assert execute.faults(committed(path)) == []
    assert path.stat().st_size <= LARGEST


def test_the_results_are_those_of_the_notebooks() -> None:
    assert results.DOCUMENT.read_text() == results.document(), "run: python -m notebooks.results"


def test_faults_are_found() -> None:
    notebook = committed(NOTEBOOKS[0])
    spoilt_ones: list[tuple[Callable[[Any], Any], str]] = [
        (lambda cells: cells[0].update(execution_count=7), "not executed from its first"),
        (lambda cells: cells[0].outputs.append(printed("stderr", "Warning")), "printed to stderr"),
        (lambda cells: cells[0].outputs.append(printed("stdout", "see /tmp/x/y")), "the path '/tmp/x/y'"),
        (lambda cells: cells[0].outputs.append(printed("stdout", "[11/27/2026 19:26:00 INFO 1] x")), "the time"),
        (lambda cells: cells[0].metadata.update(execution={"shell.execute_reply": "now"}), "when it was executed"),
    ]
    for spoil, told in spoilt_ones:
        spoilt = copy.deepcopy(notebook)
        spoil([cell for cell in spoilt.cells if cell.cell_type == "code"])
        assert any(told in fault for fault in execute.faults(spoilt)), told


def printed(stream: str, text: str) -> Any:
    return nbformat.v4.new_output("stream", name=stream, text=text)
