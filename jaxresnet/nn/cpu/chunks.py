"""Work on a batch in chunks of images that stay in a processor's cache, and bfloat16 moved as bits: for XLA on CPUs.

XLA:CPU writes what an operation makes of a whole batch to memory. In a loop over chunks the numbers between operations
stay in the last cache. Matrix products, sums and what is elementwise run as fast in a loop as outside. Convolutions do
not (see `conv.convolves_in_loops`).

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


def over_chunks(compute: Callable[..., tuple[Any, Any]], *arrays: Array, numbers_per_image: int) -> tuple[Any, Any]:
    """`compute(*arrays)`, with as many images at a time as make at most NUMBERS_PER_CHUNK numbers, and one at least.
    Chunks are of one size where a divisor of the batch is at least half of that.

    arrays: (N, ...) each. compute: from (n, ...) each to (arrays (n, ...), sums over the images); either is a tree of
    arrays, which may be empty. numbers_per_image: those that `compute` makes of an image and reads again.
    """
    n = len(arrays[0])
    largest = max(1, min(n, NUMBERS_PER_CHUNK // max(1, numbers_per_image)))
    divisor = max(size for size in range(1, largest + 1) if n % size == 0)
    size = divisor if 2 * divisor >= largest else largest
    if size >= n:
        return compute(*arrays)
    whole = n // size * size
    chunk, more = jax.eval_shape(compute, *(array[:size] for array in arrays))
    shapes = (jax.tree.map(lambda part: jax.ShapeDtypeStruct((n, *part.shape[1:]), part.dtype), chunk), more)
    zero = sum((empty_sum(array, jnp.float32) for array in arrays), jnp.float32(0))
    by_image, sums = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype) + zero.astype(shape.dtype), shapes)

    def add(carry: tuple[Any, Any], bits: list[Array], start: Any) -> tuple[Any, Any]:
        def put(array: Array, part: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(array, as_bits(part), start, 0)

        by_image, sums = carry
        parts, more = compute(*map(as_numbers, bits))
        return jax.tree.map(put, by_image, parts), jax.tree.map(jnp.add, sums, more)

    def chunks_of(array: Array) -> Callable[[Array], Array]:
        if array.dtype == jnp.uint16:
            return lambda i: lax.dynamic_slice_in_dim(array, i * size, size)
        # The same, but XLA then makes the array anew for this loop, if cheap, and need not keep it until here.
        chunks = array[:whole].reshape(-1, size, *array.shape[1:])
        return lambda i: lax.dynamic_index_in_dim(chunks, i, keepdims=False)

    bits = [as_bits(array) for array in arrays]
    takes = list(map(chunks_of, bits))
    carry = (jax.tree.map(as_bits, by_image), sums)
    carry = lax.fori_loop(0, n // size, lambda i, carry: add(carry, [take(i) for take in takes], i * size), carry)
    if whole < n:
        carry = add(carry, [array[whole:] for array in bits], whole)
    by_image, sums = carry
    return jax.tree.map(as_numbers, by_image), sums


def as_bits(x: Array) -> Array:
    """bfloat16 as uint16; anything else stays."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def as_numbers(bits: Array) -> Array:
    """The inverse."""
    return lax.bitcast_convert_type(bits, jnp.bfloat16) if bits.dtype == jnp.uint16 else bits


def float32_by_bits(x: Array) -> Array:
    """bfloat16 as float32, in operations on integers; anything else stays.

    XLA does not see through them, and so keeps `x` as uint16 alone, as it also does where `over_chunks` reads `x`."""
    if x.dtype != jnp.bfloat16:
        return x
    return lax.bitcast_convert_type(as_bits(x).astype(jnp.uint32) << 16, jnp.float32)


def empty_sum(array: Array, dtype: Any) -> Array:
    """A zero that varies over the devices of a `shard_map` as `array` does."""
    return lax.stop_gradient(array[:0]).sum(dtype=dtype)
