"""Inputs that found something once, or reach far: `found/NAME.txt` has those of a target, a Python literal a line."""

import ast
from pathlib import Path

FOUND = Path(__file__).parent / "found"


def found(name: str) -> list[bytes]:
    """The inputs that were found for a target."""
    path = FOUND / f"{name}.txt"
    return [ast.literal_eval(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(inputs: list[bytes], folder: Path) -> list[Path]:
    """Write inputs as files, as libFuzzer takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / str(number) for number in range(len(inputs))]
    for path, data in zip(paths, inputs, strict=True):
        path.write_bytes(data)
    return paths
