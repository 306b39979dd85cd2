"""Prefix dropout: training hides prefixes of an address now and then, rare ones more often.

Without it, a table row used once would memorise that one event. The unknown rows, used by random addresses alone, would
learn that the unknown is never real. So a prefix with count c is hidden with probability 1 / (1 + c): the chance that
the next event is of a new kind after c events of the known one (a Dirichlet process with concentration 1). The level's
unknown row replaces it, in positive and negative samples alike. One uniform number decides for all levels of an
address. Counts never grow with depth, so the visible prefixes form a chain from the coarsest level down, as in scoring.

A score hides nothing. But a row that one event made knows only that its addresses belong to one entity, and to nobody
else. Where many share a wide network, such as a phone's carrier, that is wrong of most places. So such a row scores
with what it is on average in training: half of it, and half of the unknown row. Rows of more events score as they are:
with c parts of the row and one of the unknown row, Tor relays lose .0001 to .0007.
"""

import numpy as np
import numpy.typing as npt

from ipinsights.model.vocabulary import Vocabulary

_CHUNK = 1 << 15
_HALF = np.float32(0.5)


def hidden(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """How often prefixes with such counts are hidden."""
    return (1 / (1 + counts)).astype(np.float32)


def on_average(prefix: npt.NDArray[np.float32], vocabulary: Vocabulary) -> npt.NDArray[np.float32]:
    """The rows to score with, of those that training has learnt: [P, D]."""
    served = prefix.copy()
    once = np.flatnonzero(vocabulary.row_counts == 1)
    for begin in range(0, len(once), _CHUNK):
        rows = once[begin : begin + _CHUNK]
        served[rows] += _HALF * (prefix[vocabulary.level_of_row[rows]] - prefix[rows])
    return served


def as_learnt(
    rows: npt.NDArray[np.float32], counts: npt.NDArray[np.int64], unknown: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """What to go on from, so that some rows of an earlier model score as they did there: [n, D].

    Each comes with its events in the data so far, and with its level's ``unknown`` row.
    """
    learnt: npt.NDArray[np.float32] = np.where(counts[:, None] == 1, rows + (rows - unknown), rows)
    return learnt
