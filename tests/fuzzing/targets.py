"""What fuzzing calls: each parser and codec, with any bytes. It may refuse them with `UserError`, and nothing else.

Beyond that, whatever has two ways to be read is read in both, and they must agree: with the native kernel and without.
"""

import contextlib
import io
import json
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ipinsights import native
from ipinsights.alerts import seen
from ipinsights.data import archive, events
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.entities import EntityIndex
from ipinsights.data.formats import CSV, JSON_LINES, PARQUET
from ipinsights.data.networks import Networks
from ipinsights.errors import UserError
from ipinsights.logs.counting import Count
from ipinsights.logs.formats import FORMATS, find
from ipinsights.logs.options import Options
from ipinsights.logs.splitting import Split
from ipinsights.logs.text import Text
from ipinsights.logs.times import Clock
from ipinsights.model import artifact, tensors
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker import configuration, media, settings
from ipinsights.sagemaker.app import create_app
from ipinsights.sagemaker.models import ModelStore
from ipinsights.sagemaker.paths import Paths
from ipinsights.training.checkpoint import Checkpoints

STORED = Path(__file__).parents[1] / "model" / "stored" / "format-4"
CHECKPOINT = Path(__file__).parents[1] / "training" / "stored" / "format-4" / "checkpoint-000000000008.safetensors"

LINES = (
    b'alice,192.0.2.1\r\n"Smith, ""Bob""", 10.0.0.1:80\n'
    b"\xef\xbb\xbf\xc3\xa9,::ffff:1.2.3.4,2026-01-02T03:04:05Z\n\nx,2001:db8::1\n"
)
INSTANCES = [
    b'{"features": ["alice", "192.0.2.1"]}',
    b'{"data":{"features":{"values":["\\ud83d\\ude00","10.0.0.1"]}},"k":[1.5,{"a":null}]}',
    b'[7, "::1"]',
]
DOCUMENT = b'{"instances": [' + b", ".join(INSTANCES) + b"]}"


class Target(NamedTuple):
    """A parser, and inputs to begin with."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]


@contextlib.contextmanager
def _without_kernel() -> Iterator[None]:
    library = native.library
    native.library = lambda: None
    try:
        yield
    finally:
        native.library = library


def _outcome(call: Callable[[], object]) -> object:
    """What a call returns, or its error's text."""
    try:
        return call()
    except UserError as error:
        return str(error)


def _same(call: Callable[[], object]) -> None:
    """Require that a call has the same outcome with the kernel and without."""
    with_kernel = _outcome(call)
    with _without_kernel():
        assert _outcome(call) == with_kernel


def _chosen(data: bytes, *choices: Any) -> Any:
    """One of some choices. It follows from the input, so an input that found something finds it again."""
    return choices[zlib.crc32(data) % len(choices)]


def _scratch() -> Path:
    """A folder of this process, in memory where there is one."""
    memory = Path("/dev/shm")
    folder = (
        memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    ) / f"ipinsights-fuzzing-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    return folder


def _written(name: str, data: bytes) -> Path:
    path = _scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _body(content_type: str) -> Callable[[bytes], None]:
    """A request's body, and its answer in each form."""

    def read(data: bytes, family: Family) -> object:
        rows = media.read(content_type, data, family)
        found = str(rows.error) if rows.faults else ""
        for accept in media.ACCEPTED_TYPES:
            scores = np.ones(len(rows.pairs.digests), np.float32)
            writer = media.writer(accept)
            answer = b"".join(writer.write(iter([scores] if len(scores) else []), rows, 4).pieces)
            if writer.by_lines:
                assert answer.count(b"\n") == max(0, len(rows) - 1)
            else:
                assert len(json.loads(answer)["predictions"]) == len(rows)
        return rows.pairs.digests.tolist(), rows.pairs.addresses.tolist(), found

    return lambda data: _same(lambda: read(data, _chosen(data, IPV4, IPV6)))


def _channel(content_type: str) -> Callable[[bytes], None]:
    """A file of a channel, which may be compressed, in blocks."""

    def read(path: Path, tolerated: float | None) -> object:
        found = events.read([path], EntityIndex(7), content_type=content_type, tolerated=tolerated)
        return found.entity.tolist(), found.address.tolist(), str(found.malformed), found.index.tags.tolist()

    def run(data: bytes) -> None:
        path, tolerated = _written("channel", data), _chosen(data, None, 1.0)
        _same(lambda: read(path, tolerated))

    return run


def _headers(data: bytes) -> None:
    text = data.decode("latin-1")  # as PEP 3333 has headers
    content_type, _, accept = text.partition("\n")
    for call in (
        lambda: media.read(content_type, b"a,1.2.3.4", IPV4),
        lambda: media.writer(accept),
        lambda: media.writer("", accept),
    ):
        _outcome(call)


def _configuration(name: str) -> Callable[[bytes], None]:
    """A file of a job's configuration, with the others whole."""
    whole = {
        "hyperparameters": b'{"num_entity_vectors": "10", "vector_dim": "4"}',
        "inputdataconfig": b'{"train": {"ContentType": "text/csv", "TrainingInputMode": "File"}}',
        "resourceconfig": b'{"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}',
    }

    def run(data: bytes) -> None:
        for file, text in (whole | {name: data}).items():
            _written(f"ml/input/config/{file}.json", text)
        _written("ml/input/data/train/a.csv", b"a,1.2.3.4\n")
        paths = Paths(_scratch() / "ml")
        configuration.is_complete(paths)
        _outcome(lambda: configuration.read(paths, 1).source)
        _outcome(lambda: configuration.hosts(paths).rank)

    return run


def _load(data: bytes) -> None:
    """A platform's request to load a model."""
    models = _scratch() / "models"
    if not models.exists():
        shutil.copytree(STORED, models / "a")
    given = {"SAGEMAKER_MULTI_MODEL": "true", "IPINSIGHTS_MODELS_FOLDER": str(models)}
    app = create_app(ModelStore(untrained=True), settings.ServerSettings.from_environment(given))
    app.testing = True  # an error that nobody answers is raised here
    status = app.test_client().post("/models", data=data.replace(b"MODELS", bytes(models))).status_code
    assert status in (200, 400, 413), status


def _environment(data: bytes) -> None:
    names = [variable.name for variable in settings.declarations().values()]
    lines = data.decode(errors="surrogateescape").split("\n")
    given = {names[i % len(names)]: line for i, line in enumerate(lines)}
    _outcome(lambda: settings.ServerSettings.from_environment(given))


def _model(folder: Path) -> None:
    """A model that nobody verifies. If it is opened, it scores, and never from beyond its tables."""

    def score() -> object:
        scorer = Scorer.open(folder, untrained=True, verify=False)
        digests = np.arange(40, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        queries = (digests >> np.uint64(16)).astype(scorer.family.dtype)
        with np.errstate(all="ignore"):
            return len(scorer.score_hashed(digests, queries))

    _same(score)


def _manifest(data: bytes) -> None:
    _written(f"model/{artifact.TENSORS}", (STORED / artifact.TENSORS).read_bytes())
    _model(_written(f"model/{artifact.MANIFEST}", data).parent)


def _header(data: bytes) -> None:
    """The header of a model's tensors, before the tensors themselves."""
    whole = (STORED / artifact.TENSORS).read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    _written(f"model/{artifact.MANIFEST}", (STORED / artifact.MANIFEST).read_bytes())
    _model(_written(f"model/{artifact.TENSORS}", struct.pack("<Q", len(data)) + data + whole[8 + size :]).parent)


def _checkpoint(data: bytes) -> None:
    """What a checkpoint says of itself, with the right checksums. One that is damaged is told, and no error."""
    arrays, texts = tensors.read(CHECKPOINT)
    folder = _scratch() / "checkpoints"
    folder.mkdir(exist_ok=True)
    changed = {**texts, "checkpoint": data.decode(errors="replace")}
    tensors.write(folder / CHECKPOINT.name, arrays, changed)
    _outcome(lambda: Checkpoints(folder).newest())


def _archive(data: bytes) -> None:
    path, into = _written("model.tar.gz", data), _scratch() / "unpacked"
    into.mkdir(exist_ok=True)
    _outcome(lambda: archive.extract(path, (artifact.MANIFEST, artifact.TENSORS), into))
    for file in into.iterdir():
        assert file.name in (artifact.MANIFEST, artifact.TENSORS)
        file.unlink()


def _networks(data: bytes) -> None:
    path = _written("networks.tsv", data)
    _outcome(lambda: len(Networks.read([path], _chosen(data, IPV4, IPV6))))


def _log(name: str | None) -> Callable[[bytes], None]:
    """A log of one format, or of the one that is recognised."""

    def read(path: Path) -> None:
        count, options = Count(), Options(cloudtrail="all", forwarded=True)
        with Text(path) as text:
            format_ = FORMATS[name] if name else find(text, options)
            file = count.begin(text.name, format_)
            for row in format_.rows(text, options) if format_ else ():
                count.line(file, row, "")

    return lambda data: _outcome(lambda: read(_written("some.log", data)))  # type: ignore[return-value]


def _times(data: bytes) -> None:
    form, _, text = data.decode(errors="replace").partition("\n")
    with contextlib.suppress(UserError):
        for clock in (Clock(), Clock(form=form or None)):
            for read in (clock.iso, clock.cell):
                with contextlib.suppress(ValueError):
                    read(text)
    _outcome(lambda: Split.parse(text))


def _tar(compressed: bool) -> bytes:
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w:gz" if compressed else "w") as file:
        for name, data in ((artifact.MANIFEST, b"{}"), ("m/" + "x" * 120, b"y"), (artifact.TENSORS, b"z" * 600)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return text.getvalue()


def _parquet(columns: Mapping[str, object]) -> bytes:
    text = io.BytesIO()
    parquet.write_table(pa.table(columns), text, compression="none")
    return text.getvalue()


def _head_of_stored() -> bytes:
    whole = (STORED / artifact.TENSORS).read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    return whole[8 : 8 + size]


ACCESS = (
    b'192.0.2.1 - alice [02/Jan/2026:03:04:05 +0000] "GET /login HTTP/1.1" 200 1 "-" "x" "198.51.100.1, 10.0.0.1"\n'
)
SSHD = b"Jan  2 03:04:05 host sshd[1]: Accepted publickey for alice from 192.0.2.7 port 22 ssh2: x\n"
FLOW = b"2 1 eni-1 8.8.4.4 10.0.0.5 443 1024 6 1 1 1767323045 1767323046 ACCEPT OK\n"
CLOUDTRAIL = json.dumps(
    {
        "eventVersion": "1.08",
        "userIdentity": {"type": "IAMUser", "arn": "arn:aws:iam::1:user/a"},
        "eventTime": "2026-01-02T03:04:05Z",
        "eventSource": "signin.amazonaws.com",
        "eventName": "ConsoleLogin",
        "sourceIPAddress": "192.0.2.7",
        "responseElements": {"ConsoleLogin": "Success"},
    }
).encode()
WINDOWS = b'{"Id":4624,"TimeCreated":"\\/Date(1767323045000)\\/","Properties":[{"Value":"S-1"}],"Message":"x"}'
OKTA = (
    b'{"eventType":"user.session.start","outcome":{"result":"SUCCESS"},"published":"2026-01-02T03:04:05Z",'
    b'"actor":{"alternateId":"a"},"client":{"ipAddress":"192.0.2.7"}}'
)
ENTRA = (
    b'{"createdDateTime":"2026-01-02T03:04:05Z","userPrincipalName":"a@b","ipAddress":"192.0.2.7",'
    b'"status":{"errorCode":0}}'
)
TABLE = b"time,user,ip\n2026-01-02 03:04:05,alice,192.0.2.7\n1767323045,bob,10.0.0.1\n"
PAIRS = {"user": ["alice", None, "bob"], "ip": ["192.0.2.7", "10.0.0.1:80", "x"]}
LOGS = [
    _parquet(PAIRS),
    ACCESS,
    SSHD,
    FLOW,
    CLOUDTRAIL,
    WINDOWS,
    OKTA,
    ENTRA,
    TABLE,
    b'{"Records":[' + CLOUDTRAIL + b"]}",
]

TARGETS: dict[str, Target] = {
    "body csv": Target(_body(CSV), [LINES]),
    "body json": Target(_body(media.JSON), [DOCUMENT]),
    "body json lines": Target(_body(JSON_LINES), [b"\n".join(INSTANCES)]),
    "channel csv": Target(_channel(CSV), [LINES, zlib.compress(LINES, wbits=31)]),
    "channel json lines": Target(_channel(JSON_LINES), [b"\n".join(INSTANCES)]),
    "channel parquet": Target(
        _channel(PARQUET), [_parquet(PAIRS), _parquet(PAIRS | {"time": pa.array([0, 1, None], pa.timestamp("s"))})]
    ),
    "load": Target(_load, [b'{"model_name": "m", "url": "MODELS/a"}', b'{"model_name": "\\u00e9", "url": "a/../b"}']),
    "headers": Target(
        _headers,
        [b"text/csv; charset=utf-8\napplication/json;q=0.5;verbose=True, text/*;q=.3, */*", b'a/b;c="\\"d"\n,;="'],
    ),
    "hyperparameters": Target(
        _configuration("hyperparameters"),
        [b'{"num_entity_vectors": "10", "vector_dim": "4", "learning_rate": "1e-3", "epochs": 2, "a": null}'],
    ),
    "channels": Target(
        _configuration("inputdataconfig"),
        [
            b'{"train": {"ContentType": "text/csv", "TrainingInputMode": "File", "S3DistributionType": '
            b'"ShardedByS3Key", "RecordWrapperType": "None"}, "model": {}, "Validation": {"TrainingInputMode": "Pipe"}}'
        ],
    ),
    "hosts": Target(
        _configuration("resourceconfig"),
        [b'{"current_host": "algo-1", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}'],
    ),
    "environment": Target(_environment, ["\n".join(v.default for v in settings.declarations().values()).encode()]),
    "manifest": Target(_manifest, [(STORED / artifact.MANIFEST).read_bytes()]),
    "tensors": Target(_header, [_head_of_stored()]),
    "checkpoint": Target(_checkpoint, [tensors.read(CHECKPOINT)[1]["checkpoint"].encode()]),
    "archive": Target(_archive, [_tar(compressed=False), _tar(compressed=True)]),
    "networks": Target(
        _networks, [b"1.0.0.0\t1.0.0.255\t13335\tUS\tX\n::1\t::ff\t7\tDE\n", b"16777216\t16777471\t1\tNA\n"]
    ),
    "seen": Target(
        lambda data: _outcome(lambda: seen.read(_written("seen.csv", data))), [b'alice,192.0.2.0/24,t\n"a,b",::/0\n']
    ),
    "times": Target(_times, [b"%d.%m.%Y\n2026-01-02T03:04:05.123+01:00", b"\n1767323045", b"\n8:1:1", b"\n7d:1d:2d"]),
    "log": Target(_log(None), LOGS),
    **{f"log {name}": Target(_log(name), LOGS) for name in FORMATS},
}
"""Every parser, by its name."""
