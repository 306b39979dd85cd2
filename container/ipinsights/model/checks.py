"""What must hold of a model's tensors, and of the numbers that describe them, before anything computes with them.

Tables of sizes that disagree would be read beyond their ends: the native kernel trusts what it is given. `numbers`,
`known` and `tables` make sure of all that scoring relies on. They read the headers, and of the values only those of the
vocabulary, which are few. `values` reads the long lists that belong to entities.

Some numbers are facts that nothing computes with: the rows that are owned, the pairs of the history. They are not
compared with the tensors, because for a moment of `artifact.update` they are those of before.

``arrays`` are tensors by name, and ``described`` is what `artifact.describe` says of them, as read from a file. Every
function raises ValueError or TypeError that names the tensor or the number, and what disagrees.
"""

import itertools
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.data.addresses import FAMILIES, Family
from ipinsights.data.networks import LABELS
from ipinsights.model.calibration import BINS
from ipinsights.model.model import RESERVED
from ipinsights.model.tensors import Arrays, File

MOST_ROWS = 2**31 - 2
"""Rows of a table: their numbers are int32, and the row of unknown entities comes after the last."""

MOST = 2**62
"""What no number is above."""

Described = Mapping[str, Any]


def numbers(described: Described) -> None:
    """Every number that `artifact.restore` and a model's history rely on, each by itself."""
    version = whole(described, "vocabulary.ip_version", 0)
    if version not in FAMILIES:
        raise ValueError(f"'vocabulary.ip_version' is {version}, not {' or '.join(map(str, FAMILIES))}")
    width = FAMILIES[version].width
    levels = _wholes(described, "vocabulary.levels", 1, width)
    if not levels or any(one >= other for one, other in itertools.pairwise(levels)):
        raise ValueError(f"'vocabulary.levels' is {levels}: prefix lengths must ascend")
    sizes = _wholes(described, "vocabulary.sizes", 0, MOST_ROWS)
    if len(sizes) != len(levels):
        raise ValueError(f"'vocabulary.sizes' has {len(sizes)} numbers, and 'vocabulary.levels' has {len(levels)}")
    if "countries" in described["vocabulary"]:
        _wholes(described, "vocabulary.countries", 0, MOST)
    whole(described, "vocabulary.events", 0)
    for name in ("owning_a_row", "sharing_a_row"):
        whole(described, f"entities.{name}", 0)
    if "forgotten" in described:
        whole(described, "forgotten", 0)
    if "history" in described:
        whole(described, "history.bits", 1, width)
        for name in ("pairs", "bytes"):
            whole(described, f"history.{name}", 0)


def known(arrays: Arrays, described: Described) -> None:
    """The vocabulary, the networks and the entities' tags. The numbers must have been checked."""
    family = _family(described)
    levels, sizes = described["vocabulary"]["levels"], described["vocabulary"]["sizes"]
    why = f"'vocabulary.sizes' sums to {sum(sizes)}"
    prefixes = tensor(arrays, "vocabulary.prefixes", family.dtype, (sum(sizes),), why)
    counts = tensor(arrays, "vocabulary.counts", np.int64, (len(prefixes),), why)
    _require_counts("vocabulary.counts", counts, described)
    above, above_counts, at, start = prefixes[:0], counts[:0], 0, 0
    for level, size in zip(levels, sizes, strict=True):
        own, own_counts = prefixes[start : start + size], counts[start : start + size]
        name = f"tensor 'vocabulary.prefixes' at level /{level}"
        if not _ascends(own):
            raise ValueError(f"{name} does not ascend")
        if size and int(own[-1]) >> level:
            raise ValueError(f"{name} has {own[-1]}, which takes more than {level} bits")
        if at and size:
            parents = own >> own.dtype.type(level - at)
            place = np.searchsorted(above, parents)
            found = place < len(above)
            found[found] = above[place[found]] == parents[found]
            if not found.all():
                raise ValueError(f"{name} has {own[~found][0]} without the /{at} that it is part of")
            if (above_counts[place] < own_counts).any():
                raise ValueError(f"tensor 'vocabulary.counts' has less for a /{at} than for a /{level} in it")
        above, above_counts, at, start = own, own_counts, level, start + size
    tags = tensor(arrays, "entity.tags", np.uint32, (None,))
    if not 1 <= len(tags) <= MOST_ROWS:
        raise ValueError(f"tensor 'entity.tags' has {len(tags):,} rows, not 1 to {MOST_ROWS:,}")
    countries = described["vocabulary"].get("countries", [])
    if with_networks(arrays):
        _networks(arrays, described, family)
        if len(set(countries)) < len(countries) or not np.isin(countries, arrays["country.values"]).all():
            raise ValueError("'vocabulary.countries' are not different ones of tensor 'country.values'")
    elif countries:
        raise ValueError(f"'vocabulary.countries' has {len(countries)}, and there is no tensor 'networks.first'")


def tables(arrays: Arrays, described: Described) -> None:
    """The tables of entities and prefixes, and what was counted. What is `known` must have been checked."""
    entities = len(arrays["entity.tags"])
    dim = arrays["entity"].shape[-1] if arrays.get("entity", np.zeros(())).ndim == 2 else None
    tensor(arrays, "entity", np.float32, (entities + 1, dim), f"'entity.tags' has {entities} rows")
    if not dim:
        raise ValueError("tensor 'entity' has no columns")
    countries = len(described["vocabulary"].get("countries", []))
    if countries and countries > dim - RESERVED:
        raise ValueError(f"'vocabulary.countries' has {countries}, which do not fit into {dim} columns of 'entity'")
    labels = LABELS if with_networks(arrays) else ()
    prefixes = len(arrays["vocabulary.prefixes"])
    rows = len(described["vocabulary"]["levels"]) + len(labels) + prefixes
    rows += sum(len(arrays[f"{kind}.values"]) for kind in labels)
    if rows > MOST_ROWS:
        raise ValueError(f"the vocabulary has {rows:,} rows, more than {MOST_ROWS:,}")
    why = f"'entity' has {dim} columns, and the vocabulary {rows} rows"
    tensor(arrays, "encoder.prefix", np.float32, (rows, dim), why)
    w = tensor(arrays, "encoder.w", np.float32, (None, dim, dim), why)
    tensor(arrays, "encoder.b", np.float32, (len(w), dim), f"'encoder.w' has {len(w)} blocks of {dim}")
    given = described.get("hyperparameters", {})
    if not isinstance(given, Mapping):
        raise TypeError(f"'hyperparameters' is {reprlib.repr(given)}, not an object")
    for name, value in (
        ("num_entity_vectors", entities),
        ("vector_dim", dim),
        ("num_ip_encoder_layers", len(w)),
        ("ip_version", described["vocabulary"]["ip_version"]),
    ):
        if name in given and (type(given[name]) is not int or given[name] != value):
            raise ValueError(f"'hyperparameters.{name}' is {reprlib.repr(given[name])}, and its tensors are of {value}")
    if "calibration" in described:
        for name in ("known", "new", "fabricated"):
            tensor(arrays, f"calibration.{name}", np.uint32, (BINS,))
    if "history" not in described:
        return
    moved = tensor(arrays, "counted.rows", np.int32, (None,))
    tensor(arrays, "counted.learnt", np.float32, (len(moved) + 1, dim), f"'counted.rows' has {len(moved)}")
    if "counted.weights" in arrays:  # earlier releases had none
        tensor(arrays, "counted.weights", np.float32, (len(moved),), f"'counted.rows' has {len(moved)}")
    tensor(arrays, "counted.entities", np.int64, (prefixes,), f"'vocabulary.prefixes' has {prefixes}")
    for part in _histories(arrays):
        listed = tensor(arrays, f"{part}.rows", np.int32, (None,))
        tensor(arrays, f"{part}.starts", np.int64, (len(listed) + 1,), f"'{part}.rows' has {len(listed)}")
        pairs = tensor(arrays, f"{part}.addresses", _family(described).dtype, (None,))
        tensor(arrays, f"{part}.counts", np.uint32, (len(pairs),), f"'{part}.addresses' has {len(pairs)}")


def values(file: File, described: Described) -> None:
    """The values of the lists that belong to entities. Shapes must have been checked."""
    if "history" not in described:
        return
    arrays, entities = file.arrays, len(file.arrays["entity.tags"])
    for name in ("counted.rows", *(f"{part}.rows" for part in _histories(arrays))):
        _require_ascending(name, file)
        rows = arrays[name]
        if len(rows) and not 0 <= rows[0] <= rows[-1] < entities:
            raise ValueError(f"tensor {name!r} has rows from {rows[0]} to {rows[-1]}, and there are {entities}")
    for part in file.parts("counted.weights") if "counted.weights" in arrays else ():
        if not 0 < part.min() <= part.max() <= 1:
            raise ValueError("tensor 'counted.weights' has numbers that are not above 0 and up to 1")
    for part in file.parts("counted.entities"):
        if not 0 <= part.min() <= part.max() <= entities:
            raise ValueError(f"tensor 'counted.entities' has numbers that are not from 0 to {entities}")
    for name in _histories(arrays):
        _history(name, file, described)


def _histories(arrays: Arrays) -> tuple[str, ...]:
    """How the names of the tensors begin that list addresses of entities."""
    return ("history", "apart") if any(name.startswith("apart.") for name in arrays) else ("history",)


def _history(name: str, file: File, described: Described) -> None:
    _require_ascending(f"{name}.starts", file)
    starts, pairs = file.arrays[f"{name}.starts"], len(file.arrays[f"{name}.addresses"])
    if starts[0] != 0 or starts[-1] != pairs:
        raise ValueError(f"tensor '{name}.starts' goes from {starts[0]} to {starts[-1]}, not from 0 to {pairs} pairs")
    family, bits = _family(described), described["history"]["bits"]
    beyond, place = family.dtype.type((1 << family.width - bits) - 1), 0
    for part in file.parts(f"{name}.addresses"):
        falls = place + 1 + np.flatnonzero(part[1:] <= part[:-1])  # where another entity's list must start
        if not np.array_equal(starts[np.searchsorted(starts, falls)], falls):
            raise ValueError(f"tensor '{name}.addresses' does not ascend within an entity")
        if beyond and (part & beyond).any():
            raise ValueError(f"tensor '{name}.addresses' has more than the {bits} bits of 'history.bits'")
        place += len(part) - 1
    if not all(part.all() for part in file.parts(f"{name}.counts")):
        raise ValueError(f"tensor '{name}.counts' has an address that was never used")


def with_networks(arrays: Arrays) -> bool:
    """Whether the tensors are of a model that knows networks."""
    return "networks.first" in arrays


def _networks(arrays: Arrays, described: Described, family: Family) -> None:
    first = tensor(arrays, "networks.first", family.dtype, (None,))
    why = f"'networks.first' has {len(first)}"
    last = tensor(arrays, "networks.last", family.dtype, (len(first),), why)
    tensor(arrays, "networks.labels", np.uint32, (len(LABELS), len(first)), why)
    if (first > last).any() or (last[:-1] >= first[1:]).any():
        raise ValueError("tensors 'networks.first' and 'networks.last' are not ranges that ascend and are disjoint")
    for kind in LABELS:
        own = tensor(arrays, f"{kind}.values", np.uint32, (None,))
        if not _ascends(own):
            raise ValueError(f"tensor '{kind}.values' does not ascend")
        counts = tensor(arrays, f"{kind}.counts", np.int64, (len(own),), f"'{kind}.values' has {len(own)}")
        _require_counts(f"{kind}.counts", counts, described)


def _require_counts(name: str, counts: npt.NDArray[np.int64], described: Described) -> None:
    events = described["vocabulary"]["events"]
    if len(counts) and not 1 <= counts.min() <= counts.max() <= events:
        raise ValueError(f"tensor {name!r} has counts that are not from 1 to {events}, which 'vocabulary.events' is")


def _require_ascending(name: str, file: File) -> None:
    for part in file.parts(name):
        if not _ascends(part):
            raise ValueError(f"tensor {name!r} does not ascend")


def _ascends(array: npt.NDArray[Any]) -> bool:
    return bool((array[1:] > array[:-1]).all())


def tensor(
    arrays: Arrays, name: str, dtype: npt.DTypeLike, shape: tuple[int | None, ...], why: str = ""
) -> npt.NDArray[Any]:
    """A tensor, which must be of that type and shape; None stands for any length."""
    if name not in arrays:
        raise ValueError(f"tensor {name!r} is missing")
    array = arrays[name]
    fits = array.ndim == len(shape) and all(size in (None, own) for size, own in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        asked = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"tensor {name!r} is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} [{asked}]"
            + (f": {why}" if why else "")
        )
    return array


def _family(described: Described) -> Family:
    return FAMILIES[described["vocabulary"]["ip_version"]]


def _get(described: Described, path: str) -> Any:
    found: Any = described
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"{path!r} is missing")
        found = found[name]
    return found


def whole(described: Described, path: str, low: int, high: int = MOST) -> int:
    """A number of those that describe, at keys joined by dots: it must be whole, and from ``low`` to ``high``."""
    found = _get(described, path)
    if type(found) is not int or not low <= found <= high:
        raise ValueError(f"{path!r} is {reprlib.repr(found)}, not a whole number from {low} to {high}")
    return found


def _wholes(described: Described, path: str, low: int, high: int) -> list[int]:
    found = _get(described, path)
    if not isinstance(found, list | tuple) or not all(type(one) is int and low <= one <= high for one in found):
        raise ValueError(f"{path!r} is {reprlib.repr(found)}, not a list of whole numbers from {low} to {high}")
    return list(found)
