"""Batch normalisation with a gradient of its own (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

Both passes are what an ideal compiler would make of them: one pass over the activations for the sums, one that uses
them. Activations stay in their own dtype; sums and all that is made of them are float32 at least.

XLA:CPU needs help with bfloat16: see `chunks`. With it the sums are taken in chunks of the batch that stay in the
cache, and activations are read by their bits, so that XLA writes none in float32 (docs/performance.md).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxresnet.nn.cpu.chunks import as_bits, as_numbers, float32_by_bits, over_chunks


def at_least_float32(x: Array) -> Array:
    """`x`, of any shape, in float32, or in its own dtype where that has more."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
    x: Array, scale: Array, bias: Array, eps: float, axis_name: str | None, bits: bool = False
) -> tuple[Array, Array, Array]:
    """Normalise `x` (B, H, W, C) by its own statistics, over the batches of all devices where `axis_name` names the
    mapped axis. scale, bias: (C,) float32. bits: for bfloat16 on a CPU, where it is faster with the same result.

    Returns (y of x's shape and dtype, mean (C,), biased variance (C,)). No gradient goes through the latter two: they
    are for the running statistics. For reverse mode only (`jax.grad`, `jax.vjp`): `jax.jvp` raises TypeError.
    """
    return _forward(x, scale, bias, eps, axis_name, bits)[0]


def _forward(x: Array, scale: Array, bias: Array, eps: float, axis_name: str | None, bits: bool):
    means = _sums(lambda x: (x, jnp.square(x)), x, bits=bits) / (x.size // x.shape[-1])
    mean, square = means if axis_name is None else lax.pmean(means, axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0)  # rounding can take it below zero
    factor = lax.rsqrt(var + eps)
    y = (_float32(x, bits) * (scale * factor) + (bias - mean * scale * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, factor)


def _backward(eps: float, axis_name: str | None, bits: bool, residuals, cotangents):
    x, scale, mean, factor = residuals
    dy = cotangents[0]
    dbias, dscale = sums = _sums(lambda dy, x: (dy, dy * ((x - mean) * factor)), dy, x, bits=bits)
    count = x.size // x.shape[-1]
    if axis_name is not None:
        sums = lax.pmean(sums, axis_name)
    normalised = (_float32(x, bits) - mean) * factor
    dx = scale * factor * (_float32(dy, bits) - sums[0] / count - normalised * (sums[1] / count))
    return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_forward, _backward)


def relu(*terms: Array, bits: bool = False) -> Array:
    """max(sum of terms, 0), in their dtype. bits: for bfloat16 on a CPU, where it is faster with the same result."""
    return _relu_of_bits(terms) if bits else jax.nn.relu(sum(terms[1:], terms[0]))


@jax.custom_vjp
def _relu_of_bits(terms: tuple[Array, ...]) -> Array:
    first, *others = map(float32_by_bits, terms)
    return jnp.maximum(sum(others, first), 0).astype(jnp.bfloat16)


def _relu_forward(terms: tuple[Array, ...]) -> tuple[Array, tuple[Array, int]]:
    y = _relu_of_bits(terms)
    return y, (y, len(terms))


def _relu_backward(residuals: tuple[Array, int], dy: Array) -> tuple[tuple[Array, ...]]:
    y, count = residuals  # its sign is that of what was under it, which so need not be kept
    return ((as_numbers(jnp.where(float32_by_bits(y) > 0, as_bits(dy), 0)),) * count,)


_relu_of_bits.defvjp(_relu_forward, _relu_backward)


def _float32(x: Array, bits: bool) -> Array:
    return float32_by_bits(x) if bits else at_least_float32(x)


def _sums(terms: Callable[..., tuple[Array, Array]], *arrays: Array, bits: bool) -> Array:
    """The sums of both terms, each (B, H, W, C), over all but the channels: (2, C). terms: of `arrays`, given in
    float32 at least. bits: in chunks of the batch.

    Image by image, then both over the images at once: on a GPU XLA adds up in two rounds anyway, and would start two
    kernels for the second."""

    def add_up(*arrays: Array) -> Array:
        return jnp.stack([term.sum((1, 2)) for term in terms(*(_float32(array, bits) for array in arrays))]).sum(1)

    if not bits:
        return add_up(*arrays)
    numbers_per_image = 5 * arrays[0][0].size  # an activation, and two terms in float32
    return over_chunks(lambda *chunk: ((), add_up(*chunk)), *arrays, numbers_per_image=numbers_per_image)[1]
