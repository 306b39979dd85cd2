"""The command as a process, on made logs, on simulated ones and on real ones."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from conftest import Tree
from logs.reading import write
from logs.test_access import line as access_line
from logs.test_sshd import accepted
from logs.test_sshd import line as sshd_line

pytestmark = pytest.mark.slow


def run(*arguments: str | Path, text: str | bytes = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ipinsights.commands.main import main; main()", *map(str, arguments)]
    data = text.encode() if isinstance(text, str) else text
    result = subprocess.run(
        command, input=data, capture_output=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    return subprocess.CompletedProcess(command, result.returncode, result.stdout.decode(), result.stderr.decode())


def real(name: str) -> Path:
    """A file of real data."""
    folder = os.environ.get("IPINSIGHTS_DATA")
    if not folder:
        pytest.skip("IPINSIGHTS_DATA names no folder with real logs")
    path = Path(folder, name)
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path


def test_a_simulated_log_becomes_the_simulated_log_ins(tmp_path: Path) -> None:
    made, out = tmp_path / "made", tmp_path / "out"
    simulated = run("simulate", "--users", "40", "--test-size", "500", "--log", "--out", made)
    assert simulated.returncode == 0, simulated.stderr
    options = ["--resource", "GET /login_success", "--status", "200", "--split", "7d:1d:2d"]
    prepared = run("prepare", made / "access.log", *options, "--out", out)
    assert prepared.returncode == 0, prepared.stderr
    found = {
        part: [line.rpartition(",")[0] for line in (out / part / "log-ins.csv").read_text().splitlines()]
        for part in ("train", "validation", "latest")
    }
    assert found["train"] == (made / "train/log-ins.csv").read_text().splitlines()
    later = Counter(found["validation"] + found["latest"])
    drawn = Counter(line for name in ("validation/log-ins", "test/normal") for line in lines(made / f"{name}.csv"))
    assert drawn <= later
    assert "requests for other resources" in prepared.stdout
    assert "requests with another status" in prepared.stdout


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_what_is_prepared_is_scored_by_a_model_trained_on_it(tmp_path: Path, tree: Tree) -> None:
    text = "".join(access_line(f"user{i % 20}", f"192.0.{i % 20}.{i % 5}") for i in range(2_000))
    out = tmp_path / "out"
    assert run("prepare", write(tmp_path, text), "--split", "none", "--out", out).returncode == 0
    pairs = [line.rpartition(",")[0] for line in lines(out / "log-ins.csv")]
    tree.configure({"num_entity_vectors": "40", "vector_dim": "8", "epochs": "1", "mini_batch_size": "100"})
    tree.channel("train", **{"log-ins.csv": "\n".join(pairs)})
    job = tree.train()
    assert job.returncode == 0, job.stdout + job.stderr
    assert run("score", "--model", tree.model, text="\n".join(pairs)).stdout.count("\n") == 2_000


def test_standard_input_and_its_compression(tmp_path: Path) -> None:
    path = write(tmp_path, access_line(), name="access.gz")
    result = run("prepare", "-", "--out", tmp_path / "out", "--split", "none", text=path.read_bytes())
    assert result.returncode == 0, result.stderr
    assert "standard input: access, 1 log-in\n" in result.stdout
    assert lines(tmp_path / "out/log-ins.csv") == ["alice,192.0.2.7,2026-01-02T02:04:05Z"]


def test_a_machine_may_know_no_time_zones(tmp_path: Path) -> None:
    path = write(tmp_path, sshd_line(accepted()))
    assert run("prepare", path, "--out", tmp_path / "out", PYTHONTZPATH="").returncode == 0


def test_no_bar_where_nobody_looks(tmp_path: Path) -> None:
    result = run("prepare", write(tmp_path, access_line()), "--out", tmp_path / "out")
    assert all(line.startswith("Note: ") for line in result.stderr.splitlines())


def test_what_a_log_holds_cannot_command_a_terminal(tmp_path: Path) -> None:
    name = "some\x1b[2J.log"
    text = access_line() * 3 + "\x1b]0;owned\x07\n"
    result = run("prepare", write(tmp_path, text, name=name), "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "line 4: not a line of an access log, in '\\x1b]0;owned\\x07'" in result.stdout
    refused = run("prepare", write(tmp_path, "\x1b]0;owned\x07\n", name=name), "--out", tmp_path / "more")
    assert refused.returncode == 1
    assert not {"\x1b", "\x07"} & {*result.stdout, *result.stderr, *refused.stdout, *refused.stderr}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "8:2"], "--split is '8:2': it must be three shares"),
        (["--time-zone", "Mars/Olympus"], "--time-zone is 'Mars/Olympus': it must be a name that this machine knows"),
        (["--time-zone", "../etc"], "--time-zone is '../etc'"),
        (["--where", "result"], "--where is 'result': it must be a column and its value, such as result=success"),
        (["--year", "12"], "--year is 12: it must be from 1970 on"),
        (["gone.log"], "cannot read gone.log: No such file or directory"),
        (["--format", "okta"], "1 of 1 rows are malformed"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path: Path, options: list[str], message: str) -> None:
    result = run("prepare", write(tmp_path, sshd_line(accepted())), *options, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("ipinsights: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    result = run("prepare", tmp_path / "logs", "--out", tmp_path / "out")
    assert "logs holds no files with data" in result.stderr


def test_the_real_log_of_sshd(tmp_path: Path) -> None:
    result = run("prepare", real("sshd_auth.log"), "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "225 log-ins of 11 entities from 3 addresses (3 IPv4, 0 IPv6)" in result.stdout
    assert "log-ins from the machine itself" in result.stdout
    assert "3 addresses: too few" in result.stderr
    assert "name no year" in result.stderr
    year = run("prepare", real("sshd_auth.log"), "--year", "2017", "--out", tmp_path / "more")
    assert "2017-03-27T13:08:09Z to 2017-04-20T14:14:29Z" in year.stdout


def test_the_real_access_log_names_no_users(tmp_path: Path) -> None:
    result = run("prepare", real("apache_access.log.gz"), "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "requests without a user" in result.stdout
    assert "An access log names users only where the server itself authenticates them" in result.stderr


def test_the_real_cloudtrail_lasts_an_hour(tmp_path: Path) -> None:
    archive = real("cloudtrail.tar.gz")
    refused = run("prepare", archive, "--out", tmp_path / "none")
    assert "looks like a tar archive: unpack or convert it" in refused.stderr
    subprocess.run(["tar", "-xzf", archive, "-C", tmp_path], check=True)
    console = run("prepare", tmp_path / "CloudTrail", "--out", tmp_path / "console")
    assert "2 log-ins of 2 entities" in console.stdout
    assert "--cloudtrail all" in console.stderr
    calls = run("prepare", tmp_path / "CloudTrail", "--cloudtrail", "all", "--out", tmp_path / "all")
    assert "2,546 log-ins of 10 entities from 7 addresses" in calls.stdout
    assert "rows with a placeholder for an address" in calls.stdout  # AWS Internal
    assert "cover 0.8 hours. A model of habits needs days" in calls.stderr


def test_a_real_table(tmp_path: Path) -> None:
    path = real("tor_relay_ip_events_a.csv.gz")
    unknown = run("prepare", path, "--out", tmp_path / "none")
    assert "They have the names 'timestamp', 'fingerprint', 'ip', 'kind'. Name them: --entity COLUMN" in unknown.stderr
    result = run("prepare", path, "--entity", "fingerprint", "--split", "none", "--out", tmp_path / "out")
    assert "71,808 log-ins" in result.stdout
    assert len(lines(tmp_path / "out/log-ins.csv")) == 71_808
