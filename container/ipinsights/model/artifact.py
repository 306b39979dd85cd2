"""A model on disk: ``model.safetensors`` (the tensors) and ``manifest.json`` (everything a person asks of a model).

Tensors are mapped into memory, so processes share the pages. The manifest is written last and removed first: a folder
that has one holds a whole model, and never two halves of two. (`update` has another way.)

Nothing computes with a model before `checks` has found that its parts fit together. Damage is noticed, too: the header
of the tensors has a checksum of each, and the manifest ends with one of its own text. The manifest repeats those of the
tensors that belong to no single entity, which an update does not change: so two halves of different models are told.
To verify checksums is to read the whole file. A caller may go without, and then still has every check of the sizes.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import reprlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ipinsights.data import archive, entities
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.networks import LABELS, Networks
from ipinsights.distributed.group import ALONE, Group
from ipinsights.errors import UserError, refusal, refusals
from ipinsights.model import checks, tensors
from ipinsights.model.calibration import Calibration, Sketch
from ipinsights.model.history import History
from ipinsights.model.model import Counted, Encoder, Model
from ipinsights.model.shard import Shard
from ipinsights.model.tensors import Arrays
from ipinsights.model.vocabulary import Labels, Vocabulary
from ipinsights.version import version

FORMAT_VERSION = 4
_UNCOUNTED = 3
"""The format before `refit`: such models score as they did, and no training continues from them. It has no checksums,
and format 4 is damaged without them."""
TENSORS, MANIFEST = "model.safetensors", "manifest.json"
_LARGEST_MANIFEST = 16 << 20
"""Bytes. A manifest has a few thousand."""
ARCHIVES = (".tar.gz", ".tgz", ".tar")
"""The endings of the names that a packed model may have."""

_ENCODER = ("prefix", "w", "b")
_NETWORKS = ("first", "last", "labels")
_COUNTED = ("rows", "learnt", "weights", "entities")
_HISTORY = ("rows", "starts", "addresses", "counts")
_CALIBRATION = ("known", "new", "fabricated")
_OF_ALL = ("encoder.", "calibration.", "vocabulary.", "networks.", *(f"{kind}." for kind in LABELS))
"""How the names of tensors begin that belong to no single entity."""
_SEAL = ',\n  "checksum": "{}"\n}}\n'
"""How a manifest ends: with the checksum of all that stands before."""


def save(model: Model | Shard, folder: Path, facts: Mapping[str, Any], group: Group = ALONE) -> dict[str, Any]:
    """Write a model into a folder, with ``facts`` (hyperparameters, training facts, metrics) in its manifest.

    If each rank of a group has a part of it, all must call this, and the leader writes. Returns what the manifest says
    of the model itself.
    """
    arrays, described = _parts_of_all(model, group) if isinstance(model, Shard) else _parts(model)
    if not group.leads:
        for array in tensors.in_order(arrays).values():
            if isinstance(array, tensors.Streamed):
                for _ in array.pieces:
                    pass  # this rank's part of it is sent
        return described
    manifest = {
        "format_version": FORMAT_VERSION,
        "ipinsights_version": version(),
        "entity_hash": {"name": entities.HASH, "seed": entities.HASH_SEED},
        **described,
        **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    checksums = tensors.write(folder / TENSORS, arrays)
    tensors.publish(_written(folder, {**manifest, "checksums": _of_all(checksums)}), folder / MANIFEST)
    return described


def update(folder: Path, change: Callable[[Model], Model]) -> Model:
    """Put ``change(model)`` in the place of the model in a folder, and return it. The manifest keeps its facts.

    The folder holds a whole model at every moment: first the tensors are replaced, then the manifest. So ``change``
    must keep what `restore` reads in the manifest, and the tensors that belong to no single entity, as forgetting
    entities does. Updates of a folder take turns.
    Raises UserError if there is no model or the folder cannot be written, and whatever ``change`` raises.
    """
    try:
        with _alone(folder):
            model, manifest = read(folder)
            model = change(model)
            arrays, described = _parts(model)
            checksums = _of_all(tensors.write(folder / TENSORS, arrays))
            facts = {**manifest, "format_version": FORMAT_VERSION, **described, "checksums": checksums}
            temporary = _written(folder, facts)
            try:
                tensors.publish(temporary, folder / MANIFEST)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise refusal("change the model in", folder, error) from error
    return model


def load(folder: str | Path, verify: bool = True) -> Model:
    """Open a model, in a folder or in a model.tar.gz: its tensors are mapped into memory. Raises UserError as `read`.

    An archive is unpacked into a temporary folder, which has no name any more once the tensors are mapped.
    """
    return load_described(Path(folder), verify)[0]


def load_described(path: Path, verify: bool = True) -> tuple[Model, dict[str, Any]]:
    """`load` with the model's manifest."""
    if not path.name.endswith(ARCHIVES) or path.is_dir():
        return read(path, verify)
    with refusals("unpack", path), tempfile.TemporaryDirectory(prefix="ipinsights-") as scratch:
        archive.extract(path, (MANIFEST, TENSORS), Path(scratch))
        if not Path(scratch, MANIFEST).exists():
            raise UserError(f"there is no model in {path}: it has no {MANIFEST}")
        try:
            return read(Path(scratch), verify)
        except UserError as error:
            raise UserError(str(error).replace(scratch, str(path))) from error


def read(folder: Path, verify: bool = True) -> tuple[Model, dict[str, Any]]:
    """Map a model and read its manifest.

    With ``verify`` all of the tensors are read once, for their checksums and for values that no model has. Without,
    values of entities are taken as they are.
    Raises UserError where there is no model, one that is damaged, or one that this release cannot read.
    """
    manifest = _read_manifest(folder, verify)
    path = folder / TENSORS
    try:
        with _damage(path), tensors.File.open(path) as file:
            arrays = file.arrays
            if verify and manifest["format_version"] > _UNCOUNTED:
                if file.checksums is None:
                    raise ValueError("it has no checksums")
                if manifest.get("checksums") != _of_all(file.checksums):
                    raise ValueError(f"{MANIFEST} beside it has the checksums of another model's tensors")
            vocabulary, index = restore(arrays, manifest)
            checks.tables(arrays, manifest)
            if verify:
                file.verify(finite=True)
                checks.values(file, manifest)
    except (PermissionError, IsADirectoryError) as error:
        raise refusal("read", path, error) from error
    encoder = Encoder(**{name: arrays[f"encoder.{name}"] for name in _ENCODER})
    counted, calibration = _counted(arrays, manifest), _calibration(arrays, manifest)
    return Model(vocabulary, index, arrays["entity"], encoder, counted, calibration), manifest


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
            "countries": vocabulary.countries,
            "events": vocabulary.events,
        },
    }


def restore(arrays: Arrays, described: Mapping[str, Any]) -> tuple[Vocabulary, EntityIndex]:
    """What `describe` took apart. Raises ValueError where something is missing or does not fit."""
    checks.numbers(described)
    checks.known(arrays, described)
    shape = described["vocabulary"]
    with_networks = checks.with_networks(arrays)
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
        countries=tuple(shape.get("countries", ())),  # models of the first days of format 4 have none
    )
    index = EntityIndex(len(arrays["entity.tags"]), arrays["entity.tags"], described["entities"]["sharing_a_row"])
    return vocabulary, index


def _parts(model: Model) -> tuple[dict[str, npt.NDArray[Any] | tensors.Streamed], dict[str, Any]]:
    """A whole model, as `describe` describes a part of it."""
    known, described = describe(model.vocabulary, model.index)
    encoder = {f"encoder.{name}": getattr(model.encoder, name) for name in _ENCODER}
    arrays: dict[str, npt.NDArray[Any] | tensors.Streamed] = {"entity": model.entity, **encoder, **known}
    if model.counted:
        history = model.counted.history
        arrays |= {f"counted.{name}": getattr(model.counted, name) for name in _COUNTED}
        arrays |= {f"history.{name}": getattr(history, name) for name in _HISTORY}
        if len(model.counted.apart):
            arrays |= {f"apart.{name}": getattr(model.counted.apart, name) for name in _HISTORY}
        described["history"] = {"bits": history.length, "pairs": len(history), "bytes": history.nbytes}
    if model.calibration:
        arrays |= {f"calibration.{name}": getattr(model.calibration, name).counts for name in _CALIBRATION}
        described["calibration"] = model.calibration.described
    return arrays, described


def _parts_of_all(shard: Shard, group: Group) -> tuple[dict[str, npt.NDArray[Any] | tensors.Streamed], dict[str, Any]]:
    """The same of a model of which each rank has a part."""
    arrays, described = _parts(dataclasses.replace(shard.model, counted=None))
    return {**arrays, **shard.tensors(group)}, {**described, **shard.described(group)}


def _calibration(arrays: Arrays, described: Mapping[str, Any]) -> Calibration | None:
    if "calibration" not in described:
        return None
    return Calibration(**{name: Sketch(arrays[f"calibration.{name}"]) for name in _CALIBRATION})


def _counted(arrays: Arrays, described: Mapping[str, Any]) -> Counted | None:
    if "history" not in described:
        return None
    bits, family = described["history"]["bits"], FAMILIES[described["vocabulary"]["ip_version"]]
    history, apart = (
        History(**{name: arrays[f"{part}.{name}"] for name in _HISTORY}, length=bits)
        if f"{part}.rows" in arrays
        else History.none(family)
        for part in ("history", "apart")
    )
    # Earlier releases had no weights: all are 1, as a view of one number.
    arrays = {"counted.weights": np.broadcast_to(np.float32(1), arrays["counted.rows"].shape), **arrays}
    return Counted(**{name: arrays[f"counted.{name}"] for name in _COUNTED}, history=history, apart=apart)


def _of_all(checksums: Mapping[str, str]) -> dict[str, str]:
    """Those of tensors that belong to no single entity, in the order of their names."""
    return {name: checksums[name] for name in sorted(checksums) if name.startswith(_OF_ALL)}


def _written(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """A file beside the manifest's place, to be published."""
    body = json.dumps({name: value for name, value in manifest.items() if name != "checksum"}, indent=2)
    text = body.removesuffix("\n}")
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(text + _SEAL.format(xxhash.xxh3_128_hexdigest(text.encode())))
    return temporary


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Tell the user of a file that is damaged."""
    try:
        yield
    except (PermissionError, IsADirectoryError):
        raise
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or incomplete ({error}): restore it or train again") from error


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


def _writer(manifest: Any) -> str:
    """The release in a manifest, for a message; "" if it tells none."""
    writer = manifest.get("ipinsights_version") if isinstance(manifest, dict) else None
    return f" ({reprlib.repr(writer)})" if isinstance(writer, str) else ""


def _read_manifest(folder: Path, verify: bool) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        with tensors.open_file(path) as file:
            text = file.read(_LARGEST_MANIFEST + 1)
    except PermissionError as error:
        raise refusal("read", path, error) from error
    except OSError as error:
        raise UserError(
            f"there is no model in {folder}: {MANIFEST} cannot be read ({error.strerror}){_elsewhere(folder)}"
        ) from None
    if len(text) > _LARGEST_MANIFEST:
        raise UserError(f"{path} is too large for a manifest: {_LARGEST_MANIFEST >> 20} MB are the most")
    try:
        manifest = json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply: restore it or train again") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version not in (_UNCOUNTED, FORMAT_VERSION):
        raise UserError(
            f"{path} has format version {reprlib.repr(version)}; this release reads versions {_UNCOUNTED} and "
            f"{FORMAT_VERSION}. Use the release that wrote it{_writer(manifest)}, or train again"
        )
    hashed = manifest.get("entity_hash")
    if hashed != {"name": entities.HASH, "seed": entities.HASH_SEED}:
        raise UserError(f"{path} hashes entities with {reprlib.repr(hashed)}, which this release does not support")
    with _damage(path):
        sealed, comma, rest = text.rpartition(_SEAL.partition("{}")[0].encode())
        seal = _SEAL.format(xxhash.xxh3_128_hexdigest(sealed))
        if verify and version > _UNCOUNTED and comma + rest != seal.encode():
            raise ValueError("it does not end with the checksum of its text")
        checks.numbers(manifest)
    return dict(manifest)
