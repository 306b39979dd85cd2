"""A model whose parts disagree never reaches the kernel, and damage is never scored.

What might end a process is tried in another one.
"""

import copy
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Traffic
from ipinsights.data import addresses
from ipinsights.data.addresses import FAMILIES
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.data.networks import Networks
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact, tensors
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit

Manifest = dict[str, Any]

TRY = """
import json, sys
from pathlib import Path
import numpy as np
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer

rng = np.random.default_rng(0)
for line in sys.stdin:
    folder, verify = json.loads(line)
    try:
        model = artifact.load(folder, verify)
        scorer = Scorer(model)
        digests = rng.integers(2**64, size=500, dtype=np.uint64)
        queries = rng.integers(2**64, size=500, dtype=np.uint64).astype(model.family.dtype)
        with np.errstate(all="ignore"):
            scores = scorer.score_hashed(digests, queries)
            bounded = model.score_rows(model.index.find_hashed(digests), queries)  # numpy looks at every index
        same = np.isclose(scores, bounded, rtol=1e-3, atol=1e-3) | ~np.isfinite(bounded) | (np.abs(bounded) > 1e5)
        told = "scored" if same.all() else "read elsewhere"
    except UserError as error:
        told = f"refused: {error}"
    print(json.dumps(told), flush=True)
"""


@pytest.fixture(scope="module", params=[4, 6], ids=lambda version: f"IPv{version}")
def whole(request: pytest.FixtureRequest, traffic: Traffic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all that a model may have."""
    family = FAMILIES[request.param]
    address, _ = addresses.parse(pa.array(addresses.render(traffic.train.addresses), pa.string()), family)
    first = np.unique(address)[::2]
    labels = np.stack([np.arange(len(first)) % 50 + 1, np.arange(len(first)) % 3 + 1]).astype(np.uint32)
    index = EntityIndex(150)
    events = Events(index.claim(traffic.train.entities), address, index)
    hp = Hyperparameters(num_entity_vectors=150, vector_dim=8, epochs=1, ip_version=request.param, mini_batch_size=2000)
    model = fit(events, hp, networks=Networks(first, first, labels)).keeping(30)
    folder = tmp_path_factory.mktemp("whole")
    facts = {
        "num_entity_vectors": 150,
        "vector_dim": 8,
        "num_ip_encoder_layers": hp.num_ip_encoder_layers,
        "ip_version": request.param,
    }
    artifact.save(model, folder, {"hyperparameters": facts, "metrics": {"auc": 0.9}})
    return folder


def parts(folder: Path) -> tuple[tensors.Arrays, Manifest]:
    """The tensors of a model, and its manifest, to be changed."""
    arrays, _ = tensors.read(folder / artifact.TENSORS)
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    return {name: np.array(array) for name, array in arrays.items()}, manifest


def craft(folder: Path, arrays: tensors.Arrays, manifest: Manifest) -> Path:
    """A model of any tensors and any manifest, with the right checksums."""
    folder.mkdir(parents=True)
    checksums = tensors.write(folder / artifact.TENSORS, arrays)
    listed = {name: checksums[name] for name in manifest["checksums"] if name in checksums}
    seal(folder, {**manifest, "checksums": listed})
    return folder


def seal(folder: Path, manifest: Manifest) -> None:
    body = json.dumps({name: value for name, value in manifest.items() if name != "checksum"}, indent=2)[:-2]
    checksum = xxhash.xxh3_128_hexdigest(body.encode())
    (folder / artifact.MANIFEST).write_text(f'{body},\n  "checksum": "{checksum}"\n}}\n')


def outcomes(folders: dict[str, Path], verify: bool = True) -> dict[str, str]:
    """What becomes of each model in another process: "scored", or why it is refused."""
    lines = "".join(json.dumps([str(folder), verify]) + "\n" for folder in folders.values())
    command = [sys.executable, "-c", TRY]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300, check=False)
    told = [json.loads(line) for line in result.stdout.splitlines()]
    at = list(folders)[len(told)] if len(told) < len(folders) else "the end"
    assert result.returncode == 0, f"at {at}: {result.returncode} {result.stderr[-2000:]}"
    return dict(zip(folders, told, strict=True))


def reshaped(array: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Others of what a tensor might be."""
    for kind in ("<u1", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"):
        if array.dtype != np.dtype(kind):
            yield f"as {kind}", array.astype(kind)
    for axis in range(array.ndim):
        yield f"one less on axis {axis}", np.take(array, range(array.shape[axis] - 1), axis)
        yield f"one more on axis {axis}", np.concatenate([array, np.take(array, [-1], axis)], axis)
        yield f"none on axis {axis}", np.take(array, [], axis)
    yield "one axis more", array[None]
    yield "a number", array.reshape(-1)[0].reshape(())
    if array.ndim > 1:
        yield "flat", array.reshape(-1)
    if array.shape[::-1] != array.shape:
        yield "transposed", array.T


def test_a_tensor_of_another_shape_or_type_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    arrays, manifest = parts(whole)
    folders = {}
    for name, array in arrays.items():
        for number, (change, other) in enumerate(reshaped(array)):
            folder = tmp_path / f"{name} {number}"
            folders[f"{name} {change}"] = craft(folder, {**arrays, name: other}, manifest)
        if name == "counted.weights":  # models of earlier releases have none
            continue
        rest = {other: array for other, array in arrays.items() if other != name}
        folders[f"{name} missing"] = craft(tmp_path / f"{name} missing", rest, manifest)
    assert len(folders) > 250
    for verify in (True, False):
        for change, told in outcomes(folders, verify).items():
            assert told.startswith(f"refused: {tmp_path}"), (change, told)
            assert artifact.TENSORS in told
            assert "tensor '" in told


Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any] | None]


def put(at: Any, value: Any) -> Change:
    def change(array: npt.NDArray[Any]) -> None:
        array[at] = value

    return change


def swapped(one: int, other: int) -> Change:
    def change(array: npt.NDArray[Any]) -> None:
        array[[one, other]] = array[[other, one]]

    return change


FLOATS = ("entity", "encoder.prefix", "encoder.w", "encoder.b", "counted.learnt", "counted.weights")
WRONG_VALUES: list[tuple[str, Change, str]] = [
    *(("counted.weights", put(-1, value), "not above 0 and up to 1") for value in (0, -1, 1.5)),
    ("vocabulary.prefixes", swapped(-1, -2), "does not ascend"),
    ("vocabulary.prefixes", put(-1, 0), "does not ascend"),
    ("vocabulary.counts", put(0, 0), "counts that are not from 1 to"),
    ("vocabulary.counts", put(-1, -1), "counts that are not from 1 to"),
    ("vocabulary.counts", put(-1, 2**62), "counts that are not from 1 to"),
    ("vocabulary.counts", put(slice(0, 5), 1), "has less for a /"),
    ("networks.first", swapped(0, 1), "not ranges that ascend and are disjoint"),
    ("networks.last", put(0, 2**32 - 1), "not ranges that ascend and are disjoint"),
    ("networks.last", put(1, 0), "not ranges that ascend and are disjoint"),
    ("provider.values", swapped(0, 1), "'provider.values' does not ascend"),
    ("country.counts", put(0, -5), "'country.counts' has counts"),
    ("counted.rows", put(0, -1), "'counted.rows' has rows from -1"),
    ("counted.rows", put(-1, 150), "to 150, and there are 150"),
    ("counted.rows", swapped(0, 1), "'counted.rows' does not ascend"),
    ("counted.entities", put(0, -1), "'counted.entities' has numbers"),
    ("counted.entities", put(0, 151), "'counted.entities' has numbers"),
    ("history.rows", put(-1, 150), "'history.rows' has rows"),
    ("history.rows", put(1, 0), "'history.rows' does not ascend"),
    ("history.starts", put(0, 1), "'history.starts'"),
    ("history.starts", put(-1, 10**9), "'history.starts' goes from 0 to 1000000000, not"),
    ("history.starts", put(1, -1), "'history.starts' does not ascend"),
    ("history.starts", put(2, 10**9), "'history.starts' does not ascend"),
    ("history.addresses", swapped(0, 1), "does not ascend within an entity"),
    ("history.addresses", put(0, 1), "more than the 30 bits"),
    ("history.counts", put(3, 0), "was never used"),
    ("apart.rows", put(-1, 150), "'apart.rows' has rows"),
    ("apart.starts", put(-1, 10**9), "'apart.starts' goes from 0 to 1000000000, not"),
    ("apart.addresses", put(0, 1), "'apart.addresses' has more than the 30 bits"),
    ("apart.counts", put(3, 0), "'apart.counts' has an address that was never used"),
    *((name, put((..., 0), value), "infinite or no number") for name in FLOATS for value in (np.nan, np.inf, -np.inf)),
]


def test_a_value_that_no_model_has_is_refused(whole: Path, tmp_path: Path) -> None:
    arrays, manifest = parts(whole)
    assert manifest["history"]["bits"] == 30
    folders = {}
    for number, (name, change, _) in enumerate(WRONG_VALUES):
        array = arrays[name].copy()
        change(array)
        folders[str(number)] = craft(tmp_path / str(number), {**arrays, name: array}, manifest)
    for told, (name, _, complaint) in zip(outcomes(folders).values(), WRONG_VALUES, strict=True):
        assert told.startswith("refused: "), name
        assert complaint in told
    assert "read elsewhere" not in outcomes(folders, verify=False).values()


def test_a_prefix_has_no_more_bits_than_its_level_and_a_parent(whole: Path, tmp_path: Path) -> None:
    arrays, manifest = parts(whole)
    prefixes, levels, sizes = arrays["vocabulary.prefixes"], *(manifest["vocabulary"][n] for n in ("levels", "sizes"))
    ends = np.cumsum(sizes)
    long, orphan = prefixes.copy(), prefixes.copy()
    long[ends[0] - 1] = 1 << levels[0]
    orphan[ends[1] - 1] = (1 << levels[1]) - 1
    with pytest.raises(UserError, match=rf"at level /{levels[0]} has \d+, which takes more than {levels[0]} bits"):
        artifact.load(craft(tmp_path / "long", {**arrays, "vocabulary.prefixes": long}, manifest), verify=False)
    with pytest.raises(UserError, match=rf"at level /{levels[1]} has \d+ without the /{levels[0]} that it is part of"):
        artifact.load(craft(tmp_path / "orphan", {**arrays, "vocabulary.prefixes": orphan}, manifest), verify=False)


def numbers(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the numbers of a manifest are."""
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from numbers(value, (*path, key))
    elif isinstance(document, int | float):
        yield path


def changed(manifest: Manifest, path: tuple[str | int, ...], value: Any) -> Manifest:
    other: Any = copy.deepcopy(manifest)
    at = other
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return dict(other)


def test_no_number_of_a_manifest_is_taken_unseen(whole: Path, tmp_path: Path) -> None:
    arrays, manifest = parts(whole)
    facts = ("metrics", "calibration")  # for people
    paths = [path for path in numbers(manifest) if path[0] not in facts]
    assert len(paths) > 25
    folders: dict[str, Path] = {}
    original = craft(tmp_path / "model", arrays, manifest)
    values: tuple[Any, ...] = (..., None, True, "8", [], {}, 2.5, float("nan"), float("inf"), -1, 10**30)
    for path in paths:
        for value in values:
            if path == ("forgotten",) and value is ...:
                continue  # as in a model of 0.1.0
            folder = tmp_path / str(len(folders))
            folder.mkdir()
            (folder / artifact.TENSORS).symlink_to(original / artifact.TENSORS)
            seal(folder, changed(manifest, path, value))
            folders[f"{path} {value}"] = folder
    for change, told in outcomes(folders).items():
        lenient = ("hyperparameters" in change or "countries" in change) and "Ellipsis" in change
        assert told.startswith("scored" if lenient else f"refused: {tmp_path}"), (change, told)


@pytest.mark.parametrize(
    ("countries", "complaint"),
    [
        ([1, 1], "are not different ones of tensor 'country.values'"),
        ([9], "are not different ones of tensor 'country.values'"),
        ([1, 2, 3, 4, 5, 6], "has 6, which do not fit into 8 columns of 'entity'"),
        ("DE", "'vocabulary.countries' is 'DE', not "),
    ],
)
def test_countries_that_no_embedding_can_have_are_refused(
    whole: Path, tmp_path: Path, countries: object, complaint: str
) -> None:
    arrays, manifest = parts(whole)
    values = np.arange(1, 7, dtype=np.uint32) if "fit" in complaint else arrays["country.values"]
    counts = np.resize(arrays["country.counts"], len(values))
    arrays |= {"country.values": values, "country.counts": counts}
    folder = craft(tmp_path / "model", arrays, changed(manifest, ("vocabulary", "countries"), countries))
    with pytest.raises(UserError, match=complaint):
        artifact.load(folder, verify=False)


def test_countries_without_networks_are_refused(whole: Path, tmp_path: Path) -> None:
    arrays, manifest = parts(whole)
    without = {name: array for name, array in arrays.items() if not name.startswith("networks.")}
    with pytest.raises(UserError, match="'vocabulary.countries' has 1, and there is no tensor 'networks.first'"):
        artifact.load(craft(tmp_path / "model", without, manifest), verify=False)


@pytest.mark.parametrize("step", [-1, 1])
def test_numbers_that_are_one_off_never_lead_beyond_a_table(whole: Path, tmp_path: Path, step: int) -> None:
    arrays, manifest = parts(whole)
    folders: dict[str, Path] = {}
    original = craft(tmp_path / "model", arrays, manifest)
    for path in numbers(manifest):
        value: Any = manifest
        for key in path:
            value = value[key]
        folder = tmp_path / str(len(folders))
        folder.mkdir()
        (folder / artifact.TENSORS).symlink_to(original / artifact.TENSORS)
        seal(folder, changed(manifest, path, value + step))
        folders[str(path)] = folder
    for verify in (True, False):
        told = outcomes(folders, verify)
        assert "read elsewhere" not in told.values()
        for name, outcome in told.items():
            if "sizes" in name or "ip_version" in name or "vector_dim" in name:
                assert outcome.startswith("refused"), name


@pytest.mark.parametrize("field", ["vocabulary", "entities", "history", "entity_hash", "checksums"])
@pytest.mark.parametrize("value", [None, 5, [], "x", {}])
def test_a_part_of_a_manifest_that_is_something_else_is_refused(
    whole: Path, tmp_path: Path, field: str, value: object
) -> None:
    arrays, manifest = parts(whole)
    folder = craft(tmp_path / "model", arrays, manifest)
    seal(folder, {**manifest, field: value})
    with pytest.raises(UserError):
        artifact.load(folder)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a file's header."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


OFFSETS: list[Any] = [[0, 2**70], [-8, 8], [0.0, 8.0], [False, True], [0], None, 5]
SHAPES: list[Any] = [[200_000_000], [-1], [2**70, 0], [1.5], [True], "150", None, [[150]], [2**62, 4], []]
DTYPES: list[Any] = ["F64", "F16", "BOOL", "", None, 5, [], {}]
OTHERS: list[Any] = [None, 5, [], "x", {}, {"a": 5}, {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}]


def test_a_header_that_places_tensors_elsewhere_is_refused(whole: Path, tmp_path: Path) -> None:
    def entry(name: str, **values: object) -> Callable[[dict[str, Any]], object]:
        return lambda header: header[name].update(values)

    def replaced(name: str, value: object) -> Callable[[dict[str, Any]], object]:
        return lambda header: header.update({name: value})

    changes = [
        lambda header: header.pop("entity"),
        lambda header: header["entity"].update(data_offsets=header["encoder.prefix"]["data_offsets"]),
        lambda header: header["entity"].update(data_offsets=[0, header["entity"]["data_offsets"][1]]),
        *(entry("entity", data_offsets=offsets) for offsets in OFFSETS),
        *(entry("entity.tags", shape=shape) for shape in SHAPES),
        *(entry("entity", dtype=dtype) for dtype in DTYPES),
        *(replaced("entity", value) for value in OTHERS),
        *(replaced("__metadata__", value) for value in OTHERS),
        *(entry("__metadata__", checksums=text) for text in ("", "5", "[]", "{}", "[" * 100_000, '{"entity": "0"}')),
    ]
    folders: dict[str, Path] = {}
    for number, change in enumerate(changes):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        rewritten(folder / artifact.TENSORS, change)
        folders[str(number)] = folder
    for at, told in outcomes(folders).items():
        assert told.startswith(f"refused: {tmp_path}"), (at, told)
        assert "damaged or incomplete" in told
    assert "read elsewhere" not in outcomes(folders, verify=False).values()


@pytest.mark.parametrize("header", [b"5", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"9" * 5000, b"", b"null"])
def test_a_header_that_is_none_is_refused(header: bytes, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / artifact.TENSORS).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="damaged or incomplete"):
        artifact.load(folder)


def test_a_header_longer_than_any_is_not_read(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    with (folder / artifact.TENSORS).open("r+b") as file:
        file.truncate(1 << 40)  # which takes no room on the disk
        file.write(struct.pack("<Q", (1 << 40) - 8))
    with pytest.raises(UserError, match="its header has 1,099,511,627,768 bytes, more than"):
        artifact.load(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"', "null", "5", "\ud800"])
def test_a_manifest_that_is_none_is_refused(text: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / artifact.MANIFEST).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"manifest\.json (is|has)"):
        artifact.load(folder)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), part=st.sampled_from(["manifest", "head", "data"])
)
def test_any_flipped_bit_is_noticed(where: float, bit: int, part: str, whole: Path, tmp_path: Path) -> None:
    path = whole / (artifact.MANIFEST if part == "manifest" else artifact.TENSORS)
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    begin, end = {"manifest": (0, len(data)), "head": (0, 8 + size), "data": (8 + size, len(data))}[part]
    data[begin + int(where * (end - begin))] ^= 1 << bit
    folder = tmp_path / "flipped"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    (folder / path.name).write_bytes(data)
    with pytest.raises(UserError):
        artifact.load(folder)


def test_flipped_bits_that_nobody_looks_for_never_lead_beyond_a_table(whole: Path, tmp_path: Path) -> None:
    """Without checksums a score may be wrong, but it is made of the model's own values."""
    rng = np.random.default_rng(0)
    folders: dict[str, Path] = {}
    for number in range(120):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        path = folder / (artifact.TENSORS, artifact.MANIFEST)[number % 3 == 0]
        data = bytearray(path.read_bytes())
        (size,) = struct.unpack("<Q", data[:8])
        header = number % 3 == 1  # where most is at stake
        data[rng.integers(8 + size if header else len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        folders[str(number)] = folder
    told = list(outcomes(folders, verify=False).values())
    assert "read elsewhere" not in told
    assert told.count("scored") > 20
    assert sum(outcome.startswith("refused") for outcome in told) > 20


def test_what_is_turned_off_is_the_reading_of_all_values(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    data = bytearray((folder / artifact.TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / artifact.TENSORS).write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged .*tensor '[\w.]+' does not have the checksum"):
        Scorer.open(folder)
    Scorer.open(folder, verify=False)
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*does not end with the checksum of its text"):
        artifact.load(folder)
    Scorer.open(folder, verify=False)


def test_two_halves_of_two_models_are_told(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    arrays, manifest = parts(whole)
    arrays["encoder.b"] += 1
    shutil.copytree(whole, folder)
    tensors.write(folder / artifact.TENSORS, arrays)
    with pytest.raises(UserError, match=r"manifest\.json beside it has the checksums of another model's tensors"):
        artifact.load(folder)
    artifact.load(craft(tmp_path / "other", arrays, manifest))


def test_format_4_has_checksums_and_format_3_has_none(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    rewritten(folder / artifact.TENSORS, lambda header: header.pop("__metadata__"))
    with pytest.raises(UserError, match="it has no checksums"):
        artifact.load(folder)
    _, manifest = parts(whole)
    old = {name: value for name, value in manifest.items() if not name.startswith("checksum")}
    (folder / artifact.MANIFEST).write_text(json.dumps({**old, "format_version": 3}))
    artifact.load(folder)
