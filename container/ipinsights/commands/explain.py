"""``ipinsights explain``: all that a model has about one account and one address."""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from ipinsights.alerts.evidence import Evidence
from ipinsights.commands.options import Commands, add_model, open_model
from ipinsights.data import addresses
from ipinsights.data.records import parse_stream
from ipinsights.data.sources import stream
from ipinsights.errors import UserError, one_line
from ipinsights.evaluation import embeddings
from ipinsights.model.explanation import Explanation
from ipinsights.model.model import Model

_MEANINGS = {
    "popularity": "how many use the networks around the address, less what makes 0 the threshold",
    "habit": "how near the address is to where the account came from before",
    "affinity": "which accounts and networks go together, as training learnt it",
    "prior": "training never saw the account, so only how many use the networks around the address",
}
_LISTED, _SIMILAR = 10, 5


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "explain",
        help="say why an account and an address have their score",
        description="Print all that a model has about one account and one address: the score as a sum of its parts, "
        "how unusual it is, where the account came from before, and how many accounts have used the networks around "
        "the address. The numbers are those of the training data.",
    )
    command.add_argument("entity", help="the account, as in the data but without CSV's quotes")
    command.add_argument("address", help="the IP address")
    add_model(command)
    command.add_argument(
        "--among",
        type=Path,
        metavar="FILE",
        help="log-ins (CSV) whose accounts are compared with this one: a model holds no names, so it cannot list "
        "similar accounts without them",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Explain, and print."""
    model = open_model(options.model)
    values, valid = addresses.parse(pa.array([options.address], pa.string()), model.family)
    if not valid[0]:
        raise UserError(addresses.explain(options.address, model.family))
    row = int(model.index.find(pa.array([options.entity], pa.string()))[0])
    explanation = Explanation.of(model, row, int(values[0]))
    evidence = Evidence.of(model, row, int(values[0]))
    percentile = None
    if model.calibration:
        known = np.array([evidence.known is not False])
        percentile = float(model.calibration.percentile(np.array([explanation.score], dtype=np.float32), known)[0])
    similar = _similar(model, row, options.entity, options.among) if options.among else []
    if options.json:
        print(_json(options, explanation, evidence, percentile, similar))
    else:
        _print(options, explanation, evidence, percentile, similar)


def _print(
    options: argparse.Namespace,
    explanation: Explanation,
    evidence: Evidence,
    percentile: float | None,
    similar: list[tuple[str, float]],
) -> None:
    print(f"{one_line(options.entity)} from {options.address}: {evidence.sentence()}\n")
    print(f"Score       {explanation.score:8.2f}")
    for name, value in explanation.parts.items():
        print(f"  {name:10}{value:+8.2f}  {_MEANINGS[name]}")
    if percentile is not None:
        whose = "of new accounts " if evidence.known is False else ""
        print(f"Percentile  {percentile:8.4f}  the share of ordinary log-ins {whose}that score no higher")
    if evidence.provider or evidence.country:
        print(f"Provider    {f'AS{evidence.provider}' if evidence.provider else '-'}, {evidence.country or '-'}")
    own = evidence.own
    print(f"\n{'network':24}{'accounts there':>16}" + (f"{'its log-ins there':>20}" if own else ""))
    for i, place in enumerate(evidence.places):
        events = f"{_number(own.inside[i]):>20}" if own else ""
        print(f"{place.name:24}{_number(evidence.users[i]):>16}{events}")
    if evidence.accounts is not None:
        print(f"{'everywhere':24}{evidence.accounts:>16,}" + (f"{own.events:>20,}" if own else ""))
    if own and own.networks:
        print(
            f"\nThe account's log-ins by network, the most frequent first{' (some)' * (len(own.networks) > _LISTED)}:"
        )
        for network, count in own.networks[:_LISTED]:
            print(f"{count:>8,}  {network}")
    if similar:
        print("\nAccounts that are most like it, by the angle between their embeddings (1: the same):")
        for name, cosine in similar:
            print(f"{cosine:8.3f}  {one_line(name)}")


def _json(
    options: argparse.Namespace,
    explanation: Explanation,
    evidence: Evidence,
    percentile: float | None,
    similar: list[tuple[str, float]],
) -> str:
    own = evidence.own
    return json.dumps(
        {
            "entity": options.entity,
            "address": options.address,
            "score": explanation.score,
            "parts": explanation.parts,
            "percentile": percentile,
            "entity_known": evidence.known,
            "reason": evidence.sentence(),
            "provider": evidence.provider,
            "country": evidence.country,
            "accounts": evidence.accounts,
            "log_ins": own.events if own else None,
            "places": [
                {"network": place.name, "accounts": users, "log_ins": own.inside[i] if own else None}
                for i, (place, users) in enumerate(zip(evidence.places, evidence.users, strict=True))
            ],
            "networks": [{"network": network, "log_ins": events} for network, events in own.networks] if own else None,
            "known_networks": [dataclasses.asdict(network) for network in explanation.networks],
            "similar": [{"entity": name, "cosine": round(cosine, 6)} for name, cosine in similar],
        },
        indent=2,
        ensure_ascii=False,
    )


def _similar(model: Model, row: int, entity: str, path: Path) -> list[tuple[str, float]]:
    """The known accounts of a file whose embeddings point where this one's does, with the cosines of the angles."""
    names: set[str] = set()
    with stream(path) as text:
        for _, pairs in parse_stream(text, text.name, model.family):
            names.update(pairs.entities.unique().to_pylist())
    if row == model.index.num_rows:
        return []
    others = embeddings.of_entities(model, pa.array(sorted(names - {entity}), pa.string())).of_known()
    return [(others.names[place], cosine) for place, cosine in others.nearest(model.entity[row], _SIMILAR)]


def _number(value: int | None) -> str:
    return "not kept" if value is None else f"{value:,}"
