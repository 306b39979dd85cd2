"""The usual server: a container for IP Insights as most people would write it. It is the yardstick of `serving`.

Flask, pandas and torch, and nothing of ours: each worker loads the weights with `torch.load`; pandas reads CSV and
`json` the other formats, instance by instance; an entity is hashed to a row of nn.Embedding, an address is its 32 bits,
sent through Linear, ReLU, Linear; a score is the inner product of the two. It is written with care: pandas, torch and
comprehensions where a loop would be slow, `inference_mode`, one thread of torch a request, no work done twice. (What
most would not do: scoring 4,096 pairs at a time, which halves what torch takes of a large request, about a third; and
`inet_aton`, which is faster than `ipaddress` and takes "10.1" for an address.)

    gunicorn --workers 2 --threads 4 'benchmarks.usual_server:create_app("model.pt")'
"""

import io
import ipaddress
import json
import zlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from flask import Flask, Response, request
from torch import nn

_BITS = 32
_CSV: dict[str, Any] = {"header": None, "keep_default_na": False, "skipinitialspace": True}


class Model(nn.Module):
    """IP Insights."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.entity = nn.Embedding(rows, dim)
        self.encoder = nn.Sequential(nn.Linear(_BITS, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, entity: torch.Tensor, address: torch.Tensor) -> torch.Tensor:
        """Score pairs, row of the table and address, int64 [n] each: [n]."""
        bits = (address[:, None] >> torch.arange(_BITS)) & 1
        score: torch.Tensor = (self.entity(entity) * self.encoder(bits.float())).sum(-1)
        return score


def load(path: str) -> Model:
    """The model whose weights, a state_dict, are in a file."""
    weights = torch.load(path, weights_only=True)
    with torch.device("meta"):  # an empty one, rather than random numbers that the weights replace
        model = Model(*weights["entity.weight"].shape)
    model.load_state_dict(weights, assign=True)
    return model.eval()


@torch.inference_mode()
def predict(model: Model, entities: Sequence[str], ips: Sequence[str]) -> list[float]:
    """The score of each pair."""
    rows = model.entity.num_embeddings
    entity = torch.tensor([zlib.crc32(name.encode()) % rows for name in entities])
    address = torch.tensor([int(ipaddress.IPv4Address(ip)) for ip in ips])
    scores: list[float] = model(entity, address).tolist()
    return scores


def create_app(path: str) -> Flask:
    """The WSGI application that scores with the weights in a file."""
    torch.set_num_threads(1)
    app, model = Flask(__name__), load(path)

    @app.get("/ping")
    def ping() -> Response:
        return Response(status=200)

    @app.post("/invocations")
    def invocations() -> Response:
        body = request.get_data()
        try:
            if request.mimetype == "text/csv":
                table = pd.read_csv(io.BytesIO(body), names=["entity", "ip"], dtype=str, **_CSV)
                entities, ips = table["entity"].tolist(), table["ip"].tolist()
            elif request.mimetype == "application/json":
                entities, ips = _columns(json.loads(body)["instances"])
            elif request.mimetype == "application/jsonlines":
                entities, ips = _columns([json.loads(line) for line in body.splitlines() if line])
            else:
                return Response("unknown Content-Type", status=415)
            scores = predict(model, entities, ips)
        except (ValueError, KeyError, TypeError) as error:
            return Response(f"malformed request: {error}", status=400)
        predictions = [{"dot_product": score} for score in scores]
        if request.accept_mimetypes.best == "application/jsonlines":
            return Response("\n".join(map(json.dumps, predictions)), mimetype="application/jsonlines")
        return Response(json.dumps({"predictions": predictions}), mimetype="application/json")

    return app


def _columns(instances: list[Any]) -> tuple[list[str], list[str]]:
    """Entities and addresses of instances of either documented shape."""
    pairs = [i["features"] if "features" in i else i["data"]["features"]["values"] for i in instances]
    return [entity for entity, _ in pairs], [ip for _, ip in pairs]
