"""Batch normalisation with a gradient of its own (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

Both passes are what an ideal compiler would make of them: one pass over the activations for the sums, one that uses
them. Activations stay in their own dtype; sums and all that is made of them are float32 at least.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax


def at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(x: Array, scale: Array, bias: Array, eps: float, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Normalise `x` (B, H, W, C) by its own statistics, over the batches of all devices where `axis_name` names the
    mapped axis. scale, bias: (C,) float32.

    Returns (y of x's shape and dtype, mean (C,), biased variance (C,)). No gradient goes through the latter two: they
    are for the running statistics. For reverse mode only (`jax.grad`, `jax.vjp`): `jax.jvp` raises TypeError.
    """
    return _forward(x, scale, bias, eps, axis_name)[0]


def _forward(x: Array, scale: Array, bias: Array, eps: float, axis_name: str | None):
    bar = lax.optimization_barrier
    x = bar(x)
    means = _sums(at_least_float32(bar(x)), jnp.square(at_least_float32(bar(bar(x))))) / (x.size // x.shape[-1])
    mean, square = means if axis_name is None else lax.pmean(means, axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0)  # rounding can take it below zero
    factor = lax.rsqrt(var + eps)
    y = (x * (scale * factor) + (bias - mean * scale * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, factor)


def _backward(eps: float, axis_name: str | None, residuals, cotangents):
    x, scale, mean, factor = residuals
    bar = lax.optimization_barrier
    x, dy = bar((x, cotangents[0]))
    x1, dy1, mean1, factor1 = bar((x, dy, mean, factor))
    dbias, dscale = sums = _sums(at_least_float32(bar(dy)), at_least_float32(dy1) * ((x1 - mean1) * factor1))
    dy = at_least_float32(dy)
    normalised = (x - mean) * factor
    count = x.size // x.shape[-1]
    if axis_name is not None:
        sums = lax.pmean(sums, axis_name)
    dx = scale * factor * (dy - sums[0] / count - normalised * (sums[1] / count))
    return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_forward, _backward)


def _sums(a: Array, b: Array) -> Array:
    """The sums of two arrays (B, H, W, C) over all but the channels: (2, C).

    Image by image, then both over the images at once: on a GPU XLA adds up in two rounds anyway, and would start two
    kernels for the second."""
    return jnp.stack([a.sum((1, 2)), b.sum((1, 2))]).sum(1)
