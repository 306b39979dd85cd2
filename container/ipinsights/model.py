"""The model: an entity table, an IP encoder, and their inner product.

The score of (entity, address) is <e, phi(a)>: e is the entity's row of a table, phi(a) the encoding of the address.
It is the log odds that the pair was observed rather than made up: more is more normal, 0 the natural threshold.

The encoder starts from prefixes: s is the sum of the address's rows, one a level, of the prefix table (`vocabulary`).
An unknown prefix has its level's unknown row, so an address never seen backs off to the longest prefix that was.
Residual blocks follow, x <- x + W2 relu(W1 x + b1) + b2, as many as ``num_ip_encoder_layers``.

This file computes in whatever arrays it is given: numpy to score, torch to validate (and `step` trains with the same
sum written out together with its gradient). Symbols: E entity
rows, P prefix rows, L levels, B blocks, D ``vector_dim``; every array is float32.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ipinsights.vocabulary import Vocabulary

Array = Any
"""A numpy array or a torch tensor; all of one call are of one kind."""


@dataclass(frozen=True)
class Encoder:
    """The parameters of phi."""

    prefix: Array
    """[P, D]: first the L unknown rows, then the known prefixes."""
    w1: Array
    """[B, D, D]"""
    b1: Array
    """[B, D]"""
    w2: Array
    """[B, D, D]"""
    b2: Array
    """[B, D]"""

    def __call__(self, rows: Array) -> Array:
        """Encode n addresses, given by their prefix rows (int [n, L]): [n, D]."""
        x = self.prefix[rows[:, 0]]
        for level in range(1, rows.shape[1]):
            x = x + self.prefix[rows[:, level]]
        for w1, b1, w2, b2 in zip(self.w1, self.b1, self.w2, self.b2, strict=True):
            hidden = x @ w1.T + b1
            x = x + (hidden * (hidden > 0)) @ w2.T + b2
        return x


@dataclass(frozen=True)
class Model:
    """A trained model, in numpy arrays that may be memory-mapped."""

    vocabulary: Vocabulary
    entity: npt.NDArray[np.float32]
    """[E, D]"""
    encoder: Encoder

    @property
    def vector_dim(self) -> int:
        """D, the length of an embedding."""
        return int(self.entity.shape[1])

    def encode(self, addresses: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
        """The embedding of each address (uint32 [n]): [n, D]."""
        rows = self.vocabulary.chains[self.vocabulary.leaves(addresses)]
        encoded: npt.NDArray[np.float32] = self.encoder(rows)
        return encoded
