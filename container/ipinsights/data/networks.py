"""The operators of addresses: a table of ranges with their provider (autonomous system) and country.

Providers run many prefixes that have no common prefix. So with such a table the encoder has two more levels of an
address. The table is in iptoasn's format (https://iptoasn.com): first TAB last TAB AS number TAB country TAB name,
ranges ascending and disjoint; addresses as text or, as in its ``-u32`` files, as integers; gzip if named ``.gz``.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.data import addresses
from ipinsights.data.addresses import Family
from ipinsights.errors import UserError, refusal

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("provider", "country")
"""The labels of a range, finer first."""

_FORMAT = "first TAB last TAB AS number TAB country [TAB name]"
_COLUMNS = ["first", "last", "provider", "country"]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Networks:
    """N disjoint ranges, ascending: range i holds the addresses first[i] to last[i], both included."""

    first: npt.NDArray[np.unsignedinteger]
    """In the family's type, [N]."""
    last: npt.NDArray[np.unsignedinteger]
    labels: npt.NDArray[np.uint32]
    """The AS number, and the country as the bytes of its two letters; 0 for unknown, [2, N]."""

    @classmethod
    def read(cls, files: Sequence[Path], family: Family) -> "Networks":
        """Read the ranges of a family from tables and skip other families. Raises UserError."""
        parts = [_read(path, family) for path in files]
        columns = [np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        first, last, labels = (column[..., order] for column in columns)
        names = ", ".join(map(str, files))
        if not len(first):
            raise UserError(f"{names}: the table has no IPv{family.version} range")
        if family is addresses.IPV6:  # two ranges may share one /64, which 64 bits cannot divide: the first gets it
            first[1:] += last[:-1] == first[1:]
            kept = first <= last
            first, last, labels = first[kept], last[kept], labels[:, kept]
        overlap = np.flatnonzero(last[:-1] >= first[1:])
        if len(overlap):
            one, other = addresses.render(first[overlap[0] : overlap[0] + 2], family)
            raise UserError(f"{names}: the ranges from {one} and from {other} overlap; they must be disjoint")
        return cls(first, last, labels)

    def __len__(self) -> int:
        return len(self.first)

    def find(self, queries: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.int32]:
        """The range of each address: int32 [n]; -1 for none."""
        found = np.full(len(queries), -1, dtype=np.int32)
        if not len(self):
            return found
        for begin in range(0, len(queries), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            at = np.searchsorted(self.first, queries[part], side="right") - 1
            found[part] = np.where((at >= 0) & (queries[part] <= self.last[at]), at, -1)
        return found

    def labels_of(self, queries: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint32]:
        """The labels of each address, as `labels` has them, 0 where it has none: uint32 [K, n]."""
        found = self.find(queries)
        labels = np.zeros((len(self.labels), len(queries)), dtype=np.uint32)
        labels[:, found >= 0] = self.labels[:, found[found >= 0]]
        return labels

    def restrict(self, known: Sequence[npt.NDArray[np.uint32]]) -> "Networks":
        """Keep only what lookups of the known labels (one array a kind) need.

        Other labels become 0, ranges without a label are removed, and neighbours with the same labels are joined.
        """
        labels = np.stack(
            [np.where(np.isin(own, values), own, 0) for own, values in zip(self.labels, known, strict=True)]
        )
        kept = labels.any(axis=0)
        first, last, labels = self.first[kept], self.last[kept], labels[:, kept]
        if not len(first):
            return Networks(first, last, labels)
        joined = (first[1:] - last[:-1] == 1) & (labels[:, 1:] == labels[:, :-1]).all(axis=0)
        starts, ends = np.append(True, ~joined), np.append(~joined, True)
        return Networks(first[starts], last[ends], labels[:, starts])


_Columns = tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.unsignedinteger], npt.NDArray[np.uint32]]


def _read(path: Path, family: Family) -> _Columns:
    import pandas as pd  # slow to import, and scoring reads no table

    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            table = pd.read_csv(
                file,
                sep="\t",
                header=None,
                names=_COLUMNS,
                usecols=range(4),
                dtype=str,
                keep_default_na=False,  # NA is Namibia
                quoting=3,
            )
    except (PermissionError, IsADirectoryError) as error:
        raise refusal("read", path, error) from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a table of networks ({_FORMAT}): {error}") from error
    first, last = (_addresses(path, table[name], family) for name in ("first", "last"))
    kept = first[1] & last[1]
    if not len(table) or (first[0] > last[0])[kept].any():
        raise UserError(
            f"{path}: not a table of networks ({_FORMAT}): it has no rows, or a range ends before it begins"
        )
    numbers = pd.to_numeric(table["provider"], errors="coerce")
    wrong = numbers.isna() | (numbers < 0) | (numbers >= 1 << 32)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"{path}, line {row + 1}: {table['provider'][row]!r} is not an AS number ({_FORMAT})")
    country = table["country"].where(table["country"].str.fullmatch("[A-Z]{2}"), "\0\0")
    codes = np.frombuffer("".join(country).encode(), dtype=">u2")
    labels = np.stack([numbers.to_numpy().astype(np.uint32), codes.astype(np.uint32)])
    return first[0][kept], last[0][kept], labels[:, kept]


def _addresses(
    path: Path, texts: "pd.Series[str]", family: Family
) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.bool_]]:
    """Addresses, from integers or text, and which are of the family."""
    import pandas as pd

    if texts.str.isdecimal().all():
        numbers = pd.to_numeric(texts)
        if (numbers >= 1 << 32).any():
            raise UserError(f"{path}: addresses as integers must be IPv4 ({_FORMAT})")
        values = numbers.to_numpy().astype(np.uint32)
        if family is addresses.IPV4:
            return values, np.ones(len(values), np.bool_)
        texts = pd.Series(addresses.render(values))
    values, valid = addresses.parse(pa.array(texts, pa.string()), family)
    for row in np.flatnonzero(~valid):
        if ":" not in texts.iloc[row]:
            raise UserError(f"{path}, line {row + 1}: {texts.iloc[row]!r} is not an address ({_FORMAT})")
    return values, valid
