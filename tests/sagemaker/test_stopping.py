"""Stop requests, checkpoints and earlier models, as the platform makes use of them: real processes, real signals."""

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.servers import free_port
from conftest import SMALL, Server, Traffic, Tree, to_csv
from ipinsights.data.records import parse_csv
from ipinsights.model import artifact
from ipinsights.model.scoring import Scorer
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS
from ipinsights.training.checkpoint import FORMAT_VERSION
from local_test import interruptions

pytestmark = pytest.mark.slow

ENDLESS = {**SMALL, "epochs": "1000000", "batch_metrics_publish_interval": "1000000"}


def aucs(log: str) -> list[float]:
    return [float(value) for value in re.findall(METRIC_DEFINITIONS["validation:discriminator_auc"], log)]


@pytest.fixture
def ready(tree: Tree, traffic: Traffic) -> Tree:
    tree.configure(SMALL)
    tree.channel("train", **{"a.csv": to_csv(traffic.train)})
    tree.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    return tree


class Job:
    """A job under way, whose log is read as it comes."""

    def __init__(self, tree: Tree, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *(command or ("ipinsights.sagemaker", "train"))],
            env=tree.environment({"PYTHONUNBUFFERED": "1", **environment}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.log = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._limit = threading.Timer(300, self.process.kill)  # also where a test fails before it stops the job
        self._limit.daemon = True
        self._limit.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.log += line

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(60)
        self._limit.cancel()
        self._reader.join(60)
        return code


def test_stopped_within_an_epoch_it_leaves_what_it_has(ready: Tree, traffic: Traffic) -> None:
    ready.configure(ENDLESS)
    job = Job(ready)
    job.wait_for("epoch=2, train")
    assert job.stop() == 0, job.log
    assert "because it was asked to stop" in job.log
    assert not ready.failure.exists()
    model, manifest = artifact.read(ready.model)
    assert manifest["training"]["ended"] == "stopped"
    assert manifest["training"]["epochs"] >= 2
    assert manifest["metrics"]["discriminator_auc"] == aucs(job.log)[-1] > 0.9
    assert Scorer(model).score(traffic.normal).mean() > Scorer(model).score(traffic.attacks).mean() + 1
    assert "Traceback" not in job.log


def test_ctrl_c_is_the_same_request(ready: Tree) -> None:
    ready.configure(ENDLESS)
    job = Job(ready)
    job.wait_for("epoch=0, train")
    assert job.stop(signal.SIGINT) == 0, job.log
    artifact.load(ready.model)


def test_stopped_while_it_waits_for_data_it_does_not_wait(ready: Tree) -> None:
    ready.configure(SMALL, inputdataconfig={"train": {"TrainingInputMode": "Pipe"}})
    job = Job(ready)
    job.wait_for("Waiting for data in channel 'train'")
    assert job.stop() == 0, job.log
    assert "The saved model is untrained: it scores every pair 0" in job.log
    artifact.load(ready.model)


def test_stopped_before_training_it_leaves_a_model_that_says_nothing(ready: Tree) -> None:
    job = Job(ready)
    job.wait_for("Docker entrypoint")  # the line comes before anything is read
    assert job.stop() == 0, job.log
    model, manifest = artifact.read(ready.model)
    if manifest["training"]["ended"] == "before_training":  # it may have been faster
        assert not Scorer(model).score(parse_csv(b"user_1,192.0.2.1\n")).any()
        assert "The saved model is untrained: it scores every pair 0" in job.log


SLOW_IMPORT = """
import sys, time
from ipinsights.sagemaker import __main__
class Slow:
    def find_spec(self, name, *others):
        if name == "ipinsights.sagemaker.server":
            print("importing", flush=True)
            time.sleep(300)
sys.meta_path.insert(0, Slow())
__main__.serve([])
"""


def test_a_server_heeds_the_request_before_it_imports_anything_large(tree: Tree) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_IMPORT], env=tree.environment({}), stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "importing\n"
            process.send_signal(number)
            assert process.wait(60) == 0


STOPPED = """
import sys
from ipinsights.sagemaker import __main__, stopping
stopping._note(15, None)  # the signal comes at once, and
if sys.argv.pop() == "read": stopping.check = lambda: None  # only training heeds it, before its first step
__main__.train()
"""


def stopped(tree: Tree, when: str) -> subprocess.CompletedProcess[str]:
    """A job that is stopped before it has read anything, or when it has ``read`` everything."""
    command = [sys.executable, "-c", STOPPED, when]
    environment = tree.environment({})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("when", ["not read", "read"])
def test_a_model_that_says_nothing_replaces_no_model(when: str, trained: tuple[Tree, object], ready: Tree) -> None:
    job = stopped(ready, when)
    assert job.returncode == 0, job.stdout + job.stderr  # as on the platform, where the folder is empty
    assert "The saved model is untrained: it scores every pair 0" in job.stdout
    assert artifact.load(ready.model).untrained
    shutil.rmtree(ready.model)
    shutil.copytree(trained[0].model, ready.model)
    before = {path.name: path.read_bytes() for path in ready.model.iterdir()}
    job = stopped(ready, when)
    assert job.returncode == 1, job.stdout + job.stderr
    said = f"stopped before it learnt anything. The model in {ready.model} is an earlier one, and it was left as it is"
    assert said in job.stdout
    assert said in ready.failure.read_text()
    assert "Traceback" not in job.stdout + job.stderr
    assert {path.name: path.read_bytes() for path in ready.model.iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_job_waits_for_data_leaves_the_model(
    number: signal.Signals, trained: tuple[Tree, object], ready: Tree
) -> None:
    shutil.copytree(trained[0].model, ready.model)
    before = (ready.model / artifact.TENSORS).read_bytes()
    ready.configure(SMALL, inputdataconfig={"train": {"TrainingInputMode": "Pipe"}})
    job = Job(ready)
    job.wait_for("Waiting for data in channel 'train'")
    assert job.stop(number) == 1, job.log
    assert (ready.model / artifact.TENSORS).read_bytes() == before


def test_a_model_that_says_nothing_is_used_only_where_that_is_asked_for(ready: Tree) -> None:
    assert stopped(ready, "not read").returncode == 0
    log_ins = str(ready.channel("train") / "a.csv")
    code = "from ipinsights.sagemaker.commands import main; main()"
    commands = [["-m", "ipinsights.sagemaker", "serve"]]
    commands += [["-c", code, name, "--model", str(ready.model), log_ins] for name in ("score", "evaluate")]

    def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *command]
        extra = ready.environment({"SAGEMAKER_BIND_TO_PORT": str(free_port()), **environment})
        return subprocess.run(command, env=extra, capture_output=True, text=True, timeout=60, check=False)

    for command in commands:
        result = run(command)
        said = result.stdout + result.stderr
        assert result.returncode == 1, said
        assert f"the model in {ready.model} is untrained" in said
        assert "IPINSIGHTS_UNTRAINED_MODEL=accept" in said
        assert "Traceback" not in said
    for command in commands[1:]:
        result = run(command, IPINSIGHTS_UNTRAINED_MODEL="accept")
        assert result.returncode == 0, result.stderr
    with Server(ready, IPINSIGHTS_UNTRAINED_MODEL="accept") as server:
        assert server.post("user_1,192.0.2.1\n").json() == {"predictions": [{"dot_product": 0.0}]}


def test_a_stopped_job_goes_on_where_it_was(ready: Tree, tmp_path: Path) -> None:
    ready.configure({**SMALL, "epochs": "60"})
    (ready.base / "checkpoints").mkdir()
    job = Job(ready)
    job.wait_for("epoch=2, train")
    assert job.stop() == 0, job.log
    kept = sorted(path.name for path in (ready.base / "checkpoints").iterdir())
    assert 1 <= len(kept) <= 2
    again = ready.train()
    assert again.returncode == 0, again.stdout
    assert "Resuming from the checkpoint after" in again.stdout
    assert f"epoch={0}, train" not in again.stdout
    # A job of its own makes the same model of the same data.
    unbroken = Tree(tmp_path / "other")
    unbroken.configure({**SMALL, "epochs": "60"})
    (unbroken.base / "input" / "data").symlink_to(ready.base / "input" / "data")
    assert unbroken.train().returncode == 0
    assert (unbroken.model / artifact.TENSORS).read_bytes() == (ready.model / artifact.TENSORS).read_bytes()


@pytest.mark.parametrize(
    ("change", "kept"), [("none", True), ("other data", False), ("other hyperparameters", False), ("release", False)]
)
def test_stopped_while_it_reads_it_has_what_it_had(change: str, kept: bool, ready: Tree) -> None:
    """If that is of this job, as far as one can tell before the data is read."""
    (ready.base / "checkpoints").mkdir()
    first = ready.train()
    assert first.returncode == 0
    learnt = artifact.read(ready.model)[0].learnt_alone()
    shutil.rmtree(ready.model)  # as on the platform, where each job has a folder of its own
    channel = ready.channel("train")
    if change == "other data":
        (channel / "b.csv").write_text("user_1,192.0.2.1\n")
    elif change == "other hyperparameters":
        ready.configure({**SMALL, "seed": "7"})
    elif change == "release":
        for path in (ready.base / "checkpoints").iterdir():
            ours, other = (b'format_version\\": %d' % version for version in (FORMAT_VERSION, 9))
            path.write_bytes(path.read_bytes().replace(ours, other))
    reading = "from ipinsights.sagemaker import __main__, channels, stopping; channels.read = {}; __main__.train()"
    stop = "lambda *_: (stopping._note(15, None), stopping.check())"  # the signal comes as reading begins
    job = subprocess.run(
        [sys.executable, "-c", reading.format(stop)],
        env=ready.environment({}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    manifest = json.loads((ready.model / "manifest.json").read_text())
    assert manifest["training"]["ended"] == "before_training"
    # Without the data nothing can be counted.
    saved = artifact.read(ready.model)[0]
    assert (saved.entity.tobytes() == learnt.entity.tobytes()) == kept
    assert (saved.encoder.prefix.tobytes() == learnt.encoder.prefix.tobytes()) == kept
    assert saved.counted is None
    assert ("by what it learnt alone" in job.stdout) == kept
    assert manifest["metrics"] == {}


def test_a_checkpoint_of_another_job_is_the_users_fault(ready: Tree) -> None:
    (ready.base / "checkpoints").mkdir()
    assert ready.train().returncode == 0
    ready.configure({**SMALL, "epochs": "3"})
    job = ready.train()
    assert job.returncode == 1
    text = ready.failure.read_text()
    assert text.startswith("ClientError: the checkpoints in ")
    assert "epochs was 2 and is 3" in text
    assert "Traceback" not in job.stdout + job.stderr


def test_without_a_folder_for_them_no_checkpoints_are_made(ready: Tree) -> None:
    assert ready.train().returncode == 0
    assert not (ready.base / "checkpoints").exists()


def test_the_last_auc_printed_is_that_of_the_model_saved(ready: Tree) -> None:
    worse = {"learning_rate": "0.1", "random_negative_sampling_rate": "0", "shuffled_negative_sampling_rate": "3"}
    ready.configure({**SMALL, **worse, "epochs": "6", "saved_epoch": "best"})
    job = ready.train()
    assert job.returncode == 0, job.stdout
    printed = aucs(job.stdout)
    assert printed.index(max(printed)) < 5
    assert printed[-1] == max(printed)
    assert len(printed) == 7  # one an epoch, and that of the best again
    assert json.loads((ready.model / "manifest.json").read_text())["metrics"]["discriminator_auc"] == printed[-1]


def pack(model: Path, channel: Path) -> None:
    channel.mkdir(parents=True)
    with tarfile.open(channel / "model.tar.gz", "w:gz") as file:
        for path in model.iterdir():
            file.add(path, path.name)


def unpack(model: Path, channel: Path) -> None:
    channel.parent.mkdir(parents=True, exist_ok=True)
    channel.symlink_to(model)


@pytest.mark.parametrize("lay", [pack, unpack])
def test_training_goes_on_from_the_model_channel(
    lay: Callable[[Path, Path], None], trained: tuple[Tree, object], ready: Tree
) -> None:
    lay(trained[0].model, ready.base / "input" / "data" / "model")
    more = ready.channel("train")
    more.joinpath("a.csv").write_text("newcomer,192.0.2.1\nuser_1,192.0.2.2\n" * 300)
    ready.configure(
        {**SMALL, "mini_batch_size": "20"},
        inputdataconfig={
            "train": {},
            "validation": {},
            "model": {"ContentType": "application/x-sagemaker-model", "TrainingInputMode": "File"},
        },
    )
    job = ready.train()
    assert job.returncode == 0, job.stdout
    assert (
        "Continuing from the model in channel 'model', trained on 36,021 events: it knows 100 entities, and 1 are new"
        in job.stdout
    )
    assert re.search(
        r"The earlier model knew [\d,]+ prefixes: this model keeps [\d,]+ of them and adds [\d,]+\n", job.stdout
    )
    model, manifest = artifact.read(ready.model)
    assert manifest["vocabulary"]["events"] == 36_021 + 600
    assert manifest["entities"]["owning_a_row"] == 101
    at_home, elsewhere = Scorer(model).score(parse_csv(b"newcomer,192.0.2.1\nnewcomer,203.0.113.9\n"))
    assert at_home > elsewhere + 1
    assert aucs(job.stdout)[-1] > 0.9


def test_a_damaged_archive_is_told(trained: tuple[Tree, object], ready: Tree) -> None:
    """One bit of it: it unpacks all the same."""
    channel = ready.base / "input" / "data" / "model"
    pack(trained[0].model, channel)
    path = channel / "model.tar.gz"
    data = bytearray(path.read_bytes())
    for place in random.Random(0).sample(range(100, len(data) - 100), 5):
        data[place] ^= 1
        path.write_bytes(data)
        job = ready.train()
        assert job.returncode == 1
        assert f"cannot unpack {path}: " in ready.failure.read_text()
        data[place] ^= 1


def test_what_does_not_go_together_is_told_before_anything_is_read(trained: tuple[Tree, object], ready: Tree) -> None:
    ready.channel("train", **{"a.csv": "not a log-in\n"})
    unpack(trained[0].model, ready.base / "input" / "data" / "model")
    ready.configure({**SMALL, "vector_dim": "8"})
    assert ready.train().returncode == 1
    assert "the earlier model has vector_dim=16, not 8: set vector_dim to 16" in ready.failure.read_text()
    ready.configure({**SMALL, "early_stopping_patience": "2"})
    for path in ready.channel("validation").iterdir():
        path.unlink()
    ready.channel("validation").rmdir()
    assert ready.train().returncode == 1
    assert "give the job a validation channel" in ready.failure.read_text()


def test_a_model_channel_without_a_model_is_told(ready: Tree) -> None:
    channel = ready.channel("model", **{"notes.txt": "none here"})
    for fault in ("contains none", "cannot unpack"):
        job = ready.train()
        assert job.returncode == 1
        assert ready.failure.read_text().startswith("ClientError: ")
        assert fault in ready.failure.read_text()
        assert "Traceback" not in job.stdout + job.stderr
        (channel / "model.tar.gz").write_bytes(b"not an archive")


@pytest.mark.skipif(importlib.util.find_spec("sagemaker_training") is None, reason="the toolkit is not installed")
def test_under_the_toolkit_a_stop_is_the_same(ready: Tree) -> None:
    ready.configure(
        ENDLESS,
        inputdataconfig={"train": {}, "validation": {}},
        resourceconfig={"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"},
    )
    job = Job(ready, SAGEMAKER_TRAINING_MODULE="ipinsights.sagemaker.job:train")
    job.wait_for("epoch=1, train")
    assert job.stop() == 0, job.log
    assert artifact.read(ready.model)[1]["training"]["ended"] == "stopped"
    assert not ready.failure.exists()


def test_too_large_a_model_is_refused_before_it_is_made(ready: Tree) -> None:
    ready.configure({**SMALL, "num_entity_vectors": "250000000", "vector_dim": "4096"})
    job = ready.train()
    assert job.returncode == 1
    text = ready.failure.read_text()
    assert text.startswith("ClientError: training needs 4,096,000 MB of memory, and this machine has ")
    assert "Traceback" not in job.stdout + job.stderr


def test_a_single_entity_is_told(ready: Tree) -> None:
    ready.channel("train", **{"a.csv": "alice,192.0.2.1\n" * 9})
    ready.channel("validation", **{"v.csv": "alice,192.0.2.1\n"})
    assert ready.train().returncode == 1
    assert "all training events belong to one entity" in ready.failure.read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> interruptions.Site:
    return interruptions.Site.prepare(tmp_path_factory.mktemp("site"), users=300)


@pytest.mark.parametrize("kind", [interruptions.stop, interruptions.kill], ids=["stopped", "killed"])
def test_at_random_moments(
    kind: Callable[[interruptions.Site, random.Random, int], Iterator[str]], site: interruptions.Site
) -> None:
    """As `local_test.interruptions`, which does it more often, from another seed every time."""
    seed = int.from_bytes(os.urandom(4))
    assert [*kind(site, random.Random(seed), 4)] == [""] * 4, f"seed {seed}"
