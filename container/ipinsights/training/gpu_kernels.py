"""The update of table rows on a GPU, in Triton: sum each row's gradient from its sources, then apply Adam at once.

As in `step.cpp`, a gradient row goes from registers straight into Adam. Only the device knows which rows a batch has.
So the host starts as many programs as there could be rows, and those beyond the count end at once. The host never waits
for the count. Therefore a step can be recorded and played back (`gpu_step`).

Some rows have thousands of sources, such as those of unknown prefixes, and most have one. So the list of sources is cut
into *pieces*, of one row and at most `PIECE` sources each. Summing takes two passes: every piece, then every row. Both
run in a fixed order, so the result is the same each time.

Triton: Tillet, Kung and Cox, MAPL 2019. It comes with torch's builds for GPUs.
"""

import triton
import triton.language as tl

PIECE = 16
"""Sources of a piece at most."""
COLUMNS = 128
"""Columns of a row that a program processes."""
WARPS = 1
"""Warps of a program. A thread has four floats, so reads are whole lines, and sums need no other warp."""
BLOCK = 1024
"""Numbers of a dense parameter that a program processes."""
_AT_ONCE = tl.constexpr(16)
"""Pieces that a program reads at a time."""


@triton.jit
def sum_pieces(
    gradients,  # float32 [sources, DIM]
    sources,  # int32 [n]: the sources of each row; rows one after another
    starts,  # int32 [n + 1]: the first source of each piece; n beyond the last piece
    counts,  # int32 [2]: the counts of rows and pieces
    sums,  # float32 [n, DIM], written
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Sum of every piece. Programs: n x columns."""
    piece = tl.program_id(0).to(tl.int64)
    if piece < tl.load(counts + 1):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        place = tl.load(starts + piece) + tl.arange(0, PIECE)
        there = place < tl.load(starts + piece + 1)
        source = tl.load(sources + place, mask=there, other=0).to(tl.int64)
        inside = there[:, None] & (column < DIM)[None, :]
        values = tl.load(gradients + source[:, None] * DIM + column[None, :], mask=inside, other=0.0)
        tl.store(sums + piece * DIM + column, tl.sum(values, 0), mask=column < DIM)


@triton.jit
def update_rows(
    prefix,  # float32 [P, 2, DIM], updated
    entity,  # float32 [E, 3, DIM], updated
    prefixes,  # P: numbers below P are prefix rows, entity rows follow
    numbers,  # int32 [n]: the row of each source
    starts,  # int32 [n + 1]: as above
    pieces,  # int32 [n + 1]: the first piece of each row; n beyond the last row
    counts,  # int32 [2]: as above
    sums,  # float32 [n, DIM]: of every piece
    rates,  # float32 [4]: of entity rows and of prefix rows, as `step.Rate`
    deviation,  # float32 [1]
    touches,  # int32 [P], updated where COUNTED: the steps that touched each prefix row
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    MOST_SOURCES: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    COUNTED: tl.constexpr,
):
    """Adam on every row that has sources. Programs: n x columns."""
    row = tl.program_id(0)
    if row < tl.load(counts):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        first = tl.load(pieces + row)
        end = tl.minimum(tl.load(pieces + row + 1), tl.load(counts + 1))
        total = tl.zeros([COLUMNS], dtype=tl.float32)
        for begin in range(first, end, _AT_ONCE):
            place = (begin + tl.arange(0, _AT_ONCE)).to(tl.int64)
            inside = (place < end)[:, None] & (column < DIM)[None, :]
            values = tl.load(sums + place[:, None] * DIM + column[None, :], mask=inside, other=0.0)
            total += tl.sum(values, 0)
        number = tl.load(numbers + tl.load(starts + first)).to(tl.int64)
        if number < prefixes:
            state = prefix + number * 2 * DIM
            sources = tl.load(starts + end) - tl.load(starts + first)
            share = 1 / tl.sqrt(tl.minimum(sources, MOST_SOURCES).to(tl.float32))
            _adam(state + column, DIM, total, rates + 2, share, deviation, column < DIM, 0.0, BETA2, EPSILON)
        else:
            state = entity + (number - prefixes) * 3 * DIM
            _adam(state + column, DIM, total, rates, 1.0, deviation, column < DIM, BETA1, BETA2, EPSILON)
        if COUNTED:
            once = (number < prefixes) & (tl.program_id(1) == 0)
            tl.store(touches + number, tl.load(touches + number, mask=once, other=0) + 1, mask=once)


@triton.jit
def update_dense(
    state,  # float32 [3, size], updated
    gradient,  # float32 [size]
    size,
    rates,
    deviation,
    BLOCK: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Adam on a dense parameter. Programs: blocks."""
    size = tl.cast(size, tl.int64)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    values = tl.load(gradient + place, mask=inside, other=0.0)
    _adam(state + place, size, values, rates, 1.0, deviation, inside, BETA1, BETA2, EPSILON)


@triton.jit
def _adam(
    state,
    stride,
    gradient,
    rate,
    share,
    deviation,
    inside,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Adam as in `step`: a share of the move and of the decay. The means lie strides behind the weights.

    With a BETA1 of 0 there is no mean of the gradient, and that of its square is the first one.
    """
    weight = tl.load(state, mask=inside, other=0.0)
    means = state + stride
    mean = gradient
    if BETA1 > 0:
        before = tl.load(means, mask=inside, other=0.0)
        mean = before + (1 - BETA1) * (gradient - before)
        tl.store(means, mean, mask=inside)
        means += stride
    square = tl.load(means, mask=inside, other=0.0)
    square = BETA2 * square + (1 - BETA2) * gradient * gradient
    move = tl.load(rate) * share * mean / (tl.sqrt(square) * tl.load(deviation) + EPSILON)
    keep = 1 - share * (1 - tl.load(rate + 1))
    tl.store(state, keep * weight - move, mask=inside)
    tl.store(means, square, mask=inside)
