"""With IPINSIGHTS_QUOTE_DATA=false no message has an entity, an address or a row of the data."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import SMALL, Tree
from ipinsights.data.formats import CSV, JSON_LINES
from ipinsights.errors import UserError, quote_data
from ipinsights.sagemaker import media
from ipinsights.sagemaker.access import AccessLog
from ipinsights.sagemaker.app import create_app
from ipinsights.sagemaker.models import ONLY, ModelStore
from ipinsights.sagemaker.settings import ServerSettings, quotes_data

SECRETS = ("alice", "bob", "203.0.113", "secret")
MALFORMED = {
    CSV: 'secret\nbob,secret\nbob,203.0.113.999\nbob,203.0.113.7/24\nsecret,x,y,z\n"secret,1\nalice,::1\n,1.1.1.1\n',
    media.JSON: '{"instances": [["alice", "203.0.113.999"], {"secret": []}, "secret", ["alice"], [1.5, "secret"]]}',
    JSON_LINES: '["alice", "203.0.113.999"]\n{"secret"\n"secret"\n{"features": ["secret", null]}\n',
}


@pytest.fixture
def _unquoted() -> Iterator[None]:
    quote_data(False)
    yield
    quote_data(True)


class Log(AccessLog):
    """Keeps its entries."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)


@pytest.mark.usefixtures("_unquoted")
@pytest.mark.parametrize("content_type", MALFORMED)
@pytest.mark.parametrize("marking", [False, True])
def test_no_answer_and_no_access_log_quotes_what_was_sent(
    content_type: str, marking: bool, trained: tuple[Tree, object]
) -> None:
    models, log = ModelStore(), Log()
    models.load(ONLY, trained[0].model)
    settings = ServerSettings(malformed_rows="mark" if marking else "fail")
    answer = (
        create_app(models, settings, log)
        .test_client()
        .post("/invocations", data=MALFORMED[content_type], content_type=content_type)
    )
    assert answer.status_code == (200 if marking else 400)
    told = answer.get_data(as_text=True) + json.dumps(log.entries, default=str)
    assert "a row " in told
    assert not [secret for secret in SECRETS if secret in told]
    quote_data(True)
    quoted = (
        create_app(models, settings)
        .test_client()
        .post("/invocations", data=MALFORMED[content_type], content_type=content_type)
    )
    assert marking or "secret" in quoted.get_data(as_text=True)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["skip", "header"])
def test_no_log_of_a_job_and_no_failure_quotes_its_data(rows: str, tree: Tree) -> None:
    tree.configure({**SMALL, "epochs": "1", "malformed_rows": "skip" if rows == "skip" else "fail"})
    text = MALFORMED[CSV] if rows != "header" else "secret\talice\t203.0.113.9\n" * 5
    tree.channel(
        "train", **{"a.csv": text + ("alice,203.0.113.7\nbob,203.0.113.7\n" * 1000 if rows != "header" else "")}
    )
    job = tree.train(IPINSIGHTS_QUOTE_DATA="false")
    told = job.stdout + job.stderr + (tree.failure.read_text() if tree.failure.exists() else "")
    assert job.returncode == (rows != "skip"), told
    assert ("a row with too few columns" in told) == (rows == "skip")
    assert ("the busiest address (not shown)" in told) == (rows == "skip")
    assert not [secret for secret in SECRETS if secret in told]


def test_what_the_variable_may_be() -> None:
    assert quotes_data({})
    assert quotes_data({"IPINSIGHTS_QUOTE_DATA": ""})
    assert not quotes_data({"IPINSIGHTS_QUOTE_DATA": "False"})
    with pytest.raises(UserError, match="IPINSIGHTS_QUOTE_DATA='no' must be true or false"):
        quotes_data({"IPINSIGHTS_QUOTE_DATA": "no"})
