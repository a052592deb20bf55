"""Two-dimensional convolution in bfloat16 as matrix products, for CPUs with AMX.

XLA on CPU gives products of two bfloat16 matrices with a float32 result to AMX, the matrix unit of Intel's server
processors since Sapphire Rapids, at ten times the speed of float32. Convolutions it turns into float32. Here every pass
of a convolution is a few such products. With `windows_i(x)` for what row i of the kernel covers at every output
position, `kernel width * channels` numbers that are contiguous in NHWC, so that a gather copies them at the speed of
memory,

    output      = sum over i of windows_i(images) @ kernel[i]
    dimages     = sum over d of windows_d(doutput) @ turned[d]
    dkernel[..] = phases(images)^T @ windows_d(doutput)

A gradient looks from a pixel of the images at the outputs that it went into. At stride 1 these are as many as the
kernel has pixels, and `turned` is the kernel rotated by 180 degrees. At stride 2 they are others for even and odd rows
and columns; the four `phases` of the images are taken together, side by side, with zeros in `turned` where a phase has
no pixel of the kernel. So both gradients share the windows of the output's gradient.

What XLA must be kept from (jaxlib 0.10.2):
- it does everything but products of bfloat16 in float32, so numbers are moved as uint16;
- it would fuse a reshape into the gather, at ten times the time: so the gather makes two dimensions, and the images lie
  in one;
- it would fold a transposition into the product, which AMX then cannot do: rows of zeros beside the transposed prevent
  it;
- in a product that sums over very many rows it uses one core: that sum is done in eight parts.

Like the weight gradient in `conv`, none of this may be in a loop (`lax.scan`, `lax.while_loop`).

A prototype of this was measured on AMX (128 images a step: three times XLA's speed, 1.2 to 1.3 times PyTorch's in
float32); this file, with its sums for stride 2, has been run without AMX only, where the numbers are the same.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

CPUINFO = Path("/proc/cpuinfo")
SMALLEST_CHANNELS = 16  # with fewer input channels (the stem's 3) the products are thin: left to XLA's convolution
LARGEST = 2**30  # numbers in an array: where windows begin is told by int32
_PARTS, _ROWS_OF_A_PART = 8, 4096  # of a long sum; a short one is slow in parts
_MORE_ROWS = 16  # of zeros, beside a transposed matrix


def has_amx() -> bool:
    """Whether XLA here multiplies bfloat16 matrices on AMX. JAXRESNET_AMX=0 says no, 1 says yes, whatever there is."""
    chosen = os.environ.get("JAXRESNET_AMX", "")
    if chosen in ("0", "1"):
        return chosen == "1"
    most = re.findall(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    if most and not most[-1].upper().startswith("AMX"):
        return False
    flags = re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.is_file() else None
    return flags is not None and {"amx_tile", "amx_bf16"} <= set(flags[1].split())


def applies(images: Array, kernel: Array, strides: Sequence[int]) -> bool:
    """Whether `conv_amx` takes this convolution and is worth it."""
    fits = images.size <= LARGEST and images.size // kernel.shape[2] * kernel.shape[3] <= LARGEST
    square = tuple(strides) in ((1, 1), (2, 2))
    return images.dtype == jnp.bfloat16 and square and kernel.shape[2] >= SMALLEST_CHANNELS and fits


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_amx(images: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """Cross-correlate `images` (N, H, W, C) bfloat16 with `kernel` (kh, kw, C, O), rounded to bfloat16, at `stride` 1
    or 2 both ways.

    padding: ((top, bottom), (left, right)) zeros, each less than the kernel's size. Returns (N, Ho, Wo, O) bfloat16.
    Everything is added up in float32; the gradient of a float32 kernel stays so.
    """
    return forward(images, kernel, stride, padding).astype(images.dtype)


def _forward(images: Array, kernel: Array, stride: int, padding: Padding):
    return conv_amx(images, kernel, stride, padding), (images, kernel)


def _backward(stride: int, padding: Padding, residuals: tuple[Array, Array], doutput: Array):
    images, kernel = residuals
    dimages, dkernel = gradients(images, kernel, doutput, stride, padding, images.dtype)
    return dimages, dkernel.astype(kernel.dtype)


conv_amx.defvjp(_forward, _backward)


def forward(images: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """The convolution, in float32."""
    kh, kw, c, o = kernel.shape
    bits = _as_bits(kernel.astype(jnp.bfloat16))
    n, *size = images.shape[:3]
    ho, wo = ((length + sum(pad) - k) // stride + 1 for length, pad, k in zip(size, padding, (kh, kw), strict=True))
    rows = _windows(images, (kh, kw), stride, padding, (ho, wo))
    return _sum_of_products(rows, [_as_numbers(row.reshape(kw * c, o)) for row in bits]).reshape(n, ho, wo, o)


def gradients(
    images: Array, kernel: Array, doutput: Array, stride: int, padding: Padding, dtype: Any = jnp.float32
) -> tuple[Array, Array]:
    """(dimages in `dtype`, dkernel in float32), from doutput (N, Ho, Wo, O) bfloat16."""
    kh, kw, c, o = kernel.shape
    n, h, w, _ = images.shape
    ho, wo = doutput.shape[1:3]
    rows_of, columns_of = Taps(kh, stride, padding[0][0]), Taps(kw, stride, padding[1][0])
    height, width = -(-h // stride), -(-w // stride)  # of a phase
    before_and_after = (rows_of.around(height, ho), columns_of.around(width, wo))
    size = (len(rows_of.taps), len(columns_of.taps))
    windows = _windows(doutput, size, 1, before_and_after, (height, width))

    phases = (len(rows_of.phases), len(columns_of.phases))
    turned = _turned(_as_bits(kernel.astype(jnp.bfloat16)), rows_of, columns_of)
    dphases = _sum_of_products(windows, turned).astype(dtype).reshape(n, height, width, *phases, c)
    dimages = _from_phases(dphases, rows_of, columns_of, (h, w))

    products = _transposed_products(_to_phases(images, rows_of, columns_of), windows)
    found = [product.reshape(*phases, c, size[1], o) for product in products]
    dkernel = [[found[d][a, b, :, e] for e, b in columns_of.places] for d, a in rows_of.places]
    return dimages, jnp.stack([jnp.stack(row) for row in dkernel])


class Taps:
    """Along one side of the images, which pixel of the kernel leads from an output to a pixel of an image.

    Pixel `stride * u + phase` goes into output `u + offset` by the kernel's pixel `phase + pad - stride * offset`.
    phases: those that any output sees, ascending. taps: (offsets, phases) int, the kernel's pixel, or `kernel` where
    there is none. places: for each pixel of the kernel where it is in `taps`. first: the first offset.
    """

    def __init__(self, kernel: int, stride: int, pad: int):
        self.stride = stride
        self.phases = [a for a in range(stride) if any((a + pad - i) % stride == 0 for i in range(kernel))]
        seen = [(a + pad - i) // stride for a in self.phases for i in range(kernel) if (a + pad - i) % stride == 0]
        self.first = min(seen)
        offsets = np.arange(self.first, max(seen) + 1)
        taps = np.array(self.phases) + pad - stride * offsets[:, None]
        self.taps = np.where((taps >= 0) & (taps < kernel), taps, kernel)
        self.places = [tuple(np.argwhere(self.taps == i)[0]) for i in range(kernel)]

    def around(self, length: int, outputs: int) -> Pair:
        """Padding of `outputs` values with which there are `length` windows; less than none cuts."""
        return -self.first, length + self.first + len(self.taps) - 1 - outputs


def _as_bits(x: Array) -> Array:
    """bfloat16 as uint16; anything else stays."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _as_numbers(bits: Array) -> Array:
    """The inverse."""
    return lax.bitcast_convert_type(bits, jnp.bfloat16) if bits.dtype == jnp.uint16 else bits


def _turned(kernel: Array, rows_of: Taps, columns_of: Taps) -> list[Array]:
    """For each row of `rows_of.taps` a matrix (offsets * O, phases * phases * C): `kernel` (kh, kw, C, O), as bits,
    turned, with zeros where a phase has no pixel of it."""
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))

    def side_by_side(rows: np.ndarray, columns: np.ndarray) -> Array:
        return jnp.concatenate([padded[i, j].T for i in rows for j in columns], axis=1)

    return [
        _as_numbers(jnp.concatenate([side_by_side(rows, columns) for columns in columns_of.taps]))
        for rows in rows_of.taps
    ]


def _windows(x: Array, size: Pair, stride: int, padding: Padding, output_size: Pair) -> list[Array]:
    """For each of size[0] rows of a kernel (N * Ho * Wo, size[1] * C): what that row covers at every position."""
    if (size, stride, padding) == ((1, 1), 1, ((0, 0), (0, 0))):
        return [x.reshape(-1, x.shape[-1])]
    bits = lax.pad(_as_bits(x), np.uint16(0), ((0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0)))
    n, h, w, c = bits.shape
    ho, wo = output_size
    if size == (1, 1):
        last = (n, stride * (ho - 1) + 1, stride * (wo - 1) + 1, c)
        return [_as_numbers(lax.slice(bits, (0, 0, 0, 0), last, (1, stride, stride, 1)).reshape(-1, c))]
    image, y, column = np.ogrid[:n, :ho, :wo]
    starts = (((image * h + y * stride) * w + column * stride) * c).reshape(-1, 1).astype(np.int32)
    runs = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,))
    in_bounds = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    rows = [starts + i * w * c for i in range(size[0])]
    return [_as_numbers(lax.gather(bits.reshape(-1), row, runs, (size[1] * c,), mode=in_bounds)) for row in rows]


def _product(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _sum_of_products(rows: list[Array], matrices: list[Array]) -> Array:
    first, *others = (_product(row, matrix) for row, matrix in zip(rows, matrices, strict=True))
    return sum(others, first)


def _transposed_products(a: Array, others: list[Array]) -> list[Array]:
    """a^T @ b, float32, for each b."""
    rows, columns = a.shape
    parts = _PARTS if rows % _PARTS == 0 and rows // _PARTS >= _ROWS_OF_A_PART else 1
    bits = _as_bits(a).reshape(parts, rows // parts, columns).swapaxes(1, 2)
    transposed = _as_numbers(jnp.pad(bits, ((0, 0), (0, _MORE_ROWS), (0, 0))))
    if parts == 1:
        return [_product(transposed[0], b)[:columns] for b in others]
    by_part = (((2,), (1,)), ((0,), (0,)))
    return [
        lax.dot_general(transposed, b.reshape(parts, rows // parts, -1), by_part, preferred_element_type=jnp.float32)
        .sum(0)[:columns]
        for b in others
    ]  # fmt: skip


def _to_phases(images: Array, rows_of: Taps, columns_of: Taps) -> Array:
    """(N, H, W, C) -> (N * ceil(H / stride) * ceil(W / stride), phases * phases * C), zeros beyond the border."""
    stride, (n, h, w, c) = rows_of.stride, images.shape
    if stride == 1:
        return images.reshape(-1, c)
    bits = jnp.pad(_as_bits(images), ((0, 0), (0, -h % stride), (0, -w % stride), (0, 0)))
    apart = bits.reshape(n, -(-h // stride), stride, -(-w // stride), stride, c)
    kept = apart[:, :, rows_of.phases[0] : rows_of.phases[-1] + 1, :, columns_of.phases[0] : columns_of.phases[-1] + 1]
    side_by_side = kept.transpose(0, 1, 3, 2, 4, 5)
    return _as_numbers(side_by_side.reshape(-1, side_by_side[0, 0, 0].size))


def _from_phases(phases: Array, rows_of: Taps, columns_of: Taps, size: Pair) -> Array:
    """The inverse, from (N, height, width, phases, phases, C) to (N, *size, C); phases that are not there are zeros."""
    stride, (n, height, width, *_, c) = rows_of.stride, phases.shape
    around = [(one.phases[0], stride - 1 - one.phases[-1]) for one in (rows_of, columns_of)]
    in_turn = _as_bits(phases).transpose(0, 1, 3, 2, 4, 5)
    whole = jnp.pad(in_turn, ((0, 0), (0, 0), around[0], (0, 0), around[1], (0, 0)))
    return _as_numbers(whole.reshape(n, height * stride, width * stride, c)[:, : size[0], : size[1]])
