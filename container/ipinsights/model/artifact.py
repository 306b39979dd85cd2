"""A model on disk: ``model.safetensors`` (the tensors) and ``manifest.json`` (everything a person asks of a model).

Tensors are mapped into memory, so loading costs no reading and processes share the pages. The manifest is written last
and removed first: a folder that has one holds a whole model, and never two halves of two. (`update` has another way.)
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ipinsights.data import entities
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.networks import LABELS, Networks
from ipinsights.errors import UserError, refusal
from ipinsights.model import tensors
from ipinsights.model.calibration import Calibration, Sketch
from ipinsights.model.history import History
from ipinsights.model.model import Counted, Encoder, Model
from ipinsights.model.tensors import Arrays
from ipinsights.model.vocabulary import Labels, Vocabulary
from ipinsights.version import version

FORMAT_VERSION = 4
_UNCOUNTED = 3
"""The format before `refit`: such models score as they did, and no training continues from them."""
TENSORS, MANIFEST = "model.safetensors", "manifest.json"
_LARGEST_MANIFEST = 16 << 20
"""Bytes. A manifest has a few thousand."""
ARCHIVES = (".tar.gz", ".tgz", ".tar")
"""The endings of the names that a packed model may have."""

_ENCODER = ("prefix", "w", "b")
_NETWORKS = ("first", "last", "labels")
_COUNTED = ("rows", "learnt", "entities")
_HISTORY = ("rows", "starts", "addresses", "counts")
_CALIBRATION = ("known", "new", "fabricated")


def save(model: Model, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a model into a folder, with ``facts`` (hyperparameters, training facts, metrics) in its manifest."""
    arrays, described = _parts(model)
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
    tensors.publish(_written(folder, manifest), folder / MANIFEST)


def update(folder: Path, change: Callable[[Model], Model]) -> Model:
    """Put ``change(model)`` in the place of the model in a folder, and return it. The manifest keeps its facts.

    The folder holds a whole model at every moment: first the tensors are replaced, then the manifest. So ``change``
    must keep what `restore` reads in the manifest, as forgetting entities does. Updates of a folder take turns.
    Raises UserError if there is no model or the folder cannot be written, and whatever ``change`` raises.
    """
    try:
        with _alone(folder):
            model, manifest = read(folder)
            model = change(model)
            arrays, described = _parts(model)
            temporary = _written(folder, {**manifest, "format_version": FORMAT_VERSION, **described})
            try:
                tensors.write(folder / TENSORS, arrays)
                tensors.publish(temporary, folder / MANIFEST)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise refusal("change the model in", folder, error) from error
    return model


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
        counted, calibration = _counted(arrays, manifest), _calibration(arrays)
        return Model(vocabulary, index, arrays["entity"], encoder, counted, calibration), manifest
    except (PermissionError, IsADirectoryError) as error:
        raise refusal("read", path, error) from error
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
        "forgotten": index.forgotten,
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


def _parts(model: Model) -> tuple[Arrays, dict[str, Any]]:
    """A whole model, as `describe` describes a part of it."""
    known, described = describe(model.vocabulary, model.index)
    encoder = {f"encoder.{name}": getattr(model.encoder, name) for name in _ENCODER}
    arrays = {"entity": model.entity, **encoder, **known}
    if model.counted:
        history = model.counted.history
        arrays |= {f"counted.{name}": getattr(model.counted, name) for name in _COUNTED}
        arrays |= {f"history.{name}": getattr(history, name) for name in _HISTORY}
        described["history"] = {"bits": history.length, "pairs": len(history), "bytes": history.nbytes}
    if model.calibration:
        arrays |= {f"calibration.{name}": getattr(model.calibration, name).counts for name in _CALIBRATION}
        described["calibration"] = model.calibration.described
    return arrays, described


def _calibration(arrays: Arrays) -> Calibration | None:
    if "calibration.known" not in arrays:
        return None
    return Calibration(**{name: Sketch(arrays[f"calibration.{name}"]) for name in _CALIBRATION})


def _counted(arrays: Arrays, described: Mapping[str, Any]) -> Counted | None:
    if "history" not in described:
        return None
    history = History(**{name: arrays[f"history.{name}"] for name in _HISTORY}, length=described["history"]["bits"])
    return Counted(**{name: arrays[f"counted.{name}"] for name in _COUNTED}, history=history)


def _written(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """A file beside the manifest's place, to be published."""
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    return temporary


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process updates the model in a folder, and keep others waiting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _elsewhere(folder: Path) -> str:
    """Where the model is that was looked for in a folder, if it can be guessed, and what to do; else ""."""
    if folder.name in (TENSORS, MANIFEST) and folder.is_file():
        return f". It is a file of a model: name its folder, {folder.parent}"
    archives = [folder] if folder.is_file() else sorted(folder.glob("*"))
    packed = next((path for path in archives if path.name.endswith(ARCHIVES)), None)
    if packed:
        return f". {packed} is packed: unpack it into a folder of its own (tar -xf), and name that folder"
    below = next((path.parent for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/{MANIFEST}"))), None)
    return f". There is one in {below}: name that folder, or move its files" if below else ""


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        with tensors.open_file(path) as file:
            text = file.read(_LARGEST_MANIFEST + 1)
        if len(text) > _LARGEST_MANIFEST:
            raise UserError(f"{path} is too large for a manifest: {_LARGEST_MANIFEST >> 20} MB are the most")
        manifest = json.loads(text)
    except PermissionError as error:
        raise refusal("read", path, error) from error
    except OSError as error:
        raise UserError(
            f"there is no model in {folder}: {MANIFEST} cannot be read ({error.strerror}){_elsewhere(folder)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version not in (_UNCOUNTED, FORMAT_VERSION):
        raise UserError(
            f"{path} has format version {version}; this release reads versions {_UNCOUNTED} and {FORMAT_VERSION}"
        )
    if manifest.get("entity_hash") != {"name": entities.HASH, "seed": entities.HASH_SEED}:
        raise UserError(
            f"{path} hashes entities with {manifest.get('entity_hash')}, which this release does not support"
        )
    return dict(manifest)
