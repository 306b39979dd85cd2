import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from conftest import PEAK, Traffic, Tree, bound, to_csv, to_events
from ipinsights.commands import main
from ipinsights.data import addresses
from ipinsights.data.records import parse_csv
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit

pytestmark = pytest.mark.slow


HELP = [
    [],
    *(["simulate"], ["prepare"], ["train"], ["alerts"], ["explain"], ["report"], ["score"], ["evaluate"], ["embed"]),
    ["forget"],
]
"""The help of the command, and of each of its commands."""


COMMANDS = [
    [],
    *(
        [name]
        for name in [
            "simulate",
            "prepare",
            "score",
            "train",
            "alerts",
            "explain",
            "evaluate",
            "report",
            "embed",
            "forget",
        ]
    ),
]


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ipinsights.commands.main import main; main()", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    assert len(result.stdout) > 300


def test_simulate_writes_what_training_reads(tmp_path: Path) -> None:
    result = run("simulate", "--users", "30", "--test-size", "200", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    files = [tmp_path / name for name in ("train/log-ins.csv", "test/normal.csv", "test/attacks.csv")]
    train, normal, attacks = (parse_csv(path.read_bytes()) for path in files)
    assert len(normal) == len(attacks) == 200
    assert set(normal.entities.to_pylist()) <= set(train.entities.to_pylist())
    assert f"{len(train):,} log-ins" in result.stdout


def test_the_walk_of_the_readme_and_of_the_help_works(tmp_path: Path) -> None:
    """Every command of it as it stands, with fewer users."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    own, simulated = re.findall(r"^```\n((?:pip|ipinsights) .*?)^```$", readme, flags=re.DOTALL | re.MULTILINE)[:2]
    after_prepare = [line for line in own.splitlines() if not re.match("pip|ipinsights prepare", line)]
    walk = simulated + "\n".join(after_prepare)
    help_text = run("--help").stdout.partition("A first walk:\n")[2]
    for commands in (walk, help_text):
        assert [line.split()[1] for line in commands.splitlines()] == [
            "simulate",
            "prepare",
            "train",
            "alerts",
            "report",
        ]
        folder = tmp_path / str(len(commands))
        folder.mkdir()
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands.replace("--users 1000", "--users 60")],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "against addresses of others" in result.stdout
        assert "Known accounts: " in result.stdout
        assert "</html>" in (folder / "report.html").read_text()


def test_the_lowest_scores_rank_names_with_commas(trained: tuple[Tree, object]) -> None:
    """The worst log-in comes first, whatever its entity is called. The shell's sort does not read quotes."""
    names = ['"Smith, Bob"', "bob", "NA", "007"]
    text = "".join(f"{name},1.2.{i}.4\n" for i, name in enumerate(names))
    lowest = run("score", "--model", str(trained[0].model), "--lowest", "4", text=text).stdout.splitlines()
    scores = [float(line.rpartition(",")[2]) for line in lowest]
    assert scores == sorted(scores)
    assert {line.rpartition(",")[0].rpartition(",")[0] for line in lowest} == set(names)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_recommends_a_sort_that_reads_no_quotes(command: list[str]) -> None:
    assert "| sort" not in run(*command, "--help").stdout


def test_simulate_draws_from_a_given_table(tmp_path: Path) -> None:
    (tmp_path / "ranges.tsv").write_text("16777216\t16777471\t1\tAU\tX\n50331648\t50331903\t2\tUS\tY\n")
    result = run("simulate", "--users", "5", "--out", str(tmp_path), "--ranges", str(tmp_path / "ranges.tsv"))
    assert result.returncode == 0, result.stderr
    train = parse_csv((tmp_path / "train/log-ins.csv").read_bytes())
    assert set((train.addresses >> 24).tolist()) == {1, 3}


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("second", ['"user,2",5.6.7.8', "user 2,5.6.7.8 \t"])
def test_score_appends_the_score_to_every_line_as_it_stands(
    start: str, second: str, trained: tuple[Tree, object], tmp_path: Path
) -> None:
    text = f"{start}user_1, 1.2.3.4\r\n\n{second}\nNA,9.9.9.9"
    (tmp_path / "log.csv").write_text(text)
    by_file = run("score", "--model", str(trained[0].model), str(tmp_path / "log.csv"))
    by_pipe = run("score", "--model", str(trained[0].model), text=text)
    assert by_file.returncode == by_pipe.returncode == 0, by_file.stderr
    assert by_file.stdout == by_pipe.stdout
    lines = by_file.stdout.splitlines()
    assert [line.rpartition(",")[0] for line in lines] == ["user_1, 1.2.3.4", second, "NA,9.9.9.9"]
    expected = Scorer(artifact.load(trained[0].model)).score(parse_csv(text.encode()))
    np.testing.assert_allclose([float(line.rpartition(",")[2]) for line in lines], expected, atol=1e-5)


def test_score_removes_byte_order_marks(trained: tuple[Tree, object]) -> None:
    text = "\ufeffa,1.2.3.4\nb,1.2.3.4\n\ufeff\n\ufeffa,1.2.3.4\n"
    result = run("score", "--model", str(trained[0].model), text=text)
    lines = result.stdout.splitlines()
    assert [line.rpartition(",")[0] for line in lines] == ["a,1.2.3.4", "b,1.2.3.4", "a,1.2.3.4"]
    assert lines[0] == lines[2]


def test_score_stops_at_a_bad_row_and_names_it(trained: tuple[Tree, object], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,1.2.3.4\nb,1.2.3\n")
    result = run("score", "--model", str(trained[0].model), str(tmp_path / "log.csv"))
    assert result.returncode == 1
    assert "log.csv, line 2" in result.stderr
    assert "'b,1.2.3'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["score", "evaluate"])
@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.TENSORS])
def test_a_file_of_a_model_is_told_to_be_no_folder(command: str, name: str, trained: tuple[Tree, object]) -> None:
    result = run(command, "--model", str(trained[0].model / name), "/dev/null")
    assert result.returncode == 1
    assert f"It is a file of a model: name its folder, {trained[0].model}\n" in result.stderr


def test_packed_files_and_packed_input_are_scored_and_evaluated(trained: tuple[Tree, object], tmp_path: Path) -> None:
    text = "".join(f"u{i},1.2.3.{i}\n" for i in range(100))
    (tmp_path / "log.csv").write_text(text)
    (tmp_path / "packed").write_bytes(gzip.compress(text.encode()))
    command = [sys.executable, "-c", "from ipinsights.commands.main import main; main()"]
    score, evaluate = ([*command, name, "--model", str(trained[0].model)] for name in ("score", "evaluate"))
    evaluate.append("--all")  # the model knows none of these
    for arguments in (score, evaluate):
        outputs = [
            subprocess.check_output([*arguments, tmp_path / name], timeout=120) for name in ("log.csv", "packed")
        ]
        assert outputs[0] == outputs[1]
    plain = subprocess.check_output([*score, tmp_path / "log.csv"], timeout=120)
    assert plain.count(b"\n") == 100
    assert subprocess.check_output(score, input=(tmp_path / "packed").read_bytes(), timeout=120) == plain
    assert subprocess.check_output(score, input=text.encode(), timeout=120) == plain


def test_score_runs_in_constant_memory(trained: tuple[Tree, object], tmp_path: Path) -> None:
    peak = []
    for blocks in (1, 6):
        path = tmp_path / f"{blocks}.csv"
        path.write_text(
            "".join(f"u{i % 1000},{addresses.render(np.array([i * 7919], np.uint32))[0]}\n" for i in range(50_000))
            * 20
            * blocks
        )
        code = (
            "import sys; from ipinsights.commands.main import main\n"
            f"main(['score', '--model', {str(trained[0].model)!r}, {str(path)!r}])\n"
            f"sys.stderr.write(str({PEAK}))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300, check=True
        )
        peak.append(int(result.stderr))
    assert peak[1] < peak[0] * 1.2


def test_evaluate_prints_both_comparisons(
    trained: tuple[Tree, object], traffic: Traffic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "normal.csv").write_text(to_csv(traffic.normal))
    main.main(["evaluate", "--model", str(trained[0].model), str(tmp_path)])
    head, _, random, others, *promises, baselines = capsys.readouterr().out.splitlines()
    assert baselines.startswith("Baselines (longest shared prefix, counting) are left out: they need the training")
    assert "2,000 log-ins" in head
    assert random.startswith("random addresses")
    assert others.startswith("other entities' addresses")
    assert 0.8 < float(random.split()[2]) <= 1
    # The model was calibrated by these very log-ins, each of which counts itself among those that score no higher.
    assert len(promises) == 2
    for line, rate in zip(promises, (10, 1), strict=True):
        assert line.endswith(f": {rate:.2f}% were promised")
        assert 0.8 * rate < float(line.split("%")[0]) <= rate


def test_evaluate_warns_of_log_ins_that_are_not_as_they_were(
    trained: tuple[Tree, object], traffic: Traffic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a third of them are attacks."""
    (tmp_path / "log.csv").write_text(to_csv(traffic.normal) + to_csv(traffic.attacks))
    main.main(["evaluate", "--model", str(trained[0].model), str(tmp_path / "log.csv")])
    printed = capsys.readouterr().out
    assert "log-ins of known entities score below" in printed
    assert printed.splitlines()[-2].startswith("Warning: more than twice or less than half as many log-ins as promised")


def test_evaluate_of_a_model_without_calibration_promises_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = "".join(f"user_{n % 20},{n % 5 + 1}.2.{n % 7}.{n}\n" for n in range(100))
    (tmp_path / "log.csv").write_text(pairs)
    log_ins = parse_csv(pairs.encode())
    events = to_events(log_ins, 50)
    artifact.save(fit(events, Hyperparameters(num_entity_vectors=50, vector_dim=8, epochs=1)), tmp_path / "model", {})
    main.main(["evaluate", "--model", str(tmp_path / "model"), str(tmp_path / "log.csv")])
    assert "promised" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["score", "--model", "/nowhere"], "there is no model in /nowhere"),
        (["simulate", "--users", "0", "--out", "x"], "--users and --test-size must be at least 1"),
        (["simulate", "--ranges", "/nowhere", "--out", "x"], "/nowhere: not a table"),
        (["simulate", "--users", "9", "--out", "/dev/null"], "cannot write to /dev/null/train: Not a directory"),
        (["score", "--model", "/dev/null"], "there is no model in /dev/null"),
        (["forget", "--model", "/nowhere", "user_1"], "cannot change the model in /nowhere: No such file or directory"),
        (["forget", "--model", "/dev/null", "--", "-x"], "there is no model in /dev/null"),
    ],
)
def test_a_fault_of_the_input_is_one_sentence(arguments: list[str], complaint: str) -> None:
    result = run(*arguments)
    assert result.returncode == 1
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_file_is_told(trained: tuple[Tree, object]) -> None:
    result = run("score", "--model", str(trained[0].model), "/nowhere.csv")
    assert result.returncode == 1
    assert result.stderr == "ipinsights: cannot read /nowhere.csv: No such file or directory\n"


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "log.csv", "."])
def test_what_cannot_be_read_is_told_with_what_to_do(name: str, trained: tuple[Tree, object], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained[0].model, model)
    (model / "log.csv").write_text("a,1.2.3.4\n")
    (model / name).chmod(0)
    code = "from ipinsights.commands.main import main; main()"
    for command in ("score", "evaluate"):
        result = subprocess.run(
            [*bound(), sys.executable, "-c", code, command, "--model", str(model), str(model / "log.csv")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 1
        path = model / ("manifest.json" if name == "." else name)
        assert result.stderr.startswith(f"ipinsights: cannot read {path}: Permission denied. Give user ")
        assert result.stderr.count("\n") == 1
    (model / name).chmod(0o755)


def test_a_full_disk_is_told_in_a_sentence(trained: tuple[Tree, object], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,1.2.3.4\n")
    (tmp_path / "long.csv").write_text("a,1.2.3.4\n" * 300_000)
    code = "from ipinsights.commands.main import main; main()"
    for *command, name in (("score", "log.csv"), ("score", "long.csv"), ("evaluate", "--all", "log.csv")):
        with Path("/dev/full").open("w") as full:
            result = subprocess.run(
                [sys.executable, "-c", code, *command, "--model", str(trained[0].model), str(tmp_path / name)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        assert result.returncode == 1
        said = "ipinsights: cannot write to standard output: No space left on device. Free some, or use a larger volume"
        assert result.stderr.startswith(said)
        assert result.stderr.count("\n") == 1
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "log-ins.csv").symlink_to("/dev/full")
    result = run("simulate", "--users", "9", "--out", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith(f"ipinsights: cannot write to {tmp_path}/train: No space left on device. Free some")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_a_sentence(trained: tuple[Tree, object]) -> None:
    """While `score` waits for its input: it has loaded the model when the first scores come."""
    code = "from ipinsights.commands.main import main; main()"
    command = [sys.executable, "-c", code, "score", "--model", str(trained[0].model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"a,1.2.3.4\n" * 420_000)  # one block, and little more
        process.stdin.flush()
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        rest = threading.Thread(target=process.stdout.read)
        rest.start()
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
        rest.join()
        said = process.stderr.read()
    assert said == b"ipinsights: interrupted, so what it has written is incomplete\n"


@pytest.mark.parametrize(
    ("text", "reason"), [("a,1.2.3.4\na,1.2.3.5\n", "one entity"), ("a,1.2.3.4\nb,1.2.3.4\n", "uses every address")]
)
def test_evaluate_says_what_it_cannot_compare(
    text: str, reason: str, trained: tuple[Tree, object], tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text(text)
    result = run("evaluate", "--all", "--model", str(trained[0].model), str(tmp_path / "log.csv"))
    assert result.returncode == 0
    last = result.stdout.splitlines()[-1]
    assert last.startswith("other entities' addresses: not compared, since there are none in these log-ins: ")
    assert last.endswith(reason)


def test_a_reader_that_leaves_is_no_error(trained: tuple[Tree, object], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,1.2.3.4\n" * 200_000)
    score = f"{sys.executable} -c 'from ipinsights.commands.main import main; main()' score --model {trained[0].model}"
    command = f"{score} {tmp_path}/log.csv | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.startswith("a,1.2.3.4,")
    assert result.stderr == ""
