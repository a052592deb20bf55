"""Two-dimensional convolution as matrix products, for CPUs.

XLA on CPU multiplies matrices at the speed of the hardware, and bfloat16 faster than float32 with AVX512-BF16 and AMX.
Convolutions it computes in float32, and some of their gradients slowly (see `conv`). Here every pass is a few products.
With `windows_i(x)` for what row i of the kernel covers at every output position,

    output              = sum over i of windows_i(images) @ kernel[i]
    dimages             = sum over d of windows_d(doutput) @ turned[d]
    dkernel, turned, [d] = images^T @ windows_d(doutput)

A window is `kernel width * channels` numbers, contiguous in NHWC, so that a gather copies them at the speed of memory.
A gradient looks from a pixel of the images at the outputs that it went into. At stride 1 these are as many as the
kernel has pixels, and `turned` is the kernel rotated by 180 degrees. At stride 2 they are others for even and odd rows
and columns: each of these four phases of the images has gradients of its own, with its own pixels of the kernel
(`Taps`). Both gradients share the windows of the output's gradient. Where the images have few channels, as in the
stem, there is one product, with windows of the whole kernel.

All this goes over the batch in chunks, whose windows stay in the last cache, with numbers moved as bits (`chunks`).

What XLA must be kept from (jaxlib 0.10.2):
- It would fuse a reshape into the gather, which is then no longer a copy of runs. So the gather makes two dimensions,
  and the images lie in one.
- It would fold a transposition into the product, which is then one of float32, and slow. A row of zeros beside the
  transposed prevents it.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxresnet.nn.cpu.chunks import as_bits, as_numbers, over_chunks

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

FEW_CHANNELS = 16  # with fewer, as in the stem, all of a window is one row of a matrix


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(images: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """Cross-correlate `images` (N, H, W, C) with `kernel` (kh, kw, C, O), which is rounded to images' dtype.

    strides: (vertical, horizontal). padding: ((top, bottom), (left, right)) zeros, each less than the kernel's size.
    Returns (N, Ho, Wo, O) in images' dtype. Everything is added up in float32; the gradient of a float32 kernel stays
    so. For reverse mode, once: second derivatives raise NotImplementedError, `jax.jvp` TypeError.
    """
    kh, kw, c, o = kernel.shape
    lengths = zip(images.shape[1:3], padding, (kh, kw), strides, strict=True)
    ho, wo = (max(0, (length + sum(pad) - k) // stride + 1) for length, pad, k, stride in lengths)
    matrix = as_bits(kernel.astype(images.dtype)).reshape(-1, o)

    def compute(images: Array) -> tuple[Array, tuple[()]]:
        windows = _windows(_padded(images, padding), (kh, kw), strides, (0, 0), (ho, wo), whole=c < FEW_CHANNELS)
        output = _sum_of_products(windows, map(as_numbers, jnp.split(matrix, len(windows))))
        return output.astype(images.dtype).reshape(len(images), ho, wo, o), ()

    numbers_per_image = max(kh * kw * c, 2 * o) * ho * wo  # windows, or results in float32
    return over_chunks(compute, images, numbers_per_image=numbers_per_image)[0]


@jax.custom_jvp
def _not_differentiable(x: Any) -> Any:
    return x


@_not_differentiable.defjvp
def _raise(*_: Any) -> Any:  # they would be zero otherwise, as those of the bits are
    raise NotImplementedError("bfloat16 convolutions on a CPU have first derivatives only: use precision='float32'")


def _forward(images: Array, kernel: Array, strides: Pair, padding: Padding):
    return convolve(images, kernel, strides, padding), (images, kernel)


def _backward(strides: Pair, padding: Padding, residuals: tuple[Array, Array], doutput: Array):
    images, kernel, doutput = _not_differentiable((*residuals, doutput))
    dimages, dkernel = gradients(images, kernel, doutput, strides, padding)
    # XLA leaves out what nobody asks for: here the dkernel above, and dimages where this is the stem.
    if kernel.shape[2] < FEW_CHANNELS:
        dkernel = kernel_gradient(images, doutput, kernel.shape[:2], strides, padding)
    return dimages, dkernel.astype(kernel.dtype)


convolve.defvjp(_forward, _backward)


def gradients(images: Array, kernel: Array, doutput: Array, strides: Pair, padding: Padding) -> tuple[Array, Array]:
    """(dimages in images' dtype, dkernel in float32), from doutput (N, Ho, Wo, O) in images' dtype."""
    kh, kw, c, o = kernel.shape
    _, h, w, _ = images.shape
    size = (-(-h // strides[0]), -(-w // strides[1]))  # of a phase
    bits = as_bits(kernel.astype(images.dtype))
    rows_of = [Taps(kh, strides[0], padding[0][0], phase) for phase in range(strides[0])]
    columns_of = [Taps(kw, strides[1], padding[1][0], phase) for phase in range(strides[1])]
    seen = [(a, b) for a, b in np.ndindex(strides) if rows_of[a].pixels and columns_of[b].pixels]
    around = (_around(rows_of, size[0], doutput.shape[1]), _around(columns_of, size[1], doutput.shape[2]))

    def compute(images: Array, doutput: Array) -> tuple[Array, dict[Pair, Array]]:
        dphases = {phase: jnp.zeros((len(images), *size, c), images.dtype) for phase in np.ndindex(strides)}
        dkernels: dict[Pair, Array] = {}  # (C, pixels * O) by the kernel's row and the phase of columns
        padded = _padded(doutput, around)
        for a, b in seen:
            rows, columns = rows_of[a], columns_of[b]
            first = (rows.first + around[0][0], columns.first + around[1][0])
            windows = _windows(padded, (len(rows.pixels), len(columns.pixels)), (1, 1), first, size)
            turned = [_side_by_side_transposed(bits[i], columns.pixels) for i in rows.pixels]
            dphases[a, b] = _sum_of_products(windows, turned).astype(images.dtype).reshape(len(images), *size, c)
            transposed = _transposed(_phase(images, strides, (a, b), size))
            for i, row in zip(rows.pixels, windows, strict=True):
                dkernels[i, b] = _product(transposed, row)[:c]
        return _interleaved(dphases, strides, (h, w)), dkernels

    pixels = max(len(rows_of[a].pixels) * len(columns_of[b].pixels) for a, b in seen)
    numbers_per_image = pixels * size[0] * size[1] * o
    dimages, dkernels = over_chunks(compute, images, doutput, numbers_per_image=numbers_per_image)
    by_pixel: dict[Pair, Array] = {}
    for (i, b), dkernel in dkernels.items():
        columns = columns_of[b].pixels
        by_pixel |= {(i, j): part for j, part in zip(columns, jnp.split(dkernel, len(columns), 1), strict=True)}
    return dimages, jnp.stack([by_pixel[place] for place in np.ndindex(kh, kw)]).reshape(kernel.shape)


def kernel_gradient(images: Array, doutput: Array, size: Pair, strides: Pair, padding: Padding) -> Array:
    """The kernel's gradient alone, (*size, C, O) in float32, from windows of the images."""
    kh, kw = size
    c, (_, ho, wo, o) = images.shape[3], doutput.shape

    def compute(images: Array, doutput: Array) -> tuple[tuple[()], Array]:
        windows = _windows(_padded(images, padding), size, strides, (0, 0), (ho, wo), whole=c < FEW_CHANNELS)
        numbers, doutput = windows[0].shape[1], doutput.reshape(-1, o)
        if numbers < o:  # the smaller one is transposed
            dkernels = [_product(_transposed(row), doutput)[:numbers] for row in windows]
        else:
            transposed = _transposed(doutput)
            dkernels = [_product(transposed, row)[:o].T for row in windows]
        return (), jnp.stack(dkernels)

    numbers_per_image = max(kh * kw * c, 2 * o) * ho * wo
    dkernel = over_chunks(compute, images, doutput, numbers_per_image=numbers_per_image)[1]
    return dkernel.reshape(kh, kw, c, o)


class Taps:
    """Along one side of the images: which pixels of the kernel lead from the pixels of a phase to outputs.

    Pixel `stride * u + phase` goes into output `u + offset` by the kernel's pixel `phase + pad - stride * offset`.
    pixels: the kernel's, by ascending offset, which rises by 1 from `first`; empty where no output sees the phase.
    """

    def __init__(self, kernel: int, stride: int, pad: int, phase: int):
        self.pixels = [i for i in reversed(range(kernel)) if (phase + pad - i) % stride == 0]
        self.first = (phase + pad - self.pixels[0]) // stride if self.pixels else 0


def _around(taps: list[Taps], length: int, outputs: int) -> Pair:
    """The padding of `outputs` values with which all taps have windows of `length` pixels of an image."""
    seen = [(one.first, one.first + len(one.pixels) - 1) for one in taps if one.pixels]
    return -min(first for first, _ in seen), length + max(last for _, last in seen) - outputs


def _padded(x: Array, around: Padding) -> Array:
    """`x` (N, H, W, C) with zeros around, as bits; less than none cuts."""
    bits = as_bits(x)
    return lax.pad(bits, jnp.zeros((), bits.dtype), ((0, 0, 0), *((*pad, 0) for pad in around), (0, 0, 0)))


def _windows(
    bits: Array, size: Pair, strides: Pair, first: Pair, output_size: Pair, *, whole: bool = False
) -> list[Array]:
    """For each of size[0] rows of a kernel (N * Ho * Wo, size[1] * C): what that row covers at every position. These
    are `strides` apart, from `first` on. whole: one array, of what the whole kernel covers."""
    n, h, w, c = bits.shape
    ho, wo = output_size
    if whole or size == (1, 1):
        last_y, last_x = (s * (o - 1) + 1 for s, o in zip(strides, output_size, strict=True))
        starts = [(first[0] + i, first[1] + j) for i, j in np.ndindex(size)]
        pixels = [lax.slice(bits, (0, y, x, 0), (n, y + last_y, x + last_x, c), (1, *strides, 1)) for y, x in starts]
        return [as_numbers(jnp.concatenate(pixels, -1).reshape(n * ho * wo, len(starts) * c))]
    image, y, column = np.ogrid[:n, :ho, :wo]
    starts = ((image * h + first[0] + y * strides[0]) * w + first[1] + column * strides[1]) * c
    rows = [starts.reshape(-1, 1).astype(np.int32) + np.int32(i * w * c) for i in range(size[0])]
    runs = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,))
    in_bounds = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return [as_numbers(lax.gather(bits.reshape(-1), row, runs, (size[1] * c,), mode=in_bounds)) for row in rows]


def _product(a: Array, b: Array) -> Array:
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=dtype)


def _sum_of_products(rows: Iterable[Array], matrices: Iterable[Array]) -> Array:
    first, *others = (_product(row, matrix) for row, matrix in zip(rows, matrices, strict=True))
    return sum(others, first)


def _transposed(a: Array) -> Array:
    """(rows, columns) -> (columns + 1, rows), the last of zeros."""
    return as_numbers(jnp.pad(as_bits(a).T, ((0, 1), (0, 0))))


def _side_by_side_transposed(row: Array, pixels: list[int]) -> Array:
    """A kernel's row (kw, C, O), as bits -> (pixels * O, C). In halves: of one pixel a concatenation remains."""
    return as_numbers(jnp.concatenate([half.T for j in pixels for half in jnp.array_split(row[j], 2, axis=1)]))


def _phase(images: Array, strides: Pair, phase: Pair, size: Pair) -> Array:
    """The pixels at `strides` from `phase` on: (N, H, W, C) -> (N * size[0] * size[1], C), zeros beyond the border."""
    _, h, w, c = images.shape
    if strides == (1, 1):
        return images.reshape(-1, c)
    missing = (strides[0] * size[0] - h, strides[1] * size[1] - w)
    bits = jnp.pad(as_bits(images), ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    return as_numbers(bits[:, phase[0] :: strides[0], phase[1] :: strides[1]].reshape(-1, c))


def _interleaved(phases: dict[Pair, Array], strides: Pair, size: Pair) -> Array:
    """The inverse, from all phases, each (N, height, width, C): (N, *size, C), without what is beyond the border."""
    if strides == (1, 1):
        return phases[0, 0]
    n, height, width, c = phases[0, 0].shape
    rows = [
        jnp.stack([as_bits(phases[a, b]) for b in range(strides[1])], 3).reshape(n, height, strides[1] * width, c)
        for a in range(strides[0])
    ]
    whole = jnp.stack(rows, 2).reshape(n, strides[0] * height, strides[1] * width, c)
    return as_numbers(whole[:, : size[0], : size[1]])
