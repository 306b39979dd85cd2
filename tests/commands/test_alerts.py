"""``ipinsights alerts`` and ``ipinsights explain``, as an analyst calls them."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SMALL, Traffic, to_csv, to_events
from ipinsights.commands.alerts import COLUMNS
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.explanation import explain
from ipinsights.training.fit import fit

pytestmark = pytest.mark.slow


def run(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ipinsights.commands.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, traffic: Traffic) -> Path:
    """A model, and a day's log-ins, of which a hundred are attacks and some are of accounts that training never saw."""
    path = tmp_path_factory.mktemp("walk")
    hp = Hyperparameters.parse(SMALL)
    events = to_events(traffic.train, hp.num_entity_vectors)
    held = Events(events.index.find(traffic.normal.entities), traffic.normal.addresses, events.index)
    artifact.save(fit(events, hp, held), path / "model", {})
    lines = to_csv(traffic.normal).splitlines() + to_csv(traffic.attacks).splitlines()[:100]
    lines += [f"new_{i},10.200.{i}.1" for i in range(30)]
    hours = (f"2026-01-0{1 + i % 2}T{i % 24:02}:{i % 60:02}:00Z" for i in range(len(lines)))
    (path / "latest.csv").write_text("".join(f"{line},{hour}\n" for line, hour in zip(lines, hours, strict=True)))
    return path


def listed(folder: Path, *arguments: str | Path) -> list[dict[str, str]]:
    found = run("alerts", folder / "latest.csv", "--model", folder / "model", "--format", "csv", *arguments)
    assert found.returncode == 0, found.stderr
    return list(csv.DictReader(io.StringIO(found.stdout)))


def test_the_same_list_in_every_format(folder: Path) -> None:
    arguments = ("alerts", folder / "latest.csv", "--model", folder / "model", "--budget", "5")
    text = run(*arguments).stdout
    rows = [json.loads(line) for line in run(*arguments, "--format", "jsonl").stdout.splitlines()]
    table = listed(folder, "--budget", "5")
    assert list(table[0]) == list(COLUMNS)
    assert len(table) == 10  # of two days
    for row, line in zip(rows, table, strict=True):
        assert line["entity_known"] == json.dumps(row["entity_known"])
        assert {name: str(row[name]) for name in COLUMNS if name != "entity_known"} == {
            name: line[name] for name in COLUMNS if name != "entity_known"
        }
        told = re.compile(
            rf"\d  {re.escape(row['entity'])} from {re.escape(row['network'])}(, [^.]*)?\. Score .*\n +(.*)\n"
        )
        assert any(reason == row["reason"] for _, reason in told.findall(text))
    assert "Known accounts: " in text
    assert "Accounts that training never saw: " in text


def test_known_accounts_come_first_and_new_ones_apart(folder: Path) -> None:
    rows = listed(folder)
    known = [row["entity_known"] for row in rows]
    assert set(known) == {"true", "false"}
    assert known == sorted(known, reverse=True)
    assert all(row["entity"].startswith("new_") == (row["entity_known"] == "false") for row in rows)


def test_the_list_is_made_of_what_batch_transform_has_joined(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "latest.csv").read_text().splitlines()
    quoted = [re.sub("^([^,]*)", r'"\1"', line) for line in lines]
    without = [line.rpartition(",")[0] for line in lines]
    for name, before, answers in (
        ("score", lines, ",-3.4797"),
        ("calibrated", quoted, ",-3.4797,0.0099,true,198.51.96.0/20,"),
        ("none", lines, ""),
        ("untimed", without, ",12.0"),
    ):
        output = tmp_path / f"{name}.csv.out"
        output.write_text("".join(f"{line}{answers}\n" for line in before))
        found = run("alerts", "--joined", output, "--model", folder / "model", "--format", "csv", "--budget", "10")
        assert found.returncode == 0, found.stderr
        table = list(csv.DictReader(io.StringIO(found.stdout)))
        if name == "untimed":
            assert {(row["first"], row["last"]) for row in table} == {("", "")}
        else:
            assert table == listed(folder, "--budget", "10")
    refused = run("alerts", tmp_path / "score.csv.out", "--model", folder / "model")
    assert refused.returncode == 1
    assert "score.csv.out, line 1" in refused.stderr


def test_the_second_morning_has_no_repeats(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "looked-at.csv"
    first = listed(folder, "--known", file, "--mark")
    second = listed(folder, "--known", file, "--mark")
    pairs = [{(row["entity"], row["network"]) for row in rows} for rows in (first, second)]
    assert pairs[0]
    assert pairs[1]
    assert not pairs[0] & pairs[1]
    with file.open() as marked:
        assert {tuple(row[:2]) for row in csv.reader(marked)} == pairs[0] | pairs[1]
    said = run("alerts", folder / "latest.csv", "--model", folder / "model", "--known", file).stdout
    assert f"{len(pairs[0] | pairs[1])} were left out, because they were looked at before" in said


def test_log_ins_may_come_through_a_pipe_and_from_a_folder(folder: Path, tmp_path: Path) -> None:
    text = (folder / "latest.csv").read_text()
    lines = text.splitlines(keepends=True)
    (tmp_path / "a.csv").write_text("".join(lines[:500]))
    (tmp_path / "b.csv").write_text("".join(lines[500:]))
    expected = run("alerts", folder / "latest.csv", "--model", folder / "model").stdout
    assert run("alerts", "-", "--model", folder / "model", text=text).stdout == expected
    assert run("alerts", tmp_path, "--model", folder / "model").stdout == expected


def test_malformed_rows_fail_or_are_counted(folder: Path) -> None:
    text = "alice,10.0.0.1\nalice\nbob,nowhere\n"
    failed = run("alerts", "-", "--model", folder / "model", text=text)
    assert failed.returncode == 1
    assert failed.stderr.startswith("ipinsights: standard input, line 2: expected 2 columns")
    skipped = run("alerts", "-", "--model", folder / "model", "--malformed", "skip", text=text)
    assert skipped.returncode == 0
    assert skipped.stderr.startswith("Skipped 2 malformed rows: ")
    assert skipped.stdout.startswith("1 log-in of 1 account: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mark",), "--mark adds to the file of --known: name one"),
        (("--known", "absent.csv"), "cannot read absent.csv"),
        (("--known", "bad.csv"), "bad.csv, line 2: 'bob' is no account and network, such as alice,192.0.2.0/24"),
        (("--budget", "0"), "'0' is not a whole number of at least 1"),
        (("--max-false-alarms", "1"), "'1' is not a share between 0 and 1, such as .001"),
        (("--max-false-alarms", "1e-7"), "too few for a rate of false alarms of 1e-07"),
    ],
)
def test_a_mistake_is_told(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    (folder / "bad.csv").write_text("alice,192.0.2.0/24\nbob\n")
    where = ["alerts", str(folder / "latest.csv"), "--model", str(folder / "model"), *arguments]
    command = [sys.executable, "-c", "from ipinsights.commands.main import main; main()", *where]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_name_cannot_command_a_terminal(folder: Path) -> None:
    found = run("alerts", "-", "--model", folder / "model", text="evil\x1b[2J,10.200.1.1\n")
    assert "\x1b" not in found.stdout
    assert "evil\\x1b[2J from 10.200.1.0/24" in found.stdout


def test_explain_adds_up(folder: Path, traffic: Traffic) -> None:
    entity, address = traffic.attacks.entities[0].as_py(), "203.0.113.9"
    found = json.loads(run("explain", entity, address, "--model", folder / "model", "--json").stdout)
    expected = explain(artifact.load(folder / "model"), entity, address)
    assert found["score"] == expected.score
    assert found["parts"] == expected.parts
    assert sum(found["parts"].values()) == pytest.approx(found["score"], abs=1e-4)
    assert 0 < found["percentile"] <= 1
    assert found["log_ins"] == expected.events == sum(network["log_ins"] for network in found["networks"])
    text = run("explain", entity, address, "--model", folder / "model", "--among", folder / "latest.csv").stdout
    assert found["reason"] in text
    for name, value in found["parts"].items():
        assert re.search(rf"^  {name} +{re.escape(f'{value:+.2f}')}  ", text, re.MULTILINE)
    cosines = [float(value) for value in re.findall(r"^ +(-?[01]\.\d{3})  user_\d+$", text, re.MULTILINE)]
    assert len(cosines) == 5
    assert cosines == sorted(cosines, reverse=True)


def test_explain_knows_whom_it_does_not_know(folder: Path) -> None:
    text = run("explain", "nobody", "10.0.0.1", "--model", folder / "model").stdout
    assert text.startswith("nobody from 10.0.0.1: Training never saw this account; ")
    assert "  prior " in text
    refused = run("explain", "nobody", "10.0.0", "--model", folder / "model")
    assert refused.returncode == 1
    assert refused.stderr.startswith("ipinsights: not an IPv4 address")
