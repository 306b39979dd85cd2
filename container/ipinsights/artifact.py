"""A model on disk: ``model.safetensors`` (the tensors) and ``manifest.json`` (everything a person asks of a model).

Nothing is pickled. Tensors are mapped into memory, so loading costs no reading and processes share the pages. The
manifest is written last and removed first: a folder that has one holds a whole model, and never two halves of two.
Format of the tensor file: https://github.com/huggingface/safetensors#format
"""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

import ipinsights
from ipinsights import entities
from ipinsights.addresses import FAMILIES
from ipinsights.entities import EntityIndex
from ipinsights.errors import UserError
from ipinsights.model import Encoder, Model
from ipinsights.networks import LABELS, Networks
from ipinsights.vocabulary import Labels, Vocabulary

FORMAT_VERSION = 3
TENSORS, MANIFEST = "model.safetensors", "manifest.json"

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
}
_ENCODER = ("prefix", "w", "b")
_NETWORKS = ("first", "last", "labels")


def save(model: Model, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a model into a folder, with ``facts`` (hyperparameters, training facts, metrics) in its manifest."""
    vocabulary = model.vocabulary
    tensors = {
        "entity": model.entity,
        **{f"encoder.{name}": getattr(model.encoder, name) for name in _ENCODER},
        "vocabulary.prefixes": vocabulary.prefixes,
        "vocabulary.counts": vocabulary.counts,
        "entity.tags": model.index.tags,
    }
    if vocabulary.networks is not None:
        tensors |= {f"networks.{name}": getattr(vocabulary.networks, name) for name in _NETWORKS}
        for kind, label in zip(LABELS, vocabulary.labels, strict=True):
            tensors |= {f"{kind}.values": label.values, f"{kind}.counts": label.counts}
    manifest = {
        "format_version": FORMAT_VERSION,
        "ipinsights_version": ipinsights.__version__,
        "entity_hash": {"name": entities.HASH, "seed": entities.HASH_SEED},
        "entities": {"owning_a_row": model.index.owned, "sharing_a_row": model.index.sharing},
        "vocabulary": {
            "ip_version": vocabulary.family.version,
            "levels": vocabulary.levels,
            "sizes": vocabulary.sizes,
            "events": vocabulary.events,
        },
        **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    temporary = folder / f".{TENSORS}.tmp"
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary)
    _publish(temporary, folder / TENSORS)
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    _publish(temporary, folder / MANIFEST)


def load(folder: Path) -> tuple[Model, dict[str, Any]]:
    """Map a model and read its manifest. Raises UserError where there is none, or one this release cannot read."""
    manifest = _read_manifest(folder)
    path = folder / TENSORS
    try:
        tensors = _map_tensors(path)
        shape = manifest["vocabulary"]
        with_networks = "networks.first" in tensors
        vocabulary = Vocabulary(
            family=FAMILIES[shape["ip_version"]],
            levels=tuple(shape["levels"]),
            sizes=tuple(shape["sizes"]),
            prefixes=tensors["vocabulary.prefixes"],
            counts=tensors["vocabulary.counts"],
            events=shape["events"],
            networks=Networks(*(tensors[f"networks.{name}"] for name in _NETWORKS)) if with_networks else None,
            labels=tuple(Labels(tensors[f"{kind}.values"], tensors[f"{kind}.counts"]) for kind in LABELS)
            if with_networks
            else (),
        )
        encoder = Encoder(**{name: tensors[f"encoder.{name}"] for name in _ENCODER})
        index = EntityIndex(len(tensors["entity.tags"]), tensors["entity.tags"], manifest["entities"]["sharing_a_row"])
        return Model(vocabulary, index, tensors["entity"], encoder), manifest
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise UserError(f"{path} is damaged or incomplete ({error!r}): train again or restore it") from error


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
        raise UserError(f"{path} hashes entities with {manifest.get('entity_hash')}; this release cannot")
    return dict(manifest)


def _map_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file, each a read-only view of the mapped file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat: npt.NDArray[Any] = np.frombuffer(data[begin:end], dtype=_DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _publish(temporary: Path, path: Path) -> None:
    """Put a finished file in its place: readers see the old one or the new one, also after a power cut."""
    temporary.chmod(0o644)  # whoever trains, anyone may serve
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
