"""How activations lie in memory on a CPU, and how parts of them are read and written.

A *map* is an array [C, H, W, N]: channels, rows, columns, and the images of the batch last. What a kernel's pixel sees
of a row is then one run of W * N numbers, at every position of the kernel. Windows are gathered in such runs at the
speed of memory, and nothing is ever transposed but the small kernels. (With the channels last, as in NHWC, a run has
3 * C numbers, and every gradient of a kernel needs a transposed map.)

A *framed* map has a border of one zero on each side, [C, H + 2, W + 2, N], so that windows need no padding. Before a
convolution of stride 2 its columns are sorted by parity, [C, H + 2, 2, V, N] with V = ceil((W + 2) / 2): what a pixel
of the kernel sees is then one run there, too.

A *cell* is a number as it is kept: float32, or the 16 bits of a bfloat16 as uint16. XLA:CPU uses bfloat16 only in
matrix products. Any other operation in bfloat16, even a copy, it converts to float32, and may keep that. So cells are
kept and moved as integers.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxresnet.errors import ConfigError

LONG, BLOCK = 512, (32, 64)  # numbers of a row, and of a matrix's blocks, in `transposed`
Tap = tuple[int, int]  # row and column of a 3x3 window, 0 to 2


# ---------------------------------------------------------------------------------------------------------- cells


def to_cells(x: Array, dtype: Any) -> Array:
    """float32 -> cells. dtype: float32, or uint16 for the nearest bfloat16, ties to even.

    In integers: XLA:CPU would write the bfloat16, and then again its bits."""
    if dtype == jnp.float32:
        return x
    bits = _bits(x)
    return ((bits + jnp.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(jnp.uint16)


@jax.custom_jvp
def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


@_bits.defjvp
def _refuse(*_: Any) -> Any:  # they would be 0: integers have no derivatives
    raise NotImplementedError(
        "a network in bfloat16 on a CPU has first derivatives, in training, and no others: use precision='float32'"
    )


def to_float32(cells: Array) -> Array:
    if cells.dtype == jnp.float32:
        return cells
    return lax.bitcast_convert_type(cells.astype(jnp.uint32) << 16, jnp.float32)


def as_numbers(cells: Array) -> Array:
    """Bits as the bfloat16 that they are; float32 stays."""
    return cells if cells.dtype == jnp.float32 else lax.bitcast_convert_type(cells, jnp.bfloat16)


def as_cells(numbers: Array) -> Array:
    """The inverse."""
    return numbers if numbers.dtype == jnp.float32 else lax.bitcast_convert_type(numbers, jnp.uint16)


def positive(cells: Array) -> Array:
    """Whether each is above 0."""
    return cells > 0 if cells.dtype == jnp.float32 else cells.astype(jnp.int16) > 0


# ----------------------------------------------------------------------------------------------------------- maps


def framed(cells: Array, stride: int = 1) -> Array:
    """A map with its border; for stride 2 with columns by parity."""
    c, h, w, n = cells.shape
    right = 1 if stride == 1 else 1 + w % 2  # as many even columns as odd ones
    zero = jnp.zeros((), cells.dtype)
    cells = lax.pad(cells, zero, ((0, 0, 0), (1, 1, 0), (1, right, 0), (0, 0, 0)))
    if stride == 1:
        return cells
    return cells.reshape(c, h + 2, -1, 2, n).transpose(0, 1, 3, 2, 4)


def inside(framed: Array) -> Array:
    """A framed map, not sorted by parity, without its border."""
    return framed[:, 1:-1, 1:-1]


def starts(shape: Sequence[int], stride: int, taps: Sequence[Tap]) -> np.ndarray:
    """Where, in a flat framed map of `shape`, lie the runs that `taps` see at the first output: (taps * C, 1) int32,
    tap by tap. Raises ConfigError for a map of which int32 does not count the numbers."""
    if math.prod(shape) > np.iinfo(np.int32).max:
        raise ConfigError(
            f"{shape[-1]} images at once are too many for a network so wide on a CPU: take fewer (batch_size)"
        )
    if stride == 1:
        c, h, w, n = shape
        places = [i * w + j for i, j in taps]
        size = h * w
    else:
        c, h, _, v, n = shape
        places = [(i * 2 + j % 2) * v + j // 2 for i, j in taps]
        size = h * 2 * v
    found = np.asarray(places)[:, None] + np.arange(c)[None] * size
    return (found * n).astype(np.int32).reshape(-1, 1)


def position(shape: Sequence[int], stride: int, y: Array | int) -> Array | int:
    """How far, in a flat framed map of `shape`, the first run of output row `y` is behind that of row 0."""
    return y * stride * math.prod(shape[2:])


def output_size(shape: Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width) of a convolution's output, from the shape of its framed input."""
    return (shape[1] - 3) // stride + 1, shape[-2] - 3 + stride


def runs(cells: Array, starts: np.ndarray, position: Array | int, length: int) -> Array:
    """(number of starts, length): runs of a flat array. XLA makes of this gather one copy a run."""
    dimensions = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,))
    in_bounds = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(cells.reshape(-1), starts + position, dimensions, (length,), mode=in_bounds)


def transposed(matrix: Array) -> Array:
    """matrix.T. XLA writes it row by row, and where rows of `matrix` are long, each number comes from another line of
    memory, mostly from beyond the caches. Such a matrix is transposed in blocks here."""
    rows, columns = matrix.shape
    height, width = BLOCK
    if columns < LONG or rows % height or columns % width:
        return matrix.T

    def body(t: Array, done: Array) -> Array:
        i, j = lax.div(t, columns // width) * height, lax.rem(t, columns // width) * width
        return lax.dynamic_update_slice(done, lax.dynamic_slice(matrix, (i, j), BLOCK).T, (j, i))

    blocks = (rows // height) * (columns // width)
    return lax.fori_loop(0, blocks, body, zeros((columns, rows), matrix.dtype, matrix))


def zeros(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """To begin a loop with. Inside a `shard_map` they must vary over its devices as what the loop reads, `like`."""
    return jnp.zeros(shape, dtype) + lax.stop_gradient(like.reshape(-1)[:0]).sum(dtype=dtype)
