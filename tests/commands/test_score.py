"""``ipinsights score`` on files as they are: with other columns, malformed rows, several at a time."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import Traffic, Tree, to_csv
from ipinsights.data.records import parse_csv
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer

pytestmark = pytest.mark.slow


@pytest.fixture
def model(trained: tuple[Tree, object]) -> Path:
    return trained[0].model


def run(model: Path, *arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from ipinsights.commands.main import main; main()",
        "score",
        "--model",
        str(model),
    ]
    given = [*command, *map(str, arguments)]
    return subprocess.run(given, input=text, capture_output=True, text=True, timeout=120, check=False)


def expected(model: Path, text: str) -> list[float]:
    scores: list[float] = Scorer(artifact.load(model)).score(parse_csv(text.encode())).tolist()
    return scores


HEADED = 'when,"user name",client_ip,result\n9:00,"Smith, ""Bob""",1.2.3.4,ok\n9:01,user_1,5.6.7.8,"no, never"\n'


def test_other_columns_are_kept(model: Path) -> None:
    scored = run(model, "--header", text=HEADED)
    assert scored.returncode == 0, scored.stderr
    assert [line.rpartition(",")[0] for line in scored.stdout.splitlines()] == HEADED.splitlines()
    rows = list(csv.DictReader(io.StringIO(scored.stdout)))
    wanted = expected(model, '"Smith, ""Bob""",1.2.3.4\nuser_1,5.6.7.8\n')
    np.testing.assert_allclose([float(row["score"]) for row in rows], wanted, atol=1e-5)
    named = run(model, "--header", "--entity", "when", "--address", "client_ip", "--json", text=HEADED)
    objects = [json.loads(line) for line in named.stdout.splitlines()]
    assert [{name: row[name] for name in ("when", "user name", "client_ip", "result")} for row in objects] == list(
        csv.DictReader(io.StringIO(HEADED))
    )
    np.testing.assert_allclose(
        [row["score"] for row in objects], expected(model, "9:00,1.2.3.4\n9:01,5.6.7.8\n"), atol=1e-5
    )


def test_several_files_and_folders_are_scored_in_order(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, row in (("folder/b.csv", "b,1.2.3.4"), ("folder/a.csv", "a,1.2.3.4"), ("c.csv", "c,1.2.3.4")):
        (tmp_path / name).write_text(f"entity,ip\n{row}\n")
    scored = run(model, "--header", tmp_path / "folder", tmp_path / "c.csv")
    assert [line.split(",")[0] for line in scored.stdout.splitlines()] == ["entity", "a", "b", "c"]
    (tmp_path / "c.csv").write_text("entity,other,ip\nc,x,1.2.3.4\n")
    refused = run(model, "--header", tmp_path / "folder", tmp_path / "c.csv")
    assert refused.returncode == 1
    assert "c.csv has the columns ['entity', 'other', 'ip'], and a file before ['entity', 'ip']" in refused.stderr


def test_malformed_rows_fail_or_are_skipped_or_marked(model: Path) -> None:
    text = "a,1.2.3.4\nb,nowhere\n\nc\nd,5.6.7.8\n"
    wanted = expected(model, "a,1.2.3.4\nd,5.6.7.8\n")
    failed = run(model, text=text)
    assert failed.returncode == 1
    assert "standard input, line 2" in failed.stderr
    for policy, lines in (("skip", ["a,1.2.3.4", "d,5.6.7.8"]), ("mark", ["a,1.2.3.4", "b,nowhere", "c", "d,5.6.7.8"])):
        scored = run(model, "--malformed", policy, text=text)
        assert scored.returncode == 0
        assert [line.rpartition(",")[0] for line in scored.stdout.splitlines()] == lines
        assert "2 malformed rows: " in scored.stderr
        scores = np.array([float(line.rpartition(",")[2]) for line in scored.stdout.splitlines()])
        np.testing.assert_allclose(scores[~np.isnan(scores)], wanted, atol=1e-5)
    marked = [json.loads(line) for line in run(model, "--malformed", "mark", "--json", text=text).stdout.splitlines()]
    assert [row["score"] is None for row in marked] == [False, True, True, False]
    headed = run(model, "--header", "--malformed", "mark", text="user,ip,x\na,1.2.3.4,\nb,1.2.3.4\nc,nowhere,\n")
    assert [line.endswith(",nan") for line in headed.stdout.splitlines()] == [False, False, True, True]
    said = run(model, "--header", text="user,ip,x\na,1.2.3.4,\nb,1.2.3.4\n").stderr
    assert "standard input, line 3: the line has 2 columns, and the header 3, in 'b,1.2.3.4'" in said


def test_the_lowest_come_first(model: Path, traffic: Traffic, tmp_path: Path) -> None:
    text = to_csv(traffic.normal) + to_csv(traffic.attacks)
    scored = run(model, text=text).stdout.splitlines()
    ranked = sorted(scored, key=lambda line: float(line.rpartition(",")[2]))
    lowest = run(model, "--lowest", "25", text=text).stdout.splitlines()
    assert [line.rpartition(",")[2] for line in lowest] == [line.rpartition(",")[2] for line in ranked[:25]]
    assert set(lowest) <= set(scored)
    headed = run(
        model, "--lowest", "2", "--header", "--malformed", "mark", text=HEADED + "x,y,z,\n"
    ).stdout.splitlines()
    assert len(headed) == 3
    assert headed[0].endswith(",score")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--entity", "user"), "--entity and --address name columns of a header: add --header"),
        (
            ("--header", "--entity", "nobody"),
            "has no column 'nobody'; it has ['when', 'user name', ",
        ),
        (("--lowest", "0"), "'0' is not a whole number of at least 1"),
    ],
)
def test_a_mistake_is_told(model: Path, arguments: tuple[str, ...], said: str) -> None:
    refused = run(model, *arguments, text=HEADED)
    assert refused.returncode != 0
    assert said in refused.stderr
    refused = run(model, "--header", text="a,b\nx,1.2.3.4\n")
    assert "has no column whose name tells the entity; it has ['a', 'b']. Name it with --entity" in refused.stderr
