"""Executes notebooks from a clean kernel, and makes what they print fit to be committed.

    python -m notebooks.execute ip_insights_tutorial          # full size, in place
    python -m notebooks.execute --small ip_insights_tutorial  # the tests' size, in a copy: only its CPU time is kept

``python -m notebooks.results`` then writes docs/results.md. What is committed was executed at full size. Its outputs
hold no path of this machine and no time of the run.
"""

import argparse
import copy
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SIZE = "IPINSIGHTS_NOTEBOOK_SIZE"
"""The environment variable that a notebook looks at: ``small`` is the tests' size, anything else the full one."""
LIMIT = 3600
"""Seconds that a cell may take."""

MACHINE = re.compile(r"(?<![\w.:/-])/(?:work|tmp|root|home|Users|mnt|opt|usr|var)/[\w./-]*|[A-Z]:\\\\?Users")
"""A path of somebody's machine."""
TIMES = re.compile(r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d |\b(?:took|after) [\d.,]+ ?s\b|Wall time|\d+it/s|\ds/it")
"""The time of a run, or how long something took."""


def read(path: Path) -> Any:
    """A notebook."""
    return nbformat.read(path, as_version=4)


def execute(path: Path, folder: Path, small: bool) -> Any:
    """The notebook with its outputs, executed from a clean kernel in a copy of the notebooks' folder.

    Raises nbclient.exceptions.CellExecutionError if a cell fails.
    """
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("work", "__pycache__", "*.html"))
    notebook = read(path)
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")])}
    environment.pop(SIZE, None)
    if small:
        environment[SIZE] = "small"
    client = NotebookClient(notebook, timeout=LIMIT, record_timing=False, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return notebook


def shown(notebook: Any) -> str:
    """All that the outputs show as text."""
    texts: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:
                texts.append(output["text"])
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    texts.append(data if isinstance(data, str) else json.dumps(data))
    return "\n".join(texts)


def faults(notebook: Any) -> list[str]:
    """What keeps a notebook from being committed: sentences."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    found = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("it was not executed from its first cell to its last")
    for number, cell in enumerate(code, 1):
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"code cell {number} ended with an error")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            found.append(f"code cell {number} printed to stderr")
        if "execution" in cell.metadata:
            found.append(f"code cell {number} says when it was executed")
    text = shown(notebook) + "\n".join(cell.source for cell in notebook.cells)
    found += [f"it shows the path {match[0]!r}" for match in MACHINE.finditer(text)]
    return found + [f"it shows the time {match[0]!r}" for match in TIMES.finditer(shown(notebook))]


def main() -> None:
    """Execute the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as ip_insights_tutorial; all, unless some are named")
    parser.add_argument("--small", action="store_true", help="the tests' size")
    options = parser.parse_args()
    paths = [FOLDER / f"{name}.ipynb" for name in options.names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        before = read(path)
        with tempfile.TemporaryDirectory() as folder:
            before_it = resource.getrusage(resource.RUSAGE_CHILDREN)
            executed = execute(path, Path(folder), options.small)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = round(after.ru_utime + after.ru_stime - before_it.ru_utime - before_it.ru_stime)
        kept = copy.deepcopy(before) if options.small else executed
        kept.metadata["seconds"] = dict(before.metadata.get("seconds", {})) | {
            "small" if options.small else "full": seconds
        }
        kept.metadata.get("language_info", {}).pop("version", None)  # that of Python on this machine
        wrong = faults(executed)
        if wrong:
            sys.exit(f"{path.name}: {'; '.join(wrong)}")
        nbformat.write(kept, path)
        print(f"{path.name}: {seconds} s of CPU time")


if __name__ == "__main__":
    main()
