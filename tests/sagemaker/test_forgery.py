"""Whoever writes a row, names a file or sets a hyperparameter cannot print a metric."""

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SMALL, Tree
from ipinsights.sagemaker import reporting
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS, defused

pytestmark = pytest.mark.slow

FORGED = [re.sub(r"\(?\\S\+\)?", "9", pattern) for pattern in METRIC_DEFINITIONS.values()]
"""A line that each expression matches."""
LINE = "\n[11/27/2026 00:00:00 INFO 1] "


def matches(text: str) -> list[str]:
    return [name for name, pattern in METRIC_DEFINITIONS.items() if re.search(pattern, text)]


def check(tree: Tree, code: int, **environment: str) -> str:
    """No expression matches anything but the true values of a job that succeeds, and no line is broken."""
    job = tree.train(**environment)
    assert job.returncode == code, job.stdout + job.stderr
    for pattern in METRIC_DEFINITIONS.values():
        values = re.findall(pattern, job.stdout)
        assert not values or not code
        assert not [value for value in values if re.fullmatch(r"9\D*", value)]
        assert not re.search(pattern, job.stderr)
    assert not [line for line in job.stdout.splitlines() if line.startswith(LINE.strip())]
    assert not code or not matches(tree.failure.read_text())
    return job.stdout + job.stderr


@pytest.fixture
def tree(tree: Tree) -> Tree:
    """A small job that would succeed."""
    tree.configure(SMALL)
    tree.channel("train", **{"a.csv": "u,1.2.3.4\nv,5.6.7.8\n" * 500})
    return tree


def test_each_expression_is_forged_here() -> None:
    assert [matches(line) for line in FORGED] == [[name] for name in METRIC_DEFINITIONS]


@given(st.lists(st.sampled_from([*FORGED, "\n", "#", "\\", " ", "\x1b[2J", "\u2028", "x", "\t"]), max_size=6))
def test_no_expression_matches_what_is_defused_and_it_is_one_line(parts: list[str]) -> None:
    text = "".join(parts)
    assert not matches(defused(text))
    assert len(defused(text).splitlines()) <= 1
    assert defused(defused(text)) == defused(text)


@pytest.mark.parametrize("row", ["{}", "u,{}", '"{}'])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_rows_forge_nothing(policy: str, row: str, tree: Tree) -> None:
    """The shortest fit into what is quoted of a row."""
    forged = sorted(FORGED, key=len)[:3]
    tree.channel("train", **{"b.csv": "".join(row.format(line) + "\n" for line in forged)})
    tree.configure({**SMALL, "malformed_rows": policy})
    assert "malformed" in check(tree, int(policy == "fail"))


def test_file_and_folder_names_forge_nothing(tree: Tree) -> None:
    folder = tree.channel("train")
    for line in FORGED:
        path = folder / (LINE + line)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("u,nowhere\n")
    check(tree, 1)
    tree.configure({**SMALL, "malformed_rows": "skip"})
    check(tree, 0)
    (folder / (LINE + FORGED[-2])).write_bytes(b"\x1f\x8b\x08 no gzip")
    check(tree, 1)
    (folder / (LINE + FORGED[-2])).unlink()
    (folder / (LINE + FORGED[-2])).symlink_to("gone")
    check(tree, 1)


def test_channels_forge_nothing(tree: Tree) -> None:
    for line in FORGED:
        tree.channel((LINE + line).replace("/", ""), **{"a.csv": ""}).mkdir(exist_ok=True)
    tree.configure(SMALL, inputdataconfig={FORGED[-1]: {}})
    assert "Ignored unknown channels" in check(tree, 0)
    tree.configure(SMALL, inputdataconfig={"train": {"ContentType": FORGED[-2]}})
    check(tree, 1)
    tree.configure(SMALL, inputdataconfig={"train": {"RecordWrapperType": LINE + FORGED[-2]}})
    check(tree, 1)
    tree.configure(SMALL, inputdataconfig={"model": {}})
    tree.channel("model", **{"m__" + (LINE + FORGED[-2]) + ".tar.gz": "none"})
    check(tree, 1)


def test_hyperparameters_and_hosts_forge_nothing(tree: Tree) -> None:
    line = LINE + FORGED[8]
    for name, value in (("epochs", line), ("malformed_rows", FORGED[8]), (line, "1"), (f"sagemaker_{line}", line)):
        tree.configure({**SMALL, name: value})
        check(tree, 0 if name.startswith("sagemaker_") else 1)
    tree.configure(SMALL, resourceconfig={"current_host": f"a {FORGED[8]}", "hosts": ["a"]})
    assert "current_host" in check(tree, 1)


def test_under_the_toolkit_neither(tree: Tree) -> None:
    pytest.importorskip("sagemaker_training", reason="the sagemaker-training toolkit is not installed (extra: toolkit)")
    files = {
        "inputdataconfig": {"train": {"TrainingInputMode": "File"}},
        "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"},
    }
    toolkit = {"SAGEMAKER_TRAINING_MODULE": "ipinsights.sagemaker.job:train"}
    tree.configure({**SMALL, "epochs": LINE + FORGED[8]}, **files)
    check(tree, 1, **toolkit)


def test_a_long_failure_keeps_its_beginning_and_its_end(tree: Tree) -> None:
    tree.configure({**SMALL, **{f"unknown_{number}": "1" for number in range(60)}, "epochs": "9" * 2400})
    check(tree, 1)
    text = tree.failure.read_text()
    assert len(text) <= 1024
    assert text.startswith("ClientError: Invalid hyperparameters: ")
    assert text.endswith("is unknown")
    assert " ... " in text


def _fail() -> None:
    raise RuntimeError(LINE + FORGED[8])


def test_a_traceback_forges_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ipinsights")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        reporting.configure_logging()
        with pytest.raises(RuntimeError) as caught:
            _fail()
        logger.error("Internal error", exc_info=caught.value)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    printed = capsys.readouterr().out
    assert "Traceback" in printed
    assert len(printed.splitlines()) > 3
    assert not matches(printed)
