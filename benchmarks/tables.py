"""Markdown."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is to the left and the others to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def spread(values: Sequence[float] | npt.NDArray[np.float64], form: str) -> str:
    """The median, with the lowest and the highest where they differ."""
    low, median, high = (float(np.quantile(values, q)) for q in (0, 0.5, 1))
    return f"{median:{form}}" if low == high else f"{median:{form}} ({low:{form}} to {high:{form}})"
