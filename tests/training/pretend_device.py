"""Train on a device that is not there, of whose tensors only shapes are known. Run by `test_gpu_step`.

Asking for a number that is on the device raises an error. Prints the operations that involve two devices.
"""

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ipinsights.data.addresses import IPV4
from ipinsights.data.entities import EntityIndex
from ipinsights.data.events import Events
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.counting import Counts
from ipinsights.model.history import History
from ipinsights.model.refit import Refit
from ipinsights.model.vocabulary import Vocabulary
from ipinsights.training import gpu_kernels, gpu_step
from ipinsights.training.batches import Entities
from ipinsights.training.placement import Placement
from ipinsights.training.progress import Listener
from ipinsights.training.trainer import Trainer
from ipinsights.training.validation import Validator
from training.gpu_kernels import KERNELS, Idle


class Generator:
    """A device's generator of random numbers, as far as shapes go."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def manual_seed(self, seed: int) -> "Generator":
        return self

    def get_state(self) -> Any:
        return types.SimpleNamespace(numpy=lambda: np.zeros(16, dtype=np.uint8))

    def set_state(self, state: torch.Tensor) -> None:
        pass


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, which has no types
    """Prints which operations involve two devices."""

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, torch.Tensor))
        if len({tensor.device.type for tensor in tensors}) > 1:
            print(func)
        return results


def without_generator(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, generator=None, **kwargs: draw(*args, **kwargs)


_setup_privateuseone_for_python_backend()
setattr(torch, "Generator", Generator)  # noqa: B010  # to torch a type, which cannot be assigned to
for name in ("rand", "randn", "randint", "randperm"):
    setattr(torch, name, without_generator(getattr(torch, name)))
for name in KERNELS:
    setattr(gpu_kernels, name, Idle())
setattr(Trainer, "_means", lambda self: (0.0, 0.0))  # noqa: B010  # whoever prints a number has to wait for it

rng = np.random.default_rng(0)
address = rng.integers(1 << 16, size=3000, dtype=np.uint32) << np.uint32(16)
train = Events(rng.integers(50, size=3000, dtype=np.int32), address, EntityIndex(50))
hp = Hyperparameters(num_entity_vectors=50, vector_dim=16, mini_batch_size=400, epochs=2, learning_rate=0.01)
vocabulary = Vocabulary.build(train.address)
with FakeTensorMode(allow_non_fake_inputs=True), Watch():  # type: ignore[no-untyped-call]  # torch's, which has no types
    trainer = Trainer(
        train, hp, vocabulary, Entities.of(train, 50), Placement(torch.device("privateuseone"), "torch"), 1
    )
    trainer.step = gpu_step.GpuStep(trainer.parameters, 0.0, lambda work: work)
    assert trainer.run(Listener(), lambda: False, lambda: None)
    Validator(train, trainer, Refit(Counts(vocabulary, History.of(train, IPV4))), 0)
    trainer.step.score(trainer.batches._entity, trainer.batches.index.rows(trainer.batches._leaf))
