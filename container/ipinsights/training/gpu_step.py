"""The step on a GPU: it computes what `step.TorchStep` does, recorded once and played back as one CUDA graph.

A step is about a hundred small kernels. Starting them one by one from Python would take longer than running them. A
graph starts them all at once. This requires two things. First, no step may wait for the device or depend on a number on
it, so the size of the mini-batch alone determines all shapes. Second, a step reads its batch and its rates from where
the recorded step did, so they are copied there first. Only the number of rows is known to the device alone: torch sorts
and lists the rows, and `gpu_kernels` reads the list.

For each size of mini-batch (the usual one, and the last of an epoch) the first step runs unrecorded, to load what it
needs, and the second is recorded.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ipinsights.hyperparameters import Hyperparameters
from ipinsights.training import sampling, step
from ipinsights.training.step import Batch, Parameters, TorchStep

_INPUTS = ("entity", "novelty", "positive", "random", "partner")
_SMALL = 64
"""Positives of a step in the trial of recording, and known rows of a table."""
_TOLERANCE = 1e-3

Play = Callable[[], None]


class CudaGraphs:
    """Records the kernels that some work starts on the GPU, without running them.

    One recording is played at a time, so all share the memory of their intermediate results. They have their own
    stream: torch frees what it keeps for a stream's recordings when the first of them is released.
    """

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, work: Play) -> Play:
        """A function that does the work."""
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream()
        with torch.cuda.stream(here), torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            work()
        return graph.replay


@dataclass
class _Recording:
    """A recorded step for one size of mini-batch."""

    batch: Batch
    """Where it reads its batch from."""
    sources: torch.Tensor
    """The source of the gradient for each cell of the batch's row numbers, int32 [n]: addresses, then entities."""
    play: Play | None = None


class GpuStep(TorchStep):
    """Takes steps on float32 parameters."""

    def __init__(
        self, parameters: Parameters, weight_decay: float, record: Callable[[Play], Play] | None = None
    ) -> None:
        """Recordings are CUDA graphs, unless ``record`` is given. Raises ImportError without Triton."""
        super().__init__(parameters, weight_decay)
        from ipinsights.training import gpu_kernels  # only GPU builds of torch include Triton

        self._kernels = gpu_kernels
        self._record = record
        self._rates = torch.zeros(9, device=parameters.typical.device)
        self._recordings: dict[int, _Recording] = {}

    def count(self, touches: torch.Tensor) -> None:
        """Count the steps that touch each prefix row, from now on: steps are recorded anew."""
        super().count(touches)
        self._recordings.clear()

    def run(self, batch: Batch, learning_rate: float) -> None:
        """Take one optimiser step on a batch."""
        rates = self.next_rates(learning_rate)
        numbers = [*rates.entity, *rates.prefix, *rates.typical, *rates.block, rates.deviation]
        # From pinned memory: otherwise the host would wait for the device.
        self._rates.copy_(torch.tensor(numbers, pin_memory=self._rates.is_cuda), non_blocking=True)
        size = len(batch.entity)
        recording = self._recordings.get(size)
        if recording is None:
            recording = self._recordings[size] = _recording(batch)
            self._step(recording)
            return
        for name in _INPUTS:
            getattr(recording.batch, name).copy_(getattr(batch, name))
        if recording.play is None:
            recording.play = self._recorded(lambda: self._step(recording))
        recording.play()

    def _recorded(self, work: Play) -> Play:
        self._record = self._record or CudaGraphs()
        try:
            return self._record(work)
        except RuntimeError as error:  # for example no memory: nothing ran yet, so the work can run unrecorded
            told = f"recording the steps failed, so each kernel starts separately, which is slower: {_cause(error)}"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
            return work

    def _step(self, recording: _Recording) -> None:
        """One step, on the recorded batch and with the recorded rates."""
        p, kernels, batch = self._parameters, self._kernels, recording.batch
        rows, typical, block, deviation = torch.split(self._rates, [4, 2, 2, 1])  # in the order of `run`
        prefixes, dim = p.prefix.shape
        unsummed = self.unsummed_gradients(batch)
        gradients = torch.cat([unsummed.address, unsummed.entity])
        numbers = torch.cat([unsummed.rows.view(-1), batch.entity + prefixes])
        numbers, order = torch.sort(numbers, stable=True)
        starts, pieces, counts = list_rows(numbers, kernels.PIECE)
        sums = torch.empty(len(numbers), dim, device=gradients.device)
        grid = (len(numbers), -(-dim // kernels.COLUMNS))
        kernels.sum_pieces[grid](
            gradients, recording.sources[order], starts, counts, sums, dim, kernels.COLUMNS, kernels.PIECE,
            num_warps=kernels.WARPS,
        )  # fmt: skip
        adam = (step.BETA1, step.BETA2, step.EPSILON)
        counted = self._touches is not None
        kernels.update_rows[(len(numbers),)](
            p.prefix, p.square, p.entity, prefixes, numbers, starts, pieces, counts, sums, rows, deviation,
            self._touches if counted else counts, dim, p.learnt, kernels.COLUMNS, step.MOST_SOURCES, *adam,
            counted, num_warps=kernels.WARPS,
        )  # fmt: skip
        dense = (p.typical, unsummed.typical, typical), (p.w, unsummed.w, block), (p.b, unsummed.b, block)
        for state, gradient, rate in dense:
            size = gradient.numel()
            if size:
                blocks = (-(-size // kernels.BLOCK),)
                kernels.update_dense[blocks](state, gradient, size, rate, deviation, kernels.BLOCK, *adam)
        self.totals += unsummed.totals


def _recording(batch: Batch) -> _Recording:
    """A recording for batches of the same size."""
    device, levels = batch.entity.device, batch.positive.shape[1]
    addresses = batch.addresses
    place = torch.arange(addresses + len(batch.entity), dtype=torch.int32, device=device)
    copies = {name: getattr(batch, name).clone() for name in _INPUTS}
    return _Recording(
        batch=Batch(**copies, group=batch.group, tile=batch.tile),
        sources=torch.cat([place[:addresses].repeat_interleave(levels), place[addresses:]]),
    )


def list_rows(numbers: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut ascending row numbers, int32 [n], into rows, and rows into pieces of at most ``piece`` sources.

    Returns the first place of each piece and the first piece of each row, both int32 [n + 1] and n beyond the last; and
    the counts of rows and pieces, int32 [2].
    """
    count = len(numbers)
    place = torch.arange(count, dtype=torch.int32, device=numbers.device)
    begins_row = step.begins(numbers)
    begins_piece = begins_row | (place % piece == 0)
    row, part = (begins.cumsum(0, dtype=torch.int32) for begins in (begins_row, begins_piece))

    def first(begins: torch.Tensor, number: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The values at the beginnings, in order. All others go to a place behind the end."""
        found = torch.full((count + 2,), count, dtype=torch.int32, device=numbers.device)
        place_of = (number - 1).masked_fill_(~begins, count + 1)
        return found.scatter_(0, place_of.long(), value)[: count + 1]

    counts = torch.stack([row[-1], part[-1]])
    return first(begins_piece, part, place), first(begins_row, row, part - 1), counts


def memory(size: int, random: int, shuffled_rate: int, levels: int, blocks: int, dim: int) -> int:
    """Bytes that a step takes besides the parameters, with ``size`` positives and ``random`` random addresses."""
    addresses = size + random
    cells = addresses * levels + size
    largest = dim * max((11 + blocks) * addresses, cells + 2 * (addresses + size))
    return 4 * (largest + 12 * shuffled_rate * size + 16 * cells + 2 * blocks * dim**2)


def why_not(hp: Hyperparameters, levels: int, device: torch.device) -> str:
    """Why steps cannot be recorded here, to follow "because"; empty where they can.

    A trial decides: small recorded steps of the training's shape must give the same result as `TorchStep`.
    """
    try:
        worst = deviation(hp, levels, device)
    except Exception as error:  # a driver, a compiler or a library may raise anything
        return f"its steps cannot be recorded on this GPU ({_cause(error)})"
    if not worst < _TOLERANCE:
        return f"the recorded steps differ from torch's on this GPU (by {worst:.2g})"
    return ""


def _cause(error: BaseException) -> str:
    """The first error: after it, the end of recording raises another one."""
    while error.__context__:
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0]


def deviation(
    hp: Hyperparameters, levels: int, device: torch.device, record: Callable[[Play], Play] | None = None
) -> float:
    """The largest difference of a parameter after four steps of either kind, relative to its movement."""
    random, shuffled = hp.random_negative_sampling_rate, hp.shuffled_negative_sampling_rate
    generator = torch.Generator().manual_seed(0)
    table = levels + _SMALL

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(table, shape, generator=generator, dtype=torch.int32).to(device)

    def weights(*shape: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(shape, generator=generator) / hp.vector_dim**0.5
        return drawn.to(device)

    def state(axis: int, *shape: int) -> torch.Tensor:
        weight = weights(*shape)
        return torch.stack([weight, torch.zeros_like(weight), torch.zeros_like(weight)], axis)

    dim, blocks = hp.vector_dim, min(hp.num_ip_encoder_layers, 2)  # more blocks take memory and show nothing new
    first = Parameters(
        state(1, table, dim),
        state(0, dim),
        weights(table, dim),
        torch.zeros(table, device=device),
        state(0, blocks, dim, dim),
        state(0, blocks, dim),
    )
    parameters = [Parameters(**{name: array.clone() for name, array in vars(first).items()}) for _ in range(2)]
    steps = GpuStep(parameters[0], 0.01, record), TorchStep(parameters[1], 0.01)
    tile = sampling.tile_size(random, shuffled, dim)
    for _ in range(4):
        batch = Batch(
            entity=integers(_SMALL),
            novelty=torch.full((_SMALL,), 0.02, device=device),
            positive=integers(_SMALL, levels),
            random=integers(sampling.groups(_SMALL, random), random, levels),
            partner=sampling.partners(torch.ones(_SMALL), shuffled, _SMALL, tile, generator).to(device),
            group=sampling.group_size(random),
            tile=tile,
        )
        for taken in steps:
            taken.run(batch, 0.01)
    off = []
    for name, before in vars(first).items():
        ours, theirs = (getattr(own, name) for own in parameters)
        if before.numel():
            off.append(float((ours - theirs).norm() / (theirs - before).norm()))
    return float(torch.tensor(off).max())  # NaN if one is NaN
