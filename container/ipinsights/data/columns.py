"""Records from values that another program has parsed: instances of a JSON request, columns of a data frame.

Unreadable rows keep their place, because the caller needs one answer a row.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ipinsights.data import addresses
from ipinsights.data.addresses import IPV4, Family
from ipinsights.data.malformed import Fault, Kind, of_address, shown
from ipinsights.data.records import Records, Removed, Salvaged, single_chunk

Column: TypeAlias = Any
"""Strings: a pandas Series, an Arrow array or a list. None and NaN mean missing."""


def salvage_pairs(pairs: Sequence[tuple[object, object]], family: Family = IPV4) -> Salvaged:
    """The readable ones of n (entity, address) pairs, which should be strings. Faults have the index of their pair."""
    strings = np.array([isinstance(e, str) and isinstance(a, str) and e != "" for e, a in pairs], dtype=np.bool_)
    texts = pa.array([a if ok else "" for (_, a), ok in zip(pairs, strings, strict=True)], pa.string())
    values, valid, ports, mapped = addresses.read(pc.utf8_trim(texts, " \t"), family)
    faults = []
    for before, i in enumerate(np.flatnonzero(~valid).tolist()):
        if strings[i]:
            kind, reason = of_address(texts[i].as_py().strip(" \t"), family, before)
        else:
            kind = _absence(*pairs[i])
            reason = "the entity and the address must be two non-empty strings"
        faults.append(Fault(i, shown(list(pairs[i])), reason, kind))
    entities = pa.array([e for (e, _), ok in zip(pairs, valid, strict=True) if ok], pa.string())
    return Salvaged(Records(entities, values[valid]), valid, faults, Removed(ports=ports, mapped=mapped))


def salvage_columns(entities: Column, texts: Column, family: Family = IPV4) -> tuple[Records, npt.NDArray[np.bool_]]:
    """The readable records of two columns, in order, and which rows they are: bool [n].

    Raises ValueError if one is longer than the other, and TypeError if a column holds other values than strings: pandas
    turns account 7 beside a missing one into 7.0.
    """
    names, texts = strings(entities), strings(texts)
    if len(names) != len(texts):
        raise ValueError(f"there are {len(names):,} entities and {len(texts):,} addresses: each row must have both")
    records, readable, _ = _readable(names, texts, family)
    return records, readable


def salvage_table(entities: pa.Array, texts: pa.Array, family: Family = IPV4) -> Salvaged:
    """The readable rows of two columns of strings of one length, and the faults, which have the index of their row."""
    names, texts = (strings(column.cast(pa.string())) for column in (entities, texts))
    records, readable, removed = _readable(names, texts, family)
    at = np.flatnonzero(~readable)
    pairs = list(zip(*(column.take(pa.array(at)).to_pylist() for column in (names, texts)), strict=True))
    faults = [fault.at(row) for fault, row in zip(salvage_pairs(pairs, family).faults, at.tolist(), strict=True)]
    return Salvaged(records, readable, faults, removed)


def _readable(
    names: pa.StringArray, texts: pa.StringArray, family: Family
) -> tuple[Records, npt.NDArray[np.bool_], Removed]:
    values, valid, ports, mapped = addresses.read(pc.utf8_trim(texts, " \t"), family)
    readable = valid & pc.not_equal(names, "").to_numpy(zero_copy_only=False)
    return Records(names.filter(pa.array(readable)), values[readable]), readable, Removed(ports=ports, mapped=mapped)


def _absence(entity: object, address: object) -> Kind:
    """The kind of a row of which one value is no string, or the entity is empty."""
    if entity in (None, ""):
        return Kind.NO_ENTITY
    return Kind.EMPTY if address is None and isinstance(entity, str) else Kind.SHAPE


def strings(column: Column) -> pa.StringArray:
    """A column in one piece. Missing strings become empty, and so do those not in UTF-8 (Spark allows them)."""
    array = pa.array(column, pa.string(), from_pandas=True)
    array = pc.fill_null(single_chunk(array) if isinstance(array, pa.ChunkedArray) else array, "")
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array([_decoded(text) for text in array.cast(pa.binary()).to_pylist()], pa.string())
    return array


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return ""
