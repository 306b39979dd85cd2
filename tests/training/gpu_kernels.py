"""The kernels for GPUs, and what stands in for them where only what surrounds them matters."""

from collections.abc import Callable

KERNELS = ("sum_pieces", "update_rows", "update_dense")
"""Their names in `ipinsights.training.gpu_kernels`, which cannot be imported everywhere."""


INTERPRET = {"TRITON_INTERPRET": "1"}
"""The environment in which they are interpreted. Triton reads it when it, and what is written in it, is imported."""


class Idle:
    """A kernel that does nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *_, **__: None
