"""An earlier model's archive, as others may have made it, or damaged it."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Tree
from ipinsights.data.archive import extract
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.sagemaker import earlier

NAMES = (artifact.MANIFEST, artifact.TENSORS)
Entry: TypeAlias = "tarfile.TarInfo | tuple[str, bytes]"
Format: TypeAlias = Literal[0, 1, 2]
FORMATS: tuple[Format, ...] = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def packed(*members: Entry, form: Format = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of members without data, or of names with theirs."""
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w", format=form) as file:
        for info in members:
            if isinstance(info, tarfile.TarInfo):
                text.write(info.tobuf(form))
                file.offset = text.tell()
            else:
                file.addfile(member(info[0], size=len(info[1])), io.BytesIO(info[1]))
    return text.getvalue()


def unpacked(archive: bytes, folder: Path) -> dict[str, bytes]:
    """The files that come out. Nothing comes out elsewhere."""
    root = folder / "root"
    into = root / "into"
    into.mkdir(parents=True)
    path = root / "model.tar.gz"
    path.write_bytes(archive)
    told = [f"cannot unpack {path}: "]
    try:
        extract(path, NAMES, into)
    except UserError as error:
        told.append(str(error))
        raise
    finally:
        assert told[-1].startswith(told[0])
        assert sorted(root.iterdir()) == [into, path]
        assert {path.name for path in into.iterdir()} <= {*NAMES}
        assert all(path.is_file() and not path.is_symlink() for path in into.iterdir())
    return {path.name: path.read_bytes() for path in into.iterdir()}


def refused(archive: bytes, folder: Path, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        unpacked(archive, folder)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("where", ["", "./", "model/", "a" * 90 + "/" + "b" * 60 + "/"], ids=len)
def test_what_a_model_consists_of_is_taken_and_nothing_else(
    where: str, pack: Callable[[bytes], bytes], form: Format, tmp_path: Path
) -> None:
    files = {artifact.MANIFEST: b"{}", artifact.TENSORS: os.urandom(3_000_000)}
    other = [("notes.txt", b"x" * 1000), ("deep/er/._manifest.json", b"y"), ("manifest.json.old", b"")]
    links = [member("z", tarfile.SYMTYPE, link="/etc/passwd"), member("y", tarfile.LNKTYPE, link="z" * 300)]
    if form == tarfile.USTAR_FORMAT:
        links.pop()
    members: list[Entry] = [
        *other,
        *links,
        *((where + name, data) for name, data in files.items()),
        ("end", b"z" * 513),
    ]
    assert unpacked(pack(packed(*members, form=form)), tmp_path) == files


@pytest.mark.parametrize(
    "name",
    ["/manifest.json", "../manifest.json", "a/../manifest.json", "/etc/manifest.json", "../" * 60 + "manifest.json"],
)
def test_a_path_that_climbs_or_is_absolute_is_none_of_them(name: str, tmp_path: Path) -> None:
    assert unpacked(packed((name, b"{}")), tmp_path) == {}


@pytest.mark.parametrize(
    "kind",
    [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z"],
)
def test_a_model_is_no_link_and_no_device(kind: bytes, tmp_path: Path) -> None:
    refused(packed(member(artifact.TENSORS, kind, link="/etc/passwd")), tmp_path, "is a link, or something else than")


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """Neither one to a folder, into which the next member goes, nor one whose own path is too long for the system."""
    (tmp_path / "outside").mkdir()
    steps: list[Entry] = [member("d", tarfile.SYMTYPE, link=str(tmp_path / "outside")), ("d/manifest.json", b"{}")]
    deep = "/".join(["x" * 247] * 16)
    steps += [member(deep, tarfile.SYMTYPE, link="../" * 30 + "outside"), (f"{deep}/model.safetensors", b"")]
    refused(packed(*steps), tmp_path, "pack one model")
    assert unpacked(packed(*steps[:2]), tmp_path / "again") == {"manifest.json": b"{}"}
    assert not list((tmp_path / "outside").iterdir())


def test_two_models_in_an_archive_are_told(tmp_path: Path) -> None:
    refused(packed(("a/manifest.json", b"1"), ("b/manifest.json", b"2")), tmp_path, "'a/manifest.json' and 'b/")
    refused(packed(("manifest.json", b"1"), ("manifest.json", b"2")), tmp_path / "1", "pack one model")
    refused(packed(("a/manifest.json", b"1"), ("b/model.safetensors", b"2")), tmp_path / "2", "pack one model")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1 << 60, (1 << 63) + 5])
def test_a_size_that_no_disk_has_is_refused_before_anything_is_written(form: Format, size: int, tmp_path: Path) -> None:
    refused(packed(member(artifact.TENSORS, size=size), form=form), tmp_path, "MB are free")
    refused(packed(member("other", size=size), form=form), tmp_path / "other", "it is truncated")


def test_a_large_member_of_no_concern_takes_neither_disk_nor_memory(tmp_path: Path) -> None:
    """Here with as little of either as a limit on the process leaves."""
    path = tmp_path / "model.tar.gz"
    size = 300_000_000
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member("zeros", size=size).tobuf())
        for _ in range(size // 1_000_000):
            file.write(bytes(1_000_000))
        file.write(bytes(-size % 512) + packed((artifact.MANIFEST, b"{}")))
    code = f"""
import pathlib, resource
from ipinsights.data.archive import extract
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
extract(pathlib.Path({str(path)!r}), {NAMES!r}, pathlib.Path({str(tmp_path)!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / artifact.MANIFEST).read_bytes() == b"{}"


def test_a_header_is_of_bounded_size(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        bomb = member("x", kind, size=(1 << 33) - 1).tobuf() + bytes(5_000_000)
        refused(bomb, tmp_path / kind.decode(), "it has a header of 8,589,934,591 bytes")


def test_any_number_of_headers_is_no_recursion(tmp_path: Path) -> None:
    record = b"19 path=manifest.x\n".ljust(512, b"\0")
    header = member("x", tarfile.XHDTYPE, size=19).tobuf() + record
    assert unpacked(header * 5000 + packed(("manifest.json", b"{}")), tmp_path) == {}


@pytest.mark.parametrize(
    "records", [b"0 path=a\n", b"6 a=b\n", b"99 path=a\n", b"x", b"9 path=ab", b"6 path", b"11 size=-1\n", b" =\n"]
)
def test_a_damaged_extension_is_told(records: bytes, tmp_path: Path) -> None:
    header = member("x", tarfile.XHDTYPE, size=len(records)).tobuf() + records.ljust(512, b"\0")
    member_behind = packed(("manifest.json", b"{}"))
    if records == b"6 a=b\n":  # which is none
        assert unpacked(header + member_behind, tmp_path) == {"manifest.json": b"{}"}
    else:
        refused(header + member_behind, tmp_path, "a pax header is damaged|a member has no size")


def test_a_sparse_file_is_told(tmp_path: Path) -> None:
    refused(packed(member(artifact.TENSORS, tarfile.GNUTYPE_SPARSE, 0)), tmp_path, "pack it without --sparse")
    info = member("GNUSparseFile.0/model.safetensors")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "model.safetensors"}
    refused(packed(info), tmp_path / "pax", "pack it without --sparse")


def test_the_systems_own_tar_is_read(trained: tuple[Tree, object], tmp_path: Path) -> None:
    for options in ("-czf", "--format=posix -czf", "--format=v7 -czf", "-cf"):
        path = tmp_path / "model.tar.gz"
        subprocess.run(["tar", *options.split(), path, "-C", trained[0].model, "."], check=True, timeout=60)
        assert unpacked(path.read_bytes(), tmp_path / options.replace(" ", "")) == {
            file.name: file.read_bytes() for file in trained[0].model.iterdir()
        }


WHOLE = packed(
    ("notes", b"n" * 700),
    member("l", tarfile.SYMTYPE, link="notes"),
    ("./" + "d" * 120 + "/manifest.json", b'{"a": 1}'),
    ("./" + "d" * 120 + "/model.safetensors", bytes(range(256)) * 5),
)


def _outcome(archive: bytes, folder: Path) -> dict[str, bytes] | None:
    try:
        return unpacked(archive, folder)
    except UserError:
        return None


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_truncated_archive_is_told_wherever_it_ends(
    pack: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = pack(WHOLE)
    end = len(WHOLE.rstrip(b"\0")) // 512 * 512 + 512  # the zeros behind one block of them are padding
    for length in range(0, len(text) if pack is gzip.compress else end, 7):
        assert _outcome(text[:length], tmp_path_factory.mktemp("cut")) is None, length


mutation = st.one_of(
    st.tuples(st.just("bytes"), st.integers(0, len(WHOLE)), st.binary(max_size=12)),
    st.tuples(st.just("cut"), st.integers(0, len(WHOLE)), st.integers(0, 2000)),
    st.tuples(st.just("again"), st.integers(0, len(WHOLE) // 512), st.integers(1, 6)),
)


def mutated(text: bytes, changes: list[Any], repair: bool) -> bytes:
    for kind, place, what in changes:
        if kind == "bytes":
            text = text[:place] + what + text[place + len(what) :]
        elif kind == "cut":
            text = text[:place] + text[place + what :]
        else:
            text = text[: place * 512] + text[place * 512 : (place + what) * 512] + text[place * 512 :]
    if repair:  # the checksums of headers, or few mutants would come further than the first
        blocks = [bytearray(text[at : at + 512]) for at in range(0, len(text), 512)]
        for block in blocks:
            if block[257:262] == b"ustar":
                block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
        text = b"".join(blocks)
    return text


@given(st.lists(mutation, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_a_mutant_is_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Any], repair: bool, compress: bool
) -> None:
    text = mutated(WHOLE, changes, repair)
    _outcome(gzip.compress(text) if compress else text, tmp_path_factory.mktemp("mutant"))


@given(st.lists(mutation, min_size=1, max_size=3))
def test_a_mutant_of_the_compressed_text_is_the_whole_or_told(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Any]
) -> None:
    text = mutated(gzip.compress(WHOLE), changes, repair=False)
    assert _outcome(text, tmp_path_factory.mktemp("mutant")) in (None, *[_outcome(WHOLE, tmp_path_factory.mktemp("w"))])


@given(st.binary(max_size=3000), st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"BZh9"]))
def test_random_bytes_are_no_archive(tmp_path_factory: pytest.TempPathFactory, text: bytes, start: bytes) -> None:
    if text.strip(b"\0") or start:
        assert _outcome(start + text, tmp_path_factory.mktemp("random")) is None


def test_a_pipe_or_an_endless_device_in_the_channel_is_not_opened(trained: tuple[Tree, object], tmp_path: Path) -> None:
    channel = tmp_path / "model"
    channel.mkdir()
    os.mkfifo(channel / "model.tar.gz")
    os.mkfifo(channel / "manifest.json")
    (channel / "more.tgz").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="contains none"):
        earlier.load(channel)
    with tarfile.open(channel / "good.tar", "w") as file:
        file.add(trained[0].model, "m")
    assert earlier.load(channel).index.owned == 100


def test_a_folder_for_temporary_files_is_made_for_archives_alone(
    trained: tuple[Tree, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert earlier.load(trained[0].model).index.owned == 100
    channel = tmp_path / "model"
    channel.mkdir()
    with tarfile.open(channel / "model.tar", "w") as file:
        file.add(trained[0].model, "m")
    with pytest.raises(UserError, match=r"model\.tar\) cannot be unpacked.* writable /tmp, or set TMPDIR, or unpack"):
        earlier.load(channel)


def test_the_archive_of_a_damaged_model_is_named(tmp_path: Path) -> None:
    channel = tmp_path / "model"
    channel.mkdir()
    for manifest in (b"", b"[" * 100_000, b"\xff", b"null", b'{"format_version": 4}'):
        (channel / "m.tar").write_bytes(packed(("manifest.json", manifest), ("model.safetensors", b"")))
        with pytest.raises(UserError) as told:
            earlier.load(channel)
        assert f"channel 'model' ({channel / 'm.tar'}): " in str(told.value)
