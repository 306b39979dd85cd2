"""Where a training runs, as the machine and the hyperparameter have it. No GPU is needed to see it."""

import contextlib
import threading

import numpy as np
import pytest
import torch

from distributed.threads import in_threads
from ipinsights import native
from ipinsights.distributed.group import Group
from ipinsights.errors import UserError
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import gpu_step, placement

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
    monkeypatch.setattr(placement, "_best_device", lambda needed, group: (torch.device("cpu"), SMALL))
    with pytest.raises(UserError, match=f"device=gpu, but {SMALL}"):
        choose("gpu")
    assert choose("auto").slower_because == SMALL


def test_the_cpu_is_used_if_asked_for_whatever_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_best_device", lambda needed, group: (torch.device("cuda"), ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose("cpu").device.type == "cpu"
    assert choose("gpu", "cpu").device.type == "cpu"  # a caller's own choice


def test_a_gpu_that_breaks_as_it_is_tried_is_an_error_if_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_best_device", lambda needed, group: (torch.device("cuda"), ""))
    monkeypatch.setattr(placement.Placement, "current", torch.device("cpu"))
    monkeypatch.setattr(gpu_step, "why_not", lambda *arguments: "its steps cannot be recorded")
    monkeypatch.setattr(placement, "gpu_fault", lambda group: "the GPU cannot be used (broken)")
    assert choose("auto").slower_because == "the GPU cannot be used (broken)"
    with pytest.raises(UserError, match=r"device=gpu, but the GPU cannot be used \(broken\)"):
        choose("gpu")
    monkeypatch.setattr(placement, "gpu_fault", lambda group: "")
    assert choose("gpu") == placement.Placement(torch.device("cuda"), "torch", "its steps cannot be recorded")


GPU, CPU = torch.device("cuda"), torch.device("cpu")
SLOW = "its steps cannot be recorded"


def of_ranks(
    device: str, best: list[tuple[torch.device, str]], obstacles: list[str], faults: list[str]
) -> list[placement.Placement | str]:
    """The placements of several ranks, or the errors, where each finds a best device, and what is in its way."""

    def chosen(group: Group) -> placement.Placement | str:
        here.rank = group.rank
        try:
            return placement.choose(None, of(device), VOCABULARY, 1000, 1 << 20, group)
        except UserError as error:
            return str(error)

    here = threading.local()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "_best_device", lambda needed, group: best[here.rank])
        patch.setattr(placement.Placement, "current", contextlib.nullcontext())
        patch.setattr(gpu_step, "why_not", lambda *arguments: obstacles[here.rank])
        patch.setattr(placement, "gpu_fault", lambda group: faults[here.rank])
        return in_threads(len(best), chosen)


def test_all_ranks_train_on_their_gpus() -> None:
    assert of_ranks("auto", [(GPU, "")] * 3, [""] * 3, [""] * 3) == [placement.Placement(GPU, "graph")] * 3


@pytest.mark.parametrize(("why", "told"), [(SMALL, SMALL), ("", "this machine has no GPU")])
def test_where_one_rank_has_no_gpu_all_train_on_cpus_and_tell_why(why: str, told: str) -> None:
    best = [(GPU, ""), (CPU, why), (GPU, "")]
    places = of_ranks("auto", best, [""] * 3, [""] * 3)
    assert {(place.device, place.slower_because) for place in places if not isinstance(place, str)} == {
        (CPU, f"on host algo-2 {told}")
    }
    expected = f"device=gpu, but on host algo-2 {told}. With device=cpu it trains on the CPU"
    assert of_ranks("gpu", best, [""] * 3, [""] * 3) == [expected] * 3


def test_ranks_without_a_gpu_find_no_fault_in_that() -> None:
    for place in of_ranks("auto", [(CPU, "")] * 2, [""] * 2, [""] * 2):
        assert isinstance(place, placement.Placement)
        assert (place.device, place.slower_because) == (CPU, "" if place.step == "native" else native.why_absent())


def test_where_one_rank_cannot_record_its_steps_none_does() -> None:
    expected = placement.Placement(GPU, "torch", f"on host algo-1 {SLOW}")
    assert of_ranks("auto", [(GPU, "")] * 2, [SLOW, ""], [""] * 2) == [expected] * 2
    broken = "device=gpu, but on host algo-2 the GPU cannot be used. With device=cpu it trains on the CPU"
    assert of_ranks("gpu", [(GPU, "")] * 2, ["", SLOW], ["", "the GPU cannot be used"]) == [broken] * 2


def test_a_rank_of_several_needs_memory_to_combine_encoders() -> None:
    hp = of("auto")
    alone, together = (placement.memory(hp, VOCABULARY, 1000, 10, ranks) for ranks in (1, 2))
    table = 4 * VOCABULARY.num_rows * hp.vector_dim
    assert 2 * table < together - alone < 5 * table
