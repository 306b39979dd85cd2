"""Every parser refuses what it cannot read with a message, and nothing else; `fuzz` tries longer than this does."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing import corpus, readers, served
from fuzzing.changes import changed
from fuzzing.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_is_read_or_refused(name: str) -> None:
    for data in [*TARGETS[name].seeds, *corpus.found(name)]:
        TARGETS[name].run(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=20)
@given(data=st.data())
def test_anything_is_read_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name].run(data.draw(changed([*TARGETS[name].seeds, *corpus.found(name)])))


def test_every_file_of_what_was_found_is_that_of_a_target() -> None:
    assert {path.stem for path in corpus.FOUND.iterdir()} <= {*TARGETS, "readers"}


@pytest.mark.slow
def test_the_native_readers_keep_to_their_memory(tmp_path: Path) -> None:
    """What was found once, and a second of fuzzing."""
    program = readers.build(tmp_path)
    if program is None:
        pytest.skip("there is no C++ compiler with sanitizers")
    inputs = corpus.write([*readers.SEEDS, *corpus.found("readers")], tmp_path / "corpus")
    for arguments in (map(str, inputs), ["-max_total_time=1", "corpus"]):
        run = subprocess.run(
            [str(program), *arguments],
            cwd=tmp_path,
            env={**os.environ, **readers.ENVIRONMENT},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.slow
def test_no_changed_request_is_a_fault_of_the_server(tmp_path: Path) -> None:
    statuses, faults = served.ask(tmp_path, 300, seed=0)
    assert faults == []
    assert statuses.total() == 300
    assert min(statuses["200"], statuses["400"]) > 10
