import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file

from ipinsights.model import tensors

ARRAYS = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    npst.arrays(
        st.sampled_from(["<u1", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"]), npst.array_shapes(min_dims=0, min_side=0)
    ),
    max_size=4,
)


@given(ARRAYS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_what_is_written_is_read_back_by_us_and_by_the_formats_library(
    arrays: dict[str, npt.NDArray[np.generic]], metadata: dict[str, str]
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        tensors.write(path, arrays, metadata)
        read, texts = tensors.read(path)
        library = load_file(path)
        assert [entry.name for entry in Path(folder).iterdir()] == ["a.safetensors"]
    assert texts == metadata
    assert read.keys() == library.keys() == arrays.keys()
    for name, array in arrays.items():
        for other in (read[name], library[name]):
            assert other.dtype == array.dtype
            assert other.flags.aligned
            np.testing.assert_array_equal(other, array)


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    table = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    tensors.write(tmp_path / "a", {"middle": table[:, 1]})
    assert (tensors.read(tmp_path / "a")[0]["middle"] == table[:, 1]).all()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    tensors.write(path, {"x": np.zeros(3)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "publish", full)
    with pytest.raises(OSError, match="No space"):
        tensors.write(path, {"x": np.ones(3)})
    assert not tensors.read(path)[0]["x"].any()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("length", [0, 4, 8, 20, -1])
def test_a_file_cut_short_is_no_file(length: int, tmp_path: Path) -> None:
    tensors.write(tmp_path / "a", {"x": np.zeros(300)})
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:length])
    with pytest.raises(ValueError, match=r"ends within its header|has \d+ bytes"):
        tensors.read(tmp_path / "a")


def written(path: Path, header: object, data: bytes) -> Path:
    """A file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(begin: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize("header", [[], 7, None, "text"])
def test_a_header_is_an_object(header: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not an object"):
        tensors.read(written(tmp_path / "a", header, b""))


@pytest.mark.parametrize(
    "offsets",
    [[(0, 4), (5, 8)], [(0, 5), (4, 8)], [(1, 8)], [(0, 8), (0, 8)], [(0, 8), (8, 4)], [(-4, 4), (4, 8)]],
    ids=["hole", "overlap", "late", "twice", "backwards", "negative"],
)
def test_tensors_follow_one_another(offsets: list[tuple[int, int]], tmp_path: Path) -> None:
    header = {f"t{i}": tensor(*pair) for i, pair in enumerate(offsets)}
    with pytest.raises(ValueError, match="follows one that ends at"):
        tensors.read(written(tmp_path / "a", header, bytes(8)))


def test_the_largest_items_come_first(tmp_path: Path) -> None:
    """So that each tensor is aligned, whatever the lengths of those before it."""
    arrays: tensors.Arrays = {"bytes": np.zeros(3, np.uint8), "wide": np.zeros(5), "floats": np.zeros(1, np.float32)}
    tensors.write(tmp_path / "a", arrays)
    assert list(tensors.read(tmp_path / "a")[0]) == ["wide", "floats", "bytes"]


def test_a_file_that_is_replaced_while_it_is_read_is_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the new one has other sizes, as of a model that has forgotten an entity's history."""
    path, old = tmp_path / "t", np.arange(100, dtype=np.uint32)
    tensors.write(path, {"a": old, "b": old[:3]})
    loads = json.loads

    def replaced(text: str) -> object:
        tensors.write(path, {"a": old[:50], "b": old[:3]})
        return loads(text)

    monkeypatch.setattr(json, "loads", replaced)
    arrays, _ = tensors.read(path)
    assert arrays["a"].tolist() == old.tolist()
    assert arrays["b"].tolist() == [0, 1, 2]
    monkeypatch.undo()
    assert tensors.read(path)[0]["a"].tolist() == old[:50].tolist()
