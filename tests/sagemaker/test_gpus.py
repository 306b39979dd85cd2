"""Training jobs on hosts with several GPUs, which are pretended: real processes, one a GPU (`pretend_gpus`)."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.numpy
import torch

from conftest import SMALL, Traffic, to_csv, until
from distributed.hosts import ENDLESS, HYPERPARAMETERS, NAMES, Hosts, clusters, lines
from ipinsights.model import artifact
from ipinsights.sagemaker.reporting import METRIC_DEFINITIONS
from training.gpu_kernels import INTERPRET

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[int], Hosts]]:
    with clusters(tmp_path) as make:
        yield make


def model(hosts: Hosts) -> bytes:
    return (hosts.trees[0].model / artifact.TENSORS).read_bytes()


def events_of(hosts: Hosts) -> int:
    found: int = artifact.read(hosts.trees[0].model)[1]["training"]["events"]
    return found


def test_two_gpus_of_a_host_make_the_model_of_two_hosts(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    """To the byte. There is one log, one model and one of each metric."""
    one, two = cluster(1), cluster(2)
    for hosts in (one, two):
        hosts.configure(HYPERPARAMETERS)
        hosts.channel("train", **{f"{at}.csv": text for at, text in enumerate(lines(to_csv(traffic.train), 3))})
        hosts.channel("validation", **{"v.csv": to_csv(traffic.normal)})
    assert one.run([2]) == [0], one.logs()
    assert two.run([1, 1]) == [0, 0], two.logs()
    assert model(one) == model(two)
    log = one.log(0)
    assert "Training on cuda" in log
    assert "All 2 GPUs train" in log
    assert "All 2 hosts train" in two.log(0)
    for once in ("2 processes train", "Reading channel 'train'", f"Read {len(traffic.train.addresses):,} training"):
        assert log.count(once) == 1, once
    for expression in METRIC_DEFINITIONS.values():
        assert len(re.findall(expression, log)) == len(re.findall(expression, two.log(0))), expression
    assert one.failure(0) is None


def test_two_hosts_of_two_gpus_make_the_model_of_four_hosts(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    few, many = cluster(2), cluster(4)
    for hosts in (few, many):
        hosts.configure(HYPERPARAMETERS)
        hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    assert few.run([2, 2]) == [0, 0], few.logs()
    assert many.run([1] * 4) == [0] * 4, many.logs()
    assert model(few) == model(many)
    assert "All 2 hosts are there, with 4 GPUs" in few.log(1)
    assert "Sent this host's part of the model to 127.0.0.1 (GPU 0)" in few.log(1)
    assert few.log(1).count("Sent this host's part") == 1


def test_hosts_of_several_gpus_divide_the_files_that_only_they_have(
    cluster: Callable[[int], Hosts], traffic: Traffic
) -> None:
    """Also where they have other numbers of GPUs: one has 2 and a file for each, and one has 1."""
    hosts = cluster(2)
    hosts.configure(HYPERPARAMETERS, train={"S3DistributionType": "ShardedByS3Key"})
    first, second, third = lines(to_csv(traffic.train), 3)
    hosts.trees[0].channel("train", **{"a.csv": first, "b.csv": second})
    hosts.trees[1].channel("train", **{"c.csv": third})
    assert hosts.run([2, 1]) == [0, 0], hosts.logs()
    assert events_of(hosts) == len(traffic.train.addresses)
    assert "All 3 GPUs train" in hosts.log(0)
    for rank, text in enumerate((first + second, third)):
        assert f"Read {len(text.splitlines()):,} training and 0 validation events here" in hosts.log(rank)


def test_a_pipe_is_read_by_one_process(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(1)
    hosts.configure(HYPERPARAMETERS, train={"TrainingInputMode": "Pipe"})
    pipe = hosts.trees[0].base / "input" / "data" / "train_0"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    hosts.start(gpus=[2])
    pipe.write_text(to_csv(traffic.train))
    assert hosts.end() == [0], hosts.logs()
    assert events_of(hosts) == len(traffic.train.addresses)


TINY = {**HYPERPARAMETERS, "mini_batch_size": "10", "epochs": "1", "held_out_share": "0"}
"""For kernels that are interpreted."""


@pytest.mark.parametrize(("who", "told"), [("all", "All 2 GPUs train"), ("auto", "1 of 2 GPUs train")])
def test_recorded_steps_of_two_gpus_learn_what_other_steps_learn(
    cluster: Callable[[int], Hosts], traffic: Traffic, who: str, told: str
) -> None:
    """A step is recorded in each process, and no exchange is: those are between steps."""
    from training.recorder import need_interpreter  # needs Triton, as only this test does

    need_interpreter()
    recorded, plain = cluster(1), cluster(1)
    for hosts in (recorded, plain):
        hosts.configure({**TINY, "training_hosts": who})
        hosts.channel("train", **{"a.csv": "".join(to_csv(traffic.train).splitlines(keepends=True)[::900])})
    assert recorded.run([2], PRETEND_STEP="graph", **INTERPRET) == [0], recorded.logs()
    assert plain.run([2]) == [0], plain.logs()
    assert told in recorded.log(0)
    ours, theirs = (safetensors.numpy.load(model(hosts)) for hosts in (recorded, plain))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_malformed_row_that_a_further_process_reads_is_told_once(
    cluster: Callable[[int], Hosts], traffic: Traffic
) -> None:
    hosts = cluster(1)
    hosts.configure(HYPERPARAMETERS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train), "b.csv": "user,1.2.3.4\nuser,nowhere\n"})
    assert hosts.run([2]) == [1]
    failure = hosts.failure(0)
    assert failure
    assert failure.startswith("ClientError: ")
    assert "b.csv, line 2" in failure
    assert "This host ends because host 127.0.0.1 (GPU 1) failed: " in hosts.log(0)
    assert "Traceback" not in hosts.log(0)


def test_rows_that_a_further_process_skips_are_told(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(1)
    hosts.configure({**HYPERPARAMETERS, "malformed_rows": "skip"})
    hosts.channel("train", **{"a.csv": to_csv(traffic.train), "b.csv": "user,1.2.3.4\nuser,nowhere\n"})
    assert hosts.run([2]) == [0], hosts.logs()
    assert hosts.log(0).count("skipped 1 malformed rows of 2") == 1


def test_where_one_gpu_is_too_small_all_train_on_cpus(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts, strict = cluster(1), cluster(1)
    for job in (hosts, strict):
        job.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.configure(HYPERPARAMETERS)
    strict.configure({**HYPERPARAMETERS, "device": "gpu"})
    reason = "on host 127.0.0.1 (GPU 1) the GPU has 1 MB free"
    assert hosts.run([2], PRETEND_SMALL="1") == [0], hosts.logs()
    assert "All 2 processes train" in hosts.log(0)
    assert f"because {reason}" in hosts.log(0)
    assert strict.run([2], PRETEND_SMALL="1") == [1]
    assert strict.failure(0) == f"ClientError: device=gpu, but {reason}. With device=cpu it trains on the CPU"


def test_device_cpu_needs_no_further_process(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(1)
    hosts.configure({**SMALL, "device": "cpu"})
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    assert hosts.run([2]) == [0], hosts.logs()
    assert "processes train" not in hosts.log(0)
    assert "Training on cpu" in hosts.log(0)


def test_a_wrong_hyperparameter_is_told_as_on_one_gpu(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    hosts = cluster(1)
    hosts.configure({**HYPERPARAMETERS, "epochs": "many"})
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    assert hosts.run([2]) == [1]
    assert "epochs" in (hosts.failure(0) or "")


def alive(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def gone(pids: list[int]) -> None:
    until(lambda: not any(map(alive, pids)))


@pytest.fixture
def endless(cluster: Callable[[int], Hosts], traffic: Traffic) -> Hosts:
    """One host of two GPUs that trains without end."""
    hosts = cluster(1)
    hosts.configure(ENDLESS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(patience=10, gpus=[2])
    hosts.wait_for("progress_metric")
    return hosts


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_further_process_that_is_gone_ends_the_job_by_its_name(endless: Hosts, number: int) -> None:
    further = endless.further()
    assert len(further) == 1
    os.kill(further[0], number)
    assert endless.processes[0].wait(120) == 1
    failure = endless.failure(0)
    assert failure
    assert f"AlgorithmError: host {NAMES[0]} (GPU 1) " in failure
    gone(further)


def test_no_process_outlives_the_first_one(endless: Hosts) -> None:
    further = endless.further()
    endless.processes[0].kill()
    gone(further)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_saves_the_model(endless: Hosts, number: int) -> None:
    """SIGTERM comes to the first process only, and Ctrl-C to all."""
    further = endless.further()
    if number == signal.SIGINT:
        os.kill(further[0], number)
    endless.processes[0].send_signal(number)
    assert endless.end() == [0], endless.logs()
    assert artifact.read(endless.trees[0].model)[1]["training"]["ended"] == "stopped"
    gone(further)


def test_a_job_that_is_stopped_while_its_processes_start_ends_well(
    cluster: Callable[[int], Hosts], traffic: Traffic
) -> None:
    hosts = cluster(1)
    hosts.configure(ENDLESS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(gpus=[2])
    hosts.wait_for("2 processes train")
    until(lambda: bool(hosts.further()))
    further = hosts.further()
    hosts.processes[0].send_signal(signal.SIGTERM)
    assert hosts.end() == [0], hosts.logs()
    assert "The job was asked to stop" in hosts.log(0)
    assert "Traceback" not in hosts.log(0)
    gone(further)


def test_a_process_that_waits_for_other_hosts_does_not_outlive_the_first_one(
    cluster: Callable[[int], Hosts], traffic: Traffic
) -> None:
    hosts = cluster(2)  # of which the leader never comes
    hosts.configure(ENDLESS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(gpus=[2, 2], only=[1])
    until(lambda: bool(hosts.further()))
    further = hosts.further()
    hosts.processes[0].kill()
    gone(further)


def test_a_further_process_that_ends_before_all_have_come_ends_the_job(
    cluster: Callable[[int], Hosts], traffic: Traffic
) -> None:
    hosts = cluster(2)  # of which one never comes
    hosts.configure(ENDLESS)
    hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
    hosts.start(gpus=[2, 2], only=[0])
    until(lambda: bool(hosts.further()))
    os.kill(hosts.further()[0], signal.SIGKILL)
    assert hosts.processes[0].wait(120) == 1
    assert hosts.failure(0) == "AlgorithmError: the process of GPU 1 has ended with exit code -9"


def test_gpus_that_are_there_learn_what_cpus_learn(cluster: Callable[[int], Hosts], traffic: Traffic) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there are no two GPUs")
    areas = []
    for device, told in (("gpu", "GPUs train"), ("cpu", "Training on cpu")):
        hosts = cluster(1)
        hosts.configure({**HYPERPARAMETERS, "device": device})
        hosts.channel("train", **{"a.csv": to_csv(traffic.train)})
        hosts.channel("validation", **{"v.csv": to_csv(traffic.normal)})
        assert hosts.run() == [0], hosts.logs()
        assert told in hosts.log(0)
        assert "slower" not in hosts.log(0)
        areas.append(artifact.read(hosts.trees[0].model)[1]["metrics"]["discriminator_auc"])
    assert areas[0] == pytest.approx(areas[1], abs=0.01)
