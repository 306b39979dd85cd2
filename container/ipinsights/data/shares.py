"""Which part of a channel each of several ranks reads, and how they agree on the rows of its entities.

Where all hosts have the whole channel, each file is one rank's. Of fewer files than ranks, each block of lines is one
rank's: all ranks pass over the bytes, and each parses its own blocks only. Where each host has files of its own, the
ranks of the host divide them so. A pipe can be read once, so the first rank of each host does that.

The rows of the entity table do not depend on who reads. Entities claim them in the order of the blocks, as on one host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipinsights.data.entities import EntityIndex
from ipinsights.data.sources import Pipe, Source
from ipinsights.distributed.group import Group
from ipinsights.native.reader import Digests


@dataclass
class Share:
    """The part of a channel that one of ``of`` ranks reads."""

    rank: int = 0
    of: int = 1
    by_file: bool = True
    beside: int = 1
    """How many ranks of this host read at the same time."""
    _block: int = -1

    @classmethod
    def of_channel(cls, group: Group, sources: Sequence[Source], divided: bool) -> "Share":
        """A rank's part of a channel: of what all hosts have, where it is to be ``divided``, else of its host's own."""
        if any(isinstance(source, Pipe) for source in sources):
            if group.process:
                return cls(-1)  # nothing: no source has this number
            readers, number, beside = len(group.processes), group.host, 1
        else:
            readers, number, beside = group.size, group.rank, group.beside
        if not divided:
            readers, number = beside, group.process
        return cls(number, readers, len(sources) >= readers, beside)

    def has(self, source: int) -> bool:
        """Whether any of a source, counted from 0, may be this rank's."""
        return not self.by_file or source % self.of == self.rank

    def block(self) -> int | None:
        """The number of the next block that is passed; None if it is another rank's."""
        self._block += 1
        return self._block if self.by_file or self._block % self.of == self.rank else None


@dataclass(frozen=True)
class Blocks:
    """The blocks that a rank has read, B."""

    order: npt.NDArray[np.int64]
    """Each block's host if the hosts have different files, else 0; its source; its number. All ranks' blocks ascend by
    these in the order in which one host would read them: [B, 3]."""
    starts: npt.NDArray[np.int64]
    """The first of the rank's events that is in the block, [B]."""


def claim_together(group: Group, index: EntityIndex, digests: Digests, blocks: Blocks) -> None:
    """All ranks' entities, given by those of each rank's events, claim their rows, and the ``index`` is that of all.

    The leader holds 8 bytes for each entity and each rank that has read of it.
    """
    distinct, first = np.unique(digests, return_index=True)
    block = np.searchsorted(blocks.starts, first, side="right") - 1
    by_block = np.argsort(block, kind="stable")
    sizes = np.bincount(block, minlength=len(blocks.starts))
    claimed, claims, order = (
        np.concatenate(group.collect(array)) for array in (distinct[by_block], sizes, blocks.order)
    )
    if group.leads:
        ends = np.cumsum(claims)
        for at in np.lexsort(order.T[::-1]).tolist():
            index.claim_hashed(claimed[ends[at] - claims[at] : ends[at]])
    index.adopt(group.broadcast(index.tags), group.broadcast(np.array([index.sharing])).item())
