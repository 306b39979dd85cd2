"""Training jobs on several hosts."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import SMALL, Traffic, Tree, to_csv
from distributed.hosts import ENDLESS, HYPERPARAMETERS, NAMES, Hosts, clusters, lines
from ipinsights.model import artifact
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[int], Hosts]]:
    with clusters(tmp_path) as make:
        yield make


def tags(hosts: Hosts) -> bytes:
    return artifact.load(hosts.trees[0].model).index.tags.tobytes()


def test_two_hosts_make_one_model(cluster: Callable[[int], Hosts], traffic: Traffic, tree: Tree) -> None:
    """Files are divided. The rows of entities are those of one host, and the leader alone prints metrics and saves."""
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS)
    files = {f"{number}.csv": text for number, text in enumerate(lines(to_csv(traffic.train), 3))}
    hosts.channel("train", **files)
    hosts.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    assert hosts.run() == [0, 0], hosts.logs()

    tree.configure(SMALL)
    tree.channel("train", **files)
    tree.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    result = tree.train()
    assert result.returncode == 0, result.stdout

    both, one = (artifact.read(folder) for folder in (hosts.trees[0].model, tree.model))
    assert both[0].index.tags.tobytes() == one[0].index.tags.tobytes()
    assert both[1]["vocabulary"] == one[1]["vocabulary"]
    assert both[1]["entities"] == one[1]["entities"]
    assert both[1]["history"] == one[1]["history"]
    assert both[1]["data"] == one[1]["data"]
    assert both[1]["training"]["events"] == one[1]["training"]["events"]
    assert not any(path.name == artifact.MANIFEST for path in hosts.trees[1].model.glob("*"))
    assert both[1]["metrics"]["discriminator_auc"] == pytest.approx(one[1]["metrics"]["discriminator_auc"], abs=0.01)
    for expression in METRIC_DEFINITIONS.values():
        assert len(re.findall(expression, hosts.log(0))) == len(re.findall(expression, result.stdout)), expression
        assert not re.search(expression, hosts.log(1))
    assert "#metrics" not in hosts.log(1)
    assert "All 2 hosts train" in hosts.log(0)
    assert [hosts.failure(rank) for rank in range(2)] == [None, None]


def test_hosts_with_files_of_their_own_use_them_all(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    """And one of them may have none."""
    sharded = {"S3DistributionType": "ShardedByS3Key"}
    hosts = cluster(3)
    hosts.configure(HYPERPARAMETERS, train=sharded)
    first, second = lines(to_csv(traffic.train), 2)
    hosts.trees[0].channel("train", **{"a.csv": first})
    hosts.trees[2].channel("train", **{"b.csv": second})
    hosts.trees[1].channel("train").mkdir(parents=True)
    assert hosts.run() == [0, 0, 0], hosts.logs()
    manifest = artifact.read(hosts.trees[0].model)[1]
    assert manifest["training"]["events"] == len(traffic.train.addresses)


def test_one_file_is_divided_by_blocks(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    """Here into one block, so one host reads nothing. It trains all the same."""
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    assert hosts.run() == [0, 0], hosts.logs()
    assert "Read 0 training and 0 validation events here" in hosts.log(1)
    model, manifest = artifact.read(hosts.trees[0].model)
    assert manifest["training"]["events"] == len(traffic.train.addresses)
    assert model.calibration


def test_a_pipe_is_divided_by_blocks(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS, train={"TrainingInputMode": "Pipe"})
    pipes = [tree.base / "input" / "data" / "train_0" for tree in hosts.trees]
    for pipe in pipes:
        pipe.parent.mkdir(parents=True)
        os.mkfifo(pipe)
    hosts.start()
    for pipe in pipes:
        pipe.write_text(to_csv(traffic.train))
    assert hosts.end() == [0, 0], hosts.logs()
    assert artifact.read(hosts.trees[0].model)[1]["training"]["events"] == len(traffic.train.addresses)


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, and the commands that run something in each."""
    names = [f"ipinsights-{os.getpid()}-{side}" for side in "ab"]
    one, other = names
    ends = [f"ii{os.getpid()}{side}" for side in "ab"]

    def ip(command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)

    if not shutil.which("ip"):
        pytest.skip("there is no command ip")
    try:
        for name in names:
            ip(f"netns add {name}")
        ip(f"link add {ends[0]} netns {one} type veth peer name {ends[1]} netns {other}")
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip(f"-n {name} addr add 10.77.0.{number}/24 dev {end}")
            ip(f"-n {name} link set {end} up")
            ip(f"-n {name} link set lo up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user cannot make networks: {error}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_hosts_meet_over_a_network(cluster: Callable[[int], Hosts], traffic: Traffic, networks: list[str]) -> None:
    """Whose interface is not the one that the platform names."""
    hosts = cluster(2)
    hosts.names = ["10.77.0.1", "algo-2"]
    hosts.configure(HYPERPARAMETERS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(networks=networks)
    assert hosts.end() == [0, 0], hosts.logs()
    assert artifact.read(hosts.trees[0].model)[1]["training"]["events"] == len(traffic.train.addresses)


def test_little_data_trains_on_one_host(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(2)
    hosts.configure(SMALL)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    assert hosts.run() == [0, 0], hosts.logs()
    assert "1 of 2 hosts train" in hosts.log(0)
    assert artifact.read(hosts.trees[0].model)[1]["training"]["events"] == len(traffic.train.addresses)


def test_a_malformed_row_on_one_host_is_known_on_all(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(3)
    hosts.configure(HYPERPARAMETERS)
    hosts.channel(
        "train", **{"a.csv": to_csv(traffic.train), "b.csv": "user,1.2.3.4\nuser,nowhere\n", "c.csv": "u,1.2.3.4\n"}
    )
    codes = hosts.run()
    assert all(codes), hosts.logs()
    failure = hosts.failure(1)
    assert failure
    assert failure.startswith("ClientError: ")
    assert "b.csv, line 2" in failure
    for rank in (0, 2):
        assert hosts.failure(rank) is None, hosts.logs()
        assert f"host {NAMES[1]} failed" in hosts.log(rank)
        assert "b.csv, line 2" in hosts.log(rank)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_is_gone_ends_the_job_by_its_name(
    cluster: Callable[[int], Hosts], traffic: Traffic, number: int
) -> None:
    hosts = cluster(2)
    hosts.configure(ENDLESS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(patience=10)
    hosts.wait_for("progress_metric")
    hosts.processes[1].send_signal(number)
    assert hosts.processes[0].wait(120) == 1
    failure = hosts.failure(0)
    assert failure
    assert f"AlgorithmError: host {NAMES[1]} " in failure


def test_a_job_that_is_stopped_saves_the_model_and_resumes(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(2)
    hosts.configure({**ENDLESS, "saved_epoch": "best"})
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    for tree in hosts.trees:
        (tree.base / "checkpoints").mkdir()
    hosts.start()
    hosts.wait_for("completed")
    for process in hosts.processes:
        process.send_signal(signal.SIGTERM)
    assert hosts.end() == [0, 0], hosts.logs()
    manifest = artifact.read(hosts.trees[0].model)[1]
    assert manifest["training"]["ended"] == "stopped"
    assert manifest["training"]["epochs"] >= 1
    names = {path.name for tree in hosts.trees for path in (tree.base / "checkpoints").iterdir()}
    assert {name.split("-", 2)[2] for name in names} == {f"0000{rank}-of-00002.safetensors" for rank in range(2)}

    hosts.processes.clear()
    for tree in hosts.trees:  # as a platform that keeps the files of all hosts in one place
        for other in hosts.trees:
            for path in (other.base / "checkpoints").iterdir():
                if not (tree.base / "checkpoints" / path.name).exists():
                    shutil.copy(path, tree.base / "checkpoints")
    hosts.start()
    hosts.wait_for("Resuming from the checkpoint after")
    assert f"after {manifest['training']['epochs']} epochs" in hosts.log(0)
    for process in hosts.processes:
        process.send_signal(signal.SIGTERM)
    assert hosts.end() == [0, 0], hosts.logs()

    alone = cluster(1)
    alone.configure({**ENDLESS, "saved_epoch": "best"})
    alone.channel("train", **{"a.csv": to_csv(traffic.train)})
    alone.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    shutil.copytree(hosts.trees[0].base / "checkpoints", alone.trees[0].base / "checkpoints")
    alone.start()
    alone.wait_for("Resuming from the checkpoint after")
    assert "The checkpoint was written by 2 hosts" in alone.log(0)
    alone.processes[0].send_signal(signal.SIGTERM)
    assert alone.end() == [0], alone.logs()
    assert artifact.read(alone.trees[0].model)[1]["training"]["epochs"] >= manifest["training"]["epochs"]


STOP_AS_READING_BEGINS = (
    "from ipinsights.sagemaker import channels; channels.read = lambda *_: (stopping._note(15, None), stopping.check())"
)


def test_a_job_that_is_stopped_before_training_saves_what_the_checkpoint_has(
    cluster: Callable[[int], Hosts], traffic: Traffic
) -> None:
    """Of all hosts' parts; and on one host too, if it has them."""
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    for tree in hosts.trees:
        (tree.base / "checkpoints").mkdir()
    assert hosts.run() == [0, 0], hosts.logs()
    learnt = artifact.load(hosts.trees[0].model).learnt_alone()

    def stopped(again: Hosts) -> None:
        again.processes.clear()
        again.start(first=STOP_AS_READING_BEGINS)
        assert again.end() == [0] * len(again.trees), again.logs()
        model, manifest = artifact.read(again.trees[0].model)
        assert manifest["training"]["ended"] == "before_training"
        assert manifest["training"]["events"] == learnt.vocabulary.events
        assert "by what it learnt alone" in again.log(0)
        assert model.index.tags.tobytes() == learnt.index.tags.tobytes()
        assert model.entity.tobytes() == learnt.entity.tobytes()
        assert model.encoder.prefix.tobytes() == learnt.encoder.prefix.tobytes()
        assert [again.failure(rank) for rank in range(len(again.trees))] == [None] * len(again.trees)

    shutil.rmtree(hosts.trees[0].model)
    stopped(hosts)
    for path in (hosts.trees[1].base / "checkpoints").iterdir():
        shutil.copy(path, hosts.trees[0].base / "checkpoints")
    alone = cluster(1)
    alone.trees = hosts.trees[:1]
    alone.configure(HYPERPARAMETERS)
    stopped(alone)


def test_a_job_that_is_stopped_before_its_first_step_knows_nobody(
    cluster: Callable[[int], Hosts], traffic: Traffic
) -> None:
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    # The signal comes when all is read.
    hosts.start(first="answers = iter([False]); stopping.requested = lambda: next(answers, True)")
    assert hosts.end() == [0, 0], hosts.logs()
    model, manifest = artifact.read(hosts.trees[0].model)
    assert manifest["training"]["ended"] == "stopped"
    assert model.untrained
    assert model.index.owned == 0
    assert model.knows(traffic.train.entities[0].as_py()) is False


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_host_that_is_stopped_before_any_other_has_come(
    cluster: Callable[[int], Hosts], traffic: Traffic, waiting: int
) -> None:
    """The first one leaves what a job on one host would."""
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(only=[waiting])
    hosts.wait_for("waiting for the others", waiting)
    hosts.processes[0].send_signal(signal.SIGTERM)
    ends_without_a_fault(hosts)


@pytest.mark.parametrize("stopped", [[0], [1], [0, 1]])
def test_hosts_that_are_stopped_while_they_come_together(
    cluster: Callable[[int], Hosts], traffic: Traffic, stopped: list[int]
) -> None:
    """Two of three have come. If one is asked, both end."""
    hosts = cluster(3)
    hosts.configure(HYPERPARAMETERS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(only=[0, 1], first="from ipinsights.distributed import watch; watch._REMINDER = 0.1")
    hosts.wait_for("Waiting for algo-2\n")
    for rank in stopped:
        hosts.processes[rank].send_signal(signal.SIGTERM)
    ends_without_a_fault(hosts)


def ends_without_a_fault(hosts: Hosts) -> None:
    assert hosts.end() == [0] * len(hosts.started), hosts.logs()
    assert [hosts.failure(rank) for rank in hosts.started] == [None] * len(hosts.started)
    for rank in hosts.started:
        assert "asked to stop while the hosts came together" in hosts.log(rank)
        assert "Traceback" not in hosts.log(rank)
        assert (hosts.trees[rank].model / artifact.MANIFEST).exists() == (rank == 0)
    if 0 in hosts.started:
        model, manifest = artifact.read(hosts.trees[0].model)
        assert model.untrained
        assert manifest["training"]["ended"] == "before_training"


def test_without_the_kernel_torch_has_one_thread_on_each_host(
    cluster: Callable[[int], Hosts], traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says so is read when torch is loaded, which is when hosts come together."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    hosts = cluster(2)
    hosts.configure({**HYPERPARAMETERS, "epochs": "1"})
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(first="from ipinsights import native; native.library = lambda: None")
    assert hosts.end() == [0, 0], hosts.logs()
    assert "with 1 thread;" in hosts.log(0)


def test_training_continues_from_a_model_of_several_hosts(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS)
    first, second = lines(to_csv(traffic.train), 2)
    hosts.channel("train", **{"a.csv": first})
    assert hosts.run() == [0, 0], hosts.logs()
    earlier = artifact.read(hosts.trees[0].model)[1]

    after = cluster(2)
    after.configure(HYPERPARAMETERS)
    after.channel("train", **{"a.csv": second})
    for tree in after.trees:
        shutil.copytree(hosts.trees[0].model, tree.base / "input" / "data" / "model")
    assert after.run() == [0, 0], after.logs()
    model, manifest = artifact.read(after.trees[0].model)
    assert model.counted
    both = earlier["vocabulary"]["events"] + manifest["training"]["events"]
    assert model.counted.history.events >= 0.95 * both  # less those that were held out
    assert manifest["vocabulary"]["events"] == model.counted.history.events

    other = cluster(2)
    other.configure(HYPERPARAMETERS)
    other.channel("train", **{"a.csv": second})
    for tree, model_of in zip(other.trees, (hosts, after), strict=True):
        shutil.copytree(model_of.trees[0].model, tree.base / "input" / "data" / "model")
    assert all(other.run())
    failures = [other.failure(rank) for rank in range(2)]  # who is told of the other's before may write none
    assert any("the earlier model is not the same on all hosts" in (text or "") for text in failures)


def test_hosts_that_see_different_files_do_not_train(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS)
    first, second = lines(to_csv(traffic.train), 2)
    hosts.channel("train", **{"a.csv": first, "b.csv": second})
    (hosts.trees[1].base / "input" / "data" / "train" / "late.csv").write_text(second)
    assert all(hosts.run())
    failures = [hosts.failure(rank) for rank in range(2)]
    assert any("the list of files in channel 'train' is not the same on all hosts" in (text or "") for text in failures)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"current_host": "algo-3", "hosts": ["algo-1", "algo-2"]}, "each host must be in the list once"),
        ({"current_host": "algo-1", "hosts": ["algo-1", "algo-1"]}, "each host must be in the list once"),
        ({"current_host": "algo-1", "hosts": "algo-1,algo-2"}, "must be a list of names"),
        ({"current_host": "algo-1", "hosts": ["algo-1", "algo 2"]}, "cannot be the name of a host"),
    ],
)
def test_a_list_of_hosts_that_cannot_be_is_refused(tree: Tree, resources: dict[str, object], message: str) -> None:
    tree.configure(SMALL, resourceconfig=resources)
    tree.channel("train", **{"a.csv": "a,1.2.3.4\nb,1.2.3.4\n"})
    assert tree.train().returncode == 1
    assert message in tree.failure.read_text()
    assert json.loads((tree.base / "input/config/resourceconfig.json").read_text()) == resources
