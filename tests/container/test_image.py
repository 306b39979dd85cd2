"""The image itself, in real containers, wherever a Docker engine answers."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks.servers import free_port, time_limit

ROOT = Path(__file__).parents[2]
IMAGE = "ipinsights:test"


def docker(*arguments: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)


def engine_answers() -> bool:
    return shutil.which("docker") is not None and docker("info").returncode == 0


pytestmark = pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here")


@pytest.fixture(scope="module")
def image() -> str:
    build = subprocess.run(
        ["make", "image", f"IMAGE={IMAGE}"], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    return IMAGE


@pytest.fixture(scope="module")
def folder(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of local_test/test_dir on which the image has trained."""
    folder = tmp_path_factory.mktemp("opt") / "ml"
    shutil.copytree(ROOT / "local_test" / "test_dir" / "input", folder / "input")
    script = [str(ROOT / "local_test" / "train_local.sh"), image, str(folder)]
    job = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "#quality_metric: host=algo-1, epoch=2, validation discriminator_auc <score>=" in job.stdout
    assert "Imported framework ipinsights.sagemaker.job" in job.stderr  # so the training toolkit ran it
    return folder


FACTS = """
import json
from importlib.metadata import distributions
from packaging.requirements import Requirement
from ipinsights import machine, native
from ipinsights.sagemaker.settings import ServerSettings
machine.limit_threads()
import torch
has = {package.name.lower().replace("_", "-").replace(".", "-"): package for package in distributions()}
asked = [Requirement(text) for package in has.values() for text in package.requires or []]
asked = [one for one in asked if not one.marker or one.marker.evaluate({"extra": ""})]
print(json.dumps({
    "kernel": native.why_absent(),
    "cuda": torch.version.cuda,
    "cores": machine.usable_cores(),
    "workers": ServerSettings.from_environment().workers,
    "threads": torch.get_num_threads(),
    "missing": sorted({one.name.lower() for one in asked if one.name.lower().replace("_", "-") not in has}),
    "conflicts": [str(one) for one in asked if (found := has.get(one.name.lower().replace("_", "-")))
                  and not one.specifier.contains(found.version, prereleases=True)],
    "bill": json.load(open("/opt/ipinsights/SBOM.json")),
    "notices": open("/opt/ipinsights/NOTICES.txt").read(),
}))
"""


@pytest.fixture(scope="module")
def facts(image: str) -> Any:
    """What the image says of itself where it may use one core."""
    told = docker("run", "--rm", "--cpus", "1", "--entrypoint", "python", image, "-c", FACTS)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


def test_the_kernel_is_there(facts: Any) -> None:
    """Without a compiler the package can be installed all the same."""
    assert facts["kernel"] == ""


def test_one_core_of_many_gets_one_worker_and_one_thread(facts: Any) -> None:
    assert (facts["cores"], facts["workers"], facts["threads"]) == (1, 1, 1)


def test_nothing_is_missing_but_what_nothing_imports(facts: Any) -> None:
    """Training goes the toolkit's way without that, as the fixture `folder` shows."""
    left_out = (ROOT / "container" / "image" / "without.txt").read_text().splitlines()
    assert facts["missing"] == sorted(line for line in left_out if not line.startswith("#"))
    assert not facts["conflicts"]


def test_the_bill_of_materials_has_what_was_locked(facts: Any) -> None:
    bill = facts["bill"]
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "ipinsights")
    listed = {part["purl"] for part in bill["components"]}
    locked = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "container/requirements.lock").read_text(), flags=re.MULTILINE)
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked} <= listed
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in listed)
    python = [part for part in bill["components"] if part["purl"].startswith("pkg:pypi/")]
    assert all(part["licenses"][0]["license"]["name"] for part in python)
    assert all(f"\n{part['name']} {part['version']}: " in facts["notices"] for part in python)
    assert "Copyright" in facts["notices"]


def test_training_leaves_a_model(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["manifest.json", "model.safetensors"]
    assert not (folder / "output" / "failure").exists()


@contextmanager
def serving(command: list[str], port: int) -> Iterator[str]:
    """Run a command that serves; its address, once /ping is good. Then stop it."""
    url = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server,
        time_limit(server, 1200),
    ):
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert requests.get(f"{url}/ping", timeout=2).status_code == 200
                    break
                except (requests.ConnectionError, requests.Timeout):
                    assert server.poll() is None, server.stdout and server.stdout.read()
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            yield url
        finally:
            server.terminate()
            printed = server.communicate(timeout=60)[0]
    assert server.returncode == 0, printed  # it was asked to stop, and did


def test_serving_answers_a_request(image: str, folder: Path) -> None:
    port = free_port()
    local_test = ROOT / "local_test"
    with serving([str(local_test / "serve_local.sh"), image, str(folder), str(port)], port):
        predict = [str(local_test / "predict.sh"), str(local_test / "payload.csv"), "text/csv", str(port)]
        answer = json.loads(subprocess.run(predict, capture_output=True, text=True, timeout=60, check=True).stdout)
        assert [list(prediction) for prediction in answer["predictions"]] == [["dot_product"], ["dot_product"]]


@pytest.mark.parametrize(
    "writable",
    [["--tmpfs", "/tmp", "--ipc", "none"], ["--shm-size", "64k"]],
    ids=["no /dev/shm", "nothing but /dev/shm"],
)
def test_a_serverless_endpoint_has_an_unprivileged_user_and_a_read_only_file_system(
    image: str, folder: Path, writable: list[str]
) -> None:
    port = free_port()
    confined = ["--user", "1000:1000", "--read-only", "--cap-drop", "ALL", *writable]
    where = ["-p", f"127.0.0.1:{port}:{port}", "-v", f"{folder / 'model'}:/opt/ml/model:ro"]
    settings = ["-e", "SAGEMAKER_MODEL_SERVER_WORKERS=1", "-e", f"SAGEMAKER_BIND_TO_PORT={port}"]
    with serving(["docker", "run", "--rm", *confined, *where, *settings, image, "serve"], port) as url:
        body = "user_1,192.168.1.2\n" * 100_000
        for _ in range(3):
            answer = requests.post(f"{url}/invocations", body, headers={"Content-Type": "text/csv"}, timeout=60)
            assert len(answer.json()["predictions"]) == 100_000


def test_a_multi_model_endpoint_serves_what_it_is_told_of(image: str, folder: Path) -> None:
    """Where the platform puts the models, read-only, as it has them."""
    port = free_port()
    models = [f"{name:032x}" for name in range(3)]
    volumes = [part for name in models for part in ("-v", f"{folder / 'model'}:/opt/ml/models/{name}/model:ro")]
    settings = ["-e", "SAGEMAKER_MULTI_MODEL=true", "-p", f"127.0.0.1:{port}:8080"]
    with serving(["docker", "run", "--rm", *settings, *volumes, image, "serve"], port) as url:
        for name in models:
            asked = {"model_name": name, "url": f"/opt/ml/models/{name}/model"}
            assert requests.post(f"{url}/models", json=asked, timeout=60).status_code == 200
            answer = requests.post(
                f"{url}/models/{name}/invoke", "user_1,192.168.1.2", headers={"Content-Type": "text/csv"}, timeout=60
            )
            assert len(answer.json()["predictions"]) == 1
        assert len(requests.get(f"{url}/models", timeout=30).json()["models"]) == 3
        assert requests.delete(f"{url}/models/{models[0]}", timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("version", "environment", "script", "hosts"),
    [(2, "sdk", "sagemaker_local", 2), (3, "sdk3", "sagemaker3_local", 1)],
    ids=["SDK 2, two hosts", "SDK 3"],
)
def test_the_tutorials_calls_work_by_the_sdk(
    version: int, environment: str, script: str, hosts: int, image: str, tmp_path: Path
) -> None:
    """fit, deploy, predict and transform in SageMaker's local mode: its own serializers, Compose file and splitting."""
    python = ROOT / ".venv" / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"version {version} of the SageMaker SDK is not installed in .venv/{environment}")
    if shutil.which("docker-compose") is None and docker("compose", "version").returncode:
        pytest.skip("local mode needs Compose")
    command = [str(python), "-m", f"local_test.{script}", "--image", image, "--hosts", str(hosts)]
    walk = subprocess.run(
        [*command, "--out", str(tmp_path / "sdk")], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )
    assert walk.returncode == 0, walk.stdout[-3000:] + walk.stderr[-3000:]
    result = json.loads(walk.stdout.splitlines()[-1])
    scores = [prediction["dot_product"] for prediction in result["deployed"]["predictions"]]
    assert len(set(scores)) == 3
    for prediction, score in zip(result["verbose"]["predictions"], scores, strict=True):
        pairs = zip(prediction["ip_embedding"], prediction["entity_embedding"], strict=True)
        assert sum(a * b for a, b in pairs) == pytest.approx(prediction["dot_product"], abs=1e-5)
        assert prediction["dot_product"] == score
    assert [float(line) for line in result["transformed"].split()] == scores
    if hosts > 1:
        assert f"All {hosts} hosts train" in walk.stdout + walk.stderr


def test_a_malformed_row_reaches_the_failure_file(image: str, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "ml"
    shutil.copytree(folder / "input", bad / "input")
    (bad / "input" / "data" / "train" / "more.csv").write_text("user_1,1.2.3.4\nuser_1,1.2.3\n")
    job = docker("run", "--rm", "-v", f"{bad}:/opt/ml", image, "train")
    assert job.returncode == 1
    failure = (bad / "output" / "failure").read_text()
    assert failure.startswith("ClientError: 1 of ")
    assert "malformed: /opt/ml/input/data/train/more.csv, line 2: " in failure
    assert "'user_1,1.2.3'" in failure
    assert "Traceback" not in job.stdout + job.stderr


def test_process_1_stops_on_sigterm_and_goes_on_after_sigkill(image: str, folder: Path, tmp_path: Path) -> None:
    """As the platform does it: stop a job, reclaim its instance without a word, start it anew."""
    base = tmp_path / "ml"
    shutil.copytree(folder / "input", base / "input")
    (base / "checkpoints").mkdir()
    path = base / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epochs": "100000"}))
    for ending in (["kill"], ["stop", "--time", "60"]):
        name = docker("run", "--detach", "-v", f"{base}:/opt/ml", image, "train").stdout.strip()
        try:
            deadline = time.monotonic() + 60
            while "Wrote the checkpoint" not in docker("logs", name).stdout:
                assert time.monotonic() < deadline, docker("logs", name)
                time.sleep(0.2)
            assert docker(*ending, name).returncode == 0
            code, log = docker("wait", name).stdout.strip(), docker("logs", name).stdout
        finally:
            docker("rm", "--force", name)
        if ending == ["kill"]:
            assert code == "137"
            assert not (base / "model" / "manifest.json").exists()
        else:
            assert code == "0", log
            assert "Resuming from the checkpoint after" in log
            assert "because it was asked to stop" in log
            manifest = json.loads((base / "model" / "manifest.json").read_text())
            assert manifest["training"]["ended"] == "stopped"
            assert not (base / "output" / "failure").exists()


def test_training_needs_no_network_and_writes_where_it_may(image: str, folder: Path, tmp_path: Path) -> None:
    """The input is read-only too, as FastFile mode has it, and there is no /tmp. Nor is it told what to do."""
    base = tmp_path / "ml"
    for name in ("model", "output"):
        (base / name).mkdir(parents=True)
    volumes = ["-v", f"{folder / 'input'}:/opt/ml/input:ro"]
    volumes += [part for name in ("model", "output") for part in ("-v", f"{base / name}:/opt/ml/{name}")]
    isolated = ["--network", "none", "--read-only"]
    job = docker("run", "--rm", *isolated, *volumes, image)
    assert job.returncode == 0, job.stdout + job.stderr
    assert (base / "model" / "manifest.json").exists()


def test_a_full_disk_is_told(image: str, folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    shutil.copytree(folder / "input", base / "input")
    path = base / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_entity_vectors": "100000"}))
    job = docker("run", "--rm", "-v", f"{base}:/opt/ml", "--tmpfs", "/opt/ml/model:size=2m", image, "train")
    assert job.returncode == 1
    failure = (base / "output" / "failure").read_text()
    assert failure.startswith("ClientError: there is no space left on the disk"), failure
    assert "Traceback" not in job.stdout + job.stderr


@pytest.mark.parametrize("arguments", [[], ["bash"]])
def test_anything_else_prints_the_usage(image: str, arguments: list[str]) -> None:
    result = docker("run", "--rm", image, *arguments)
    assert result.returncode == 2
    assert "usage: docker run IMAGE {train|serve}" in result.stderr


def test_the_commands_of_the_shell_run_in_the_image(image: str, tmp_path: Path) -> None:
    """From a log to the page, in a folder of the host's."""
    tmp_path.chmod(0o777)

    def ipinsights(*arguments: str) -> str:
        done = docker(
            "run", "--rm", "--network", "none", "-v", f"{tmp_path}:/w", "-w", "/w", image, "ipinsights", *arguments
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ipinsights("simulate", "--users", "30", "--out", "traffic", "--log")
    ipinsights("prepare", "traffic/access.log", "--resource", "GET /login_success", "--out", "log-ins")
    ipinsights("train", "log-ins/train", "--validation", "log-ins/validation", "--model", "model", "--epochs", "2")
    assert "Known accounts: " in ipinsights("alerts", "log-ins/latest", "--model", "model")
    ipinsights("report", "log-ins/latest", "--model", "model", "--out", "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1e6


def test_both_roles_are_on_the_path(image: str) -> None:
    """For platforms that override the entry point; ours must win over the toolkit's command of the same name."""
    result = docker("run", "--rm", "--entrypoint", "sh", image, "-c", "cat $(which train) $(which serve)")
    assert result.stdout.count("from ipinsights.sagemaker") == 2, result.stdout + result.stderr


def test_torch_has_no_cuda(facts: Any) -> None:
    assert facts["cuda"] is None


def test_labels_promise_what_works(image: str) -> None:
    labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", image).stdout)
    told = {name: labels.pop(f"org.opencontainers.image.{name}") for name in ("version", "revision", "source")}
    assert labels == {
        "com.amazonaws.sagemaker.capabilities.accept-bind-to-port": "true",
        "com.amazonaws.sagemaker.capabilities.multi-models": "true",
        "org.opencontainers.image.title": "ipinsights",
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    commit = f"{told['revision']}^{{commit}}"
    git = subprocess.run(
        ["git", "rev-parse", "--verify", commit], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert git.stdout.strip() == told["revision"]
    assert re.match(r"\d+\.\d+\.\d+", told["version"])


def test_it_is_small_and_a_change_of_code_is_smaller(image: str) -> None:
    """Of its own layers, which the base image's lie below."""
    history = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", image).stdout
    layers = [line.split(" ", 1) for line in history.splitlines()]
    code, dependencies, *_ = [int(size) for size, made in layers if "COPY" in made and int(size)]
    assert code < 10e6
    assert dependencies < 800e6
