"""A model on disk: ``model.safetensors`` (the tensors) and ``manifest.json`` (everything a person asks of a model).

Tensors are mapped into memory, so loading costs no reading and processes share the pages. The manifest is written last
and removed first: a folder that has one holds a whole model, and never two halves of two.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipinsights.data import entities
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.networks import LABELS, Networks
from ipinsights.errors import UserError
from ipinsights.model import tensors
from ipinsights.model.model import Encoder, Model
from ipinsights.model.tensors import Arrays
from ipinsights.model.vocabulary import Labels, Vocabulary
from ipinsights.version import version

FORMAT_VERSION = 3
TENSORS, MANIFEST = "model.safetensors", "manifest.json"

_ENCODER = ("prefix", "w", "b")
_NETWORKS = ("first", "last", "labels")


def save(model: Model, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a model into a folder, with ``facts`` (hyperparameters, training facts, metrics) in its manifest."""
    known, described = describe(model.vocabulary, model.index)
    arrays = {
        "entity": model.entity,
        **{f"encoder.{name}": getattr(model.encoder, name) for name in _ENCODER},
        **known,
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "ipinsights_version": version(),
        "entity_hash": {"name": entities.HASH, "seed": entities.HASH_SEED},
        **described,
        **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    tensors.write(folder / TENSORS, arrays)
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    tensors.publish(temporary, folder / MANIFEST)


def load(folder: str | Path) -> Model:
    """Open a model: its tensors are mapped into memory. Raises UserError as `read` does."""
    return read(Path(folder))[0]


def read(folder: Path) -> tuple[Model, dict[str, Any]]:
    """Map a model and read its manifest. Raises UserError where there is none, or one this release cannot read."""
    manifest = _read_manifest(folder)
    path = folder / TENSORS
    try:
        arrays, _ = tensors.read(path)
        vocabulary, index = restore(arrays, manifest)
        encoder = Encoder(**{name: arrays[f"encoder.{name}"] for name in _ENCODER})
        return Model(vocabulary, index, arrays["entity"], encoder), manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or incomplete ({error!r}): restore it or train again") from error


def describe(vocabulary: Vocabulary, index: EntityIndex) -> tuple[Arrays, dict[str, Any]]:
    """What a model knows of networks and of entities, as arrays and as what goes into a manifest."""
    arrays: Arrays = {
        "vocabulary.prefixes": vocabulary.prefixes,
        "vocabulary.counts": vocabulary.counts,
        "entity.tags": index.tags,
    }
    if vocabulary.networks is not None:
        arrays |= {f"networks.{name}": getattr(vocabulary.networks, name) for name in _NETWORKS}
        for kind, label in zip(LABELS, vocabulary.labels, strict=True):
            arrays |= {f"{kind}.values": label.values, f"{kind}.counts": label.counts}
    return arrays, {
        "entities": {"owning_a_row": index.owned, "sharing_a_row": index.sharing},
        "vocabulary": {
            "ip_version": vocabulary.family.version,
            "levels": vocabulary.levels,
            "sizes": vocabulary.sizes,
            "events": vocabulary.events,
        },
    }


def restore(arrays: Arrays, described: Mapping[str, Any]) -> tuple[Vocabulary, EntityIndex]:
    """What `describe` took apart. Raises KeyError or ValueError where something is missing."""
    shape = described["vocabulary"]
    with_networks = "networks.first" in arrays
    vocabulary = Vocabulary(
        family=FAMILIES[shape["ip_version"]],
        levels=tuple(shape["levels"]),
        sizes=tuple(shape["sizes"]),
        prefixes=arrays["vocabulary.prefixes"],
        counts=arrays["vocabulary.counts"],
        events=shape["events"],
        networks=Networks(*(arrays[f"networks.{name}"] for name in _NETWORKS)) if with_networks else None,
        labels=tuple(Labels(arrays[f"{kind}.values"], arrays[f"{kind}.counts"]) for kind in LABELS)
        if with_networks
        else (),
    )
    index = EntityIndex(len(arrays["entity.tags"]), arrays["entity.tags"], described["entities"]["sharing_a_row"])
    return vocabulary, index


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"there is no model in {folder}: {MANIFEST} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}; this release reads version {FORMAT_VERSION}")
    if manifest.get("entity_hash") != {"name": entities.HASH, "seed": entities.HASH_SEED}:
        raise UserError(
            f"{path} hashes entities with {manifest.get('entity_hash')}, which this release does not support"
        )
    return dict(manifest)
