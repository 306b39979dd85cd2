"""Models that were stored once, of each format, score as they did: no release changes that unnoticed.

`stored/format-3` was made by release 0.1.0 (commit 7f4280e), with the same rows, dimensions and epochs. The one of this
release was made by

    ipinsights train tests/model/stored/log-ins.csv --validation tests/model/stored/later.csv \\
        --model tests/model/stored/format-4 --vector-dim 4 --epochs 4
    python tests/model/test_stored.py tests/model/stored/format-4

whose second line writes what it scores. A new format gets a further folder. Those that are there never change: if a
score does, say so in the changelog and raise the format version.
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
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer

STORED = Path(__file__).parent / "stored"
SCORES = "scores.csv"
FOLDERS = {3: STORED / "format-3", 4: STORED / "format-4"}
TOLERANCE = 1e-5
"""How far a score may be from what was stored, on any processor, with the kernel and without. Sums in another order
differ by the last bits of a float."""

PAIRS = [
    (entity, address)
    for entity in ("alice", "bob", "carol", "ivan", "nobody", "né€😀", "0")
    for address in ("192.0.2.0", "198.51.100.7", "203.0.113.16", "10.0.0.1", "8.8.8.8", "0.0.0.0", "255.255.255.255")
]


def scored(folder: Path) -> list[tuple[float, float]]:
    """The score and the percentile of each pair; the percentile is NaN if the model is not calibrated."""
    scorer = Scorer.open(folder)
    entities, addresses = (list(column) for column in zip(*PAIRS, strict=True))
    scores = scorer.score_columns(entities, addresses)
    calibrated = scorer.calibration is not None
    percentiles = scorer.percentile_columns(entities, addresses) if calibrated else np.full(len(PAIRS), np.nan)
    return list(zip(scores.astype(float).tolist(), percentiles.tolist(), strict=True))


def stored(folder: Path) -> list[tuple[str, str, float, float]]:
    with (folder / SCORES).open(encoding="utf-8", newline="") as file:
        return [(entity, address, float(score), float(share)) for entity, address, score, share in csv.reader(file)]


@pytest.mark.parametrize("version", FOLDERS)
@pytest.mark.usefixtures("either_way")
def test_a_stored_model_scores_as_it_did(version: int) -> None:
    expected = stored(FOLDERS[version])
    assert [row[:2] for row in expected] == PAIRS
    np.testing.assert_allclose(scored(FOLDERS[version]), [row[2:] for row in expected], rtol=TOLERANCE, atol=TOLERANCE)


def test_every_format_that_is_read_is_stored() -> None:
    assert max(FOLDERS) == artifact.FORMAT_VERSION
    for version, folder in FOLDERS.items():
        assert json.loads((folder / artifact.MANIFEST).read_text())["format_version"] == version


@pytest.mark.parametrize("version", [1, 2, 5, "4", None, 4.5])
def test_of_another_format_it_is_said_what_to_do(version: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDERS[4], folder)
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
    shutil.copytree(FOLDERS[4], tree.model)
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
    np.testing.assert_allclose(scores, [row[2] for row in stored(FOLDERS[4])], rtol=TOLERANCE, atol=TOLERANCE)


if __name__ == "__main__":
    with Path(sys.argv[1], SCORES).open("x", encoding="utf-8", newline="") as written:
        rows = [(*pair, *found) for pair, found in zip(PAIRS, scored(Path(sys.argv[1])), strict=True)]
        csv.writer(written, lineterminator="\n").writerows(rows)
