"""Where a training runs, as the machine and the hyperparameter have it. No GPU is needed to see it."""

import numpy as np
import pytest
import torch

from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import gpu_step, placement, together

VOCABULARY = Vocabulary.build(np.arange(1000, dtype=np.uint32) << np.uint32(16))
SMALL = "the GPU has 1 MB free"

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def of(device: str) -> Hyperparameters:
    return Hyperparameters(num_entity_vectors=10, vector_dim=4, device=device)


def choose(device: str, given: str | None = None) -> placement.Placement:
    return placement.choose(given, of(device), VOCABULARY, 1000, 1 << 20)


@needs_no_gpu
@pytest.mark.parametrize(
    ("there", "build", "why"),
    [
        (False, None, "this machine has no GPU"),
        (True, None, "this machine has a GPU, and this torch is a build for CPUs: use the image for GPUs"),
        (True, "12.6", "this machine has a GPU that this process cannot see: start the container with --gpus all"),
    ],
)
def test_a_gpu_that_must_be_and_is_not_is_an_error(
    there: bool, build: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "has_gpu", lambda: there)
    monkeypatch.setattr(torch.version, "cuda", build)
    expected = f"device=gpu, but {why}. With device=cpu it trains on the CPU"
    for ask in (lambda: choose("gpu"), placement.require_gpu):
        with pytest.raises(UserError) as told:
            ask()
        assert str(told.value) == expected
    for device, because in (("auto", why if there else ""), ("cpu", "")):
        place = choose(device)
        assert place.device.type == "cpu"
        assert place.slower_because == because or place.step == "torch"  # without a kernel, that is told


def test_a_driver_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="device=gpu, but the GPU's driver is too old for this torch"):
        placement.require_gpu()


def test_a_gpu_that_is_too_small_is_an_error_only_if_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_best_device", lambda needed: (torch.device("cpu"), SMALL))
    with pytest.raises(UserError, match=f"device=gpu, but {SMALL}"):
        choose("gpu")
    assert choose("auto").slower_because == SMALL


def test_the_cpu_is_used_if_asked_for_whatever_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_best_device", lambda needed: (torch.device("cuda"), ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose("cpu").device.type == "cpu"
    assert choose("gpu", "cpu").device.type == "cpu"  # a caller's own choice
    together.require_cpus(of("cpu"))
    for device in ("auto", "gpu"):
        with pytest.raises(UserError, match="on several hosts uses their CPUs .* or set device=cpu"):
            together.require_cpus(of(device))


def test_a_gpu_that_breaks_as_it_is_tried_is_an_error_if_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_best_device", lambda needed: (torch.device("cuda"), ""))
    monkeypatch.setattr(placement.Placement, "current", torch.device("cpu"))
    monkeypatch.setattr(gpu_step, "why_not", lambda *arguments: "its steps cannot be recorded")
    monkeypatch.setattr(placement, "gpu_fault", lambda: "the GPU cannot be used (broken)")
    assert choose("auto").slower_because == "the GPU cannot be used (broken)"
    with pytest.raises(UserError, match=r"device=gpu, but the GPU cannot be used \(broken\)"):
        choose("gpu")
    monkeypatch.setattr(placement, "gpu_fault", lambda: "")
    assert choose("gpu") == placement.Placement(torch.device("cuda"), "torch", "its steps cannot be recorded")
