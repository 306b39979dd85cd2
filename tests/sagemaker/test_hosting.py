"""The server as a platform treats it: pinged under load, sent large and stalled bodies, stopped, asked for logs."""

import concurrent.futures
import contextlib
import http.client
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import gunicorn
import numpy as np
import psutil
import pyarrow as pa
import pytest
import requests
from gunicorn.workers import gthread
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.servers import free_port
from conftest import Server, Traffic, Tree, to_csv, until
from ipinsights.data.addresses import IPV4
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.sagemaker.access import AccessLog
from ipinsights.sagemaker.connections import Awaited, missing
from ipinsights.sagemaker.settings import ServerSettings
from ipinsights.sagemaker.sockets import WHOLE
from ipinsights.sagemaker.worker import LOST, WRITTEN_FOR, Health, PatientWorker, Shared, misfit

pytestmark = pytest.mark.slow


def test_ping_answers_while_more_requests_wait_than_are_scored(server: Server, traffic: Traffic) -> None:
    """Some of them verbose, which are the longest to write."""
    body = to_csv(traffic.normal)
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        verbose = [pool.submit(server.post, body * 5, accept="application/json;verbose=True") for _ in range(4)]
        large = [pool.submit(server.post, body * 30) for _ in range(56)]
        while not all(answer.done() for answer in large):
            ping = requests.get(f"{server.url}/ping", timeout=2)
            assert (ping.status_code, ping.content) == (200, b"")
    assert all(answer.result().status_code == 200 for answer in [*verbose, *large])


def test_told_to_stop_under_load_it_loses_no_request_and_takes_no_more(trained: tuple[Tree, object]) -> None:
    """Whoever gets a connection gets an answer; whoever comes later is refused at once.

    Between the last look for connections and the closing of the door is a moment. The system resets a connection that
    is opened in it, before it takes a byte: for its client that is a refusal too. The moment is too short for two.
    """
    body = b"user_1,1.2.3.4\n" * 2000
    outcomes: list[str] = []  # a Counter loses the first count where two threads begin at once
    told = threading.Event()
    at_the_door: list[OSError] = []

    with Server(trained[0], SAGEMAKER_MODEL_SERVER_WORKERS="2") as server:

        def ask(kept_alive: bool) -> None:
            headers = {"Content-Type": "text/csv", **({} if kept_alive else {"Connection": "close"})}
            connection = None
            while True:
                too_late = connection is None and told.is_set()
                if connection is None:
                    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
                    try:
                        connection.connect()
                    except ConnectionRefusedError:
                        return
                try:
                    connection.request("POST", "/invocations", body, headers)
                    answer = connection.getresponse()
                    assert len(json.loads(answer.read())["predictions"]) == 2000
                    outcomes.append("answered")
                    closed = answer.getheader("Connection") == "close"
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    if too_late and isinstance(error, ConnectionError):
                        at_the_door.append(error)
                    else:
                        outcomes.append(f"lost: {error!r}")
                    return
                if closed:
                    connection.close()
                    connection = None

        clients = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(12)]
        for client in clients:
            client.start()
        time.sleep(1)
        began = time.monotonic()
        told.set()
        log = server.stop()
        assert time.monotonic() - began < 30
        for client in clients:
            client.join()
        assert server.process.returncode == 0
    assert set(outcomes) == {"answered"}, Counter(outcomes)
    assert len(at_the_door) <= 1
    assert len([line for line in log.splitlines() if '"status":200' in line]) == len(outcomes)


def test_told_to_stop_it_answers_whoever_waits_at_the_door(trained: tuple[Tree, object]) -> None:
    """Whose connections the system has taken, but no worker yet, since it was busy."""
    with Server(trained[0]) as server, contextlib.ExitStack() as opened:
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        waiting = [opened.enter_context(server.connect()) for _ in range(30)]
        for connection in waiting:
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        server.process.terminate()
        time.sleep(0.5)
        os.kill(worker, signal.SIGCONT)
        assert all(b" 200 " in connection.recv(1000) for connection in waiting)


def test_one_worker_that_ends_takes_nothing_with_it(trained: tuple[Tree, object]) -> None:
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_WORKERS="2") as server:
        until(lambda: len(server.workers()) == 2)
        first, second = server.workers()
        os.kill(first, signal.SIGTERM)
        until(lambda: first not in server.workers())
        assert server.post("a,1.2.3.4").status_code == 200
        until(lambda: len(server.workers()) == 2)
        os.kill(second, signal.SIGKILL)
        assert server.post("a,1.2.3.4").status_code == 200


def test_a_worker_that_a_busy_machine_delays_is_not_replaced(trained: tuple[Tree, object]) -> None:
    """Whatever the timeout for clients: a worker shows a sign of life only every second."""
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_TIMEOUT="1") as server:
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        time.sleep(4)
        os.kill(worker, signal.SIGCONT)
        assert server.post("a,1.2.3.4").status_code == 200
        assert server.workers() == [worker]
        assert "WORKER TIMEOUT" not in server.stop()


def test_a_body_that_stops_coming_is_given_up(trained: tuple[Tree, object]) -> None:
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_TIMEOUT="1") as server:
        with server.connect() as stalled:
            stalled.sendall(
                b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 99\r\n\r\na,1"
            )
            answer = ""
            while "seconds" not in answer:
                piece = stalled.recv(10_000)
                assert piece, answer
                answer += piece.decode()
        assert answer.startswith("HTTP/1.1 408 ")
        assert "Nothing of the body arrived for 1 seconds" in answer
        assert server.post("a,1.2.3.4").status_code == 200


def slow_ping(server: Server) -> float:
    """Seconds that the slowest of some pings takes, each on a connection of its own."""
    found = []
    for _ in range(5):
        began = time.monotonic()
        assert requests.get(f"{server.url}/ping", timeout=10).status_code == 200
        found.append(time.monotonic() - began)
    return max(found)


def test_clients_that_do_nothing_keep_no_ping_waiting(server: Server) -> None:
    """They hold more connections than there are threads: without a word, or with an answer and no mind to leave."""
    with contextlib.ExitStack() as held:
        for _ in range(150):
            held.enter_context(server.connect())
        for _ in range(200):
            satisfied = held.enter_context(server.connect())
            satisfied.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b" 200 " in satisfied.recv(1000)
        assert slow_ping(server) < 2
        assert server.post("a,1.2.3.4").status_code == 200


POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
SLOW = {
    "headers": POST[:-10],
    "small body": POST + b"Content-Length: 99\r\n\r\na,1.2.3.4\n",
    "large body": POST + b"Content-Length: 90000\r\n\r\na,1.2.3.4\n",
    "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n9\r\na,1.2",
    "on request": POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
}


@pytest.mark.parametrize("kind", SLOW)
def test_clients_that_stop_in_the_middle_keep_nobody_waiting(kind: str, trained: tuple[Tree, object]) -> None:
    """More of them than there are threads."""
    with Server(trained[0]) as server, contextlib.ExitStack() as held:
        for _ in range(300):
            held.enter_context(server.connect()).sendall(SLOW[kind])
        assert slow_ping(server) < 30
        assert server.post("a,1.2.3.4").status_code == 200


def test_of_clients_that_stop_in_the_middle_some_get_a_thread_and_others_are_told(
    trained: tuple[Tree, object],
) -> None:
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_THREADS="16") as server, contextlib.ExitStack() as held:
        slow = [held.enter_context(server.connect()) for _ in range(16)]
        for client in slow:
            client.settimeout(120)
            client.sendall(SLOW["large body"])
        (refused,), _, _ = select.select(slow, [], [], 120)
        answer = answer_to(refused).decode()
        assert answer.startswith("HTTP/1.1 503 ")
        assert "Retry-After: 1" in answer
        assert "receiving from as many clients as it can" in answer
        for client in slow:
            if client is not refused:
                client.sendall(b"a,1.2.3.4\n" * 8_999)
        assert {client.recv(12) for client in slow if client is not refused} == {b"HTTP/1.1 200"}


def answer_to(client: socket.socket) -> bytes:
    """One whole answer."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(100_000)
    (length,) = re.findall(rb"Content-Length: (\d+)", answer)
    while len(answer) < answer.index(b"\r\n\r\n") + 4 + int(length):
        answer += client.recv(100_000)
    return answer


@pytest.mark.parametrize("size", [1, 60_000, 70_000])
def test_a_request_in_pieces_is_answered(size: int, trained: tuple[Tree, object]) -> None:
    """Also a second one on its connection, and one that stands behind another."""
    body = b"a,1.2.3.4\n" * (size // 10 + 1)
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with Server(trained[0], SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv") as server, server.connect() as client:
        for pieces in (7, 3):
            step = len(request) // pieces + 1
            for begin in range(0, len(request), step):
                client.sendall(request[begin : begin + step])
                time.sleep(0.02)
            assert answer_to(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(request + request[:60])
        assert answer_to(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(request[60:])
        assert answer_to(client).startswith(b"HTTP/1.1 200 ")


@given(st.integers(0, 70_000), st.binary(max_size=20), st.booleans())
def test_what_a_request_lacks_is_what_makes_it_whole(length: int, body: bytes, others: bool) -> None:
    head = b"POST / HTTP/1.1\r\n%scoNTent-lengTH:  %d\r\n\r\n" % (b"Host: x\r\n" * others, length)
    for end in range(len(head)):
        assert missing(head[:end]) == (1, Awaited.HEADERS)
    expected = max(0, length - len(body)) if length <= WHOLE else 0
    assert missing(head + body) == (expected, Awaited.BODY)
    assert missing(head.replace(b"HTTP/1.1", b"HTTP/1.1\r\nExpect: 100-continue") + body)[0] == 0
    assert missing(b"x" * (WHOLE + length))[0] == 0


def test_busy_clients_leave_others_their_turn(trained: tuple[Tree, object]) -> None:
    """Of more than there are threads, all of which ask again at once."""
    answers: Counter[int] = Counter()
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_THREADS="2") as server:
        ending = time.monotonic() + 2

        def ask(client: int) -> None:
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
            while time.monotonic() < ending:
                connection.request("POST", "/invocations", b"a,1.2.3.4\n", {"Content-Type": "text/csv"})
                assert connection.getresponse().read()
                answers[client] += 1
            connection.close()

        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            asking = [pool.submit(ask, client) for client in range(10)]
            assert slow_ping(server) < 2
        for client in asking:
            client.result()
    assert min(answers[client] for client in range(10)) > max(answers.values()) / 5, answers


def test_told_to_stop_with_all_the_connections_that_it_may_have(trained: tuple[Tree, object]) -> None:
    """None of which says a word, it waits a moment only."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        with Server(trained[0]) as server, contextlib.ExitStack() as held:
            for _ in range(4010):
                held.enter_context(server.connect())
            time.sleep(1)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def another_gunicorn(folder: Path) -> dict[str, str]:
    """Environment variables. The installed gunicorn plays another: a package of that version with the same modules."""
    assert gunicorn.__file__
    other = folder / "gunicorn"
    other.mkdir()
    text = Path(gunicorn.__file__).read_text() + f"\n__version__ = '26.2.0'\n__path__ = {gunicorn.__path__!r}\n"
    (other / "__init__.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_with_another_gunicorn_its_own_worker_serves(trained: tuple[Tree, object], tmp_path: Path) -> None:
    with Server(trained[0], **another_gunicorn(tmp_path)) as server:
        answer = server.post("user_1,1.2.3.4\nuser_2,1.2.3.4", accept="text/csv")
        assert answer.status_code == 200
        assert len(answer.text.splitlines()) == 2
        log = server.stop()
        assert server.process.returncode == 0
    assert "Using worker: gthread" in log
    (warning,) = [line.partition("WARNING] ")[2] for line in log.splitlines() if "WARNING]" in line]
    assert warning == (
        f"gunicorn 26.2.0 is installed, but the server's own worker is for gunicorn {WRITTEN_FOR} (another version). "
        f"The server uses gunicorn's thread worker instead, without {LOST}."
    )


def test_with_the_gunicorn_that_it_is_for_the_own_worker_serves(trained: tuple[Tree, object]) -> None:
    with Server(trained[0]) as server:
        log = server.stop()
    assert "Using worker: PatientWorker" in log
    assert "WARNING" not in log


def test_a_gunicorn_without_what_is_overridden_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert misfit() is None
    for version in ("27.1.0", "27.00", "2", "28.0.0"):
        with monkeypatch.context() as patch:
            patch.setattr(gunicorn, "__version__", version)
            assert misfit() == "another version"
    with monkeypatch.context() as patch:
        patch.setattr(gunicorn, "__version__", f"{WRITTEN_FOR}.99")
        assert misfit() is None
    with monkeypatch.context() as patch:
        patch.delattr(gthread, "TConn")
        assert misfit() == "TConn.__init__ is missing"
    with monkeypatch.context() as patch:
        patch.delattr(gthread.ThreadWorker, "set_accept_enabled")
        assert misfit() == "ThreadWorker.set_accept_enabled is missing"
    with monkeypatch.context() as patch:
        patch.setattr(gthread.ThreadWorker, "accept", lambda self, server, listener: None)
        assert misfit() == "ThreadWorker.accept takes (self, server, listener) instead of (self, listener)"
    code = "from gunicorn.workers import gthread; del gthread.TConn; import ipinsights.sagemaker.server"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_worker_gives_freed_memory_back_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    now = iter([59.9, 60.0, 60.0, 119.9, 120.0, 120.0])
    worker = object.__new__(PatientWorker)
    worker.tmp, worker._tidied = SimpleNamespace(notify=lambda: told.append("lives")), 0.0
    worker.cfg = SimpleNamespace(threads=4)
    worker.tpool = worker.get_thread_pool()
    monkeypatch.setattr("ipinsights.sagemaker.worker.time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr("ipinsights.sagemaker.worker.return_freed_memory", lambda: told.append("tidies up"))
    for _ in range(4):
        worker.notify()
    assert told == ["lives", "lives", "tidies up", "lives", "lives", "tidies up"]


def test_idle_threads_end_every_minute_and_busy_ones_when_they_are_done() -> None:
    """Each keeps some memory that was freed in it."""
    worker = object.__new__(PatientWorker)
    worker.tmp, worker._tidied = SimpleNamespace(notify=lambda: None), -math.inf
    worker.cfg = SimpleNamespace(threads=20)
    worker.tpool = worker.get_thread_pool()
    before = threading.active_count()
    all_started, answered = threading.Barrier(20), threading.Event()
    brief = [worker.tpool.submit(all_started.wait, 30) for _ in range(19)]
    busy = worker.tpool.submit(lambda: (all_started.wait(30), answered.wait(30)))
    for future in brief:
        future.result(30)
    assert threading.active_count() == before + 20
    worker.notify()
    until(lambda: threading.active_count() == before + 1)
    assert worker.tpool.submit(lambda: 7).result(30) == 7
    answered.set()
    assert busy.result(30)[1]
    until(lambda: threading.active_count() == before + 1)
    worker.tpool.shutdown()


def test_there_is_a_place_for_every_worker() -> None:
    shared = Shared(1)
    assert shared.enter() == 0
    assert shared.enter() == 1
    shared.leave(0)
    assert shared.enter() == 0
    for _ in range(100):
        shared.enter()


def test_workers_share_the_connections(trained: tuple[Tree, object]) -> None:
    """Evenly, also when one of them has ended and another has taken its place; nearly.

    A worker leaves a connection to another for a moment only, and a busy machine may not let that one run so soon.
    """
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_WORKERS="2") as server:
        for _ in range(2):
            until(lambda: len(server.workers()) == 2 and min(_shares(server, 4)) > 0)  # both take connections
            fewest = [min(_shares(server, 20)) for _ in range(7)]
            assert sum(fewest) >= 7 * 9, fewest
            killed = server.workers()[0]
            os.kill(killed, signal.SIGKILL)
            until(lambda: killed not in server.workers())  # noqa: B023


def _shares(server: Server, connections: int) -> list[int]:
    """How many of so many connections each worker takes."""
    with contextlib.ExitStack() as opened:
        for _ in range(connections):
            session = opened.enter_context(requests.Session())
            assert session.get(f"{server.url}/ping", timeout=10).status_code == 200
        return [
            sum(held.laddr[1] == server.port and held.status == "ESTABLISHED" for held in worker.net_connections("tcp"))
            for worker in map(psutil.Process, server.workers())
        ]


def test_headers_that_stop_coming_are_given_up_without_a_fuss(trained: tuple[Tree, object]) -> None:
    with Server(trained[0]) as server:
        connections = [server.connect() for _ in range(2)]
        connections[1].sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n\n")
        assert connections[1].recv(1000).startswith(b"HTTP/1.1 204 ")  # whose next request has no more time
        for stalled in connections:
            stalled.sendall(b"GET /pi")
        for stalled in connections:
            assert stalled.recv(100) == b""
            stalled.close()
        log = server.stop()
    assert "A client stalled; its connection is closed" in log
    assert "Traceback" not in log


def test_who_takes_a_large_answer_slowly_gets_all_of_it(trained: tuple[Tree, object]) -> None:
    """Also if that takes longer than the timeout, which is for taking nothing at all."""
    body = b"user_1,1.2.3.4\n" * 1_000_000
    timeout = 3
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_TIMEOUT=str(timeout)) as server:
        whole = server.post(body)
        with server.connect() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            head = f"POST /invocations HTTP/1.0\r\nContent-Type: text/csv\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body)
            pieces = [slow.recv(1 << 20)]
            began = time.monotonic()
            while pieces[-1]:
                time.sleep(len(pieces[-1]) / 5e6)  # much less than the timeout, for machines that are busy
                pieces.append(slow.recv(1 << 20))
            assert time.monotonic() - began > 1.5 * timeout
        assert b"".join(pieces).partition(b"\r\n\r\n")[2] == whole.content


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "cannot be received"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\na,1.2", "cannot be received"),
        (b"Content-Length: 20\r\n\r\na,1.2.3.4", "the body ended after 9 of 20 bytes"),
    ],
)
@pytest.mark.parametrize("path", ["/invocations", "/models"])
def test_a_body_that_is_cut_off_is_no_fault_of_ours(
    trained: tuple[Tree, object], sent: bytes, said: str, path: str
) -> None:
    with Server(trained[0], SAGEMAKER_MULTI_MODEL=str(path == "/models")) as server:
        with server.connect() as cut:
            cut.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n".encode() + sent)
            cut.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: cut.recv(10_000), b"")).decode()
        assert answer.startswith("HTTP/1.1 400 "), answer
        assert said in answer
        assert "Traceback" not in server.stop()


def test_many_malformed_rows_are_not_all_looked_for(server: Server) -> None:
    rows = 300_000
    for body, kind in (
        ("x\n" * rows, "text/csv"),
        ("7\n" * rows, "application/jsonlines"),
        ('{"instances": [' + "7," * rows + "7]}", "application/json"),
    ):
        answer = server.post(body, kind)
        assert answer.status_code == 400
        told = re.search(r"; and at least ([\d,]+) more\n$", answer.text)
        assert told, answer.text[-100:]
        assert 1000 <= int(told[1].replace(",", "")) < rows / 3


def test_the_largest_bodies_are_scored_row_for_row(server: Server) -> None:
    """6 MB are the most of an endpoint, 100 MB of Batch Transform."""
    row = "user_{:07},192.168.1.2\n"
    for size in (6 << 20, 100 << 20):
        rows = size // len(row.format(0))
        answer = server.post("".join(map(row.format, range(rows))), accept="text/csv")
        assert answer.status_code == 200
        assert answer.content.count(b"\n") == rows - 1


def test_the_access_log_tells_of_every_request_but_good_pings(trained: tuple[Tree, object]) -> None:
    with Server(trained[0]) as server:
        named = server.post("a,1.2.3.4\nb,2.3.4.5", accept="text/csv", X_Amzn_SageMaker_Inference_Id="mine-1")
        unnamed = server.post("a,1.2.3")
        assert requests.get(f"{server.url}/elsewhere", timeout=30).status_code == 404
        assert requests.get(f"{server.url}/invocations", timeout=30).status_code == 405
        server.stop()
        first, second, third, fourth = server.entries()
    assert first["request_id"] == named.headers["X-Request-Id"] == "mine-1"
    assert {key: first[key] for key in ("method", "path", "status", "content_type", "accept", "rows")} == {
        "method": "POST",
        "path": "/invocations",
        "status": 200,
        "content_type": "text/csv",
        "accept": "text/csv",
        "rows": 2,
    }
    assert first["bytes_in"] == 19
    assert first["bytes_out"] == len(named.content)
    assert 0 < first["seconds"] < 60
    assert time.time() - 60 < np.datetime64(first["time"][:26]).astype("M8[us]").astype(int) / 1e6 < time.time()
    assert second["request_id"] == unnamed.headers["X-Request-Id"] != ""
    assert (second["status"], second["malformed_rows"]) == (400, 1)
    assert "line 1: " in second["error"]
    assert (third["path"], third["status"]) == ("/elsewhere", 404)
    assert (fourth["path"], fourth["status"]) == ("/invocations", 405)


def test_without_access_log_there_is_none(trained: tuple[Tree, object]) -> None:
    with Server(trained[0], IPINSIGHTS_ACCESS_LOG="False") as server:
        assert server.post("a,1.2.3.4").status_code == 200
        server.stop()
        assert server.entries() == []


def test_a_log_that_nobody_reads_stops_no_request(trained: tuple[Tree, object]) -> None:
    """A pipe holds 64 KB; then whoever writes to it waits."""
    reader, writer = os.pipe()
    with Server(trained[0], writer) as server:
        os.close(writer)
        for _ in range(1000):
            assert server.post("a,1.2.3.4", X_Request_Id="x" * 300).status_code == 200
        with server.connect() as other:
            other.sendall(b"\0\xff nonsense\r\n\r\n")  # of which gunicorn complains
            assert other.recv(100).startswith(b"HTTP/1.1 400 ")
        server.stop()
        os.close(reader)


def test_a_line_goes_out_whole_whoever_else_writes() -> None:
    """At most as much at a time as a pipe takes in one piece. This socket keeps what is written at a time apart."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(60)
    with ours, theirs:
        log = AccessLog(ours.fileno())
        for i in range(100):
            log.add({"i": i, "path": "/" + "x" * i * i, "rows": i})
        log.close()
        ours.shutdown(socket.SHUT_WR)
        packets = list(iter(lambda: theirs.recv(1 << 20), b""))
    assert all(len(packet) <= select.PIPE_BUF and packet.endswith(b"\n") for packet in packets)
    entries = [json.loads(line) for packet in packets for line in packet.splitlines()]
    assert [entry["i"] for entry in entries] == list(range(100))
    assert max(len(entry["path"]) for entry in entries) == 500
    assert len(packets) < 50


def test_lines_beyond_what_memory_is_for_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipinsights.sagemaker.access._MOST", 5)
    monkeypatch.setattr("ipinsights.sagemaker.access._INTERVAL", 60)
    reader, writer = os.pipe()
    log = AccessLog(writer)
    for i in range(8):
        log.add({"i": i})
    log.close()
    os.close(writer)
    with os.fdopen(reader) as text:
        assert [json.loads(line) for line in text] == [*({"i": i} for i in range(5)), {"access_log_lines_dropped": 3}]


def test_custom_attributes_come_back_and_unknown_headers_are_of_no_concern(server: Server) -> None:
    attributes = "trace=1;user=äöü".encode().decode("latin-1")
    for sent, echoed in (("c000b4f9-df62; v=1", "c000b4f9-df62; v=1"), (attributes, None)):
        answer = server.post(
            "a,1.2.3.4",
            X_Amzn_SageMaker_Custom_Attributes=sent,
            X_Amzn_SageMaker_Target_Variant="v",
            X_Amzn_SageMaker_Session_Id="NEW_SESSION",
            X_Whatever="1",
        )
        assert answer.status_code == 200
        assert answer.headers.get("X-Amzn-SageMaker-Custom-Attributes") == echoed


@given(st.integers(1, 300), st.integers(1, 2**31), st.none() | st.integers(0, 100), st.none() | st.integers(1, 100))
def test_execution_parameters_keep_their_product_within_the_platforms_limit(
    workers: int, limit: int, payload: int | None, transforms: int | None
) -> None:
    settings = ServerSettings(workers=workers, max_content_length=limit, payload_mb=payload, transforms=transforms)
    if payload is None or transforms is None:  # where both are asked for, the platform has checked them
        assert settings.concurrent_transforms * settings.max_payload_mb <= 100
    assert 1 <= settings.concurrent_transforms <= max(workers, transforms or 0)
    assert transforms is None or settings.concurrent_transforms == transforms
    if payload is None:
        assert settings.max_payload_mb == 1 or settings.max_payload_mb << 20 <= limit
    else:
        assert settings.max_payload_mb == payload


def test_execution_parameters_follow_what_the_job_asks_for(trained: tuple[Tree, object]) -> None:
    with Server(trained[0], SAGEMAKER_MODEL_SERVER_WORKERS="4", SAGEMAKER_MAX_PAYLOAD_IN_MB="50") as server:
        parameters = requests.get(f"{server.url}/execution-parameters", timeout=30).json()
    assert parameters == {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 50}


def test_workers_share_the_model(tmp_path: Path) -> None:
    """All of its table is read by each of three, and is in memory once."""
    tree = Tree(tmp_path / "ml")
    model = Model.blank(IPV4, 200_000, 64, 1)
    model.entity[:] = 1
    names = [f"user_{i}" for i in range(150_000)]
    model.index.claim(pa.array(names, pa.string()))
    artifact.save(model, tree.model, facts={})
    size = (tree.model / artifact.TENSORS).stat().st_size
    assert size > 50e6
    body = "".join(f"{name},1.2.3.4\n" for name in names)
    with Server(tree, SAGEMAKER_MODEL_SERVER_WORKERS="3", IPINSIGHTS_UNTRAINED_MODEL="accept") as server:

        def all_have_scored() -> bool:
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda _: server.post(body), range(6)))
            return all(_mapped(pid, "Rss", tree.model) > 0.9 * size for pid in server.workers())

        until(all_have_scored)
        assert sum(_mapped(pid, "Pss", tree.model) for pid in server.workers()) < 1.1 * size
        assert sum(_mapped(pid, "Private_Dirty", tree.model) for pid in server.workers()) == 0


def _mapped(pid: int, kind: str, folder: Path) -> int:
    """Bytes of a kind that a process has of a model's file."""
    found, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            ours = line.endswith(str(folder / artifact.TENSORS))
        elif ours and line.startswith(f"{kind}:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("own", [True, False], ids=["own worker", "stock worker"])
def test_a_model_cut_short_under_the_server_makes_it_unfit(
    own: bool, trained: tuple[Tree, object], tmp_path: Path
) -> None:
    tree = Tree(tmp_path / "ml")
    shutil.copytree(trained[0].model, tree.model)
    with Server(tree, **({} if own else another_gunicorn(tmp_path))) as server:
        assert server.post("user_1,1.2.3.4\n").status_code == 200
        os.truncate(tree.model / artifact.TENSORS, 0)
        for _ in range(2):
            assert requests.get(f"{server.url}/ping", timeout=10).status_code == 200
            (worker,) = server.workers()
            with pytest.raises(requests.ConnectionError):
                server.post("user_1,1.2.3.4\n")
            until(lambda: worker not in server.workers() and len(server.workers()) == 1)  # noqa: B023
        until(lambda: requests.get(f"{server.url}/ping", timeout=10).status_code == 503)
        log = server.stop()
    assert log.count("2 workers in a row were ended by SIGBUS (a file that it has open was cut short or written") == 1
    assert "From now on /ping answers 503, so that this server is replaced" in log


def test_a_model_replaced_whole_is_served_as_it_was(trained: tuple[Tree, object], tmp_path: Path) -> None:
    tree = Tree(tmp_path / "ml")
    shutil.copytree(trained[0].model, tree.model)
    body = "user_1,1.2.3.4\nuser_2,10.0.0.1\n"
    with Server(tree) as server:
        before = server.post(body).json()
        artifact.save(Model.blank(IPV4, 10, 4, 1), tree.model, facts={})
        assert server.post(body).json() == before
        assert requests.get(f"{server.url}/ping", timeout=10).status_code == 200
        assert len(server.workers()) == 1
        assert "Worker (pid" not in server.printed()


def test_workers_that_end_otherwise_are_no_reason_to_give_up(caplog: pytest.LogCaptureFixture) -> None:
    health = Health()
    for killer in (signal.SIGSEGV, 0, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGBUS):
        health.worker_ended(killer)
        assert health.good
    assert not caplog.text
    health.worker_ended(signal.SIGSEGV)
    assert not health.good
    assert "2 workers in a row were ended by SIGSEGV (native code is at fault, please report it)" in caplog.text
    health.worker_ended(0)
    assert not health.good


def test_a_damaged_model_is_not_served_unless_nobody_looks(trained: tuple[Tree, object], tmp_path: Path) -> None:
    tree = Tree(tmp_path / "ml")
    shutil.copytree(trained[0].model, tree.model)
    path = tree.model / artifact.TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = tree.run("ipinsights.sagemaker", "serve", SAGEMAKER_BIND_TO_PORT=str(free_port()))
    assert result.returncode == 1
    assert f"ClientError: {path} is damaged or incomplete" in result.stdout
    with Server(tree, IPINSIGHTS_VERIFY_MODEL="false") as server:
        assert server.post("user_1,1.2.3.4\n").status_code == 200
