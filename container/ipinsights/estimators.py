"""Training from a data frame, as a notebook does it."""

from typing import Any

import pyarrow.compute as pc

from ipinsights.data.addresses import FAMILIES, IPV6, Family
from ipinsights.data.columns import salvage_table, strings
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.frames import ADDRESS, ENTITY, Frame, columns
from ipinsights.data.malformed import Kind, MalformedRecords
from ipinsights.data.records import Records, Salvaged
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters, completed, rows_for
from ipinsights.model.model import Model
from ipinsights.training import fit as training


def fit(
    log_ins: Frame | Events,
    hyperparameters: Hyperparameters | None = None,
    validation: Frame | Events | None = None,
    *others: Any,
    entity: str = ENTITY,
    address: str = ADDRESS,
    earlier: Model | None = None,
    **named: Any,
) -> Model:
    """Train a model of the log-ins in a data frame.

    ``log_ins`` and ``validation`` are of pandas or polars, Arrow tables or dicts; ``entity`` and ``address`` name their
    columns of strings. Hyperparameters are given by name, as in ``fit(frame, epochs=20)``. What is not given follows
    from the data: twice as many rows as entities, a ``vector_dim`` of 64, and ``ip_version=6`` if an address is IPv6;
    or from an ``earlier`` model. Rows that cannot be read are an error, unless ``malformed_rows="skip"``.

    All else is as in `training.fit.fit`, which this calls, with ``hyperparameters``, for `Events`, too.
    Raises UserError.
    """
    if isinstance(log_ins, Events):
        if hyperparameters is None:
            raise UserError("events need hyperparameters: fit(events, hyperparameters)")
        return training.fit(log_ins, hyperparameters, validation, *others, earlier=earlier, **named)
    if hyperparameters is not None:
        raise UserError("with a data frame, give hyperparameters by name, as in fit(frame, epochs=20)")
    own = {name: named.pop(name) for name in list(named) if name not in _KEYWORDS}
    frames = [log_ins] if validation is None else [log_ins, validation]
    hp, read = _read(frames, own, entity, address, earlier)
    index = earlier.index.copy() if earlier else EntityIndex(hp.num_entity_vectors)
    train = Events(index.claim(read[0].entities), read[0].addresses, index)
    held = Events(index.find(read[-1].entities), read[-1].addresses, index) if len(read) > 1 else None
    return training.fit(train, hp, held, *others, earlier=earlier, **named)


_KEYWORDS = ("listener", "networks", "checkpoints", "stop")
"""Arguments of `training.fit.fit` that are no hyperparameters."""


def _read(
    frames: list[Frame], given: dict[str, Any], entity: str, address: str, earlier: Model | None
) -> tuple[Hyperparameters, list[Records]]:
    """The hyperparameters, and what can be read of each frame. Raises UserError."""
    values = completed(given, earlier.fixed if earlier else {})
    hp = Hyperparameters.parse({"num_entity_vectors": "1", **values})
    family = FAMILIES[hp.ip_version]
    salvaged = [_salvage(frame, family, entity, address) for frame in frames]
    if "ip_version" not in values and any(fault.kind is Kind.IPV6 for part in salvaged for fault in part.faults):
        values["ip_version"] = str(IPV6.version)
        salvaged = [_salvage(frame, IPV6, entity, address) for frame in frames]
    for part in salvaged:
        share = len(part.faults) / max(1, len(part.readable))
        if part.faults and (hp.tolerated is None or share > hp.tolerated):
            raise MalformedRecords(part.faults, unit="row")
    distinct = len(pc.unique(salvaged[0].records.entities))
    values.setdefault("num_entity_vectors", str(rows_for(distinct)))
    return Hyperparameters.parse(values), [part.records for part in salvaged]


def _salvage(frame: Frame, family: Family, entity: str, address: str) -> Salvaged:
    names, texts = columns(frame, entity, address)
    return salvage_table(strings(names), strings(texts), family)
