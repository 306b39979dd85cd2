"""Models that were stored once, of each format, score as they did: no release changes that unnoticed.

`stored/format-3` was made by release 0.1.0 (commit 7f4280e), with the same rows, dimensions and epochs. The one of this
release was made by

    ipinsights train tests/model/stored/log-ins.csv --validation tests/model/stored/later.csv \\
        --model tests/model/stored/format-4 --vector-dim 4 --epochs 4
    PYTHONPATH=.:tests python tests/model/test_stored.py tests/model/stored/format-4

whose second line writes what it scores. `format-4-ipv6` has what was added to format 4 later, which older models lack:
weights of affinity, log-ins kept apart, a prior by networks of IPv6. It was made by

    ipinsights train tests/model/stored/log-ins-ipv6.csv --ip-version 6 \\
        --model tests/model/stored/format-4-ipv6 --vector-dim 4 --epochs 4
    PYTHONPATH=.:tests python tests/model/test_stored.py tests/model/stored/format-4-ipv6

A new format gets a further folder. Those that are there never change: if a score does, say so in the changelog and
raise the format version.
"""

import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import Server, Tree, until
from ipinsights.errors import UserError
from ipinsights.model import artifact, tensors
from ipinsights.model.scoring import Scorer

STORED = Path(__file__).parent / "stored"
SCORES = "scores.csv"
FOLDERS = {name: STORED / name for name in ("format-3", "format-4", "format-4-ipv6")}
VERSIONS = {name: int(name.split("-")[1]) for name in FOLDERS}
TOLERANCE = 1e-5
"""How far a score may be from what was stored, on any processor, with the kernel and without. Sums in another order
differ by the last bits of a float."""

PAIRS = [
    (entity, address)
    for entity in ("alice", "bob", "carol", "ivan", "nobody", "né€😀", "0")
    for address in ("192.0.2.0", "198.51.100.7", "203.0.113.16", "10.0.0.1", "8.8.8.8", "0.0.0.0", "255.255.255.255")
]
IPV6_PAIRS = [
    (entity, address)
    for entity, _ in PAIRS[::7]
    for address in ("2001:db8:0:1::1", "2001:db8:2:9::7", "2001:db8:ffff::", "fe80::1", "2600::", "::", "192.0.2.7")
]


def scored(folder: Path, pairs: list[tuple[str, str]]) -> list[tuple[float, float]]:
    """The score and the percentile of each pair; the percentile is NaN if the model is not calibrated."""
    scorer = Scorer.open(folder)
    entities, addresses = (list(column) for column in zip(*pairs, strict=True))
    scores = scorer.score_columns(entities, addresses)
    calibrated = scorer.calibration is not None
    percentiles = scorer.percentile_columns(entities, addresses) if calibrated else np.full(len(pairs), np.nan)
    return list(zip(scores.astype(float).tolist(), percentiles.tolist(), strict=True))


def stored(folder: Path) -> list[tuple[str, str, float, float]]:
    with (folder / SCORES).open(encoding="utf-8", newline="") as file:
        return [(entity, address, float(score), float(share)) for entity, address, score, share in csv.reader(file)]


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.usefixtures("either_way")
def test_a_stored_model_scores_as_it_did(name: str) -> None:
    expected = stored(FOLDERS[name])
    pairs = [row[:2] for row in expected]
    assert pairs == (IPV6_PAIRS if name.endswith("ipv6") else PAIRS)
    found = scored(FOLDERS[name], pairs)
    np.testing.assert_allclose(found, [row[2:] for row in expected], rtol=TOLERANCE, atol=TOLERANCE)


def test_every_format_that_is_read_is_stored() -> None:
    assert max(VERSIONS.values()) == artifact.FORMAT_VERSION
    for name, version in VERSIONS.items():
        assert json.loads((FOLDERS[name] / artifact.MANIFEST).read_text())["format_version"] == version


def test_all_that_is_written_today_is_in_a_stored_model(tmp_path: Path) -> None:
    """So a change of how it is read does not go unnoticed."""
    artifact.save(artifact.load(FOLDERS["format-4-ipv6"]), tmp_path / "again", {})
    written = []
    for folder in (FOLDERS["format-4-ipv6"], tmp_path / "again"):
        with tensors.File.open(folder / artifact.TENSORS) as file:
            written.append(set(file.arrays))
    assert written[0] == written[1]
    assert {"counted.weights", "apart.counts"} <= written[0]


@pytest.mark.parametrize("version", [1, 2, 5, "4", None, 4.5])
def test_of_another_format_it_is_said_what_to_do(version: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDERS["format-4"], folder)
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    changed = {**manifest, "format_version": version, "ipinsights_version": "0.9"}
    (folder / artifact.MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(UserError) as told:
        artifact.load(folder)
    assert str(told.value) == (
        f"{folder / artifact.MANIFEST} has format version {version!r}; this release reads versions 3 and 4. Use the "
        "release that wrote it ('0.9'), or train again"
    )


@pytest.mark.slow
def test_every_worker_scores_alike_and_after_every_restart(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "ml")
    shutil.copytree(FOLDERS["format-4"], tree.model)
    body = "".join(f"{entity},{address}\n" for entity, address in PAIRS)
    asked = {"accept": "text/csv; calibrated=True; verbose=True"}
    answers = set()
    for _ in range(2):
        with Server(tree, SAGEMAKER_MODEL_SERVER_WORKERS="2") as server:
            until(lambda: len(server.workers()) == 2)
            answers |= {server.post(body, **asked).content for _ in range(8)}  # each on a connection of its own
            first = server.workers()[0]
            os.kill(first, signal.SIGKILL)
            until(lambda: first not in server.workers() and len(server.workers()) == 2)  # noqa: B023
            answers |= {server.post(body, **asked).content for _ in range(8)}
    (answer,) = answers
    scores = [float(line.split(",")[0]) for line in answer.decode().splitlines()]
    np.testing.assert_allclose(scores, [row[2] for row in stored(FOLDERS["format-4"])], rtol=TOLERANCE, atol=TOLERANCE)


if __name__ == "__main__":
    model = Path(sys.argv[1])
    asked = IPV6_PAIRS if model.name.endswith("ipv6") else PAIRS
    with (model / SCORES).open("x", encoding="utf-8", newline="") as written:
        rows = [(*pair, *found) for pair, found in zip(asked, scored(model, asked), strict=True)]
        csv.writer(written, lineterminator="\n").writerows(rows)
