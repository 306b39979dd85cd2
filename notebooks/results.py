"""Writes docs/results.md from what the executed notebooks found.

    python -m notebooks.results

The last code cell of a notebook has the tag ``results``. It shows a table of published figures beside ours, and carries
the same as JSON: a list of records with ``figure``, ``published``, ``ours`` and ``how``.
"""

from pathlib import Path
from typing import Any

from notebooks.execute import FOLDER, read

DOCUMENT = FOLDER.parent / "docs" / "results.md"
COLUMNS = ("figure", "published", "ours", "how")
_FIRST = ("ip_insights_tutorial", "real_log_ins", "api_anomaly")
"""The order of the sources; further notebooks follow."""
_HEAD = """# Published figures and ours

This project has three sources: the AWS tutorial on IP Insights, a blog that repeated it, and a notebook that finds
anomalous access to an API. Each is walked in [a notebook](../notebooks/README.md). This page is made from the executed
notebooks by `python -m notebooks.results`.
"""


def notebooks() -> list[Path]:
    """The notebooks, in the order of the document."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    return sorted(paths, key=lambda path: _FIRST.index(path.stem) if path.stem in _FIRST else len(_FIRST))


def records(notebook: Any) -> list[dict[str, str]]:
    """What a notebook found. Raises ValueError if it does not say so as it should."""
    cells = [cell for cell in notebook.cells if "results" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells have the tag 'results', and it should be one")
    kind = "application/json"
    carried = [output.data[kind] for output in cells[0].outputs if kind in output.get("data", {})]
    if len(carried) != 1 or any(set(record) != set(COLUMNS) for record in carried[0]):
        raise ValueError(f"the cell with the tag 'results' carries no records of {', '.join(COLUMNS)} as JSON")
    found: list[dict[str, str]] = carried[0]
    return found


def section(path: Path) -> str:
    """The part of the document for one notebook."""
    notebook = read(path)
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    rows = [COLUMNS, ["---"] * len(COLUMNS), *([record[name] for name in COLUMNS] for record in records(notebook))]
    table = "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)
    seconds = notebook.metadata.get("seconds", {})
    took = [f"{seconds[size]:,} s at the {size} size" for size in ("full", "small") if size in seconds]
    measured = f"\nCPU time: {', '.join(took)}.\n" if took else ""
    return f"## [{title}](../notebooks/{path.name})\n\n{table}{measured}"


def document() -> str:
    """The whole document."""
    return "\n".join([_HEAD, *map(section, notebooks())])


if __name__ == "__main__":
    DOCUMENT.write_text(document())
