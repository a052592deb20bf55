"""Convolutions of maps as matrix products, in loops over chunks whose windows stay in a core's cache.

With `window` for what the kernel's pixels see at the outputs of a chunk, [taps * C, outputs], and the kernel as the
matrices that the products take,

    output   = [O, taps * C] @ window of the input
    dinput   = [C, taps * O] @ window of doutput
    dkernel += input [C, pixels] @ (window of doutput)^T

so that both gradients share a window. The last product contracts the last axes of both: XLA:CPU gives that to its fast
library, and would not if they were the first axes. Products of a chunk are float32 while the
sums for batch norm and the ReLU's mask are taken, and are rounded when the chunk is written: a product that gives
bfloat16 is several times as slow.

Every convolution here looks at 3x3 windows of a map with a border of one, at all nine pixels (taps) or fewer: a
shortcut's kernel of size 1 at the middle, one of size 2 at the four from the middle on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxresnet.nn.cpu.layout import (
    Tap,
    as_numbers,
    output_size,
    position,
    positive,
    runs,
    starts,
    to_cells,
    to_float32,
    transposed,
    zeros,
)

WINDOW = 400_000  # numbers of a window, about: what stays in a core's second cache beside the rest
FEWEST_COLUMNS = {2: 256, 4: 512}  # by bytes of a cell: products of fewer columns are slow

# -------------------------------------------------------------------------------------------------------- forward


class Convolved(NamedTuple):
    """A convolution's output, and what batch norm needs of it.

    map: (O, H, W, N) cells. sums, squares: (O, n) float32, taken before rounding, to be added up over n."""

    map: Array
    sums: Array
    squares: Array


def convolve(x: Array, kernels: Sequence[Array], stride: int) -> list[Convolved]:
    """Convolve a map with one kernel or more.

    x: framed cells, by parity where `stride` is 2. kernels: (k, k, C, O) cells each, with k 1, 2 or 3."""
    n = x.shape[-1]
    height, width = output_size(x.shape, stride)
    chunk = _chunk(9 * x.shape[0], width, n, x.dtype.itemsize)
    per_row = width * n // chunk.length
    seen = [_in_parts(taps_of(len(kernel)), chunk.parts) for kernel in kernels]
    matrices = [_rows_of_outputs(k, len(some)) for k, some in zip(kernels, seen, strict=True)]

    def body(t: Array, carry: list[Convolved]) -> list[Convolved]:
        y, at = lax.div(t, per_row), lax.rem(t, per_row) * chunk.length
        result = []
        for one, matrix, some in zip(carry, matrices, seen, strict=True):
            out = jnp.zeros((), jnp.float32)
            for part, taps in zip(matrix, some, strict=True):
                window = runs(x, starts(x.shape, stride, taps), position(x.shape, stride, y) + at, chunk.length)
                out = out + _product(part, window)
            map = lax.dynamic_update_slice(one.map, to_cells(out, x.dtype)[:, None], (0, y, at))
            result.append(Convolved(map, one.sums + _over_pixels(out, n), one.squares + _over_pixels(out * out, n)))
        return result

    def begun(kernel: Array) -> Convolved:
        features = kernel.shape[-1]
        sums = zeros((features, min(n, chunk.length)), jnp.float32, x)
        return Convolved(zeros((features, height, width * n), x.dtype, x), sums, sums)

    done = lax.fori_loop(0, height * per_row, body, [begun(kernel) for kernel in kernels])
    return [one._replace(map=one.map.reshape(-1, height, width, n)) for one in done]


# ------------------------------------------------------------------------------------------------------ gradients


class Gradients(NamedTuple):
    """map: of the input, (C, H, W, N) cells, 0 where the input is not above 0; at stride 2 with a row and a column of
    zeros more where H or W is odd. kernels: (k, k, C, O) float32 each. sums, products: of the map, and of the map times
    `raw`, see `gradients`, as those of `Convolved`; zeros without."""

    map: Array
    kernels: list[Array]
    sums: Array
    products: Array


def gradients(
    x: Array,
    doutputs: Sequence[Array],
    kernels: Sequence[Array],
    stride: int,
    add: Array | None = None,
    raw: Array | None = None,
) -> Gradients:
    """The gradients of `convolve(x, kernels, stride)`, and of the ReLU that `x` came from.

    x, kernels: as there. doutputs: (O, Ho + 2, Wo + 2, N) framed cells, one for each kernel. At stride 1 alone: add:
    (C, H, W, N) cells, a gradient that reaches the input on another way. raw: (C, H, W, N) cells, with which
    `Gradients.products` are taken.
    """
    c, n = x.shape[0], x.shape[-1]
    height, width = output_size(x.shape, stride)
    chunk = _chunk((9 if stride == 1 else 4) * doutputs[0].shape[0], width, n, x.dtype.itemsize)
    per_row = width * n // chunk.length
    phases = [Phase(row, column, stride) for row in range(stride) for column in range(stride)]
    returns = [
        Return(p, k, taps) for p in phases for k, kernel in enumerate(kernels) for taps in p.parts(len(kernel), chunk)
    ]
    matrices = [_rows_of_inputs(kernels[one.which], one.taps) for one in returns]

    def body(t: Array, carry: tuple[Array, list[Array], Array, Array]) -> tuple[Array, list[Array], Array, Array]:
        y, at = lax.div(t, per_row), lax.rem(t, per_row) * chunk.length
        map, dmatrices, sums, products = carry
        dmatrices = list(dmatrices)

        def cut(map: Array) -> Array:
            flat = map.reshape(c, height, width * n)
            return to_float32(lax.dynamic_slice(flat, (0, y, at), (c, 1, chunk.length)).reshape(c, chunk.length))

        for phase in phases:
            middle = starts(x.shape, stride, [(phase.row + 1, phase.column + 1)])
            xs = runs(x, middle, position(x.shape, stride, y) + at, chunk.length)
            dx = jnp.zeros((), jnp.float32)
            for k, one in enumerate(returns):
                if one.phase == phase:
                    dout = doutputs[one.which]
                    seen = starts(dout.shape, 1, [phase.sees(tap) for tap in one.taps])
                    window = runs(dout, seen, position(dout.shape, 1, y) + at, chunk.length)
                    dx = dx + _product(matrices[k], window)
                    dmatrices[k] += _product_transposed(xs, window)
            dx = dx if add is None else dx + cut(add)
            dx = jnp.where(positive(xs), dx, 0)
            if raw is not None:
                sums, products = sums + _over_pixels(dx, n), products + _over_pixels(dx * cut(raw), n)
            put = to_cells(dx, x.dtype).reshape(c, 1, 1, 1, chunk.length)
            map = lax.dynamic_update_slice(map, put, (0, y, phase.row, phase.column, at))
        return map, dmatrices, sums, products

    sums = zeros((c, min(n, chunk.length)), jnp.float32, x)
    map = zeros((c, height, stride, stride, width * n), x.dtype, x)
    dmatrices = [zeros(matrix.shape, jnp.float32, x) for matrix in matrices]
    map, dmatrices, sums, products = lax.fori_loop(0, height * per_row, body, (map, dmatrices, sums, sums))
    map = map.reshape(c, height, stride, stride, width, n).transpose(0, 1, 2, 4, 3, 5)
    dkernels = [_kernel_of(k, kernel.shape, returns, dmatrices) for k, kernel in enumerate(kernels)]
    return Gradients(map.reshape(c, stride * height, stride * width, n), dkernels, sums, products)


def kernel_gradient(x: Array, doutput: Array) -> Array:
    """(3, 3, C, O) float32, of a convolution of stride 1 whose input needs no gradient: the stem's.

    x: (C, H + 2, W + 2, N) framed cells. doutput: (O, H, W, N) cells, not framed."""
    c, n = x.shape[0], x.shape[-1]
    o, height, width, _ = doutput.shape

    def body(y: Array, dmatrix: Array) -> Array:
        douts = lax.dynamic_index_in_dim(doutput, y, 1, keepdims=False).reshape(o, width * n)
        window = runs(x, starts(x.shape, 1, taps_of(3)), position(x.shape, 1, y), width * n)
        return dmatrix + _product_transposed(douts, window)

    dmatrix = lax.fori_loop(0, height, body, zeros((o, 9 * c), jnp.float32, x))
    return dmatrix.T.reshape(3, 3, c, o)


# ---------------------------------------------------------------------------------------------------------- chunks


class Chunk(NamedTuple):
    """length: outputs of a row that are computed at once, of the images of one pixel after those of another. parts:
    products that a window of nine taps is split into."""

    length: int
    parts: int


def _chunk(numbers: int, width: int, batch: int, itemsize: int) -> Chunk:
    """numbers: of an output's window. The length is a number of whole pixels, or a part of one pixel's batch."""
    lengths = [w * batch for w in range(width, 0, -1) if width % w == 0]
    lengths += [n for n in range(batch - 1, 0, -1) if batch % n == 0]
    enough = [length for length in lengths if length >= FEWEST_COLUMNS[itemsize]] or lengths[:1]
    fitting = [length for length in enough if length * numbers <= WINDOW]
    return Chunk(fitting[0], 1) if fitting else Chunk(enough[-1], 3)


def _over_pixels(out: Array, batch: int) -> Array:
    """(C, length) -> (C, n), added up over whole pixels where there are several. XLA adds up such vectors fast."""
    n = min(batch, out.shape[1])
    return out.reshape(len(out), -1, n).sum(1)


# -------------------------------------------------------------------------------------------------- taps and matrices


def taps_of(size: int) -> list[Tap]:
    """What a kernel of `size` x `size` pixels sees of a 3x3 window, in the order of its pixels."""
    first = 0 if size == 3 else 1
    return [(first + i, first + j) for i in range(size) for j in range(size)]


class Phase(NamedTuple):
    """The pixels of the input at rows `stride` * y + row and columns `stride` * x + column; each phase is seen by other
    taps."""

    row: int
    column: int
    stride: int

    def sees(self, tap: Tap) -> Tap:
        """Where, in the framed gradient of the output, is what sees the phase's first pixel by this tap."""
        return (self.row + 1 - tap[0]) // self.stride + 1, (self.column + 1 - tap[1]) // self.stride + 1

    def parts(self, size: int, chunk: Chunk) -> list[list[Tap]]:
        """The taps of a kernel that see such pixels, by product. Backwards, so that the outputs are in order."""
        rows, columns = ({t for t in range(3) if (side + 1 - t) % self.stride == 0} for side in (self.row, self.column))
        return _in_parts([(i, j) for i, j in reversed(taps_of(size)) if i in rows and j in columns], chunk.parts)


class Return(NamedTuple):
    """A product of `gradients`: what some taps of kernel number `which` give back to a phase of the input."""

    phase: Phase
    which: int
    taps: list[Tap]


def _in_parts(taps: list[Tap], parts: int) -> list[list[Tap]]:
    if len(taps) < 9:
        return [taps] if taps else []
    return [taps[k : k + 9 // parts] for k in range(0, 9, 9 // parts)]


def _rows_of_outputs(kernel: Array, parts: int) -> list[Array]:
    """(O, taps * C) of a kernel (k, k, C, O), in parts."""
    return jnp.split(transposed(kernel.reshape(-1, kernel.shape[-1])), parts, 1)


def _rows_of_inputs(kernel: Array, taps: list[Tap]) -> Array:
    """(C, taps * O) of a kernel (k, k, C, O)."""
    size, _, c, o = kernel.shape
    places = [taps_of(size).index(tap) for tap in taps]
    return _ordered(kernel.reshape(size * size, c, o), places).transpose(1, 0, 2).reshape(c, -1)


def _kernel_of(which: int, shape: tuple[int, ...], returns: list[Return], dmatrices: list[Array]) -> Array:
    """The inverse of all `_rows_of_inputs` of a kernel."""
    size, _, c, o = shape
    mine = [(one.taps, dmatrix) for one, dmatrix in zip(returns, dmatrices, strict=True) if one.which == which]
    taps = [tap for some, _ in mine for tap in some]
    by_tap = jnp.concatenate([dmatrix.reshape(c, -1, o).transpose(1, 0, 2) for _, dmatrix in mine])
    return _ordered(by_tap, [taps.index(tap) for tap in taps_of(size)]).reshape(shape)


def _ordered(by_tap: Array, places: list[int]) -> Array:
    """by_tap[places]: of neighbours one slice, forwards or backwards."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if abs(step) == 1 and places == list(range(places[0], places[0] + step * len(places), step)):
        some = by_tap[min(places) : max(places) + 1]
        return some[::step]
    return by_tap[np.array(places)]


def _product(a: Array, b: Array) -> Array:
    """a @ b of cells, in float32."""
    return lax.dot(*_factors(a, b), preferred_element_type=jnp.float32)


def _product_transposed(a: Array, b: Array) -> Array:
    """a @ b.T of cells, in float32."""
    return lax.dot_general(*_factors(a, b), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _factors(a: Array, b: Array) -> tuple[Array, Array]:
    """As numbers. In float32 where a side is below 16: XLA:CPU fails on some narrow products of bfloat16."""
    convert = to_float32 if min(*a.shape, *b.shape) < 16 else as_numbers
    return convert(a), convert(b)
