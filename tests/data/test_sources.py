import gzip
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipinsights.data import sources
from ipinsights.data.sources import Pipe, Source, Stream
from ipinsights.errors import UserError


def read_all(source: Source, size: int = 1000, idle: Callable[[], object] = lambda: None) -> bytes:
    with sources.stream(source, idle) as text:
        return b"".join(iter(lambda: text.read(size), b""))


@contextmanager
def written(fifo: Path, *parts: bytes) -> Iterator[None]:
    """Write parts to a FIFO, which is opened when its reader is there, one after the other."""

    def write() -> None:
        with fifo.open("wb", buffering=0) as end:
            for part in parts:
                end.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    yield
    writer.join()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "train_0")
    return tmp_path / "train_0"


class Trickle(io.RawIOBase):
    """Gives one byte at a time, and can do nothing but go on."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._data.readinto(memoryview(buffer)[:1])

    def seek(self, *_: int) -> int:
        raise AssertionError("sought")

    def tell(self) -> int:
        raise AssertionError("asked where it is")


@given(st.lists(st.binary(max_size=50), max_size=4), st.booleans(), st.integers(1, 60))
def test_what_was_packed_in_any_number_of_members_is_read_however_it_comes(
    parts: list[bytes], packed: bool, size: int
) -> None:
    if not packed:
        parts = [part for part in parts if not part.startswith(b"\x1f")]
    data = b"".join(gzip.compress(part) if packed else part for part in parts)
    if not packed and data.startswith(b"\x1f\x8b"):
        return
    with Stream(Trickle(data), "x") as text:
        read = list(iter(lambda: text.read(size), b""))
        assert text.taken == len(data)
    assert b"".join(read) == b"".join(parts)
    assert all(len(part) == size for part in read[:-1])  # so that blocks are the same however the bytes come


@pytest.mark.parametrize("harm", ["cut", "block", "checksum", "tail"])
def test_gzip_that_is_damaged_is_named(tmp_path: Path, harm: str) -> None:
    data = gzip.compress(os.urandom(5000))
    head = 10
    harmed = {
        "cut": data[:-9],
        "block": data[:head] + b"\xff" + data[head + 1 :],  # no such type
        "checksum": data[:-8] + bytes(8),
        "tail": data + b"u,1.2.3.4\n",
    }[harm]
    (tmp_path / "a.csv").write_bytes(harmed)
    with pytest.raises(UserError, match=rf"^{tmp_path}/a\.csv is a truncated or damaged gzip file: "):
        read_all(tmp_path / "a.csv")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for source, reason in ((tmp_path / "no", "No such file"), (tmp_path, "Is a dir"), (Pipe(tmp_path), "Is a dir")):
        with pytest.raises(UserError, match=f"^cannot read {source}: {reason}"):
            read_all(source)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_that_cannot_seek_and_opens_once_is_read(fifo: Path, pack: Callable[[bytes], bytes]) -> None:
    """As a lazily fetched one: read as a file, a FIFO is one on which a seek fails and a second opening waits."""
    text = b"u,1.2.3.4\n" * 50_000
    with written(fifo, pack(text)):
        assert read_all(fifo, 1 << 16) == text


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_pipe_is_read_to_its_end_by_whole_blocks(fifo: Path, pack: Callable[[bytes], bytes]) -> None:
    text = os.urandom(300_000)  # many times what the pipe holds
    packed = pack(text)
    with written(fifo, packed[:1], packed[1:7], packed[7:]), sources.stream(Pipe(fifo)) as stream:
        assert [len(part) for part in iter(lambda: stream.read(100_000), b"")] == [100_000] * 3
        assert stream.taken == len(packed)


def test_a_pipe_that_appears_late_and_whose_writer_comes_later_is_waited_for(tmp_path: Path) -> None:
    """The writer comes only after the reader has said that it waits, first for the pipe and then for its writer."""
    fifo = tmp_path / "train_0"
    writers: list[threading.Thread] = []
    waited = {"pipe": 0, "writer": 0}

    def idle() -> None:
        if not fifo.exists():
            waited["pipe"] += 1
            if waited["pipe"] == 2:
                os.mkfifo(fifo)
            return
        waited["writer"] += 1
        if not writers:
            writers.append(threading.Thread(target=fifo.write_bytes, args=(b"late",)))
            writers[0].start()

    assert read_all(Pipe(fifo), idle=idle) == b"late"
    writers[0].join()
    assert waited["pipe"] == 2
    assert waited["writer"] >= 1


def test_a_pipe_whose_writer_pauses_has_not_ended(fifo: Path) -> None:
    go_on = threading.Event()

    def write() -> None:
        with fifo.open("wb", buffering=0) as end:
            end.write(b"one")
            go_on.wait(60)
            end.write(b"two")

    writer = threading.Thread(target=write)
    writer.start()
    assert read_all(Pipe(fifo), idle=go_on.set) == b"onetwo"
    writer.join()


@pytest.mark.parametrize("there", [True, False])
def test_a_wait_ends_by_what_idle_raises(tmp_path: Path, there: bool) -> None:
    if there:
        os.mkfifo(tmp_path / "p")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_all(Pipe(tmp_path / "p"), idle=stop)


def test_the_size_is_that_on_disk_and_unknown_of_a_pipe(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(gzip.compress(b"x" * 1000))
    assert sources.size(paths) == sum(path.stat().st_size for path in paths) < 1000
    assert sources.size([*paths, Pipe(tmp_path / "c")]) is None
    assert sources.size([]) == 0
