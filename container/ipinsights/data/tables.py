"""Reads log-ins from Parquet: a table with two columns of strings, the entity and the address.

The order of the columns counts, not their names, as in CSV. A third column may hold times, which are not used. A batch
of rows at a time is in memory. Unlike text, such a file is read with seeks, so it cannot come through a pipe.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ipinsights.data.addresses import Family
from ipinsights.data.columns import salvage_table
from ipinsights.data.records import Hashed
from ipinsights.errors import UserError, refusals

_ROWS = 1 << 17
"""Rows of a batch."""


class Batch(NamedTuple):
    """Consecutive rows of a table."""

    name: str
    """The file's name."""
    first_row: int
    """The number of the first row, from 1."""
    read: float
    """The share of the table's rows that is read with this batch."""
    columns: pa.RecordBatch
    """The entities and the addresses, and maybe times."""

    def salvage(self, family: Family) -> Hashed:
        """The readable pairs in the form that a model uses, and the faults of the other rows."""
        entities, texts = self.columns.columns[:2]
        salvaged = salvage_table(entities, texts, family)
        faults = {row: fault.at(self.first_row + row) for row, fault in salvaged.faults_by_row().items()}
        return Hashed(salvaged.records.hashed(), faults, salvaged.removed)


def batches(path: Path) -> Iterator[Batch]:
    """The rows of a file, in order. Raises UserError if it is no table with two columns of strings."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"cannot read {path}: this installation of pyarrow has no Parquet. Install one that has it "
            "(pip install pyarrow), or write CSV with two columns, the entity and the address"
        ) from error
    row = 1
    with refusals("read", path):
        try:
            with parquet.ParquetFile(path) as file:
                _check(path, file.schema_arrow)
                for columns in file.iter_batches(_ROWS):
                    end = row + columns.num_rows
                    yield Batch(str(path), row, (end - 1) / file.metadata.num_rows, columns)
                    row = end
        except pa.ArrowException as error:
            raise UserError(f"{path} is not Parquet, or damaged: {error}") from error


def _check(path: Path, schema: Any) -> None:
    types = [column.type for column in schema]
    if len(types) in (2, 3) and all(map(_is_text, types[:2])) and all(map(pa.types.is_timestamp, types[2:])):
        return
    columns = ", ".join(f"{column.name!r} ({column.type})" for column in schema)
    raise UserError(
        f"{path} has the columns {columns[:200]}: it must have two columns of strings, the entity and the IP address, "
        "and no third but one of timestamps"
    )


def _is_text(type_: Any) -> bool:
    kind = type_.value_type if pa.types.is_dictionary(type_) else type_
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
