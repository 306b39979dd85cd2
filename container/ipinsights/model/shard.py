"""One rank's part of a model that several ranks have trained, and how its parts become one file.

A rank has the rows of its own entities, numbered from 0, as a model of their own. What belongs to no entity is the same
on all ranks. No rank ever holds the whole entity table: the leader writes it in windows, as the rows come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.data.entities import EntityIndex
from ipinsights.distributed.group import Group
from ipinsights.model.model import Model
from ipinsights.model.tensors import Streamed

WINDOW = 64 << 20
"""Bytes of a table that are on their way at a time, about."""

Rows = npt.NDArray[np.int32]
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """A rank's part."""

    model: Model
    """The part, as a model of this rank's entities alone."""
    rows: Rows
    """The rows of the whole table that they have there, ascending, [M]."""
    index: EntityIndex
    """The owner of each row of the whole table."""

    def tensors(self, group: Group) -> dict[str, "npt.NDArray[Any] | Streamed"]:
        """The tensors of all entities. All ranks of the group must write them, in one order."""
        model, counted = self.model, self.model.counted
        wide = 4 * model.vector_dim
        table = _Part(group, self.index.num_rows, self.rows, wide)
        found: dict[str, Any] = {
            "entity": Streamed(
                np.dtype(np.float32),
                (self.index.num_rows + 1, model.vector_dim),
                table.filled(model.entity[: len(self.rows)], model.entity[-1]),
            ),
            "entity.tags": self.index.tags,
        }
        if counted is None:
            return found
        moved = _Part(group, self.index.num_rows, self.rows[counted.rows], wide)
        found |= {
            "counted.rows": moved.streamed(moved.rows, np.dtype(np.int32), ()),
            "counted.learnt": moved.streamed(
                counted.learnt[:-1], np.dtype(np.float32), (model.vector_dim,), last=counted.learnt[-1:]
            ),
            "counted.weights": moved.streamed(counted.weights, np.dtype(np.float32), ()),
            "counted.entities": counted.entities,
        }
        for name, history in (("history", counted.history), ("apart", counted.apart)):
            pairs = group.total(len(history))
            if name == "apart" and not pairs:
                continue
            sizes = np.diff(history.starts)
            listed = _Part(group, self.index.num_rows, self.rows[history.rows], 64)
            found |= {
                f"{name}.rows": listed.streamed(listed.rows, np.dtype(np.int32), ()),
                f"{name}.starts": Streamed(np.dtype(np.int64), (listed.number + 1,), listed.starts(sizes)),
                f"{name}.addresses": listed.streamed(history.addresses, history.addresses.dtype, (), sizes, pairs),
                f"{name}.counts": listed.streamed(history.counts, np.dtype(np.uint32), (), sizes, pairs),
            }
        return found

    def described(self, group: Group) -> dict[str, Any]:
        """What goes into the manifest of the numbers that belong to entities."""
        entities = {"owning_a_row": self.index.owned, "sharing_a_row": self.index.sharing}
        found: dict[str, Any] = {"entities": entities, "forgotten": self.index.forgotten}
        if self.model.counted:
            history = self.model.counted.history
            pairs, listed = group.total(len(history)), group.total(len(history.rows))
            size = listed * history.rows.itemsize + (listed + 1) * history.starts.itemsize
            size += pairs * (history.addresses.itemsize + history.counts.itemsize)
            found["history"] = {"bits": history.length, "pairs": pairs, "bytes": size}
        return found

    @property
    def events(self) -> int:
        """Events that it was trained on."""
        return self.model.events

    @property
    def untrained(self) -> bool:
        """Whether it has learnt nothing."""
        return self.model.untrained


class _Part:
    """Some rows of a table of which other ranks have the others, and their way to the leader."""

    def __init__(self, group: Group, table: int, rows: Rows, size: int) -> None:
        """``rows`` ascend, of a ``table`` of so many, and take about ``size`` bytes each."""
        self._group = group
        self._table = table
        self.rows = rows
        self.number = group.total(len(rows))
        self._window = max(1, WINDOW // size)

    def streamed(
        self,
        values: Values,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        sizes: npt.NDArray[np.int64] | None = None,
        number: int | None = None,
        last: Values | None = None,
    ) -> Streamed:
        """A list of all ranks' values in the order of their rows: of each row one, or as many as its ``sizes`` says."""
        number = self.number if number is None else number
        pieces = self._in_order(values, np.ones(len(self.rows), dtype=np.int64) if sizes is None else sizes)

        def every() -> Iterator[Values]:
            for _, _, piece in pieces:
                yield piece
            if last is not None:
                yield last

        return Streamed(dtype, (number + (last is not None), *shape), every())

    def filled(self, values: Values, other: Values) -> Iterator[Values]:
        """The whole table: all other rows have the value ``other``. And so has one more row, the last."""
        pieces = self._in_order(values, np.ones(len(self.rows), dtype=np.int64))
        for begin, (rows, _, piece) in zip(range(0, self._table, self._window), pieces, strict=True):
            window = np.empty((min(self._window, self._table - begin), *other.shape), dtype=other.dtype)
            window[:] = other
            window[rows - begin] = piece
            yield window
        yield other[None]

    def starts(self, sizes: npt.NDArray[np.int64]) -> Iterator[Values]:
        """Where each row's part of a list starts, and at the end the length of the list."""
        end = 0
        yield np.zeros(1, dtype=np.int64)
        for _, _, piece in self._in_order(sizes, np.ones(len(self.rows), dtype=np.int64)):
            ends = end + np.cumsum(piece)
            end = int(ends[-1]) if len(ends) else end
            yield ends

    def _in_order(self, values: Values, sizes: npt.NDArray[np.int64]) -> Iterator[tuple[Rows, Values, Values]]:
        """For each window of the table, on the leader: its rows, how many values each has, and the values."""
        starts = np.append(0, np.cumsum(sizes))
        for begin in range(0, self._table, self._window):
            first, end = np.searchsorted(self.rows, [begin, begin + self._window])
            part = slice(starts[first], starts[end])
            collected = [
                np.concatenate(self._group.collect(array))
                for array in (self.rows[first:end], sizes[first:end], values[part])
            ]
            rows, number, found = collected
            order = np.argsort(rows)
            ends = np.cumsum(number)
            number = number[order]
            place = np.repeat((ends[order] - number), number) + np.arange(len(found))
            place -= np.repeat(np.cumsum(number) - number, number)
            yield rows[order], number, found[place]
