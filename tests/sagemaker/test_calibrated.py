"""`calibrated=True` and `explain=True` on the wire: how unusual a score is, and why it is what it is."""

import csv
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from conftest import Server, Tree
from ipinsights.data.addresses import IPV4
from ipinsights.data.malformed import Fault
from ipinsights.data.records import parse_csv
from ipinsights.errors import UserError
from ipinsights.model import artifact, scoring
from ipinsights.model.calibration import RATES
from ipinsights.model.explanation import PARTS, explain
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker import media
from ipinsights.sagemaker.app import _predict
from ipinsights.sagemaker.settings import ServerSettings

BODY = "user_1,192.168.1.2\nuser_2,10.10.1.2\nnever_seen,10.10.1.2\nnever_seen,223.255.255.255\nuser_3,0.0.0.9"
PAIRS = [line.split(",") for line in BODY.splitlines()]


@pytest.fixture(scope="module")
def model(trained: tuple[Tree, object]) -> Model:
    return artifact.load(trained[0].model)


def answered(model: Model, accept: str, rate: float | None = None, body: str = BODY) -> str:
    scorer, writer = Scorer(model), media.writer(accept)
    rows = media.read("text/csv", body.encode(), scorer.family)
    text = writer.write(_predict(scorer, rows.pairs, writer, rate), rows, scorer.vector_dim, rate is not None)
    whole = b"".join(text.pieces)
    assert text.size == len(whole)
    return whole.decode()


def predictions(model: Model, rate: float | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(answered(model, "application/json;calibrated=True", rate))["predictions"]
    return found


def test_a_prediction_says_how_unusual_it_is_and_what_is_known(model: Model, either_way: None) -> None:
    assert model.calibration is not None
    plain = json.loads(answered(model, "application/json"))["predictions"]
    for (entity, address), found, expected in zip(PAIRS, predictions(model), plain, strict=True):
        assert list(found) == ["dot_product", "percentile", "entity_known", "network_known"]
        assert found["dot_product"] == expected["dot_product"]
        assert found["entity_known"] == (entity != "never_seen")
        score = np.array([found["dot_product"]], np.float32)
        known = np.array([found["entity_known"]])
        assert found["percentile"] == model.calibration.percentile(score, known)[0]
        assert 0 < found["percentile"] <= 1
        networks = explain(model, entity, address).networks
        assert found["network_known"] == (networks[0].network if networks else None)
    assert {found["network_known"] is None for found in predictions(model)} == {True, False}


def test_all_formats_say_the_same(model: Model, either_way: None) -> None:
    expected = predictions(model, 0.1)
    lines = answered(model, "application/jsonlines; calibrated=True", 0.1)
    assert [json.loads(line) for line in lines.split("\n")] == expected
    assert not lines.endswith("\n")
    rows = list(csv.reader(answered(model, "text/csv;calibrated=true", 0.1).split("\n")))
    texts = {None: "", True: "true", False: "false"}
    for row, found in zip(rows, expected, strict=True):
        assert [float(text) for text in row[:2]] == [found["dot_product"], found["percentile"]]
        assert row[2:] == [texts[found["entity_known"]], found["network_known"] or "", texts[found["anomalous"]]]


@pytest.mark.parametrize("accept", [f"{name};calibrated=True" for name in media.ACCEPTED_TYPES])
def test_a_long_answer_is_rendered_in_pieces(model: Model, either_way: None, accept: str) -> None:
    scorer, writer = Scorer(model), media.writer(accept)
    for number in (1, 8192, 8193, 20_000):
        rows = media.read("text/csv", "\n".join((BODY.split("\n") * number)[:number]).encode(), scorer.family)
        text = writer.write(_predict(scorer, rows.pairs, writer, None), rows, scorer.vector_dim)
        pieces = list(text.pieces)
        assert len(pieces) == -(-number // 8192)
        assert sum(map(len, pieces)) == text.size
        marked = dataclasses.replace(rows, faults={number: Fault(number, "x", "bad")})
        whole = writer.write(_predict(scorer, rows.pairs, writer, None), marked, scorer.vector_dim)
        one_by_one = b"".join(whole.pieces)  # and a mark at the end
        end = b"]}" if "json;" in accept else b""
        assert one_by_one.startswith(b"".join(pieces)[: text.size - len(end)])


def test_the_kernel_and_python_write_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = [f"{name};calibrated=True" for name in media.ACCEPTED_TYPES]
    fast = [answered(model, accept, 0.01) for accept in accepted]
    monkeypatch.setattr(scoring, "join", lambda *_: None)
    assert [answered(model, accept, 0.01) for accept in accepted] == fast


def test_the_default_answer_stays_what_it_is(model: Model) -> None:
    scores = Scorer(model).score(parse_csv(BODY.encode())).tolist()
    texts = ",".join(f'{{"dot_product":{json.dumps(score)}}}' for score in scores)
    assert answered(model, "application/json", 0.1) == f'{{"predictions":[{texts}]}}'


def test_with_embeddings_as_well(model: Model) -> None:
    verbose = json.loads(answered(model, "application/json;verbose=True"))["predictions"]
    both = json.loads(answered(model, "application/json;verbose=True;calibrated=True"))["predictions"]
    assert both == [{**found, **more} for found, more in zip(verbose, predictions(model), strict=True)]
    rows = [line.split(",") for line in answered(model, "text/csv;calibrated=True;verbose=True").split("\n")]
    for row, found in zip(rows, both, strict=True):
        assert list(map(float, row[4:])) == found["ip_embedding"] + found["entity_embedding"]


def test_anomalous_is_what_is_as_rare_as_asked_for(model: Model) -> None:
    for found in predictions(model, 0.1):
        assert found["anomalous"] == (found["percentile"] <= 0.1)
    assert {found["anomalous"] for found in predictions(model, 0.1)} == {True, False}


def test_what_too_few_log_ins_cannot_tell_is_null(model: Model) -> None:
    assert all(found["anomalous"] is None for found in predictions(model, 0.0001))
    assert answered(model, "text/csv;calibrated=True", 0.0001).split("\n")[0].endswith(",")


def test_whether_an_entity_is_known_is_open_where_entities_share_rows(model: Model) -> None:
    index = type(model.index)(model.index.num_rows, model.index.tags, sharing=3)
    shared = Model(model.vocabulary, index, model.entity, model.encoder, model.counted, model.calibration)
    assert all(found["entity_known"] is None for found in predictions(shared))
    assert answered(shared, "text/csv;calibrated=True").split("\n")[0].split(",")[2] == ""


@pytest.mark.parametrize("verbose", ["", ";verbose=True"])
def test_a_malformed_row_keeps_its_place(model: Model, verbose: str, either_way: None) -> None:
    body = f"user_1,1.2.3\n{BODY}\nuser_1,x"
    rows = json.loads(answered(model, f"application/json;calibrated=True{verbose}", body=body))["predictions"]
    assert rows[1:-1] == json.loads(answered(model, f"application/json;calibrated=True{verbose}"))["predictions"]
    assert [row["dot_product"] for row in (rows[0], rows[-1])] == [None, None]
    lines = answered(model, f"text/csv;calibrated=True{verbose}", body=body).split("\n")
    assert len(lines) == len(rows)
    assert {line.count(",") for line in lines} == {lines[1].count(",")}
    rated = answered(model, f"text/csv;calibrated=True{verbose}", 0.1, body=body).split("\n")
    assert {line.count(",") for line in rated} == {lines[1].count(",") + 1}


def test_a_model_without_calibration_says_so() -> None:
    with pytest.raises(UserError, match="not calibrated"):
        answered(Model.blank(IPV4, 10, 8, 1), "application/json;calibrated=True")
    assert "dot_product" in answered(Model.blank(IPV4, 10, 8, 1), "application/json")


@pytest.mark.parametrize("text", ["0", "1", "-0.1", "nan", "x"])
def test_a_rate_of_false_alarms_is_a_share(text: str) -> None:
    with pytest.raises(UserError, match="IPINSIGHTS_MAX_FALSE_ALARMS.*between 0 and 1"):
        ServerSettings.from_environment({"IPINSIGHTS_MAX_FALSE_ALARMS": text})


def test_a_server_answers_so_by_default_if_told_to(trained: tuple[Tree, object], model: Model) -> None:
    told = {
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "application/json; calibrated=True",
        "IPINSIGHTS_MAX_FALSE_ALARMS": "0.1",
    }
    with Server(trained[0], **told) as server:
        assert server.post(BODY).json()["predictions"] == predictions(model, 0.1)
        assert server.post(BODY, accept="application/json").text == answered(model, "application/json")
        explained = "application/jsonlines; calibrated=True; explain=True"
        assert server.post(BODY, accept=explained).text == answered(model, explained, 0.1)
        assert server.post(BODY, accept="text/csv;calibrated=True").text == answered(
            model, "text/csv;calibrated=True", 0.1
        )
        server.stop()  # the log is written every now and then, and at the end
        below = {rate: sum(p["percentile"] <= rate for p in predictions(model)) for rate in RATES}
        entry = next(entry for entry in server.entries() if entry["path"] == "/invocations")
        assert entry["below"] == {str(rate): number for rate, number in below.items()}


def test_the_manifest_and_the_log_have_the_thresholds(trained: tuple[Tree, Any], model: Model) -> None:
    manifest = json.loads((trained[0].model / artifact.MANIFEST).read_text())
    assert model.calibration is not None
    assert manifest["calibration"] == model.calibration.described
    log = trained[1].stdout
    known = manifest["calibration"]["known"]
    assert f"Calibrated by {known['log_ins']:,} log-ins of known entities: 10.00% of them score below" in log
    assert f"Calibrated by {manifest['calibration']['new']['log_ins']:,} log-ins of new entities" in log


def test_an_explanation_is_that_of_python_and_adds_up(model: Model, either_way: None) -> None:
    plain = json.loads(answered(model, "application/json"))["predictions"]
    found = json.loads(answered(model, "application/json;explain=True"))["predictions"]
    for (entity, address), prediction, expected in zip(PAIRS, found, plain, strict=True):
        assert list(prediction) == ["dot_product", "explanation"]
        assert prediction["dot_product"] == expected["dot_product"]
        why, told = explain(model, entity, address), prediction["explanation"]
        # The last bits of a product of matrices depend on how many rows there are.
        assert {name: told[name] for name in PARTS if told[name] is not None} == pytest.approx(why.parts, abs=1e-5)
        assert sum(told[name] or 0 for name in PARTS) == pytest.approx(prediction["dot_product"], abs=1e-4)
        assert (told["events"], told["addresses"], told["uses"]) == (why.events, why.addresses, why.uses)
        assert [tuple(each.values()) for each in told["networks"]] == [
            (each.network, each.entities, each.events) for each in why.networks
        ]
        assert (told["provider"], told["country"]) == (None, None)  # this model has no table of providers


def test_all_formats_explain_the_same(model: Model) -> None:
    expected = json.loads(answered(model, "application/json;explain=True"))["predictions"]
    lines = answered(model, "application/jsonlines;explain=true").split("\n")
    assert [json.loads(line) for line in lines] == expected
    for row, found in zip(csv.reader(answered(model, "text/csv;explain=True").split("\n")), expected, strict=True):
        why = found["explanation"]
        nearest = why["networks"][0].values() if why["networks"] else (None, None, None)
        values = [value for name, value in why.items() if name not in ("networks", "provider", "country")]
        values = [found["dot_product"], *values, *nearest, why["provider"], why["country"]]
        assert [text and (float(text) if "/" not in text else text) for text in row] == [
            "" if value is None else value for value in values
        ]


@pytest.mark.parametrize("form", media.ACCEPTED_TYPES)
def test_explanations_come_last_and_leave_the_rest_as_it_is(model: Model, form: str) -> None:
    def rows(accept: str, body: str = BODY) -> list[list[str]]:
        text = answered(model, accept, 0.1, body)
        found = text.split("\n") if form != media.JSON else map(json.dumps, json.loads(text)["predictions"])
        return [line.removesuffix("}").split(", " if form == media.JSON else ",") for line in found]

    for wishes in ("calibrated=True", "verbose=True", "verbose=True;calibrated=True"):
        without, explained = rows(f"{form};{wishes}"), rows(f"{form};{wishes};explain=True")
        assert [row[: len(bare)] for row, bare in zip(explained, without, strict=True)] == without
        assert all(len(row) > len(bare) for row, bare in zip(explained, without, strict=True))
        marked = rows(f"{form};{wishes};explain=True", f"who,what\n{BODY}")
        assert marked[1:] == explained
        if form == "text/csv":
            assert len(marked[0]) == len(marked[1])
            assert marked[0][0] == "nan"
