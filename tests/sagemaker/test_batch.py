"""Batch Transform as the platform does it: a file is cut at line ends, its parts are posted, answers put together.

Rules: https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from conftest import Server, Traffic, Tree, to_csv, until
from ipinsights.data.addresses import IPV4, IPV6, Family
from ipinsights.data.malformed import MalformedRecords
from ipinsights.data.records import parse_csv
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker import media

CSV, JSON, JSON_LINES = "text/csv", "application/json", "application/jsonlines"


@pytest.fixture(scope="module")
def batch(trained: tuple[Tree, object]) -> Iterator[Server]:
    with Server(trained[0], SAGEMAKER_BATCH="true") as server:
        yield server


@pytest.fixture(scope="module")
def marking(trained: tuple[Tree, object]) -> Iterator[Server]:
    with Server(trained[0], SAGEMAKER_BATCH="true", IPINSIGHTS_MALFORMED_ROWS="mark") as server:
        yield server


@pytest.fixture(scope="module")
def scorer(trained: tuple[Tree, object]) -> Scorer:
    return Scorer.open(trained[0].model)


def transform(server: Server, text: str, content_type: str, accept: str, strategy: str, assemble: str) -> str:
    """The output file of an input file, SplitType Line. Parts have 20 lines at most here, for 6 MB."""
    assert requests.get(f"{server.url}/execution-parameters", timeout=30).json()["BatchStrategy"] == "MULTI_RECORD"
    lines = iter(text.splitlines(keepends=True))
    answers = []
    while part := list(itertools.islice(lines, 1 if strategy == "SingleRecord" else 20)):
        answer = server.post("".join(part), content_type, accept)
        assert answer.status_code == 200, answer.text
        answers.append(answer.text)
    return "".join(answers) if assemble == "None" else "".join(f"{answer}\n" for answer in answers)


@pytest.mark.parametrize("strategy", ["MultiRecord", "SingleRecord"])
@pytest.mark.parametrize("assemble", ["None", "Line"])
@pytest.mark.parametrize("accept", [CSV, JSON_LINES])
@pytest.mark.parametrize("content_type", [CSV, JSON_LINES])
def test_what_is_assembled_has_a_line_a_row(
    batch: Server, scorer: Scorer, traffic: Traffic, content_type: str, accept: str, assemble: str, strategy: str
) -> None:
    rows = [line.split(",") for line in to_csv(traffic.normal).splitlines()[:101]]
    instances = (json.dumps({"features": row, "id": i}) for i, row in enumerate(rows))
    text = "\n".join(map(",".join, rows) if content_type == CSV else instances)
    output = transform(batch, text, content_type, accept, strategy, assemble)
    lines = [line for line in output.splitlines() if line]
    found = [float(line) if accept == CSV else json.loads(line)["dot_product"] for line in lines]
    assert found == scorer.score(parse_csv("\n".join(map(",".join, rows)).encode())).tolist()


def test_csv_is_joined_with_its_scores(batch: Server, scorer: Scorer) -> None:
    """JoinSource=Input with InputFilter=$[1:2]: the job's rows have an id in front, and get the answer's columns."""
    text = 'id-1,user_1,1.2.3.4\nid-2,"user,2",5.6.7.8\nid-3,NA, 9.9.9.9\n'
    rows = list(csv.reader(io.StringIO(text)))
    filtered = io.StringIO()
    csv.writer(filtered, lineterminator="\n").writerows(row[1:3] for row in rows)
    answer = batch.post(filtered.getvalue(), CSV, CSV)
    scores = [row for row in csv.reader(io.StringIO(answer.text)) if row]
    joined = [[*row, *columns] for row, columns in zip(rows, scores, strict=True)]
    expected = scorer.score(parse_csv(filtered.getvalue().encode())).tolist()
    assert [(row[0], float(row[3])) for row in joined] == list(zip(["id-1", "id-2", "id-3"], expected, strict=True))


def test_json_lines_are_joined_with_their_scores(batch: Server, scorer: Scorer) -> None:
    """JoinSource=Input adds the answer to an object under a key, and pairs it with what is not an object."""
    lines = ['{"features":["user_1","1.2.3.4"],"when":"2026-01-01"}', '["user_2","5.6.7.8"]']
    answer = batch.post("\n".join(lines), JSON_LINES, JSON_LINES)
    scores = [json.loads(line) for line in answer.text.splitlines()]
    joined: list[Any] = []
    for record, score in zip(map(json.loads, lines), scores, strict=True):
        is_object = isinstance(record, dict)
        joined.append(record | {"SageMakerOutput": score} if is_object else {"SageMakerInput": record} | score)
    expected = scorer.score(parse_csv(b"user_1,1.2.3.4\nuser_2,5.6.7.8")).tolist()
    assert joined[0]["when"] == "2026-01-01"
    assert [joined[0]["SageMakerOutput"]["dot_product"], joined[1]["dot_product"]] == expected


def test_a_malformed_row_fails_the_request_unless_marks_are_asked_for(batch: Server, marking: Server) -> None:
    text = "user_1,1.2.3.4\nuser_2,1.2.3\n\nuser_3\nuser_4,5.6.7.8\n"
    assert batch.post(text).status_code == 400
    answer = marking.post(text)
    assert answer.status_code == 200
    first, second, third, fourth = answer.json()["predictions"]
    assert isinstance(first["dot_product"], float)
    assert isinstance(fourth["dot_product"], float)
    assert second["dot_product"] is None
    assert "4 octets" in second["error"]
    assert third == {"dot_product": None, "error": "expected 2 columns (entity, IPv4 address), found 1"}
    until(lambda: any("malformed_rows" in entry for entry in marking.entries()))
    counted = [entry for entry in marking.entries() if "malformed_rows" in entry]
    assert [(entry["rows"], entry["malformed_rows"]) for entry in counted] == [(4, 2)]
    assert "line 2: " in counted[0]["error"]
    assert counted[0]["malformed_kinds"] == {"no_address": 1, "too_few": 1}


def test_marks_name_the_kind_and_the_remedy(marking: Server) -> None:
    answer = marking.post("u,-\nu,::1\nu,s3.amazonaws.com\nu,1.2.3.4:443\n" + "x" * (1 << 21))
    placeholder, ipv6, service, port, long = answer.json()["predictions"]
    assert placeholder["error"] == "not an IPv4 address: a placeholder"
    assert ipv6["error"] == (
        "not an IPv4 address: an IPv6 address. To read IPv6 addresses, train with the hyperparameter ip_version=6"
    )
    assert service["error"] == "not an IPv4 address: the name of an AWS service"
    assert isinstance(port["dot_product"], float)
    assert long["error"] == "the line is longer than 1 MB (1,048,576 bytes)"


BAD = {
    CSV: ["x", "a,b,c", "a,1.2.3", ",1.2.3.4", '"a,1.2.3.4', "a,::1", "\x00,\x00"],
    JSON_LINES: [
        "{",
        '{"features": ["a"]}',
        '{"features": ["a", 7]}',
        '["a", "1.2.3"]',
        "7",
        '{"features": ["", "1.2.3.4"]}',
    ],
}


@pytest.mark.parametrize("verbose", ["", ";verbose=True"])
@pytest.mark.parametrize("accept", [CSV, JSON, JSON_LINES])
@pytest.mark.parametrize("content_type", [CSV, JSON_LINES, JSON])
def test_marks_stand_where_the_rows_stand(
    marking: Server, scorer: Scorer, content_type: str, accept: str, verbose: str
) -> None:
    bad = BAD[CSV] if content_type == CSV else BAD[JSON_LINES]
    if content_type == JSON:
        bad = [line for line in bad if line != "{"]
    good_line = "{},{}".format if content_type == CSV else '["{}", "{}"]'.format
    rows: list[tuple[str, bool]] = []
    for i, wrong in enumerate([*bad, *bad]):
        rows += [(wrong, False)] * (i % 3) + [(good_line(f"user_{i}", f"1.2.3.{i}"), True)] * (i % 2)
    lines = [line for line, _ in rows]
    body = '{"instances":[' + ",".join(lines) + "]}" if content_type == JSON else "\n".join(lines)
    answer = marking.post(body, content_type, accept + verbose)
    assert answer.status_code == 200, answer.text
    predictions = _predictions(answer.text, accept)
    good = [i for i, (_, is_good) in enumerate(rows) if is_good]
    expected = scorer.score(parse_csv("\n".join(f"user_{i},1.2.3.{i}" for i in range(2 * len(bad)) if i % 2).encode()))
    assert [predictions[i]["dot_product"] for i in good] == pytest.approx(expected.tolist(), abs=1e-6)
    for i, prediction in enumerate(predictions):
        if i not in good:
            assert math.isnan(prediction["dot_product"]) if accept == CSV else prediction["error"]
    assert len(predictions) == len(rows)
    if accept == CSV:
        assert len({line.count(",") for line in answer.text.splitlines()}) == 1


def _predictions(text: str, accept: str) -> list[dict[str, Any]]:
    if accept == JSON:
        return list(json.loads(text)["predictions"])
    if accept == JSON_LINES:
        return [json.loads(line) for line in text.splitlines()]
    return [{"dot_product": float(line.partition(",")[0])} for line in text.splitlines()]


def test_a_request_of_bad_rows_alone_is_all_marks(marking: Server) -> None:
    assert marking.post("x\ny\n", accept=CSV).text == "nan\nnan\n"
    assert _predictions(marking.post("{\n", JSON_LINES, JSON).text, JSON)[0]["dot_product"] is None
    assert marking.post("{", JSON).status_code == 400, "it has no rows to mark"


@given(
    st.lists(
        st.sampled_from(["user_1,1.2.3.4", "user_2,5.6.7.8", "NA,::ffff:1.2.3.4", *BAD[CSV], "", " ", "a,1.2.3.4\rb,x"])
        | st.text('ab,1.:" \t', max_size=12),
        max_size=12,
    ),
    st.sampled_from([IPV4, IPV6]),
)
def test_every_line_of_csv_has_its_row(lines: list[str], family: Family) -> None:
    """Read together, each is what it is alone."""
    together = media.read(CSV, "\n".join(lines).encode(), family)
    alone = [media.read(CSV, line.encode(), family) for line in lines]
    reasons = [rows.faults[i].reason if i in rows.faults else None for rows in alone for i in range(len(rows))]
    assert len(together) == len(reasons)
    assert {i: fault.reason for i, fault in together.faults.items()} == {i: r for i, r in enumerate(reasons) if r}
    assert together.pairs.digests.tolist() == [digest for rows in alone for digest in rows.pairs.digests.tolist()]


def test_a_line_is_a_row_whatever_its_quotes() -> None:
    """A field cannot hold a line break, so a join has a row for every line."""
    rows = media.read(CSV, b'"a\nb",1.2.3.4\nc,1.2.3.4', IPV4)
    assert len(rows) == 3
    with pytest.raises(MalformedRecords, match="line 1: a quote is not closed"):
        raise rows.error
