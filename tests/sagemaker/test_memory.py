"""Requests never take more memory than there is: one that cannot be answered is refused, with what to do."""

import socket
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from conftest import Server, Tree, until
from ipinsights.data.addresses import IPV4
from ipinsights.data.instances import salvage_document, salvage_lines
from ipinsights.sagemaker import media
from ipinsights.sagemaker.memory import COST, BusyError, Memory
from ipinsights.sagemaker.settings import ServerSettings


def test_bodies_share_a_quarter_of_the_memory_and_the_only_one_may_have_more() -> None:
    memory = Memory(400)
    with memory.receiving() as first, memory.receiving() as second:
        first(90)
        second(10)
        for take in (first, second):
            with pytest.raises(BusyError):
                take(1)
    with memory.receiving() as only:
        only(300)
        only(300)
    with memory.receiving() as later:
        later(100)


def test_scoring_waits_for_memory_and_the_only_one_never_does() -> None:
    memory = Memory(10 * COST)
    began, done = threading.Event(), threading.Event()

    def score() -> None:
        began.set()
        with memory.scoring(3):
            done.set()

    with memory.scoring(1000):  # the only one
        pass
    other = threading.Thread(target=score)
    with memory.scoring(4), memory.scoring(4):
        other.start()
        began.wait()
        assert not done.is_set()
    other.join(timeout=60)
    assert done.is_set()


@pytest.mark.parametrize("at_a_time", [2, 3, 16])
def test_all_that_is_answered_at_a_time_has_its_share(at_a_time: int) -> None:
    """An answer is in memory twice for a moment, beside the documents that are parsed."""
    memory = Memory(4800, at_a_time)
    assert 2 * at_a_time * memory.answer <= 4800 / 2
    assert at_a_time * memory.document <= 4800


def test_without_a_limit_there_is_none() -> None:
    memory = Memory()
    with memory.receiving() as one, memory.receiving() as other, memory.scoring(1 << 60), memory.scoring(1 << 60):
        one(1 << 60)
        other(1 << 60)
    assert memory.answer == float("inf")


def test_the_limit_follows_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipinsights.sagemaker.settings.available_memory", lambda: 1000 << 20)
    for environment, limit in (
        ({}, 500),
        ({"SAGEMAKER_MULTI_MODEL": "true"}, 100),
        ({"IPINSIGHTS_REQUESTS_MEMORY_MB": "7"}, 7),
    ):
        assert ServerSettings.from_environment(environment).requests_memory_mb == limit
    monkeypatch.setattr("ipinsights.sagemaker.settings.available_memory", lambda: None)
    assert ServerSettings.from_environment({}).requests_memory_mb is None


def test_lines_are_not_all_in_memory_as_objects() -> None:
    text = b"{}\n" * 300_000
    salvage_lines(text[:15_000], IPV4, most=1000)  # imports what it needs
    tracemalloc.start()
    try:
        salvage_lines(text, IPV4, most=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # 14 million bytes are 300,000 of them


@pytest.mark.parametrize(
    ("begin", "end"),
    [('{"instances":[', "]}"), ('{"a":"b","c":[{"d":[1]}, 2], "instances" : [', '], "e":{"instances":[]}}')],
)
def test_instances_are_not_all_in_memory_as_objects(begin: str, end: str) -> None:
    def document(number: int) -> bytes:
        return (begin + ",".join(["{}"] * number) + end).encode()

    salvage_document(document(5000), IPV4, most=1000)  # imports what it needs
    text = document(300_000)
    tracemalloc.start()
    try:
        assert len(salvage_document(text, IPV4, most=1000, memory=0).faults) > 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # 19 million bytes are 300,000 of them


@pytest.mark.parametrize("begin", ['{"instances":[[[[[[[[[[1]]]]]]]]],', '{"a":[%s1],"instances":[' % ("1," * 600_000)])
def test_a_document_of_unusual_form_is_parsed_where_there_is_memory(begin: str) -> None:
    text = f'{begin}["a","1.2.3.4"]]}}'.encode()
    assert len(salvage_document(text, IPV4, memory=32 * len(text)).pairs.digests) == 1
    with pytest.raises(MemoryError):
        salvage_document(text, IPV4, memory=32 * len(text) - 1)


def test_the_size_of_a_prediction_with_embeddings_is_no_less_than_it_takes() -> None:
    number = len("-1.2345678806304932e-38,")
    rest = len('{"dot_product":,"ip_embedding":[],"entity_embedding":[]},')
    for accept in media.ACCEPTED_TYPES:
        assert media.writer(f"{accept};verbose=True").row_size(8) > 17 * number + rest
        assert media.writer(accept).row_size(8) == 0


def test_the_size_of_a_prediction_with_an_explanation_is_no_less_than_it_takes() -> None:
    network = '{"network":"2001:db8:aaaa:bbbb:cccc:dddd::/112","entities":4294967295,"events":4294967295},'
    parts = (
        '"popularity":-12.345678901234567,' * 4 + '"events":4294967295,' * 3 + '"provider":4294967295,"country":"XX"'
    )
    assert media.writer("application/json;explain=True").row_size(8) > 250 + 20 * len(network) + len(parts)


@pytest.mark.slow
def test_what_takes_more_memory_than_there_is_is_refused(trained: tuple[Tree, object]) -> None:
    limits = {"IPINSIGHTS_REQUESTS_MEMORY_MB": "4", "IPINSIGHTS_MALFORMED_ROWS": "mark"}
    with Server(trained[0], **limits) as server:
        verbose = "application/json;verbose=True"
        refused = server.post("a,1.2.3.4\n" * 2000, accept=verbose)
        assert refused.status_code == 413
        assert refused.text == ("there is too little memory for the embeddings of 2,000 rows: ask for 499 at a time\n")
        assert server.post("a,1.2.3.4\n" * 499, accept=verbose).status_code == 200
        refused = server.post("a,1.2.3.4\n" * 2000, accept="application/json;explain=True")
        assert refused.text == (
            "there is too little memory for the explanations of 2,000 rows: ask for 123 at a time\n"
        )
        assert server.post("a,1.2.3.4\n" * 2000).status_code == 200
        deep = '{"instances":[' + "[" * 9 + "]" * 9 + ',["a","1.2.3.4"]' * 5000 + "]}"
        refused = server.post(deep, "application/json")
        assert (refused.status_code, refused.text) == (
            413,
            "there is too little memory for this request: send fewer rows at a time\n",
        )
        marks = server.post("x\n" * 2000)
        assert (marks.status_code, marks.text) == (
            413,
            "there is too little memory to mark more than 524 malformed rows\n",
        )
        with server.connect() as slow:
            head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
            slow.sendall(head + b"Content-Length: 1040000\r\n\r\n" + b"a,1.2.3.4\n" * 50_000)
            busy = server.post("a,1.2.3.4\n" * 2000)
            while busy.status_code == 200:  # the slow one has not begun yet
                busy = server.post("a,1.2.3.4\n" * 2000)
            assert busy.status_code == 503
            assert busy.headers["Retry-After"] == "1"
            assert "ask again in a moment" in busy.text
            chunked = server.post(iter([b"a,1.2.3.4\n" * 1000] * 4))
            assert chunked.status_code == 503
            slow.sendall(b"a,1.2.3.4\n" * 54_000)
            slow.shutdown(socket.SHUT_WR)
            assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
        assert server.post("a,1.2.3.4\n" * 2000).status_code == 200
        server.stop()  # the log is written every now and then, and at the end
        assert [entry["status"] for entry in server.entries()][:1] == [413]


@pytest.mark.slow
def test_threads_keep_little_memory_each(trained: tuple[Tree, object]) -> None:
    """Each that has read a request once keeps 4 MB with the usual allocators."""
    body = '"quoted",1.2.3.4\n' * 20_000
    with Server(trained[0]) as server, ThreadPoolExecutor(100) as pool:
        assert server.post(body).status_code == 200
        (worker,) = map(psutil.Process, server.workers())
        before = worker.memory_full_info().uss

        def many_threads() -> bool:
            assert {answer.status_code for answer in pool.map(lambda _: server.post(body), range(100))} == {200}
            return bool(worker.num_threads() > 60)

        until(many_threads)
        assert worker.memory_full_info().uss - before < 100e6
