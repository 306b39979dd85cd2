"""The literal trainer: IP Insights as most people would write it with torch. It is the yardstick of `training`.

Entities are rows of nn.Embedding; an address is its 32 bits, sent through Linear, ReLU, Linear; a score is the inner
product of the two. Every positive of a mini-batch meets R random addresses of its own, all encoded, and the addresses
of S permutations of the mini-batch. Binary cross entropy with logits, autograd, and torch's own Adam: dense, or
SparseAdam on the table. Nothing is tuned but the start of the table, which torch would draw a hundred times as large.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from ipinsights.data.addresses import Addresses
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters

ENCODER_LEARNING_RATE = 0.001
"""The encoder's; the table's is the hyperparameter."""
_BITS = 32
_INITIAL_SCALE = 0.01
_SCORING_CHUNK = 1 << 16


class Scorer(nn.Module):
    """The model."""

    def __init__(self, rows: int, dim: int, sparse: bool) -> None:
        super().__init__()
        self.entity = nn.Embedding(rows, dim, sparse=sparse)
        with torch.no_grad():
            self.entity.weight.mul_(_INITIAL_SCALE)
        self.encoder = nn.Sequential(nn.Linear(_BITS, dim), nn.ReLU(), nn.Linear(dim, dim))

    def encode(self, address: torch.Tensor) -> torch.Tensor:
        """Addresses, int64 [...], to their embeddings, [..., D]."""
        bits = (address[..., None] >> torch.arange(_BITS)) & 1
        encoded: torch.Tensor = self.encoder(bits.float())
        return encoded

    def forward(self, entity: torch.Tensor, address: torch.Tensor) -> torch.Tensor:
        """Score pairs, row of the table and address, int64 [n] each: [n]."""
        score: torch.Tensor = (self.entity(entity) * self.encode(address)).sum(-1)
        return score


class Trainer:
    """Trains a `Scorer` on events, on the CPU. Weight decay is 0 and the learning rates stay as they are."""

    def __init__(self, train: Events, hyperparameters: Hyperparameters, sparse: bool) -> None:
        """With ``sparse`` the table's gradients and its Adam are, and else both are dense."""
        self._hp = hyperparameters
        self._entity = torch.from_numpy(train.entity.astype(np.int64))
        self._address = torch.from_numpy(train.address.astype(np.int64))
        torch.manual_seed(hyperparameters.seed)
        self._generator = torch.Generator().manual_seed(hyperparameters.seed)
        self.model = Scorer(hyperparameters.num_entity_vectors, hyperparameters.vector_dim, sparse)
        table, encoder = self.model.entity.parameters(), self.model.encoder.parameters()
        rate = hyperparameters.learning_rate
        self._optimisers: list[torch.optim.Optimizer]
        if sparse:
            self._optimisers = [
                torch.optim.SparseAdam(table, lr=rate),
                torch.optim.Adam(encoder, lr=ENCODER_LEARNING_RATE),
            ]
        else:
            groups = [{"params": table, "lr": rate}, {"params": encoder, "lr": ENCODER_LEARNING_RATE}]
            self._optimisers = [torch.optim.Adam(groups)]

    def steps(self) -> Iterator[tuple[int, float]]:
        """Train, step after step and epoch after epoch, without end.

        Gives each step's number of positives, and the mean cross entropy of the records since its epoch began.
        """
        while True:
            cross_entropy, seen = 0.0, 0
            order = torch.randperm(len(self._entity), generator=self._generator)
            for chosen in torch.split(order, self._hp.mini_batch_size):
                loss = self._loss(self._entity[chosen], self._address[chosen])
                for optimiser in self._optimisers:
                    optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                for optimiser in self._optimisers:
                    optimiser.step()
                cross_entropy += loss.item() * len(chosen)
                seen += len(chosen)
                yield len(chosen), cross_entropy / seen

    def _loss(self, entity: torch.Tensor, address: torch.Tensor) -> torch.Tensor:
        """The mean cross entropy of a mini-batch of positives, int64 [b] each, and their negatives."""
        b = len(entity)
        random = torch.randint(1 << _BITS, (b, self._hp.random_negative_sampling_rate), generator=self._generator)
        embedded = self.model.entity(entity)
        encoded = self.model.encode(torch.cat([address[:, None], random], 1))  # [b, 1 + R, D]
        scores = [(embedded[:, None] * encoded).sum(-1)]
        for _ in range(self._hp.shuffled_negative_sampling_rate):
            shuffle = torch.randperm(b, generator=self._generator)
            scores.append((embedded * encoded[shuffle, 0]).sum(-1, keepdim=True))
        score = torch.cat(scores, 1)  # [b, 1 + R + S]
        label = torch.zeros_like(score)
        label[:, 0] = 1
        return F.binary_cross_entropy_with_logits(score, label)

    @torch.no_grad()
    def score(self, entity: npt.NDArray[np.integer], address: Addresses) -> npt.NDArray[np.float32]:
        """Score pairs, row of the table and address, [n] each: [n]."""
        rows, addresses = torch.from_numpy(entity.astype(np.int64)), torch.from_numpy(address.astype(np.int64))
        chunks = zip(torch.split(rows, _SCORING_CHUNK), torch.split(addresses, _SCORING_CHUNK), strict=True)
        scores: npt.NDArray[np.float32] = torch.cat([self.model(*chunk) for chunk in chunks]).numpy()
        return scores
