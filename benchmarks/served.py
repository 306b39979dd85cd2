"""What is served and what is asked for in `serving`: a model made without training, and payloads."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks import usual_server
from ipinsights.data import addresses
from ipinsights.data.entities import EntityIndex
from ipinsights.model import artifact
from ipinsights.model.model import Encoder, Model
from ipinsights.model.vocabulary import Vocabulary

CSV, JSON, JSON_LINES = "text/csv", "application/json", "application/jsonlines"

_NETWORKS = 60_000
_EVENTS_PER_NETWORK = 16


@dataclass(frozen=True)
class Served:
    """A model on disk, ours and the usual server's, and pairs to score with it."""

    ours: Path
    """The folder of our artifact."""
    usual: Path
    """The usual server's weights: the same entity rows, and an encoder of its own."""
    entities: npt.NDArray[np.str_]
    addresses: list[str]

    @classmethod
    def make(cls, folder: Path, rows: int, dim: int, pairs: int) -> "Served":
        """Random weights for ``rows`` entities, half of them known, and 80,000 prefixes.

        Of the pairs 1 in 20 has an unknown entity, and half have an address in a known network.
        """
        rng = np.random.default_rng(0)
        index = EntityIndex(rows)
        index.claim(pa.array([f"user_{i}" for i in range(rows // 2)], pa.string()))
        networks = rng.integers(1 << 24, size=_NETWORKS).astype(np.uint32) << np.uint32(8)
        events = np.repeat(networks, _EVENTS_PER_NETWORK)
        vocabulary = Vocabulary.build(events + rng.integers(256, size=len(events), dtype=np.uint32))
        table = rng.standard_normal((rows + 1, dim), dtype=np.float32) * np.float32(0.1)
        encoder = Encoder(
            prefix=rng.standard_normal((vocabulary.num_rows, dim), dtype=np.float32) * np.float32(0.1),
            w=rng.standard_normal((1, dim, dim), dtype=np.float32) * np.float32(dim**-0.5),
            b=rng.standard_normal((1, dim), dtype=np.float32) * np.float32(0.1),
        )
        ours, usual = folder / "ml" / "model", folder / "model.pt"
        artifact.save(Model(vocabulary, index, table, encoder), ours, facts={})
        torch.manual_seed(0)
        usual_model = usual_server.Model(rows, dim)
        usual_model.load_state_dict({**usual_model.state_dict(), "entity.weight": torch.from_numpy(table[:-1])})
        torch.save(usual_model.state_dict(), usual)

        asked = rng.integers(1 << 32, size=pairs, dtype=np.uint32)
        known = rng.random(pairs) < 0.5
        asked[known] = rng.choice(networks, known.sum()) + rng.integers(256, size=known.sum(), dtype=np.uint32)
        user = np.where(rng.random(pairs) < 0.05, rows, 0) + rng.integers(max(1, rows // 2), size=pairs)
        return cls(ours, usual, np.char.add("user_", user.astype(str)), addresses.render(asked))

    def csv_lines(self) -> list[str]:
        """Every pair as a line of CSV."""
        return [f"{entity},{address}" for entity, address in zip(self.entities, self.addresses, strict=True)]

    def instances(self) -> list[str]:
        """Every pair as an instance in JSON."""
        pairs = zip(self.entities.tolist(), self.addresses, strict=True)
        return [json.dumps({"features": [entity, address]}) for entity, address in pairs]


@dataclass(frozen=True)
class Payload:
    """A request's body and what is in it."""

    content_type: str
    body: str
    rows: int
    wish: str = ""
    """A parameter of the accepted type, as ``;calibrated=True``."""

    @property
    def accept(self) -> str:
        """What the answer is to be: as the request, but JSON for CSV."""
        return (JSON if self.content_type == CSV else self.content_type) + self.wish

    def request(self) -> str:
        """The whole of an HTTP request, all of it ASCII."""
        head = f"Content-Type: {self.content_type}\r\nAccept: {self.accept}\r\nContent-Length: {len(self.body)}\r\n"
        return f"POST /invocations HTTP/1.1\r\nHost: localhost\r\n{head}\r\n{self.body}"


def payload(content_type: str, records: list[str]) -> Payload:
    """The payload of some records, which are lines of CSV or instances in JSON."""
    body = '{"instances": [' + ", ".join(records) + "]}" if content_type == JSON else "\n".join(records) + "\n"
    return Payload(content_type, body, len(records))


def largest(content_type: str, records: list[str], size: int) -> Payload:
    """The payload of as many records as fit into ``size`` bytes."""
    ends = np.cumsum([len(record) + (2 if content_type == JSON else 1) for record in records])
    return payload(content_type, records[: max(1, int(np.searchsorted(ends, size - 20)))])
