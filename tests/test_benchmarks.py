"""The benchmarks of speed: the yardsticks learn and score, and the tables come out; `test_quality` has the others."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    ablation,
    answers,
    attacks,
    gpu,
    half_life,
    heavy,
    kills,
    literal,
    load,
    reading,
    serving,
    slow,
    soak,
    training,
    usual_server,
)
from benchmarks.pieces import Ours
from benchmarks.ranking import NEGATIVES, Scored, Task, lead
from benchmarks.served import CSV, JSON, JSON_LINES, Payload, largest, payload
from benchmarks.servers import Server, free_port
from conftest import Traffic, no_events, to_events
from ipinsights import metrics
from ipinsights.data.addresses import IPV4, IPV6
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training import fit

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
SMALL = Hyperparameters(
    num_entity_vectors=200,
    vector_dim=16,
    mini_batch_size=500,
    learning_rate=0.01,
    random_negative_sampling_rate=5,
    batch_metrics_publish_interval=7,  # every step
)


def measure(*options: str) -> list[list[str]]:
    """The cells of the rows that a run prints, run as a process since it sets torch's number of threads."""
    command = [sys.executable, "-m", "benchmarks.training", "--synthetic", "--users", "60", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_literal_trainer_learns(traffic: Traffic, sparse: bool) -> None:
    train = to_events(traffic.train, 200)
    trainer = literal.Trainer(train, SMALL, sparse)
    steps = list(itertools.islice(trainer.steps(), 3 * -(-len(train) // 500)))
    assert sum(positives for positives, _ in steps) == 3 * len(train)
    assert steps[-1][1] < 0.7 * np.log(2)
    known, attacks = (
        trainer.score(train.index.find(pairs.entities), pairs.addresses) for pairs in (traffic.normal, traffic.attacks)
    )
    assert metrics.auc(known, attacks) > 0.6


def test_the_literal_loss_is_the_mean_cross_entropy_of_a_positive_and_its_negatives(traffic: Traffic) -> None:
    trainer = literal.Trainer(to_events(traffic.train, 200), SMALL, sparse=False)
    with torch.no_grad():
        trainer.model.entity.weight.zero_()
    assert next(trainer.steps())[1] == pytest.approx(np.log(2))


def test_our_training_does_the_steps_it_is_told_to_and_stops(traffic: Traffic) -> None:
    ours = Ours(to_events(traffic.train, 200), SMALL)
    first, second = ours.run(3), ours.run(5)
    assert (first.positives, second.positives) == (1500, 2500)
    assert first.seconds > 0
    assert second.cross_entropy < first.cross_entropy
    ours.close()


def test_an_error_in_our_training_is_told(traffic: Traffic) -> None:
    with pytest.raises(UserError, match="no training events"):
        Ours(no_events(), SMALL).run(1)
    with pytest.raises(ValueError, match="too few epochs"):
        Ours(to_events(traffic.train, 200), dataclasses.replace(SMALL, epochs=1)).run(1000)


def test_namesakes_spread_over_half_the_table() -> None:
    events = training.spread_events(rows=1000, users=100, synthetic=True)
    assert len(np.unique(events.entity)) == 500
    assert events.entity.max() >= 900
    assert events.index.num_rows == 1000


def test_speed_has_a_row_a_contender() -> None:
    header, _, *rows = measure("--rounds", "2", "--piece", "2000", "--batch", "500")
    assert [row[0] for row in rows] == ["literal, dense Adam", "literal, SparseAdam", "**ours**"]
    assert all(len(row) == len(header) and all(row) for row in rows)
    assert rows[0][3] == rows[1][2] == "1.00"


def test_what_does_not_fit_side_by_side_takes_turns_and_dense_adam_is_left_out() -> None:
    options = ["--rounds", "1", "--piece", "500", "--batch", "500", "--memory", "0", "--dense-limit", "0"]
    dense, sparse, ours = measure(*options)[2:]
    assert "left out" in dense[1]
    assert sparse[2] == "1.00"
    assert ours[3] == ""


def test_quality_has_a_row_a_contender() -> None:
    header, _, *rows = measure("--quality", "--batch", "500", "--epochs", "2")
    assert len(rows) == 3
    assert all(len(row) == len(header) for row in rows)
    assert all(0.5 < float(row[header.index("AUC")]) < 1 for row in rows)


def test_what_a_gpu_would_be_measured_by(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where steps cannot be recorded."""
    table = gpu.table(torch.device("cpu"), users=60, piece=2000, synthetic=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:6]]
    assert [row[0] for row in rows] == ["1,000", "1,000", "10,000", "10,000"]
    assert rows[0][1] == "one by one"
    assert rows[1][1].startswith("not recorded, because its steps cannot be recorded")
    limits = [float(cell.replace(",", "")) for cell in rows[0][3:5]]
    assert 0 < float(rows[0][2].split()[0].replace(",", "")) < min(limits)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err


def test_a_table_too_small_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--synthetic", "--rows", "100"])
    assert "--rows must be" in capsys.readouterr().err


def test_reading_has_a_row_a_reader(capsys: pytest.CaptureFixture[str]) -> None:
    reading.main(["--synthetic", "--users", "60", "--rounds", "1"])
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert len(rows) == 3
    assert all(row.count("|") == header.count("|") for row in rows)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (CSV, b"user_1, 10.0.0.1\nNA,1.2.3.4\n"),
        (JSON, b'{"instances":[{"data":{"features":{"values":["user_1","10.0.0.1"]}}},{"features":["NA","1.2.3.4"]}]}'),
        (JSON_LINES, b'{"features":["user_1","10.0.0.1"]}\n\n{"features":["NA","1.2.3.4"]}\n'),
    ],
)
def test_the_usual_server_scores_every_format(tmp_path: Path, content_type: str, body: bytes) -> None:
    model = usual_server.Model(50, 8)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    client = usual_server.create_app(str(tmp_path / "model.pt")).test_client()
    entity = model.entity.weight[[zlib.crc32(name) % 50 for name in (b"user_1", b"NA")]]
    bits = torch.tensor([[float(b) for b in f"{a:032b}"[::-1]] for a in (0x0A000001, 0x01020304)])
    expected = (entity * model.encoder(bits)).sum(1).tolist()
    answers = [
        client.post("/invocations", data=body, headers={"Content-Type": content_type, "Accept": accept})
        for accept in (JSON, JSON_LINES)
    ]
    assert [p["dot_product"] for p in json.loads(answers[0].data)["predictions"]] == pytest.approx(expected)
    assert [json.loads(line)["dot_product"] for line in answers[1].data.splitlines()] == pytest.approx(expected)
    assert client.get("/ping").status_code == 200


def test_the_usual_server_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    torch.save(usual_server.Model(50, 8).state_dict(), tmp_path / "model.pt")
    client = usual_server.create_app(str(tmp_path / "model.pt")).test_client()
    bodies = {CSV: b"user_1,10.0.0.256", JSON: b"[]", JSON_LINES: b"{}", "text/plain": b""}
    statuses = [client.post("/invocations", data=b, content_type=c).status_code for c, b in bodies.items()]
    assert statuses == [400, 400, 400, 415]


def test_a_large_payload_fills_its_size() -> None:
    records = [f"user_{i},10.0.0.{i % 256}" for i in range(1000)]
    large = largest(CSV, records, 5000)
    assert large.body == "\n".join(records[: large.rows]) + "\n"
    assert 4900 < len(large.body) <= 5000
    assert json.loads(payload(JSON, ["1", "2"]).body) == {"instances": [1, 2]}


class _Answers(BaseHTTPRequestHandler):
    """To a body a constant, but 503 to "bad", and to "new" something new each time."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    count = itertools.count()

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        answer = b'{"predictions": [{"dot_product": %d}]}' % (next(self.count) if asked == b"new" else 1)
        self.send_response(503 if asked == b"bad" else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_clients_count_answers_faults_and_differences(port: int) -> None:
    good, bad, new = (Payload(CSV, body, 1).request() for body in ("good", "bad", "new"))
    clients = load.Load()
    turn = clients.run("good", port, [good, good], connections=3, seconds=0.05)
    assert turn["statuses"] == {"200": turn["answers"]}
    assert (turn["different"], turn["predictions"]) == (0, 1)
    assert 0 < turn["p50"] <= turn["p99"] <= turn["seconds"]
    turn = clients.run("bad", port, [bad], connections=1, seconds=0)
    assert (turn["statuses"], turn["predictions"]) == ({"503": 1}, 0)
    clients.run("new", port, [new], connections=1, seconds=0)
    assert clients.run("new", port, [new], connections=2, seconds=0)["different"] == 2


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        Server(["this", "0"], free_port(), tmp_path / "log", {"PYTHONINSPECT": ""})


def test_serving_has_a_row_a_measure(capsys: pytest.CaptureFixture[str]) -> None:
    serving.main(["--small"])
    printed = capsys.readouterr().out
    main, latency, caption, _ = printed.split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in main.splitlines()]
    assert {row[0] for row in rows} >= set(serving.REQUIRED)
    assert all(row[-1] in ("yes", "no") for row in rows[2:] if row[0] in serving.REQUIRED)
    assert latency.count("\n") == 7
    assert " 0 had a status of 5xx and 0 another than 200; 0 differed" in " ".join(caption.split())


def test_answers_have_a_row_for_all_that_may_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    answers.main(["--small"])
    table, caption = capsys.readouterr().out.split("\n\n", 1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == list(answers.WISHES)
    assert all(float(cell.replace(",", "")) >= 0 for row in rows for cell in row[1:])
    assert "`python -m benchmarks.answers --small`" in caption


def test_older_events_are_kept_as_the_half_life_says_and_of_each_entity_the_newest() -> None:
    entity, age = np.arange(40_000, dtype=np.int32) % 2000, np.repeat([30.0, 20.0, 10.0, 0.0], 10_000)
    entity[:10_000] = 2000 + np.arange(10_000)  # these have one event each, the oldest
    train = Events(entity, np.arange(40_000, dtype=np.uint32), EntityIndex(12_000))
    task = Task(IPV4, train, entity[:0], train.address[:0])
    assert half_life.thinned(task, age, None, 0) is train
    kept = half_life.thinned(task, age, 10, 0)
    ages = age[kept.address]
    assert set(kept.entity.tolist()) == set(range(12_000))
    assert [(ages == days).sum() for days in (30.0, 0.0)] == [10_000, 10_000]
    assert (ages == 10.0).sum() == pytest.approx(5000, abs=200)
    assert (ages == 20.0).sum() == pytest.approx(2500, abs=200)


def test_a_short_soak_gets_its_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too short to judge memory, which the server still fills."""
    assert soak.soak(tmp_path, 3, workers=1, memory_bound=1) == []
    printed = capsys.readouterr().out
    assert all(f"{status}: " in printed for status in (200, 204, 400, 406, 415))


@pytest.mark.slow
def test_two_minutes_of_load_keep_no_descriptors_and_little_memory(tmp_path: Path) -> None:
    """An hour has the bound of `soak.MEMORY_BOUND`; two minutes see the allocators still grow."""
    assert soak.soak(tmp_path, 120, workers=2, memory_bound=0.15) == []


def test_what_rises_over_a_soak_is_told() -> None:
    seconds = np.arange(100.0)
    noise = np.random.default_rng(0).normal(size=100)
    flat = np.stack([seconds, 1e8 + 1e6 * noise, 50 + noise, seconds * 0], axis=1)
    assert soak.rises(flat) == []
    early = flat + np.outer(np.minimum(seconds, 15), [0, 1e7, 5, 0])  # while it warms up
    assert soak.rises(early) == []
    (memory,) = soak.rises(flat + np.outer(seconds, [0, 1e5, 0, 0]))
    assert memory.startswith("memory (MB, PSS) rises by ")
    (descriptors,) = soak.rises(flat + np.outer(seconds, [0, 0, 0.05, 0]))
    assert descriptors.startswith("descriptors rises by ")


def test_how_many_attacks_a_list_holds_has_a_row_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    attacks.main([attacks.SIMULATED, "--synthetic", "--users", "40", "--seeds", "2"])
    header, _, *rows = (line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines())
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [
        ["simulated", "random addresses", "6"],
        ["simulated", "other entities' addresses", "6"],
    ]
    for row in rows:
        counting, model, difference = (float(cell) for cell in row[3:6])
        assert len(row) == len(header)
        assert 0 < counting <= 1
        assert 0 < model <= 1
        assert difference == pytest.approx(model - counting, abs=0.002)


def test_attacks_are_measured_on_all_but_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def told(name: str, *_: object) -> list[list[str]]:
        names.append(name)
        return []

    monkeypatch.setattr(attacks, "_rows", told)
    attacks.main(["--synthetic"])
    assert names == [attacks.SIMULATED, "Tor, validation", "Tor, far"]


def test_attacks_are_from_networks_that_the_account_has_not_used() -> None:
    period = attacks.simulated(40, 0, synthetic=True)
    used = {pair for part in (period.train, *period.days) for pair in attacks.pairs_of(part)}
    assert len(period.days) == 3
    for some in attacks.kinds(period, 0, None).values():
        made_up = [attacks.pairs_of(some.of_day(day)) for day in range(3)]
        assert all(len({entity for entity, _ in pairs}) == attacks.ATTACKS for pairs in made_up)
        assert not used & {pair for pairs in made_up for pair in pairs}
    same = attacks.kinds(period, 0, None)["random addresses"].of_day(1)
    assert attacks.pairs_of(same) == attacks.pairs_of(attacks.kinds(period, 0, None)["random addresses"].of_day(1))


def test_a_job_outlives_the_kill_of_a_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With as many hosts, and with another number."""
    monkeypatch.setattr(sys, "argv", ["kills", "--times", "2", "--users", "60"])
    kills.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Area under the ROC curve at the end: 0.")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"][2:]
    assert [row[0] for row in rows] == ["1", "2"]
    assert {row[3] for row in rows} <= {*kills.PHASES}


def test_slow_clients_have_a_row_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    slow.main(["--clients", "3", "--seconds", "0.5"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:-2]]
    assert [row[0] for row in rows] == [*slow.KINDS]
    for row in rows:
        good, asked = row[1].split(" of ")
        assert int(good) == int(asked) > 0


def test_requests_that_cost_have_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    heavy.main(["--megabytes", "1", "--clients", "3", "--limit-mb", "20000", "--only", "0", "7", "12"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [row[:2] for row in rows] == [
        ["0.1 MB of CSV, verbose", "1 x 200"],
        ["1 MB of `{}` in a document", "1 x 400"],
        ["3 times 1 MB of CSV", "3 x 200"],
    ]
    assert {row[-1] for row in rows} == {"0"}


@pytest.mark.slow
def test_no_request_takes_much_more_memory_than_its_body(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/operations.md has the peaks of larger ones, which are up to ten times the bodies."""
    heavy.main(["--megabytes", "20", "--clients", "4"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[-14:]]
    assert len(rows) == 14
    for requests, statuses, peak, _, lost in rows:
        bodies = 80 if requests.startswith("4 times") else 20
        answer = 200 if "verbose" in requests else 0  # it is rendered whole
        assert float(peak) < 15 * bodies + 2 * answer + 50, (requests, peak)
        assert {part.split(" x ")[1] for part in statuses.split(", ")} <= {"200", "400", "413", "503"}, statuses
        assert lost == "0", requests


def test_every_row_of_the_ablation_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change replaces what the product may have given another form since. Each is tried at one family."""
    monkeypatch.setattr(fit, "levels_for", lambda family, *_: family.levels)  # the few addresses would add deeper ones
    rng, tasks = np.random.default_rng(0), {}
    for family in (IPV4, IPV6):
        entity = rng.integers(0, 20, 300)
        address = ((entity % 11 + 33) << (family.width - 8)) + (rng.integers(0, 1 << 16, 300) << (family.width - 24))
        pairs, index = (entity.astype(np.int32), address.astype(family.dtype)), EntityIndex(40)
        tasks[family] = Task(family, Events(pairs[0][:200], pairs[1][:200], index), pairs[0][200:], pairs[1][200:])
    for family, change in zip(itertools.cycle(tasks), [ablation.PRODUCT, *ablation.CHANGES], strict=False):
        assert 0 <= change.measure(tasks[change.only or family], 0) <= 1, change.name


def test_a_lead_is_as_sure_as_there_are_entities() -> None:
    """The pairs of an entity are alike, so more of them do not make it surer."""
    rng = np.random.default_rng(0)

    def scored(entities: int, each: int, higher: float) -> Scored:
        who = np.repeat(np.arange(entities), each)
        own = np.repeat(rng.normal(size=entities), each)
        positive = own + higher + 0.01 * rng.normal(size=len(who))
        return Scored(who, positive, rng.normal(size=(3, NEGATIVES, len(who))))

    widths = []
    for entities, each in ((40, 5), (40, 50), (400, 5)):
        ours, theirs = scored(entities, each, 1), scored(entities, each, 0)
        mean, low, high = lead([ours], [theirs])
        assert mean == pytest.approx((ours.aucs() - theirs.aucs()).mean())
        assert low < mean < high
        widths.append(high - low)
    assert widths[0] == pytest.approx(widths[1], rel=0.4)
    assert widths[2] == pytest.approx(widths[0] / 10**0.5, rel=0.4)
    assert lead([ours], [ours]) == (0, 0, 0)
