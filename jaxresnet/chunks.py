"""Work on a batch in chunks of images that stay in a processor's cache, and bfloat16 moved as bits: for XLA on CPUs.

What XLA:CPU does with a whole batch goes through memory at every operation. In a loop over chunks the numbers between
operations stay in the last cache. Matrix products, sums and what is elementwise run in a loop as fast as outside;
convolutions do not: none of those may be in it.

XLA:CPU does everything but products of bfloat16 in float32. Numbers that are only moved are converted there and back,
and where several operations read the same bfloat16 array, each of their conversions may be kept in memory, at twice the
size. So they are moved, and kept, as uint16.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

NUMBERS_PER_CHUNK = 5 * 2**19  # 5 MiB in bfloat16


def over_chunks(compute: Callable[..., tuple[Array, Any]], *arrays: Array, numbers_per_image: int) -> tuple[Array, Any]:
    """`compute(*arrays)`, with so many images at a time that they make no more than NUMBERS_PER_CHUNK, but one at
    least. As many in every chunk, where a divisor of the batch is at least half of that.

    arrays: (N, ...) each. compute: from (n, ...) each to (an array (n, ...), sums over the images). numbers_per_image:
    in what `compute` makes of an image and reads again, in numbers of 2 bytes.
    """
    n = len(arrays[0])
    largest = max(1, min(n, NUMBERS_PER_CHUNK // max(1, numbers_per_image)))
    divisor = max(size for size in range(1, largest + 1) if n % size == 0)
    size = divisor if 2 * divisor >= largest else largest
    if size >= n:
        return compute(*arrays)
    whole = n // size * size
    chunk, more = jax.eval_shape(compute, *(array[:size] for array in arrays))
    shapes = (jax.ShapeDtypeStruct((n, *chunk.shape[1:]), chunk.dtype), more)
    zero = sum((empty_sum(array, jnp.float32) for array in arrays), jnp.float32(0))
    by_image, sums = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype) + zero.astype(shape.dtype), shapes)

    def compute_as_bits(bits: list[Array]) -> tuple[Array, Any]:
        by_image, more = compute(*map(as_numbers, bits))
        return as_bits(by_image), more

    def add(i: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        by_image, sums = carry
        chunk, more = compute_as_bits([take(i) for take in takes])
        by_image = lax.dynamic_update_slice_in_dim(by_image, chunk, i * size, 0)
        return by_image, jax.tree.map(jnp.add, sums, more)

    def chunks_of(array: Array) -> Callable[[Array], Array]:
        if array.dtype == jnp.uint16:
            return lambda i: lax.dynamic_slice_in_dim(array, i * size, size)
        # The same, but XLA then makes the array anew for this loop, if cheap, and need not keep it until here.
        chunks = array[:whole].reshape(-1, size, *array.shape[1:])
        return lambda i: lax.dynamic_index_in_dim(chunks, i, keepdims=False)

    bits = [as_bits(array) for array in arrays]
    takes = list(map(chunks_of, bits))
    by_image, sums = lax.fori_loop(0, n // size, add, (as_bits(by_image), sums))
    if whole < n:
        rest, more = compute_as_bits([array[whole:] for array in bits])
        by_image = lax.dynamic_update_slice_in_dim(by_image, rest, whole, 0)
        sums = jax.tree.map(jnp.add, sums, more)
    return as_numbers(by_image), sums


def as_bits(x: Array) -> Array:
    """bfloat16 as uint16; anything else stays."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def as_numbers(bits: Array) -> Array:
    """The inverse."""
    return lax.bitcast_convert_type(bits, jnp.bfloat16) if bits.dtype == jnp.uint16 else bits


def float32_by_bits(x: Array) -> Array:
    """bfloat16 as float32, in operations on integers; anything else stays.

    XLA does not see through them, and so keeps `x` as uint16 alone: as it does where `over_chunks` reads `x`, too."""
    if x.dtype != jnp.bfloat16:
        return x
    return lax.bitcast_convert_type(as_bits(x).astype(jnp.uint32) << 16, jnp.float32)


def empty_sum(array: Array, dtype: Any) -> Array:
    """A zero that varies over the devices of a `shard_map` as `array` does."""
    return lax.stop_gradient(array[:0]).sum(dtype=dtype)
