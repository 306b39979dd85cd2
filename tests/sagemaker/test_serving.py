"""`serve` as the platform runs it: a process, and HTTP."""

import concurrent.futures
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import orjson
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.servers import free_port
from conftest import PEAK, SMALL, Server, Traffic, Tree, to_csv
from ipinsights.data import instances
from ipinsights.data.addresses import IPV4
from ipinsights.data.formats import CSV as CSV_TYPE
from ipinsights.data.formats import JSON_LINES
from ipinsights.data.records import Records, parse_csv
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker import media
from ipinsights.sagemaker.app import create_app
from ipinsights.sagemaker.models import ONLY, ModelStore
from ipinsights.sagemaker.settings import ServerSettings

CSV = "user_1, 192.168.1.2\nuser_2, 10.10.1.2"
SHAPES = [{"data": {"features": {"values": ["user_1", "192.168.1.2"]}}}, {"features": ["user_2", "10.10.1.2"]}]
JSON = json.dumps({"instances": SHAPES})
JSONLINES = "\n".join(map(json.dumps, SHAPES))


@pytest.fixture(scope="module")
def expected(trained: tuple[Tree, object]) -> list[float]:
    scores: list[float] = Scorer(artifact.load(trained[0].model)).score(parse_csv(CSV.encode())).tolist()
    return scores


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/csv", CSV),
        ("text/csv; charset=utf-8", CSV + "\n"),
        ("application/json", JSON),
        ("application/jsonlines", JSONLINES),
        ("application/jsonlines", JSONLINES + "\n\n"),
        ("Application/JSON", JSON),
    ],
)
def test_every_format_in_gives_the_same_json_out(
    server: Server, expected: list[float], content_type: str, body: str
) -> None:
    for accept in (None, "*/*", "application/json", "text/csv, application/json", "APPLICATION/JSON", "image/png,*/*"):
        answer = server.post(body, content_type, accept)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json() == {"predictions": [{"dot_product": score} for score in expected]}


def test_json_lines_out(server: Server, expected: list[float]) -> None:
    answer = server.post(CSV, accept="application/jsonlines")
    assert answer.headers["Content-Type"] == "application/jsonlines"
    assert [json.loads(line) for line in answer.text.split("\n")] == [{"dot_product": score} for score in expected]


@pytest.mark.parametrize("content_type", ["text/csv", "application/json", "application/jsonlines"])
def test_csv_out_has_a_line_a_row(server: Server, expected: list[float], content_type: str) -> None:
    """What Batch Transform needs to join CSV with its scores."""
    body = {"text/csv": CSV, "application/json": JSON, "application/jsonlines": JSONLINES}[content_type]
    answer = server.post(body, content_type, "text/csv")
    assert answer.headers["Content-Type"] == "text/csv"
    assert [float(line) for line in answer.text.split("\n")] == expected
    verbose = server.post(body, content_type, "text/csv;verbose=True").text.split("\n")
    for line, score in zip(verbose, expected, strict=True):
        own, *embeddings = map(float, line.split(","))
        assert own == score
        assert np.dot(embeddings[:16], embeddings[16:]) == pytest.approx(score, abs=1e-5)


def test_the_documentations_own_sample_is_read(server: Server, expected: list[float]) -> None:
    """AWS shows JSON Lines with a comma behind the first, and with a list's brackets behind the last."""
    sample = f"{json.dumps(SHAPES[0])},\n{json.dumps(SHAPES[1])}]}}"
    assert [p["dot_product"] for p in server.post(sample, "application/jsonlines").json()["predictions"]] == expected
    for wrong in (sample + "x", sample.replace("},\n", "},{\n")):
        assert server.post(wrong, "application/jsonlines").status_code == 400


def test_bare_arrays_and_keys_of_no_concern(server: Server, expected: list[float]) -> None:
    pairs = [["user_1", "192.168.1.2"], {"data": ["user_2", "10.10.1.2"], "configuration": {"a": 1}, "id": "x"}]
    answer = server.post(json.dumps({"instances": pairs, "note": 7}), "application/json")
    assert [p["dot_product"] for p in answer.json()["predictions"]] == expected


def test_in_a_batch_lines_are_ended_and_documents_are_not(trained: tuple[Tree, object]) -> None:
    """So that answers to parts of a file, put behind one another, are one file of lines."""
    with Server(
        trained[0], SAGEMAKER_BATCH="True", SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="application/jsonlines"
    ) as server:
        parts = [server.post(CSV).text, server.post(CSV, accept="*/*").text]
        assert all(json.loads(line)["dot_product"] for line in "".join(parts).splitlines())
        assert len("".join(parts).splitlines()) == 4
        assert server.post(CSV, accept="text/csv").text.count("\n") == 2
        assert not server.post(CSV, accept="application/json").text.endswith("\n")


@pytest.mark.parametrize(
    "accept", ["application/json;verbose=True", "application/json; verbose=true", "application/jsonlines; verbose=True"]
)
def test_verbose_answers_carry_the_embeddings_whose_inner_product_is_the_score(
    server: Server, expected: list[float], accept: str
) -> None:
    answer = server.post(JSON, "application/json", accept)
    lines = "jsonlines" in accept
    predictions = [json.loads(line) for line in answer.text.split("\n")] if lines else answer.json()["predictions"]
    for prediction, score in zip(predictions, expected, strict=True):
        assert list(prediction) == ["dot_product", "ip_embedding", "entity_embedding"]
        assert len(prediction["ip_embedding"]) == len(prediction["entity_embedding"]) == 16
        product = np.dot(prediction["ip_embedding"], prediction["entity_embedding"])
        assert prediction["dot_product"] == pytest.approx(product, abs=1e-5)
        assert prediction["dot_product"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "parts"),
    [
        ("", "text/csv", None, 204, []),
        ("  \n", "application/json", None, 204, []),
        (CSV, "application/octet-stream", None, 415, ["application/octet-stream", "text/csv", "application/jsonlines"]),
        (CSV, None, None, 415, ["not supported"]),
        (CSV, "text/csv", "image/png", 406, ["image/png", "application/json"]),
        ("user_1,1.2.3.4\nuser_2,1.2.3\n", "text/csv", None, 400, ["line 2", "'user_2,1.2.3'", "4 octets"]),
        ("{", "application/json", None, 400, ["the body is not JSON"]),
        ("[]", "application/json", None, 400, ["instances"]),
        (
            '{"instances": [{"features": ["a", "1.2.3.4"]}, {"features": ["a"]}]}',
            "application/json",
            None,
            400,
            ["instance 1"],
        ),
        ('{"instances": [{"features": ["a", 7]}]}', "application/json", None, 400, ["instance 0", "strings"]),
        ('{"instances": [{"data": 1}]}', "application/json", None, 400, ["instance 0"]),
        ('{"features": ["a", "1.2.3.4"]}\n{x', "application/jsonlines", None, 400, ["instance 1: not JSON"]),
        ('{"features": ["a", "::1"]}', "application/jsonlines", None, 400, ["instance 0", "IPv6", "ip_version=6"]),
        (
            "a,-\na,x.amazonaws.com\na,-",
            "text/csv",
            None,
            400,
            ["(2 with a placeholder for an address, 1 with the name"],
        ),
        ("a;1.2.3.4", "text/csv", None, 400, ["provided: the body looks like text separated by semicolons. Write"]),
        ("a,1.2.3.4", "application/jsonlines", None, 400, ["looks like CSV. Declare the content type text/csv. (inst"]),
        ('{"features": ["a", "1.2.3.4"]}', "text/csv", None, 400, ["Declare the content type application/jsonlines."]),
        (
            '{"instances": [["a", "1.2.3.4"]]}',
            "text/csv",
            None,
            400,
            ["Write one instance a line and declare the conte"],
        ),
        ('{"instances": [' + "[" * 900 + "]" * 900 + "]}", "application/json", None, 400, ["instance 0", "expected"]),
        ('{"features": ["a", ' + "[" * 900 + "]" * 900 + "]}", "application/jsonlines", None, 400, ["instance 0"]),
    ],
)
def test_statuses(
    server: Server, body: str, content_type: str, accept: str | None, status: int, parts: list[str]
) -> None:
    answer = server.post(body, content_type, accept)
    assert answer.status_code == status, answer.text
    for part in parts:
        assert part in answer.text
    assert "Traceback" not in answer.text
    assert len(answer.text) < 1000


def test_a_refusal_is_brief_however_long_the_row(server: Server) -> None:
    for body, kind in (
        ("a," + "9" * 10**6, "text/csv"),
        (json.dumps({"features": ["a", "9" * 10**6]}), "application/jsonlines"),
    ):
        answer = server.post(body, kind)
        assert answer.status_code == 400
        assert len(answer.text) < 1000


@pytest.mark.parametrize(
    "line",
    ['{"features":["\\ud800","1.2.3.4"]}', '{"features":["a","\\ud800"]}', '{"features":["a",NaN]}', "NaN", "{}{}"],
)
def test_what_no_text_can_be_is_malformed(server: Server, line: str) -> None:
    for tail in ("", ",", "]}"):
        assert server.post(line + tail, "application/jsonlines").status_code == 400
    assert server.post(f'{{"instances":[{line}]}}', "application/json").status_code == 400


@pytest.mark.parametrize("lines", [False, True])
def test_a_whole_number_is_an_entity_of_its_digits_as_in_csv(lines: bool) -> None:
    """However large, as a JSON library has it. What a number may also be written as, and what is none, is no name."""
    numbers = [0, 7, -7, 123, 2**53 + 1, 2**64 - 1, -(2**63)]
    texts = [json.dumps({"features": [number, "1.2.3.4"]}) for number in numbers]
    wrong = ["1.0", "1e3", "true", "false", "null", str(2**64), "[]", "{}", '""']
    texts += [f'{{"features": [{value}, "1.2.3.4"]}}' for value in wrong] + ['{"features": ["7", 16909060]}']
    body = "\n".join(texts) if lines else f'{{"instances": [{",".join(texts)}]}}'
    rows = media.read(JSON_LINES if lines else media.JSON, body.encode(), IPV4)
    csv = media.read(CSV_TYPE, "".join(f"{number},1.2.3.4\n" for number in numbers).encode(), IPV4)
    assert rows.pairs.digests.tolist() == csv.pairs.digests.tolist()
    assert sorted(rows.faults) == [*range(len(numbers), len(numbers) + len(wrong) + 1)]


@pytest.mark.parametrize(
    ("body", "hinted"),
    [
        (JSONLINES, True),
        (JSONLINES + "\n", True),
        (json.dumps(SHAPES[0]), True),
        (json.dumps(SHAPES[1]) + "\n", True),
        ('["a","1.2.3.4"]\n["b","1.2.3.4"]', True),
        ('\n  {"features": ["a", "1.2.3.4"]},\n{"features": ["b", "1.2.3.4"]}', True),
        ('{"instances": [{"features": ["a", "1.2.3.4"]}', False),
        ('{"instances":\n[{"features": ["a", "1.2.3.4"]}', False),
        ("[]", False),
        ("7", False),
        ("a,1.2.3.4\nb,1.2.3.4\n", False),
    ],
)
def test_json_lines_of_the_wrong_type_are_told_the_right_one(body: str, hinted: bool) -> None:
    with pytest.raises(UserError) as told:
        media.read(media.JSON, body.encode(), IPV4)
    assert ("Content-Type is application/jsonlines" in str(told.value)) == hinted


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=30,
)


@given(
    st.lists(values, max_size=9),
    st.sampled_from([(",", ":"), (" ,\n ", " : ")]),
    st.booleans(),
    st.dictionaries(st.sampled_from(["a", "instances", "b"]), values, max_size=2),
    st.integers(1, 4),
)
def test_a_document_in_parts_is_the_same(
    every: list[object], separators: tuple[str, str], ascii_: bool, others: dict[str, object], at_once: int
) -> None:
    text = json.dumps(every, separators=separators, ensure_ascii=ascii_)
    rest = "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in others.items())
    body = f' {{ "instances" : {text} {rest}}}\n'.encode(errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "_SOME", re.compile(b"(?:%s,){1,%d}+" % (instances._INSTANCE, at_once), re.DOTALL))
        parts = instances._parts(body)
    if parts:
        assert [*instances._each(body, parts)] == orjson.loads(body)["instances"]
        assert all(len(orjson.loads(b"[" + body[part] + b"]")) <= at_once for part in parts)
    else:
        assert not every or "instances" in others or max(map(_depth, every)) > 6


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


@given(
    st.lists(st.sampled_from(['{"instances":[', '"', "\\", "[", "]", "{", "}", ",", "7", " ", ":", '"a"']), max_size=12)
)
def test_a_body_of_any_form_is_read_as_a_whole_would_be(tokens: list[str]) -> None:
    body = "".join(tokens).encode()

    def outcome() -> object:
        try:
            rows = media.read(media.JSON, body, IPV4)
        except UserError as error:
            return str(error)
        return str(rows.error), len(rows)

    in_parts = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "_parts", lambda _: [])
        assert outcome() == in_parts


@pytest.mark.slow
def test_a_large_document_with_a_malformed_instance_takes_little_memory() -> None:
    code = f"""
import re
from ipinsights.sagemaker import media
from ipinsights.data.addresses import IPV4
usual = b'{{"data":{{"features":{{"values":["user_1","192.168.1.2"]}}}}}},'
body = b'{{"instances":[' + usual * 300_000 + b'7]}}'
before = {PEAK}
rows = media.read(media.JSON, body, IPV4)
assert len(rows) == 300_001 and list(rows.faults) == [300_000]
print({PEAK} - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(run.stdout) < 100_000  # KB, for 17 MB of text


def test_a_long_line_holds_no_worker(server: Server) -> None:
    for kind in ("text/csv", "application/jsonlines"):
        started = time.monotonic()
        answer = server.post("x" * (50 << 20), kind)
        assert answer.status_code == 400
        assert "longer than 1 MB (1,048,576 bytes)" in answer.text
        assert len(answer.text) < 1000
        assert time.monotonic() - started < 10  # it was 25 seconds


def test_a_body_that_takes_too_much_memory_is_not_taken_for_one_that_is_not_json() -> None:
    code = """
import resource
from ipinsights.data.addresses import IPV4
from ipinsights.sagemaker import media
body = b'{"instances": [' + b'["u", "1.2.3.4"], ' * 1_000_000 + b'["u", "x"]]}'
pages = int(open("/proc/self/statm").read().split()[0])
for more in (40, 80, 160, 320):
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (more << 20), resource.RLIM_INFINITY))
    try:
        rows = media.read("application/json", body, IPV4)
        print(len(rows), list(rows.faults))
    except MemoryError:
        print("too little memory")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = done.stdout.splitlines()
    assert (told[0], told[-1], len(told)) == ("too little memory", "1000001 [1000000]", 4), done.stderr
    assert set(told) == {told[0], told[-1]}


def test_a_carriage_return_within_an_instance_ends_no_line(server: Server) -> None:
    body = '{"features":\r["a","1.2.3.4"]}\r\n{"features":["b",\t"1.2.3.4"], "x": "\\n"}\r\n'
    assert len(server.post(body, "application/jsonlines").json()["predictions"]) == 2


def test_extra_keys_are_ignored(server: Server, expected: list[float]) -> None:
    body = json.dumps({"features": ["user_1", "192.168.1.2"], "data": "2020-01-01", "id": 7})
    (prediction,) = server.post(body, "application/jsonlines").json()["predictions"]
    assert prediction == {"dot_product": pytest.approx(expected[0], abs=1e-5)}


def test_no_instances_have_no_predictions(server: Server) -> None:
    assert server.post('{"instances": []}', "application/json").json() == {"predictions": []}


def test_ping_and_execution_parameters(server: Server) -> None:
    ping = requests.get(f"{server.url}/ping", timeout=2)
    assert (ping.status_code, ping.content) == (200, b"")
    parameters = requests.get(f"{server.url}/execution-parameters", timeout=30).json()
    assert parameters == {"MaxConcurrentTransforms": 1, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}
    assert requests.get(f"{server.url}/elsewhere", timeout=30).status_code == 404
    assert requests.get(f"{server.url}/invocations", timeout=30).status_code == 405


def test_many_rows_at_once_keep_their_order(server: Server, traffic: Traffic, trained: tuple[Tree, object]) -> None:
    scorer = Scorer(artifact.load(trained[0].model))
    both = Records.concat([traffic.normal, traffic.attacks])
    body = to_csv(both)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.post(body), range(8)))
    expected = scorer.score(both)
    for answer in answers:
        assert [prediction["dot_product"] for prediction in answer.json()["predictions"]] == expected.tolist()


@pytest.mark.slow
def test_a_body_beyond_the_limit_is_refused(trained: tuple[Tree, object]) -> None:
    with Server(trained[0], MAX_CONTENT_LENGTH="1000") as server:
        assert server.post("u,1.2.3.4\n" * 100).status_code == 200
        in_chunks = iter([b"u,1.2.3.4\n"] * 101)  # without a Content-Length to refuse it by
        for body in ("u,1.2.3.4\n" * 101, in_chunks):
            answer = server.post(body)
            assert answer.status_code == 413
            assert "1000 bytes" in answer.text


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json False"),
        ("text/csv, application/jsonlines, application/json", "application/jsonlines False"),
        ("text/csv", "text/csv False"),
        ("text/csv, application/json;q=0.9", "text/csv False"),
        ("application/json ; Verbose=TRUE", "application/json True"),
        ("application/json, application/jsonlines;verbose=True", "application/json False"),
        ("application/json;q=0.1, application/jsonlines;verbose=TRUE;q=0.5", "application/jsonlines True"),
        ("application/jsonlines;q=0, */*;q=0.1", "application/json False"),
        ("*/*;verbose=True", "application/json True"),
    ],
)
def test_accept_is_by_q_then_in_order(accept: str, expected: str) -> None:
    writer = media.writer(accept)
    assert f"{writer.content_type} {writer.verbose}" == expected


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("*/*", "application/json False"),
        ("Application/JSONLines;verbose=true", "application/jsonlines True"),
        ("image/png, text/csv", "text/csv False"),
    ],
)
def test_a_default_is_read_as_an_accept_is(default: str, expected: str) -> None:
    for accept in ("", "*/*", "image/png, application/*;q=0.5"):
        writer = media.writer(accept, default)
        assert f"{writer.content_type} {writer.verbose}" == expected


def test_what_is_refused_altogether_is_not_acceptable() -> None:
    with pytest.raises(media.NotAcceptable):
        media.writer("application/json;q=0")


def test_a_fault_of_ours_shows_the_client_no_traceback(
    trained: tuple[Tree, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Here in process, with a scorer that fails: no request is known that provokes one."""
    models = ModelStore()
    client = create_app(models, ServerSettings()).test_client()
    assert client.get("/ping").status_code == 503
    assert client.post("/invocations", data=CSV, content_type="text/csv").status_code == 503
    models.load(ONLY, trained[0].model)
    assert client.get("/ping").status_code == 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "score_hashed", None)
        answer = client.post("/invocations", data=CSV, content_type="text/csv", headers={"X-Request-Id": "r-1"})
    assert answer.status_code == 500
    assert answer.get_data() == b"Internal error; the log has the details under request r-1\n"
    assert "request r-1\nTraceback" in caplog.text


def test_too_little_memory_for_a_request_is_no_fault_of_ours(
    trained: tuple[Tree, object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: bytes) -> None:  # as the library says it
        raise orjson.JSONDecodeError("Not enough memory to allocate buffer for parsing", "", 0)

    models = ModelStore()
    models.load(ONLY, trained[0].model)
    client = create_app(models, ServerSettings()).test_client()
    monkeypatch.setattr(orjson, "loads", fail)
    answer = client.post("/invocations", data=b"{}", content_type="application/json")
    assert answer.status_code == 413
    assert answer.get_data() == b"there is too little memory for this request: send fewer rows at a time\n"
    assert "Traceback" not in caplog.text


def test_without_a_model_serve_says_so_and_ends(tree: Tree) -> None:
    result = tree.run("ipinsights.sagemaker", "serve")
    assert result.returncode == 1
    assert "ClientError: there is no model in" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_port_that_is_taken_is_told_in_one_line(trained: tuple[Tree, object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = trained[0].run("ipinsights.sagemaker", "serve", SAGEMAKER_BIND_TO_PORT=port)
    assert result.returncode == 1
    (line,) = (result.stdout + result.stderr).splitlines()
    assert f"ClientError: cannot listen on port {port}: Address already in use" in line
    assert "set SAGEMAKER_BIND_TO_PORT to another port" in line


@pytest.mark.slow
def test_the_log_begins_with_what_is_served_and_how_to_ask(trained: tuple[Tree, object]) -> None:
    """Once, however many workers there are."""
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_WORKERS="2") as server:
        printed = server.printed()
        assert printed.count(f"Serving on port {server.port} of every interface\n") == 1
        known = f"The model in {trained[0].model} knows 100 entities and takes IPv4 addresses; its embeddings have 16"
        assert printed.count(f"{known} dimensions. A score below 0 is suspicious\n") == 1
        command = re.findall("Ask for a score: (curl .*)\n", printed)
        assert len(command) == 1
        program, url, option, header, data, body = shlex.split(command[0])
        assert (program, option, header, data) == ("curl", "-H", "Content-Type: text/csv", "--data")
        assert url == f"http://localhost:{server.port}/invocations"
        assert len(server.post(body).json()["predictions"]) == 1
        with socket.create_connection(("127.0.0.2", server.port), timeout=30):
            pass


@pytest.mark.slow
def test_the_server_listens_on_the_address_that_is_set(trained: tuple[Tree, object]) -> None:
    with Server(trained[0], IPINSIGHTS_BIND_ADDRESS="127.0.0.1") as server:
        assert server.post(CSV).status_code == 200
        assert f"Serving on port {server.port} of 127.0.0.1\n" in server.printed()
        assert f"curl http://127.0.0.1:{server.port}/invocations " in server.printed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), timeout=30)
    other = trained[0].run("ipinsights.sagemaker", "serve", IPINSIGHTS_BIND_ADDRESS="203.0.113.1")
    (line,) = (other.stdout + other.stderr).splitlines()
    assert "cannot listen on 203.0.113.1: " in line
    assert "Set IPINSIGHTS_BIND_ADDRESS to an address of this machine" in line
    assert ServerSettings.from_environment({"IPINSIGHTS_BIND_ADDRESS": "::1"}).bind == "[::1]:8080"
    with pytest.raises(UserError, match="IPINSIGHTS_BIND_ADDRESS='localhost' must be an IP address"):
        ServerSettings.from_environment({"IPINSIGHTS_BIND_ADDRESS": "localhost"})


def test_a_packed_model_and_one_in_a_folder_below_are_told(trained: tuple[Tree, object], tree: Tree) -> None:
    below = tree.model / "1" / "model"
    shutil.copytree(trained[0].model, below)
    result = tree.run("ipinsights.sagemaker", "serve", SAGEMAKER_BIND_TO_PORT=str(free_port()))
    assert result.returncode == 1
    assert f"There is one in {below}: name that folder, or move its files" in result.stdout
    (tree.model / "model.tar.gz").touch()
    result = tree.run("ipinsights.sagemaker", "serve", SAGEMAKER_BIND_TO_PORT=str(free_port()))
    assert result.returncode == 1
    assert f"{tree.model / 'model.tar.gz'} is packed: unpack it" in result.stdout
    for path in (tree.model, tree.model / "model.tar.gz"):
        with pytest.raises(UserError, match=rf"no model in {path}: .*model\.tar\.gz is packed: unpack it"):
            artifact.read(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SAGEMAKER_BIND_TO_PORT", "99999"), ("SAGEMAKER_MODEL_SERVER_WORKERS", "0"), ("MAX_CONTENT_LENGTH", "many")],
)
def test_a_setting_that_cannot_be_is_told(trained: tuple[Tree, object], name: str, value: str) -> None:
    result = trained[0].run("ipinsights.sagemaker", "serve", **{name: value})
    assert result.returncode == 1
    assert f"environment variable {name}={value!r} must be a whole number from 1 to" in result.stdout


def test_a_default_that_is_none_is_told(trained: tuple[Tree, object]) -> None:
    result = trained[0].run("ipinsights.sagemaker", "serve", SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="image/png")
    assert result.returncode == 1
    assert "variable SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT='image/png' is rejected: Accept 'image/png'" in result.stdout


@pytest.mark.slow
def test_a_model_of_ipv6_scores_both_versions(tree: Tree) -> None:
    tree.configure({**SMALL, "ip_version": "6", "epochs": "30"})
    lines = [f"u{i % 20},2001:db8:{i % 20:x}::{i:x}\nu{i % 20},10.{i % 20}.0.{i % 250}\n" for i in range(2000)]
    tree.channel("train", **{"a.csv": "".join(lines)})
    job = tree.train()
    assert job.returncode == 0, job.stdout
    with Server(tree) as server:
        answer = server.post("u3,2001:db8:3::99\nu3,2001:db8:4::99\nu3,10.3.0.9\nu3,::ffff:10.3.0.9\nu3,10.9.0.9\n")
        assert answer.status_code == 200, answer.text
        own, foreign, quad, mapped, other = (p["dot_product"] for p in answer.json()["predictions"])
        assert own > foreign
        assert quad == mapped > other
        refused = server.post("u3,2001:db8:3::99\nu3,2001:db8::1%eth0\n")
        assert refused.status_code == 400
        assert "line 2" in refused.text
        assert "zone id" in refused.text
