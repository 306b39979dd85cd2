"""A multi-model endpoint, as the platform drives it: load, list, describe, invoke, unload."""

import concurrent.futures
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import requests

from conftest import Server, Tree
from ipinsights.data.addresses import IPV4
from ipinsights.errors import UserError
from ipinsights.model import artifact
from ipinsights.model.model import Model
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker.models import AlreadyLoaded, ModelStore, NotLoaded, OutOfMemory

pytestmark = pytest.mark.slow

CSV = "user_1,192.168.1.2\nuser_2,10.10.1.2\n"
TABLE = 64 * 4
"""Bytes of an entity's row."""


def make_model(folder: Path, score: float, entities: int = 1000) -> Path:
    """A model that gives known entities a score, whatever the address."""
    blank = Model.blank(IPV4, entities, 64, 1)
    model = replace(blank, vocabulary=replace(blank.vocabulary, events=2))
    model.index.claim(pa.array(["user_1", "user_2"], pa.string()))
    model.entity[:, 0] = score
    model.encoder.prefix[:, 0] = np.float32(1 / model.vocabulary.depth)
    artifact.save(model, folder, facts={})
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """There is no model in /opt/ml/model, and one worker whatever is asked for."""
    settings = {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_MODEL_SERVER_WORKERS": "4", "IPINSIGHTS_MODELS_FOLDER": "/"}
    with Server(Tree(tmp_path / "ml"), **settings) as server:
        yield server


def load(server: Server, name: str, folder: Path) -> requests.Response:
    return requests.post(f"{server.url}/models", json={"model_name": name, "url": str(folder)}, timeout=30)


def scores(answer: requests.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return [round(prediction["dot_product"], 4) for prediction in answer.json()["predictions"]]


def test_the_five_calls(server: Server, tmp_path: Path) -> None:
    one, two = make_model(tmp_path / "1" / "model", 1), make_model(tmp_path / "2" / "model", 2)
    url = f"{server.url}/models"
    assert len(server.workers()) == 1
    assert requests.get(f"{server.url}/ping", timeout=2).status_code == 200
    assert requests.get(url, timeout=30).json() == {"models": []}
    assert load(server, "one", one).status_code == 200
    assert load(server, "two/ü x", two).status_code == 200
    assert load(server, "one", two).status_code == 409
    assert requests.get(url, timeout=30).json() == {
        "models": [{"modelName": "one", "modelUrl": str(one)}, {"modelName": "two/ü x", "modelUrl": str(two)}]
    }
    assert requests.get(f"{url}/two/ü x", timeout=30).json() == {"modelName": "two/ü x", "modelUrl": str(two)}
    assert scores(server.post(CSV, path="/models/one/invoke", X_Amzn_SageMaker_Target_Model="one.tar.gz")) == [1, 1]
    assert scores(server.post(CSV, path="/models/two/ü x/invoke")) == [2, 2]
    assert requests.delete(f"{url}/one", timeout=30).status_code == 200
    for status, answer in (
        (404, requests.get(f"{url}/one", timeout=30)),
        (404, requests.delete(f"{url}/one", timeout=30)),
        (404, server.post(CSV, path="/models/one/invoke")),
        (404, server.post("", path="/models/one/invoke")),
        (404, server.post(CSV)),
        (405, requests.get(f"{url}/two/invoke", timeout=30)),
        (415, server.post(CSV, "image/png", path="/models/two/ü x/invoke")),
    ):
        assert answer.status_code == status, answer.text
        assert "Traceback" not in answer.text
        assert "<html" not in answer.text
    assert load(server, "one", two).status_code == 200
    assert scores(server.post(CSV, path="/models/one/invoke")) == [2, 2]
    server.stop()
    assert {entry["model"] for entry in server.entries() if entry["path"].endswith("/invoke")} >= {"one", "two/ü x"}


def test_what_cannot_be_loaded_is_rejected(server: Server, tmp_path: Path) -> None:
    """And the models that are loaded go on."""
    damaged = make_model(tmp_path / "damaged", 1)
    (damaged / artifact.TENSORS).write_bytes(b"x")
    assert load(server, "good", make_model(tmp_path / "good", 2)).status_code == 200
    for body, said in (
        (b"", "the body must be"),
        (b"{}", "the body must be"),
        (b'{"model_name": "a", "url": 7}', "the body must be"),
        (b'{"model_name": "a\\nb", "url": "/nowhere"}', "'a\\nb' cannot be the name of a model"),
        (b'{"model_name": "a/invoke", "url": "/nowhere"}', "'a/invoke' cannot be the name of a model"),
        (b'{"model_name": "a", "url": "/nowhere"}', "there is no model in /nowhere"),
        (f'{{"model_name": "a", "url": "{damaged}"}}'.encode(), "is damaged"),
    ):
        answer = requests.post(f"{server.url}/models", data=body, timeout=30)
        assert answer.status_code == 400
        assert said in answer.text
        assert "Traceback" not in answer.text
        assert scores(server.post(CSV, path="/models/good/invoke")) == [2, 2]
    [listed] = requests.get(f"{server.url}/models", timeout=30).json()["models"]
    assert listed["modelName"] == "good"


def test_only_the_folder_of_all_models_is_opened(tmp_path: Path) -> None:
    """Of whatever lies elsewhere, the answer tells nothing: not even whether it is there."""
    inside, outside = make_model(tmp_path / "ml" / "models" / "a" / "model", 1), make_model(tmp_path / "b", 2)
    (tmp_path / "file").write_text("")
    root = inside.parents[1]
    with Server(Tree(tmp_path / "ml"), SAGEMAKER_MULTI_MODEL="true") as server:
        others = [outside, tmp_path / "file", tmp_path / "nowhere", root / ".." / ".." / "b", Path("models/a/model")]
        answers = [load(server, "m", folder) for folder in [*others, root / ("x" * 5000)]]
        assert {answer.status_code for answer in answers} == {400}
        assert {answer.text for answer in answers} == {
            f"the url must be a folder in {root} (IPINSIGHTS_MODELS_FOLDER)\n"
        }
        assert load(server, "m", inside / ".." / "." / "model").json() == {"modelName": "m", "modelUrl": str(inside)}
        assert scores(server.post(CSV, path="/models/m/invoke")) == [1, 1]


def test_no_link_leads_out_of_the_folder_of_all_models(tmp_path: Path) -> None:
    """Those that stay inside are followed."""
    root = tmp_path / "ml" / "models"
    inside, outside = make_model(root / "a", 1), make_model(tmp_path / "b", 2)
    (root / "whole").symlink_to(outside)
    shutil.copytree(inside, root / "part")
    (root / "part" / artifact.TENSORS).unlink()
    (root / "part" / artifact.TENSORS).symlink_to(outside / artifact.TENSORS)
    (root / "good").symlink_to(inside)
    with Server(Tree(tmp_path / "ml"), SAGEMAKER_MULTI_MODEL="true") as server:
        for folder, path in (("whole", "whole"), ("part", f"part/{artifact.TENSORS}")):
            answer = load(server, "m", root / folder)
            assert (answer.status_code, answer.text) == (400, f"{root / path} is a link that leads out of {root}\n")
        assert load(server, "m", root / "good").status_code == 200


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.TENSORS])
def test_a_pipe_or_a_device_blocks_no_load(name: str, server: Server, tmp_path: Path) -> None:
    pipe, device, large, good = (make_model(tmp_path / part, 1) for part in ("pipe", "device", "large", "good"))
    for folder in (pipe, device):
        (folder / name).unlink()
    os.mkfifo(pipe / name)
    (device / name).symlink_to("/dev/zero")
    os.truncate(large / artifact.MANIFEST, 1 << 33)
    for folder, said in ((pipe, "not a plain file"), (device, "not a plain file"), (large, "too large for a manifest")):
        answer = load(server, folder.name, folder)
        assert answer.status_code == 400
        assert said in answer.text
    assert load(server, "good", good).status_code == 200
    (pid,) = server.workers()
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 500_000


def test_unloading_frees_the_memory_before_the_answer(server: Server, tmp_path: Path) -> None:
    """Of the table, which is mapped, and of what is made from it."""
    (pid,) = server.workers()
    folder = make_model(tmp_path / "large", 1, entities=200_000)

    def mapped() -> bool:
        return str(folder) in Path(f"/proc/{pid}/maps").read_text()

    def resident() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

    sizes = []
    for _ in range(5):
        assert load(server, "m", folder).status_code == 200
        assert mapped()
        assert scores(server.post("".join(f"user_{i},1.2.3.4\n" for i in range(5000)), path="/models/m/invoke"))
        assert requests.delete(f"{server.url}/models/m", timeout=30).status_code == 200
        assert not mapped()
        sizes.append(resident())
    assert sizes[-1] < sizes[0] + 10e6


def test_beyond_the_limit_the_least_recently_used_are_evicted(tmp_path: Path) -> None:
    """They stay on the list, and are reopened for the next request."""
    folders = {str(i): make_model(tmp_path / str(i), i, entities=4096) for i in range(6)}
    limit = 3 * 4096 * TABLE // 2**20 + 1
    settings = {"SAGEMAKER_MULTI_MODEL": "True", "IPINSIGHTS_MODELS_MEMORY_MB": str(limit)}
    settings["IPINSIGHTS_MODELS_FOLDER"] = str(tmp_path)
    with Server(Tree(tmp_path / "ml"), **settings) as server:
        (pid,) = server.workers()

        def mapped() -> set[str]:
            maps = Path(f"/proc/{pid}/maps").read_text()
            return {name for name, folder in folders.items() if f"{folder}/" in maps}

        for name in "012":
            assert load(server, name, folders[name]).status_code == 200
        assert mapped() == set("012")
        assert scores(server.post(CSV, path="/models/0/invoke")) == [0, 0]
        assert load(server, "3", folders["3"]).status_code == 200
        assert mapped() == set("023")
        assert scores(server.post(CSV, path="/models/1/invoke")) == [1, 1]
        assert mapped() == set("013")
        listed = requests.get(f"{server.url}/models", timeout=30).json()["models"]
        assert {model["modelName"] for model in listed} == set("0123")
        for name in "45":
            assert load(server, name, folders[name]).status_code == 200
        order = np.random.default_rng(0).integers(6, size=300)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda i: scores(server.post(CSV, path=f"/models/{i}/invoke")), order)
            assert list(answers) == [[i, i] for i in order]
        assert len(mapped()) == 3
        large = make_model(tmp_path / "large", 1, entities=5 * 4096)
        answer = load(server, "large", large)
        assert answer.status_code == 507
        assert "bytes" in answer.text
        assert scores(server.post(CSV, path="/models/0/invoke")) == [0, 0]
        shutil.rmtree(folders["5"])
        for name in "1234":
            server.post(CSV, path=f"/models/{name}/invoke")
        gone = server.post(CSV, path="/models/5/invoke")
        assert gone.status_code == 404
        assert "the model '5' could not be reopened: there is no model in" in gone.text


def test_unloading_waits_for_the_requests_to_that_model(tmp_path: Path) -> None:
    models = ModelStore()
    models.load("m", make_model(tmp_path / "m", 1))
    borrowed, go_on = threading.Event(), threading.Event()

    def answer_slowly() -> int:
        with models.borrow("m") as loan:
            borrowed.set()
            assert go_on.wait(60)
            return loan.scorer.vector_dim

    with concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(answer_slowly)
        assert borrowed.wait(60)
        unloading = pool.submit(models.unload, "m")
        time.sleep(0.1)
        assert not unloading.done()
        with pytest.raises(NotLoaded):
            models.unload("m")
        go_on.set()
        assert answer.result(timeout=60) == 64
        unloading.result(timeout=60)
    with pytest.raises(NotLoaded):
        answer_slowly()


def test_whoever_has_borrowed_a_model_does_not_keep_its_memory(tmp_path: Path) -> None:
    models = ModelStore()
    folder = make_model(tmp_path / "m", 1)
    models.load("m", folder)
    with models.borrow("m") as loan:
        assert loan.scorer.vector_dim == 64
    assert f"{folder}/" in Path("/proc/self/maps").read_text()
    models.unload("m")
    assert f"{folder}/" not in Path("/proc/self/maps").read_text()
    with pytest.raises(AttributeError):
        _ = loan.scorer


def test_what_is_in_use_is_evicted_last(tmp_path: Path) -> None:
    """If everything is in use, a model waits a moment, and then is opened beyond the limit."""
    folders = {name: make_model(tmp_path / name, 1) for name in "abc"}
    size = Scorer.memory(artifact.load(folders["a"]))
    models = ModelStore(limit=2 * size)

    def open_ones() -> set[str]:
        maps = Path("/proc/self/maps").read_text()
        return {name for name, folder in folders.items() if f"{folder}/" in maps}

    models.load("a", folders["a"])
    models.load("b", folders["b"])
    with models.borrow("a"), models.borrow("b"):
        assert open_ones() == {"a", "b"}
    with models.borrow("a"):
        with models.borrow("b"):
            pass
        models.load("c", folders["c"])
        assert open_ones() == {"a", "c"}
    models.unload("c")
    with models.borrow("a"), models.borrow("b"):
        began = time.monotonic()
        models.load("c", folders["c"])
        assert time.monotonic() - began > 0.9
        assert open_ones() == {"a", "b", "c"}
    assert open_ones() == {"b", "c"}


def test_a_model_is_loaded_once_however_many_ask(tmp_path: Path) -> None:
    models = ModelStore()
    folder = make_model(tmp_path / "m", 1)

    def try_to(_: int) -> bool:
        try:
            models.load("m", folder)
        except AlreadyLoaded:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_to, range(50))) == 1


def test_where_memory_ends_the_error_says_so_and_open_models_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelStore()
    models.load("m", make_model(tmp_path / "m", 1))

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Scorer, "__init__", fail)
    with pytest.raises(OutOfMemory, match="there is no memory for the model"):
        models.load("n", tmp_path / "m")
    with pytest.raises(UserError, match="there is no model in"):
        models.load("n", tmp_path / "nowhere")
    assert list(models.folders()) == ["m"]


def test_a_scorer_knows_what_it_takes(tmp_path: Path) -> None:
    model = artifact.load(make_model(tmp_path / "m", 1, entities=50_000))
    size = (tmp_path / "m" / artifact.TENSORS).stat().st_size
    assert 0.99 * size < Scorer.memory(model) < 1.1 * size
