"""``ipinsights embed``: the embeddings of entities and addresses, a map of them, and who is near whom."""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ipinsights.commands.options import Commands, add_model, open_model, seed
from ipinsights.errors import UserError, one_line, refusals
from ipinsights.evaluation import embeddings, log_ins
from ipinsights.evaluation.embeddings import Embeddings, Map
from ipinsights.model.model import Model

ENTITIES, ADDRESSES, NETWORKS = "entity", "address", "network"
"""The kinds of what is embedded, and the names of their columns."""
_FILES = {ENTITIES: "entities.parquet", ADDRESSES: "addresses.parquet", NETWORKS: "networks.parquet"}
_MAP = "map"
_NO_NAMES = (
    "a model keeps hashes of entities, not their names: give the names in a file (--entities FILE), one a line. A file "
    "of log-ins will do, too"
)


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "embed",
        help="write the embeddings of entities and addresses, and a map of them",
        description="Write OUT/entities.parquet and OUT/networks.parquet (all networks that the model knows), or "
        "OUT/addresses.parquet: a name, its vector, the provider and whether training saw it. OUT/map.parquet has "
        "their places on a map of two dimensions, and OUT/map.html shows it. A model keeps hashes of entities, not "
        "their names, so the names must be given. The score of a pair is the inner product of its vectors.",
    )
    add_model(command)
    command.add_argument(
        "--entities", type=Path, metavar="FILE", help="CSV: a name a line, or log-ins, of which the first column counts"
    )
    command.add_argument(
        "--addresses",
        type=Path,
        metavar="FILE",
        help="CSV: an address a line, or log-ins, of which the second column counts. The default is all known networks",
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", help="the folder to write to")
    command.add_argument(
        "--map",
        choices=["pca", "tsne"],
        default="pca",
        help="how the map is made: the first two principal components (default), or t-SNE, which needs scikit-learn",
    )
    command.add_argument(
        "--points", type=seed, default=2000, help="points of each kind on the map at most (default 2000)"
    )
    command.add_argument(
        "--nearest",
        metavar="ENTITY",
        help="print the entities and networks that are nearest to this one, by the cosine",
    )
    command.add_argument("--top", type=seed, default=10, help="so many of them (default 10)")
    command.add_argument("--seed", type=seed, default=0, help="the seed of the map (default 0)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the files, or print the nearest, or both."""
    if options.out is None and options.nearest is None:
        raise UserError("there is nothing to do: name a folder to write to (--out), or an entity (--nearest)")
    if options.entities is None and (options.addresses is None or options.nearest is not None):
        raise UserError(_NO_NAMES)
    model = open_model(options.model)
    found: dict[str, Embeddings] = {}
    if options.entities is not None:
        found[ENTITIES] = embeddings.of_entities(model, log_ins.read_names(options.entities))
    if options.addresses is not None:
        found[ADDRESSES] = embeddings.of_addresses(model, log_ins.read_addresses(options.addresses, model.family))
    else:
        found[NETWORKS] = embeddings.of_networks(model)
    if options.out is not None:
        with refusals("write", options.out):
            options.out.mkdir(parents=True, exist_ok=True)
            _write(found, options)
    if options.nearest is not None:
        _print_nearest(model, found, options.nearest, options.top)


def _write(found: dict[str, Embeddings], options: argparse.Namespace) -> None:
    from ipinsights.reporting import page  # slow to import, and no command that scores needs it

    for kind, those in found.items():
        parquet.write_table(_table(kind, those), options.out / _FILES[kind])
        unknown = "" if those.known.all() else f", {int((~those.known).sum()):,} of them not known to the model"
        print(f"{options.out / _FILES[kind]}: {len(those):,} vectors of {those.vectors.shape[1]}{unknown}")
    sampled = {kind: those.of_known().sample(options.points, options.seed) for kind, those in found.items()}
    maps = {kind: Map.of(those.vectors, options.map, options.seed) for kind, those in sampled.items()}
    points = pa.concat_tables([_points(kind, those, maps[kind]) for kind, those in sampled.items()])
    parquet.write_table(points, options.out / f"{_MAP}.parquet")
    page.save(options.out / f"{_MAP}.html", page.of_maps(sampled, maps, options.map))
    print(f"{options.out / _MAP}.html and {_MAP}.parquet: {len(points):,} points")


def _table(kind: str, those: Embeddings) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(those.vectors, dtype=np.float32).ravel())
    return pa.table(
        {
            kind: pa.array(those.names, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, those.vectors.shape[1]),
            "provider": pa.array(those.groups, pa.string()),
            "known": pa.array(those.known),
        }
    )


def _points(kind: str, those: Embeddings, placed: Map) -> pa.Table:
    return pa.table(
        {
            "kind": pa.array([kind] * len(those), pa.string()),
            "name": pa.array(those.names, pa.string()),
            "x": placed.points[:, 0],
            "y": placed.points[:, 1],
            "provider": pa.array(those.groups, pa.string()),
        }
    )


def _print_nearest(model: Model, found: dict[str, Embeddings], name: str, top: int) -> None:
    try:
        own = embeddings.of_entities(model, pa.array([name], pa.string()))
    except UnicodeEncodeError:
        raise UserError("an entity's name is not UTF-8: no model knows such an entity") from None
    if not own.known[0]:
        raise UserError(f"the model does not know {name!r}, so nothing is near it")
    for kind, every in found.items():
        those = every.of_known()
        print(f"{'nearest to ' + one_line(name):<50}{'cosine':>8}  provider or network ({kind})")
        nearest = those.nearest(own.vectors[0], top + 1)
        others = [pair for pair in nearest if kind != ENTITIES or those.names[pair[0]] != name]
        for place, cosine in others[:top]:
            print(f"{one_line(those.names[place]):<50}{cosine:8.4f}  {those.groups[place]}")
