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
    prefix,  # float32 [P, DIM], updated
    square,  # float32 [P], updated: the mean square of each prefix row's gradient
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
    LEARNT: tl.constexpr,
    COLUMNS: tl.constexpr,
    MOST_SOURCES: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    COUNTED: tl.constexpr,
):
    """Adam on every row that has sources. Programs: n."""
    row = tl.program_id(0)
    if row < tl.load(counts):
        first = tl.load(pieces + row)
        end = tl.minimum(tl.load(pieces + row + 1), tl.load(counts + 1))
        number = tl.load(numbers + tl.load(starts + first)).to(tl.int64)
        if number < prefixes:
            size = 0.0  # of the gradient, squared: all columns move by one factor
            for begin in range(0, DIM, COLUMNS):
                total = _total(sums, first, end, begin + tl.arange(0, COLUMNS), DIM)
                size += tl.sum(total * total, 0)
            mean = tl.load(square + number)
            mean += (1 - BETA2) * (size / LEARNT - mean)
            tl.store(square + number, mean)
            sources = tl.load(starts + end) - tl.load(starts + first)
            share = 1 / tl.sqrt(tl.minimum(sources, MOST_SOURCES).to(tl.float32))
            move = tl.load(rates + 2) * share / (tl.sqrt(mean) * tl.load(deviation) + EPSILON)
            keep = 1 - share * tl.load(rates + 3)
            for begin in range(0, DIM, COLUMNS):
                column = begin + tl.arange(0, COLUMNS)
                total = _total(sums, first, end, column, DIM)
                weights = prefix + number * DIM + column
                weight = tl.load(weights, mask=column < DIM, other=0.0)
                tl.store(weights, keep * weight - move * total, mask=column < DIM)
            if COUNTED:
                tl.store(touches + number, tl.load(touches + number) + 1)
        else:
            for begin in range(0, DIM, COLUMNS):
                column = begin + tl.arange(0, COLUMNS)
                total = _total(sums, first, end, column, DIM)
                state = entity + (number - prefixes) * 3 * DIM + column
                _adam(state, DIM, total, rates, deviation, column < DIM, BETA1, BETA2, EPSILON)


@triton.jit
def _total(sums, first, end, column, DIM: tl.constexpr):
    """The sum of some pieces, in some columns."""
    total = tl.zeros_like(column).to(tl.float32)
    for begin in range(first, end, _AT_ONCE):
        place = (begin + tl.arange(0, _AT_ONCE)).to(tl.int64)
        inside = (place < end)[:, None] & (column < DIM)[None, :]
        values = tl.load(sums + place[:, None] * DIM + column[None, :], mask=inside, other=0.0)
        total += tl.sum(values, 0)
    return total


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
    _adam(state + place, size, values, rates, deviation, inside, BETA1, BETA2, EPSILON)


@triton.jit
def _adam(
    state,
    stride,
    gradient,
    rate,
    deviation,
    inside,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Adam as in `step`. The mean gradient lies a stride behind the weights, and that of its square two."""
    weight = tl.load(state, mask=inside, other=0.0)
    mean = tl.load(state + stride, mask=inside, other=0.0)
    square = tl.load(state + 2 * stride, mask=inside, other=0.0)
    mean += (1 - BETA1) * (gradient - mean)
    square = BETA2 * square + (1 - BETA2) * gradient * gradient
    move = tl.load(rate) * mean / (tl.sqrt(square) * tl.load(deviation) + EPSILON)
    tl.store(state, (1 - tl.load(rate + 1)) * weight - move, mask=inside)
    tl.store(state + stride, mean, mask=inside)
    tl.store(state + 2 * stride, square, mask=inside)
