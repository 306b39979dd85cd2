"""The example for Spark, in a Spark of its own: a Java process and Python workers on this machine."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Traffic, Tree
from ipinsights.data import addresses
from ipinsights.data.records import Records
from ipinsights.model.scoring import Scorer

EXAMPLE = Path(__file__).parents[2] / "notebooks" / "spark_scoring.py"
OLDEST_JAVA = 17
"""What Spark 4 runs on."""
STARTS_FAST = "-Dspark.ui.enabled=false -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def java() -> int:
    """The release of the Java that Spark would start; 0 where there is none."""
    command = shutil.which("java", path=os.environ["JAVA_HOME"] + "/bin" if "JAVA_HOME" in os.environ else None)
    if command is None:
        return 0
    printed = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    found = re.search(r'version "(\d+)', printed)
    return int(found[1]) if found else 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed here"),
    pytest.mark.skipif(java() < OLDEST_JAVA, reason=f"there is no Java {OLDEST_JAVA} or later here"),
]


def test_spark_scores_as_we_do(trained: tuple[Tree, object], traffic: Traffic, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(trained[0].model, arcname=".")
    log_ins = tmp_path / "log-ins"
    log_ins.mkdir()
    for name, pairs in (("normal", traffic.normal), ("attacks", traffic.attacks)):
        entities: list[str | None] = pairs.entities.to_pylist()
        texts: list[str | None] = list(addresses.render(pairs.addresses))
        texts[1], texts[2], entities[3], entities[4] = "1.2.3.999", None, None, ""
        place = [f"{name} {i}" for i in range(len(texts))]
        pq.write_table(pa.table({"entity": entities, "ip": texts, "place": place}), log_ins / f"{name}.parquet")

    job = subprocess.run(
        [sys.executable, str(EXAMPLE), "model.tar.gz", "log-ins", "scores"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_SUBMIT_ARGS": f"--master local[2] --driver-java-options '{STARTS_FAST}' pyspark-shell",
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr

    table = pq.read_table(tmp_path / "scores")
    assert table.schema.field("score").type == pa.float32()
    found = dict(zip(table["place"].to_pylist(), table["score"].to_pylist(), strict=True))
    scorer = Scorer.open(trained[0].model)
    for name, pairs in (("normal", traffic.normal), ("attacks", traffic.attacks)):
        scores = [found.pop(f"{name} {i}") for i in range(len(pairs))]
        assert scores[1:5] == [None] * 4
        rest = np.r_[0, 5 : len(pairs)]  # in one piece, as Spark has it: a product of matrices depends on its company
        expected = scorer.score(Records(pairs.entities.take(pa.array(rest)), pairs.addresses[rest]))
        assert [scores[i] for i in rest] == expected.tolist()
    assert not found
