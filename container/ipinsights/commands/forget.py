"""``ipinsights forget``: remove entities from a model, because they have a right to erasure, for example."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipinsights.commands.options import Commands
from ipinsights.data import entities
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.model import Model

_SHOWN = 5
"""Names that a message lists."""

_STAYS = """\
What stays, because all log-ins taught it together: the typical entity, the encoder of addresses, and the prefixes, how
often each occurred and with how many entities (with the providers and countries, if a table was given). Only a training
from scratch, without the log-ins of the removed entities, is free of their part in it.
Not changed: the data, and copies of the model (model.tar.gz, checkpoints, and servers, which have it open until they
restart). Training on data that still contains an entity learns it again."""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "forget",
        help="remove entities from a model",
        description="Remove all that a model holds of the given entities, and nothing of any other. The model then "
        "scores a forgotten entity as one that training never saw. If the model does not know one of them, the command "
        "changes nothing. It cannot be undone. What all log-ins taught together stays, and so do copies of the model: "
        "the command prints what.",
    )
    command.add_argument(
        "--model",
        type=Path,
        required=True,
        help="the folder of a model, which is changed in place. An archive must be unpacked first and packed again",
    )
    command.add_argument(
        "entity",
        nargs="+",
        help="an entity's name, as in the data but without CSV's quotes. Put -- before names that begin with -",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Remove the entities, and print what that means."""
    names = list(dict.fromkeys(options.entity))
    model = artifact.update(options.model, lambda model: _without(model, names, options.model))
    index = model.index
    print(f"{_entities(len(names))} removed from the model in {options.model}; {index.forgotten:,} in all so far.")
    if index.sharing:
        print(
            f"At least {_entities(index.sharing)} in this model share the rows of others. So an entity that the model "
            "does not know, and a removed one too, gets the score of the row that its name is hashed to. If others "
            "shared a removed row, that row now scores as one that training never saw. No other score has changed."
        )
    else:
        print("A removed entity scores as one that training never saw. No other entity's score has changed.")
    free = index.num_rows - index.owned - index.forgotten
    print(f"Removed rows are not used again. Of {index.num_rows:,} rows, {free:,} are free for new entities.")
    print(_STAYS)


def _without(model: Model, names: Sequence[str], folder: Path) -> Model:
    """The model without these entities. Raises UserError if it cannot remove each of them."""
    try:
        rows = model.index.own_rows(pa.array(names, pa.string()))
    except UnicodeEncodeError:
        raise UserError("an entity's name is not UTF-8: no model knows such an entity") from None
    unknown, sharing = (_list(names, rows == kind) for kind in (entities.UNKNOWN, entities.SHARING))
    if unknown:
        raise UserError(f"the model in {folder} does not know {unknown}. Nothing was removed")
    if sharing:
        raise UserError(
            f"{sharing} cannot be removed alone from the model in {folder}, for want of a row of their own: they share "
            "the rows of others, or training never saw them. Nothing was removed. Train again without their log-ins, "
            "with num_entity_vectors of twice the number of entities"
        )
    return model.without(rows)


def _list(names: Sequence[str], chosen: npt.NDArray[np.bool_]) -> str:
    """The chosen names for a message: the first of them, and how many more there are."""
    found = [repr(name) for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _entities(count: int) -> str:
    return "1 entity" if count == 1 else f"{count:,} entities"
