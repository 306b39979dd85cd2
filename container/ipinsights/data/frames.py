"""Columns of a data frame by name: pandas, polars, an Arrow table, or a dict of columns."""

import difflib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.data.columns import Column
from ipinsights.errors import UserError, brief

Frame: TypeAlias = Any
"""What has columns by name."""
ENTITY, ADDRESS = "entity", "ip"
"""The columns' names, unless somebody says others."""


def columns(frame: Frame, entity: str, address: str) -> tuple[Column, Column]:
    """The two columns of a frame. Raises UserError if one is missing, which says what there is."""
    found: Any = frame.column_names if isinstance(frame, pa.Table) else getattr(frame, "columns", frame)
    names = [str(name) for name in found]
    for what, name in (("entity", entity), ("address", address)):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"the frame has no column {brief(name)}; it has {', '.join(map(brief, names[:20])) or 'none'}. Say "
                f"which one holds the {what}, as in {what}='...'.{hint}"
            )
    return _column(frame[entity]), _column(frame[address])


def like(frame: Frame, name: str, values: npt.NDArray[Any]) -> Any:
    """A new column for a frame: a pandas Series with the frame's index, a polars Series, or else the values."""
    kind = type(frame).__module__.partition(".")[0]
    if kind == "pandas":
        import pandas as pd

        return pd.Series(values, index=frame.index, name=name)
    if kind == "polars":
        import polars as pl

        return pl.Series(name, np.ascontiguousarray(values))
    return values


def _column(values: Any) -> Column:
    if type(values).__module__.partition(".")[0] == "polars":
        return values.to_arrow()  # pyarrow would take it for a Python sequence
    return values
